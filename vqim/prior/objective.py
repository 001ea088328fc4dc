"""Stage 2: training a prior on a frozen tokenizer's tokens, and drawing images from it.

    B batch, N positions, K codes a position, C image channels, H W image size
"""
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from vqim.contracts.context import Context
from vqim.contracts.data import Dataset
from vqim.contracts.evaluation import Items
from vqim.contracts.frozen import Frozen
from vqim.contracts.grid import TokenGrid
from vqim.contracts.learning import Computed, MakeLearner, OneLearner
from vqim.contracts.prior import Expecting, Prior, Sampler
from vqim.frozen.from_run import FromRun, fingerprint
from vqim.nn.module import apply
from vqim.prior.guidance import check_learnt_without_classes
from vqim.prior.sampler import StepwiseSampler
from vqim.state import sections
from vqim.state.leaf import State, select
from vqim.tokenizer.model import ImageTokenizer, float_to_images, images_to_float
from vqim.tokenizer.objective import check_image_data
from vqim.tokenizer.reconstruction import reconstruct


class MakePrior(Protocol):
    """A prior's class, with its other arguments bound."""

    def __call__(self, *, grid: TokenGrid, num_classes: int) -> Prior: ...


class PriorObjective(OneLearner):
    """A prior's own loss, on tokens from a cache or from the tokenizer.

    Args:
      tokenizer: the trained tokenizer.
      prior: makes the network, called with `grid` and `num_classes`.
      learner: how it is trained, `@training.Learner`.
      num_classes: the number of classes in the data; 0 trains without classes.
      sampler: the sampler for evaluators and `launch.sample`; by default `StepwiseSampler()`.
    """

    name = "prior"

    def __init__(
        self, tokenizer: FromRun, prior: MakePrior, learner: MakeLearner, num_classes: int,
        sampler: Sampler | None = None,
    ):
        if not isinstance(tokenizer.model, ImageTokenizer):
            raise TypeError(f"tokenizer must be an ImageTokenizer of another run, got {type(tokenizer.model).__name__}")
        self._from_run, self.tokenizer = tokenizer, tokenizer.model
        self.frozen: Mapping[str, Frozen] = {"tokenizer": tokenizer}
        self.prior: Any = prior(grid=self.tokenizer.grid, num_classes=num_classes)
        assert isinstance(self.prior, nn.Module)
        self.num_classes, self.sampler = num_classes, sampler or StepwiseSampler()
        self.learner = learner(name=self.name, module=self.prior)

    def check_data(self, data: Dataset) -> None:
        """Raises ValueError unless the data have the tokenizer's image size or grid, and the prior's classes."""
        check_image_data(data, self.tokenizer)
        if self.num_classes and data.num_classes != self.num_classes:
            raise ValueError(
                f"num_classes must be the data's {data.num_classes}, or 0 to ignore them; got {self.num_classes}")

    def check_tokens(self, data: Dataset, read: Callable[[str], np.ndarray] | None) -> None:
        """See `ReadsTokens`."""
        if not hasattr(data, "check_written_by"):
            return
        names = self.tokenizer.deciding_arrays()
        place = sections.frozen("tokenizer")
        own = (self._from_run.fingerprint(names) if read is None
               else fingerprint({name: read(place + name) for name in names}))
        data.check_written_by(self.tokenizer.grid.as_lists(), own)

    def check_sampler(self, sampler: Sampler) -> None:
        """Raises ValueError if a sampler asks of this prior what it has not learnt."""
        check_learnt_without_classes(sampler, self.prior)

    def compute(
        self, leaves: Mapping[str, State], arrays: State, batch: dict[str, Tensor], context: Context, program: str,
    ) -> Computed:
        """See `vqim.contracts.learning.Objective`."""
        tokens_BNK = self.tokens(arrays, batch, context)
        loss, metrics = apply(self.prior.loss, leaves[self.name], tokens_BNK, batch["labels"], context)
        return Computed({self.name: loss}, metrics)

    def tokens(self, state: State, batch: dict[str, Tensor], context: Context) -> Tensor:
        """The batch's tokens [B, N, K]."""
        if "tokens" in batch:
            return batch["tokens"].long()
        with torch.no_grad():
            images_BCHW = images_to_float(batch["images"])
            return apply(self.tokenizer.tokens, self._frozen(state), images_BCHW, context.evaluation())

    def images(self, state: State, tokens_BNK: Tensor, context: Context) -> Tensor:
        """The images of tokens, rounded to 8 bits: float32 [B, C, H, W] in [0, 1]."""
        decoded_BCHW = apply(self.tokenizer.images, self._frozen(state), tokens_BNK, context.evaluation())
        return images_to_float(float_to_images(decoded_BCHW))

    def prior_arrays(self, state: State) -> State:
        """The arrays with which the prior is evaluated."""
        return sections.network_arrays(state, self.name)

    def reconstruct(
        self, state: State, batch: dict[str, Tensor], context: Context, pictures: bool = True,
    ) -> Items:
        """The frozen tokenizer's reconstructions of images."""
        return reconstruct(self.tokenizer, self._frozen(state), batch, context.evaluation(), pictures)

    def predict(self, state: State, batch: dict[str, Tensor], context: Context, pictures: bool = True) -> Items:
        """The prior's measures of tokens, and with `pictures` reconstructed images and their teacher-forced prediction.

        The prediction decodes the token that the prior expects at each position, given other true tokens (SeQ-GAN
        section 3.2). It exists only for a prior that is `Expecting`.
        """
        labels_B, tokens_BNK = batch["labels"].long(), self.tokens(state, batch, context)
        arrays = self.prior_arrays(state)
        images_BCHW, expected_BCHW = None, None
        if pictures:
            images_BCHW = self.images(state, tokens_BNK, context)
        if pictures and isinstance(self.prior, Expecting):
            expected_BNK = apply(self.prior.expected, arrays, tokens_BNK, labels_B, context)
            expected_BCHW = self.images(state, expected_BNK, context)
        return Items(
            batch["valid"], labels_B, images_BCHW, expected_BCHW, tokens_BNK,
            measures=apply(self.prior.measure, arrays, tokens_BNK, labels_B, context))

    def _frozen(self, state: State) -> State:
        return select(state, sections.frozen("tokenizer"))
