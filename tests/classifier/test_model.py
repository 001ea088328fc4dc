"""The network: a mean over positions that forgets where, a fresh head without a preference, and what a run holds."""
import numpy as np
import pytest
import torch

from vqim.checkpoint.manager import CheckpointManager
from vqim.classifier.model import ImageClassifier, TrainedClassifier
from vqim.contracts.context import Context
from vqim.nn.layers import Dense
from vqim.nn.module import apply, spec
from vqim.runtime.torch import TorchKernels, TorchRuntime
from vqim.state.leaf import prefixed
from vqim.tokenizer.vit import ViTEncoder
from vqim.training.state import TrainState, save, start

CONTEXT = Context(TorchKernels())


class PatchEncoder(torch.nn.Module):
    """Each 4x4 patch on its own: no position, nothing of its neighbours."""

    width = 6

    def __init__(self):
        super().__init__()
        self.dense = Dense(48, self.width)

    def latent_size(self, image_size):
        return image_size // 4, image_size // 4

    def forward(self, images_BCHW, context):
        return self.dense(images_BCHW.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(3), context)


def make_network(num_classes=5):
    return ImageClassifier(ViTEncoder(8, 4, 8, 1, 2, 8), 8, num_classes)


def draw_params(module):
    return {name: 0.3 * torch.randn(leaf.shape) for name, leaf in spec(module).items()}


def test_logits_are_a_softmax_layer_on_the_mean_of_normalised_latents():
    network = ImageClassifier(PatchEncoder(), 8, 5)
    params = draw_params(network)
    images = torch.rand(3, 3, 8, 8)
    latents = apply(network.encoder.forward, {
        name.removeprefix("encoder/"): array for name, array in params.items() if name.startswith("encoder/")},
        images, CONTEXT)
    x = latents.double().numpy().mean((1, 2))
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    x = x * params["norm/gain_D"].numpy() + params["norm/bias_D"].numpy()
    expected = x @ params["head/kernel_IO"].numpy() + params["head/bias_O"].numpy()
    np.testing.assert_allclose(apply(network.forward, params, images, CONTEXT), expected, rtol=1e-3, atol=1e-5)


def test_where_a_patch_lies_makes_no_difference_to_an_encoder_without_positions():
    network = ImageClassifier(PatchEncoder(), 8, 5)
    params, images = draw_params(network), torch.rand(3, 3, 8, 8)
    moved = torch.cat([images[..., 4:], images[..., :4]], -1)
    torch.testing.assert_close(
        apply(network.forward, params, moved, CONTEXT), apply(network.forward, params, images, CONTEXT))


def test_a_fresh_network_holds_every_class_equally_likely():
    network = make_network()
    params = start(spec(network), 0, TorchRuntime()).arrays
    assert torch.equal(apply(network.forward, params, torch.rand(2, 3, 8, 8), CONTEXT), torch.zeros(2, 5))


def test_logits_are_float32_whatever_the_dtype_of_computation():
    network = make_network()
    params, images = draw_params(network), torch.rand(2, 3, 8, 8)
    rough = apply(network.forward, params, images, Context(TorchKernels(), torch.bfloat16))
    exact = apply(network.forward, params, images, CONTEXT)
    assert rough.dtype == exact.dtype == torch.float32
    assert 0 < (rough - exact).abs().max() < 0.05


def test_a_trained_classifier_is_its_runs_network(tmp_path):
    network = make_network()
    leaves = prefixed("params/classifier/", spec(network))
    arrays = {name: 0.3 * torch.randn(leaf.shape) for name, leaf in leaves.items()}
    classifier = TrainedClassifier(make_network(), str(tmp_path))  # the run is not read before it is needed
    manager = CheckpointManager(tmp_path / "checkpoints")
    save(TrainState(arrays, 1, 0), leaves, manager, TorchRuntime(), data_position={}, config="", metrics={})
    manager.wait()
    assert (classifier.image_size, classifier.num_classes) == (8, 5)
    frozen = start(classifier.init_spec(), 0, TorchRuntime()).arrays
    images = torch.rand(2, 3, 8, 8)
    expected = apply(network.forward, {
        name.removeprefix("params/classifier/"): array for name, array in arrays.items()}, images, CONTEXT)
    assert torch.equal(classifier(frozen, images, context=CONTEXT), expected)


def test_one_class_is_no_choice():
    with pytest.raises(ValueError, match="num_classes must be at least 2, got 1"):
        make_network(1)


def test_images_that_do_not_fit_the_encoder_are_refused():
    with pytest.raises(ValueError, match="image_size must be the encoder's own, 8, got 16"):
        ImageClassifier(ViTEncoder(8, 4, 8, 1, 2, 8), 16, 5)
