"""The gin names of all components: a table, in the order in which pictures flow."""
import gin

from vqim.checkpoint import policy
from vqim.classifier import model as classifier_model
from vqim.classifier import resnet
from vqim.classifier import task as classifier_task
from vqim.data import folder, images, source, token_cache, transforms
from vqim.evaluation import classifier as evaluation_classifier
from vqim.evaluation import lpips, rejection
from vqim.evaluation import prior as evaluation_prior
from vqim.evaluation import probe as evaluation_probe
from vqim.evaluation import tokenizer as evaluation_tokenizer
from vqim.optim import adafactor, adamw, groups, schedules
from vqim.prior import autoregressive
from vqim.prior import task as prior_task
from vqim.probe import features
from vqim.probe import task as probe_task
from vqim.runtime import settings
from vqim.tokenizer import adversary, cnn, dvae, model, perceptual, pretrained, vit
from vqim.tokenizer import task as tokenizer_task
from vqim.tokenizer.discriminator import patchgan, stylegan2
from vqim.tokenizer.quantizer import gumbel, hierarchical, vector
from vqim.training import experiment

for module, components in {
    "data": (images.Images, source.Emoji, source.Arrays, source.Idx, folder.ImageFolder, token_cache.Tokens,
             transforms.RandomResizedCrop, transforms.CenterCrop, transforms.Resize),
    "tokenizer": (model.ImageTokenizer, vit.ViTEncoder, vit.ViTDecoder, cnn.CNNEncoder, cnn.CNNDecoder,
                  dvae.DVAEEncoder, dvae.DVAEDecoder, vector.VectorQuantizer, gumbel.GumbelQuantizer,
                  hierarchical.HierarchicalQuantizer, perceptual.Perceptual, adversary.Adversary,
                  stylegan2.StyleGAN2Discriminator, patchgan.PatchGANDiscriminator, pretrained.Pretrained,
                  tokenizer_task.TokenizerTask),
    "prior": (autoregressive.AutoregressivePrior, prior_task.PriorTask),
    "probe": (features.PriorFeatures, features.PixelFeatures, probe_task.ProbeTask),
    "classifier": (classifier_model.ImageClassifier, classifier_model.TrainedClassifier, resnet.TorchvisionResNet,
                   classifier_task.ClassifierTask),
    "optim": (adamw.AdamW, adafactor.Adafactor, groups.Group, schedules.Constant, schedules.WarmupCosine,
              schedules.WarmupExponential),
    "checkpoint": (policy.KeepLatest, policy.KeepEvery, policy.KeepBest),
    "evaluation": (evaluation_tokenizer.ReconstructionEvaluator, evaluation_prior.LikelihoodEvaluator,
                   evaluation_prior.SamplesEvaluator, evaluation_probe.AccuracyEvaluator,
                   evaluation_classifier.ClassifierEvaluator, rejection.RejectionEvaluator, lpips.AlexNetLpips),
}.items():
    for component in components:
        gin.register(component, module=module)

gin.register("Torch", module="runtime")(settings.TorchSettings)
gin.register("Xla", module="runtime")(settings.XlaSettings)
gin.register("train", module="vqim")(experiment.Experiment)
gin.register("sample", module="vqim")(rejection.Rejection)
