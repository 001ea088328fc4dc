"""A table of the gin names of all components, in the order in which images pass through them."""
import gin

from vqim.checkpoint import policy
from vqim.classifier import model as classifier_model
from vqim.classifier import objective as classifier_objective
from vqim.contracts import learning
from vqim.data import folder, images, lmdb_images, source, tar_shards, token_cache, transforms
from vqim.evaluation import (
    accuracy,
    extractors,
    image_metrics,
    passes,
    rejection,
    repetition,
    samples,
    sensitivity,
    set_metrics,
    token_metrics,
)
from vqim.frozen import alexnet, efficientnet, from_run, inception, lpips, resnet, vgg16, vgg16_classifier
from vqim.nn import convolution
from vqim.optim import adafactor, adamw, groups, schedules
from vqim.prior import autoregressive, guidance, masked, masked_sampler, rq_transformer, sampler
from vqim.prior import objective as prior_objective
from vqim.probe import features
from vqim.probe import objective as probe_objective
from vqim.runtime import settings
from vqim.tokenizer import cnn, dvae, initial, model, semantic, seq_gan, terms, vit
from vqim.tokenizer import objective as tokenizer_objective
from vqim.tokenizer.discriminator import adversary, patchgan, stylegan2
from vqim.tokenizer.quantizer import gumbel, hierarchical, kmeans, multichannel, residual, vector
from vqim.training import experiment, gradient_task, start_from

for module, components in {
    "data": (images.Images, source.Emoji, source.Arrays, source.Idx, folder.ImageFolder, lmdb_images.Lmdb,
             tar_shards.TarShards,
             token_cache.Tokens, transforms.RandomCrop, transforms.RandomResizedCrop, transforms.CenterCrop,
             transforms.Resize),
    "nn": (convolution.GroupNorm, convolution.SpatialNorm, convolution.AttentionBlock),
    "frozen": (vgg16.VGG16, vgg16_classifier.TorchvisionVGG16, alexnet.AlexNet, lpips.Lpips, resnet.TorchvisionResNet,
               efficientnet.EfficientNetLite0, inception.Inception, from_run.FromRun),
    "tokenizer": (model.ImageTokenizer, vit.ViTEncoder, vit.ViTDecoder, cnn.CNNEncoder, cnn.CNNDecoder,
                  dvae.DVAEEncoder, dvae.DVAEDecoder, seq_gan.SeQGANDecoder, vector.VectorQuantizer,
                  gumbel.GumbelQuantizer, hierarchical.HierarchicalQuantizer, multichannel.MultichannelQuantizer,
                  residual.ResidualQuantizer, kmeans.KMeans,
                  initial.FourierFeatures, initial.Sinusoids, initial.LearnedConstant,
                  terms.L1, terms.L2, terms.LogitLaplace, terms.Perceptual, semantic.SemanticPerceptual,
                  adversary.Adversary, stylegan2.StyleGAN2Discriminator, patchgan.PatchGANDiscriminator,
                  tokenizer_objective.TokenizerObjective),
    "prior": (autoregressive.AutoregressivePrior, rq_transformer.RQTransformer, masked.MaskedPrior,
              sampler.StepwiseSampler, masked_sampler.MaskedSampler, guidance.GuidanceSchedule,
              prior_objective.PriorObjective),
    "probe": (features.PriorFeatures, features.PixelFeatures, probe_objective.ProbeObjective),
    "classifier": (classifier_model.ImageClassifier, classifier_model.TrainedClassifier,
                   classifier_objective.ClassifierObjective),
    "optim": (adamw.AdamW, adafactor.Adafactor, groups.Group, schedules.Constant, schedules.WarmupCosine,
              schedules.WarmupExponential, schedules.WarmupLinear),
    "training": (gradient_task.GradientTask, learning.Learner, start_from.StartFrom),
    "checkpoint": (policy.KeepLatest, policy.KeepEvery, policy.KeepHourly, policy.KeepBest),
    "evaluation": (passes.Reconstructions, passes.Predictions, passes.Classifications, samples.Samples,
                   image_metrics.Distances, image_metrics.Lpips, image_metrics.ShownImages, token_metrics.CodebookUse,
                   token_metrics.Likelihood, accuracy.Accuracy, rejection.Rejection, set_metrics.FeatureDistances,
                   set_metrics.WaveletDistance, extractors.InceptionFeatures, extractors.ProxyFeatures,
                   extractors.VGG16Features, repetition.Repetition, sensitivity.Disturbances, sensitivity.TokenChanges),
}.items():
    for component in components:
        gin.register(component, module=module)

gin.register("Torch", module="runtime")(settings.TorchSettings)
gin.register("Xla", module="runtime")(settings.XlaSettings)
gin.register("train", module="vqim", denylist=["needs_data"])(experiment.Experiment)
gin.register("sample", module="vqim")(rejection.Acceptance)
