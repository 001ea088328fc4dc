"""Small real images, and tasks of both stages with random parameters."""
import functools

import numpy as np
import pytest
import torch

from vqim.contracts.learning import Learner
from vqim.data.source import Emoji
from vqim.frozen.from_run import FromRun
from vqim.nn.module import spec
from vqim.optim.adamw import AdamW
from vqim.optim.schedules import Constant
from vqim.prior.autoregressive import AutoregressivePrior
from vqim.prior.objective import PriorObjective
from vqim.state.leaf import prefixed
from vqim.tokenizer.model import ImageTokenizer
from vqim.tokenizer.objective import TokenizerObjective
from vqim.tokenizer.quantizer.hierarchical import HierarchicalQuantizer
from vqim.tokenizer.quantizer.vector import VectorQuantizer
from vqim.tokenizer.terms import L2
from vqim.tokenizer.vit import ViTDecoder, ViTEncoder
from vqim.training.gradient_task import GradientTask

LEARNER = functools.partial(Learner, optimizer=AdamW(), learning_rate=Constant(1e-3))


class Images:
    """300 emoji of 16x16 pixels and three classes in turn.

    The last batch is filled up with what would count if it were looked at.
    """

    class_names = ("a", "b", "c")
    num_classes = 3
    image_size = 16

    def __init__(self):
        source = Emoji("train")
        self.images = np.stack([np.asarray(source[i].image)[::4, ::4] for i in range(300)])
        self.labels = np.arange(300, dtype=np.int32) % 3
        self.num_batches = 0
        """How many have been asked for."""

    def num_examples(self, split):
        return len(self._of(split)[0])

    def evaluation(self, batch_size, *, split="validation", process_index=0, process_count=1, first_batch=0,
                   num_examples=None):
        images, labels = self._of(split)
        if num_examples is not None:
            rows = np.arange(num_examples) * len(images) // num_examples
            images, labels = images[rows], labels[rows]
        for start in range(first_batch * batch_size, len(images), batch_size):
            self.num_batches += 1
            rows = np.minimum(np.arange(start, start + batch_size), len(images) - 1)
            yield {"images": images[rows], "labels": labels[rows],
                   "valid": np.arange(start, start + batch_size) < len(images)}

    def _of(self, split):
        """All, or the first 50 as if one had trained on those."""
        count = {"validation": 300, "train": 50}[split]
        return self.images[:count], self.labels[:count]


@pytest.fixture
def data():
    """Images of which no batch has been taken yet."""
    return Images()


def draw(module, seed):
    """Random parameters; initial values have zero biases."""
    generator = torch.Generator().manual_seed(seed)
    return {name: 0.3 * torch.randn(leaf.shape, generator=generator) for name, leaf in spec(module).items()}


@pytest.fixture
def make_tokenizer():
    """`make_tokenizer(sizes=(20,), **arguments of the decoder)`: 16x16 images to tokens, of two levels for two."""
    def make(sizes=(20,), **kwargs):
        if len(sizes) == 1:
            quantizer, width = VectorQuantizer(16, 16, sizes[0], 4), 16
        else:
            quantizer, width = HierarchicalQuantizer(
                16, VectorQuantizer(32, 32, sizes[0], 4), VectorQuantizer(48, 8, sizes[1], 4), num_blocks=1), 40
        decoder = ViTDecoder(16, 4, width, 1, 2, 16, **kwargs)
        return ImageTokenizer(ViTEncoder(16, 4, 16, 1, 2, 16), quantizer, decoder, 16)
    return make


@pytest.fixture
def tokenizer_run(make_tokenizer):
    """`tokenizer_run(seed=0, terms=..., sizes=...)`: a task of stage 1 and a state of it."""
    def make(seed=0, terms=None, **kwargs):
        model = make_tokenizer(**kwargs)
        task = GradientTask(TokenizerObjective(model, LEARNER, terms or [L2()]))
        return task, prefixed("params/tokenizer/", draw(model, seed))
    return make


@pytest.fixture
def prior_run(make_tokenizer):
    """`prior_run(seed=0, num_classes=3, sizes=..., prior=...)`: a task of stage 2 and a state of it."""
    def make(seed=0, num_classes=3, sizes=(20,), prior=AutoregressivePrior, **kwargs):
        model = make_tokenizer(sizes)
        prior = functools.partial(prior, width=8, num_layers=1, num_heads=2, hidden=8, class_dropout_rate=0.1)
        task = GradientTask(PriorObjective(FromRun(model, "nowhere"), prior, LEARNER, num_classes), **kwargs)
        return task, {**prefixed("frozen/tokenizer/", draw(model, seed)),
                      **prefixed("params/prior/", draw(task.objective.prior, seed + 1))}
    return make
