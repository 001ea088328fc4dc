"""Stage 1: the losses from which an image tokenizer and its adversary learn.

    B batch, C image channels, H W image size
"""
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vqim.contracts.context import Context
from vqim.contracts.data import Dataset
from vqim.contracts.evaluation import Items
from vqim.contracts.frozen import merge_frozen
from vqim.contracts.grid import TokenGrid
from vqim.contracts.learning import Advanced, Advancing, Computed, Learner, MakeLearner, Rebuilding
from vqim.nn.module import apply, arrays_spec, spec
from vqim.state import sections
from vqim.state.leaf import Spec, State, select
from vqim.tokenizer.discriminator.adversary import NAME as DISCRIMINATOR
from vqim.tokenizer.discriminator.adversary import TRAIN, TRAIN_BEFORE_ADVERSARY, Adversary
from vqim.tokenizer.model import ImageTokenizer, Quantized, images_to_float
from vqim.tokenizer.reconstruction import reconstruct
from vqim.tokenizer.terms import Term, weight_at

_QUANTIZER = "quantizer/"
_THEN_REBUILD = "_then_rebuild"  # ends the names of programs in which the quantizer makes its codebook anew


class TokenizerObjective:
    """L = L_VQ + w_adv L_adv + sum of w L over the loss terms, ViT-VQGAN section 3.3.

    With an adversary, both networks are updated in the same step, from the same forward pass. There are then three
    programs: the usual step, a step with R1, and a step before the adversarial start. Each of them has a twin where a
    quantizer makes its codebook anew (`vqim.contracts.learning.Rebuilding`).

    Args:
      model: the tokenizer.
      learner: how it is trained, `@training.Learner`.
      terms: the loss terms that compare reconstructions with images.
      quantizer_weight: the weight of the quantizer's own losses, equation (1).
      adversary: the discriminator and how it is trained, with the weight of the adversarial term; None for none.
    """

    name = "tokenizer"

    def __init__(
        self, model: ImageTokenizer, learner: MakeLearner, terms: Sequence[Term], *, quantizer_weight: float = 1.0,
        adversary: Adversary | None = None,
    ):
        if not quantizer_weight >= 0:
            raise ValueError(f"quantizer_weight must be at least 0, got {quantizer_weight}")
        names = [term.name for term in terms]
        if len(set(names)) < len(names):
            raise ValueError(f"terms must have names that differ, got {names}")
        self.tokenizer, self.quantizer_weight, self.adversary = model, quantizer_weight, adversary
        self.terms = [term for term in terms if callable(term.weight) or term.weight]
        self.frozen = merge_frozen({f"term {term.name}": dict(term.frozen) for term in self.terms})
        self._learner = learner(name=self.name, module=model)
        if adversary is not None:
            adversary.check_model(model, model.image_size)

    def statistics(self) -> Spec:
        """The adversary's statistics."""
        return self.adversary.statistics() if self.adversary else {}

    def check_data(self, data: Dataset) -> None:
        """Raises ValueError unless the data are images of the model's size."""
        check_image_data(data, self.tokenizer)

    def check_batch(self, batch_size: int) -> None:
        """As for the discriminator."""
        if self.adversary:
            self.adversary.discriminator.check_batch(batch_size)

    def program(self, step: int) -> str:
        """One for all steps without an adversary, see `Adversary.program`; its twin where a codebook is made anew."""
        program = self.adversary.program(step) if self.adversary else TRAIN
        quantizer = self.tokenizer.quantizer
        return program + _THEN_REBUILD if isinstance(quantizer, Rebuilding) and quantizer.is_due(step) else program

    def learners(self, program: str | None = None) -> tuple[Learner, ...]:
        """The tokenizer, and after the adversarial start also the discriminator."""
        if self.adversary is None or program is not None and _without_rebuilding(program) == TRAIN_BEFORE_ADVERSARY:
            return (self._learner,)
        return self._learner, self.adversary.learner

    def host_scalars(self, step: int) -> dict[str, float]:
        """The weights of the losses, and the model's scheduled numbers."""
        weights = {f"weight/{term.name}": weight_at(term.weight, step) for term in self.terms}
        return {"weight/quantizer": self.quantizer_weight, **weights, **self.tokenizer.host_scalars(step),
                **(self.adversary.host_scalars(step) if self.adversary else {})}

    def compute(
        self, leaves: Mapping[str, State], arrays: State, batch: dict[str, Tensor], context: Context, program: str,
    ) -> Computed:
        """See `vqim.contracts.learning.Objective`."""
        program, scalars, params = _without_rebuilding(program), context.scalars, leaves[self.name]
        images_BCHW = images_to_float(batch["images"])
        quantized, reconstruction = apply(self.tokenizer.forward, params, images_BCHW, context)
        losses = {term.name: term(images_BCHW, reconstruction, self._frozen_of(term, arrays), context)
                  for term in self.terms}
        weighted = [scalars[f"weight/{name}"] * value for name, value in losses.items()]
        reconstruction_loss = torch.stack(weighted).sum() if weighted else images_BCHW.new_zeros(())
        parts = [reconstruction_loss, *(scalars["weight/quantizer"] * value for value in quantized.losses.values())]
        losses |= quantized.losses
        metrics: dict[str, Tensor] = {}
        others: dict[str, Tensor] = {}
        if self.adversary and program != TRAIN_BEFORE_ADVERSARY:
            step = self.adversary.step(
                leaves[DISCRIMINATOR], arrays, images_BCHW, reconstruction.mean_BCHW, context, program)
            weight = self.adversary.generator_weight(
                step, reconstruction_loss, params, context, self.tokenizer.decoder.image_part)
            losses["adversarial"] = step.generator_loss
            parts.append(weight * step.generator_loss)
            metrics, others = {"weight/adversarial": weight, **step.metrics}, {DISCRIMINATOR: step.loss}
        shown = {f"loss/{name}": value.detach() for name, value in losses.items()}
        sums = {f"{_QUANTIZER}{name}": value.detach() for name, value in quantized.sums.items()}
        return Computed({self.name: torch.stack(parts).sum(), **others}, shown | metrics,
                        _presence(quantized, self.tokenizer.grid) | sums)

    def advance(self, arrays: State, computed: Computed, context: Context, program: str) -> Advanced:
        """New statistics of the quantizer and the adversary, and the share of codes that occur in the batch.

        Where a quantizer changes a parameter, the parameter's moving average gets the new value too. Its slots do
        not change: of a code that restarts they are near zero, since hardly anything has chosen it. After a rebuild
        of all codes they are still those of the old ones, and fade as fast as the optimizer's moments do.
        """
        new: State = {}
        shown: dict[str, Tensor] = {}
        quantizer = self.tokenizer.quantizer
        base = _without_rebuilding(program)
        if isinstance(quantizer, Advancing):
            own = select(self._arrays(arrays), _QUANTIZER)
            advance = quantizer.advance
            if base != program and isinstance(quantizer, Rebuilding):
                advance = quantizer.rebuild
            advanced = apply(advance, own, select(computed.sums, _QUANTIZER), context.fold("quantizer"))
            shown = {f"codebook/{name}": value for name, value in advanced.metrics.items()}
            for name, value in advanced.arrays.items():
                new |= self._written(arrays, _QUANTIZER + name, value)
        if self.adversary and base != TRAIN_BEFORE_ADVERSARY:
            new |= self.adversary.advance(arrays, computed, context)
        usage = {name: (present > 0).float().mean() for name, present in computed.sums.items()
                 if not name.startswith(_QUANTIZER)}
        return Advanced(new, usage | shown)

    def reconstruct(
        self, state: State, batch: dict[str, Tensor], context: Context, pictures: bool = True,
    ) -> Items:
        """Images, their tokens and with `pictures` their reconstructions, in evaluation mode and dtype."""
        arrays = sections.network_arrays(state, self.name)
        return reconstruct(self.tokenizer, arrays, batch, context.evaluation(), pictures)

    def tokens(self, state: State, batch: dict[str, Tensor], context: Context) -> Tensor:
        """The tokens [B, N, K] of a batch of images, in evaluation mode and dtype."""
        arrays = sections.network_arrays(state, self.name)
        return apply(self.tokenizer.tokens, arrays, images_to_float(batch["images"]), context.evaluation())

    def _frozen_of(self, term: Term, arrays: State) -> dict[str, State]:
        return {name: select(arrays, sections.frozen(name)) for name in term.frozen}

    def _arrays(self, state: State) -> State:
        """The tokenizer's own arrays, not their moving averages."""
        params = spec(self.tokenizer)
        return {name: state[(sections.params if name in params else sections.statistics)(self.name) + name]
                for name in arrays_spec(self.tokenizer)}

    def _written(self, arrays: State, name: str, value: Tensor) -> State:
        """A new value for one of the tokenizer's arrays and for its moving average, by their names in the state."""
        parameter, average = sections.params(self.name) + name, sections.ema(self.name) + name
        if parameter not in arrays:
            return {sections.statistics(self.name) + name: value}
        if average not in arrays:
            return {parameter: value}
        return {parameter: value, average: torch.where(value == arrays[parameter], arrays[average], value)}


def _without_rebuilding(program: str) -> str:
    return program.removesuffix(_THEN_REBUILD)


def _presence(quantized: Quantized, grid: TokenGrid) -> dict[str, Tensor]:
    """For each level, by its metric's name: float32 1.0 for each code that occurs, 0.0 for the other codes."""
    found = {}
    for name, level, indices in zip(grid.codebook_names, grid.levels, quantized.indices, strict=True):
        absent = torch.zeros(level.vocabulary, device=indices.device)
        found[f"{name}/batch_usage"] = absent.index_fill(0, indices.flatten(), 1.0)
    return found


def check_image_data(data: Dataset, model: ImageTokenizer) -> None:
    """Raises ValueError unless the data's images, or cached tokens, fit the tokenizer."""
    levels = getattr(data, "levels", None)
    if levels is not None and [list(level) for level in levels] != model.grid.as_lists():
        raise ValueError(f"the token cache must have the tokenizer's grid {model.grid.as_lists()} "
                         f"([height, width, channels, vocabulary] of each level), it has {levels}")
    if data.image_size != model.image_size:
        raise ValueError(f"image_size of the data must be the tokenizer's {model.image_size}, got {data.image_size}")
