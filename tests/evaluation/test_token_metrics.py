"""Evaluators of both stages on a tokenizer of two levels, against counting by hand."""
import math

import numpy as np
import pytest
import torch

from vqim.data.source import Emoji
from vqim.evaluation.prior import LikelihoodEvaluator
from vqim.evaluation.tokenizer import ReconstructionEvaluator
from vqim.nn.context import Context
from vqim.nn.module import apply, spec
from vqim.optim.adamw import AdamW
from vqim.optim.schedules import Constant
from vqim.prior.autoregressive import AutoregressivePrior
from vqim.prior.task import PriorTask
from vqim.runtime.torch import TorchRuntime
from vqim.state.leaf import prefixed, select
from vqim.tokenizer.model import ImageTokenizer, images_to_float
from vqim.tokenizer.pretrained import Pretrained
from vqim.tokenizer.quantizer.hierarchical import HierarchicalQuantizer
from vqim.tokenizer.quantizer.vector import VectorQuantizer
from vqim.tokenizer.task import TokenizerTask
from vqim.tokenizer.vit import ViTDecoder, ViTEncoder

RUNTIME = TorchRuntime()
NUM_PICTURES, BATCH_SIZE = 300, 128
SIZES = (12, 20)


class Pictures:
    """300 emoji of 16x16 pixels; the last batch is padded."""

    class_names = ()
    num_classes = 0
    image_size = 16

    def __init__(self):
        source = Emoji("train")
        self.images = np.stack([np.asarray(source[i].image)[::4, ::4] for i in range(NUM_PICTURES)])

    def num_examples(self, split):
        return NUM_PICTURES

    def evaluation(self, batch_size, **kwargs):
        for start in range(0, NUM_PICTURES, batch_size):
            part = self.images[start:start + batch_size]
            valid = np.arange(batch_size) < len(part)
            padding = np.zeros((batch_size - len(part), *part.shape[1:]), np.uint8)
            yield {"images": np.concatenate([part, padding]), "labels": np.zeros(batch_size, np.int32), "valid": valid}


@pytest.fixture(name="data", scope="module")
def make_data():
    return Pictures()


@pytest.fixture(name="tokenizer")
def make_tokenizer():
    quantizer = HierarchicalQuantizer(
        16, VectorQuantizer(32, 32, SIZES[0], 4), VectorQuantizer(48, 8, SIZES[1], 4), num_blocks=1)
    return ImageTokenizer(ViTEncoder(16, 4, 16, 1, 2, 16), quantizer, ViTDecoder(16, 4, 40, 1, 2, 16), 16)


def draw(module, seed):
    generator = torch.Generator().manual_seed(seed)
    return {name: 0.3 * torch.randn(leaf.shape, generator=generator) for name, leaf in spec(module).items()}


def codes_of(tokenizer, params, data):
    images = images_to_float(torch.from_numpy(data.images))
    return apply(tokenizer.encode, params, images, Context(RUNTIME.kernels)).indices


def entropy(indices):
    shares = indices.flatten().bincount().double() / indices.numel()
    return -sum(share * math.log2(share) for share in shares.tolist() if share)


def test_the_use_of_each_levels_codes_is_measured_as_table_4_does(tokenizer, data):
    task, params = TokenizerTask(tokenizer, AdamW(), Constant(1e-3)), draw(tokenizer, 0)
    results = ReconstructionEvaluator(BATCH_SIZE, num_images=2)(
        task, data, prefixed("params/tokenizer/", params), RUNTIME)
    for level, (indices, size) in enumerate(zip(codes_of(tokenizer, params, data), SIZES, strict=True)):
        name = f"codebook/level_{level}"
        assert results[f"{name}/usage"] == len(indices.unique()) / size
        assert results[f"{name}/usage_per_batch"] == len(indices[:256].unique()) / size  # the rest is no whole batch
        assert results[f"{name}/entropy_bits"] == pytest.approx(entropy(indices))
        assert len(results[f"{name}/histogram"].values) == indices.numel()
    assert not {name for name in results if name.startswith("codebook/") and not name.startswith("codebook/level_")}


def test_one_level_keeps_the_short_names(data):
    tokenizer = ImageTokenizer(ViTEncoder(16, 4, 16, 1, 2, 16), VectorQuantizer(16, 16, 20, 4),
                               ViTDecoder(16, 4, 16, 1, 2, 16), 16)
    task, params = TokenizerTask(tokenizer, AdamW(), Constant(1e-3)), draw(tokenizer, 0)
    results = ReconstructionEvaluator(BATCH_SIZE, num_images=2)(
        task, data, prefixed("params/tokenizer/", params), RUNTIME)
    assert {name for name in results if name.startswith("codebook/")} == {
        f"codebook/{measure}" for measure in ("usage", "usage_per_batch", "entropy_bits", "perplexity", "histogram")}
    indices, = codes_of(tokenizer, params, data)
    assert results["codebook/usage_per_batch"] == len(indices[:256].unique()) / 20


def test_a_priors_bits_are_compared_with_the_unigram_of_each_level(tokenizer, data):
    def make_prior(grid, num_classes):
        return AutoregressivePrior(grid, num_classes, width=8, num_layers=1, num_heads=2, hidden=8)

    task = PriorTask(Pretrained(tokenizer, "nowhere"), make_prior, AdamW(), Constant(1e-3), 0)
    frozen, params = draw(tokenizer, 0), draw(task.prior, 1)
    state = {**prefixed("frozen/tokenizer/", frozen), **prefixed("params/prior/", params)}
    results = LikelihoodEvaluator(BATCH_SIZE, num_images=2)(task, data, state, RUNTIME)
    top, bottom = codes_of(tokenizer, frozen, data)
    expected = (4 * entropy(top) + 16 * entropy(bottom)) / 20
    assert results["evaluation/unigram_bits_per_token"] == pytest.approx(expected)
    tokens = torch.cat([top.flatten(1), bottom.flatten(1)], 1)[..., None]
    losses = apply(task.prior.token_losses, select(state, "params/prior/"), tokens, None, Context(RUNTIME.kernels))
    assert results["evaluation/bits_per_token"] == pytest.approx(losses.mean().item() / math.log(2), rel=1e-5)
    assert results["images/true_and_teacher_forced"].shape == (4, 16, 16, 3)
