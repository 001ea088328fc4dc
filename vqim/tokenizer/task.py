"""Stage 1: one training step of an image tokenizer.

    B batch, C image channels, H W image size
"""
from typing import Any

import torch
from torch import Tensor

from vqim.nn.context import Context, Kernels
from vqim.nn.layers import check_positive
from vqim.nn.module import apply, spec
from vqim.optim.average import average_rate, average_spec, check_decay, update_average
from vqim.optim.network import accumulate, gradients, trainable, update_network
from vqim.optim.optimizer import Optimizer
from vqim.optim.schedules import Schedule
from vqim.state.health import check_finite, health_spec
from vqim.state.leaf import Spec, State, prefixed, select
from vqim.state.random import step_key
from vqim.tokenizer.adversary import TRAIN, TRAIN_BEFORE_ADVERSARY, Adversary
from vqim.tokenizer.grid import TokenGrid
from vqim.tokenizer.losses import logit_laplace
from vqim.tokenizer.model import ImageTokenizer, Quantized, Reconstruction, images_to_float
from vqim.tokenizer.perceptual import Perceptual

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class TokenizerTask:
    """L = L_VQ + w_adv L_adv + w_perc L_perceptual + w_lap L_logit-laplace + w_2 L_2, ViT-VQGAN section 3.3.

    With an adversary, both networks are updated in the same step, from the same forward pass; a value that is not
    finite in either stops both. There are three programs then: the usual step, one with R1, one before the adversarial
    start.

    Args:
      model: the tokenizer.
      optimizer: of the tokenizer's parameters.
      learning_rate: its schedule.
      quantizer_weight: of the quantizer's own losses, equation (1).
      logit_laplace_weight: 0.1 in the paper; 0 for decoders that give no distribution.
      l2_weight: 1.0 in the paper.
      perceptual: LPIPS, or None to train without (what section 5.3 does for the linear probe).
      perceptual_weight: 0.1 in the paper; with 0, evaluators measure LPIPS and training does without.
      adversary: the discriminator and its training, with the weight of the adversarial term; None trains without.
      max_gradient_norm: gradients are scaled down to this global norm; None leaves them, as the paper does.
      num_micro_batches: each step cuts its batch into so many parts, one after another, to need less memory. What a
        discriminator takes from several pictures, and the adaptive weight, are of each part then.
      dtype: of computation, 'float32' (the paper) or 'bfloat16'; parameters are float32 either way.
      ema_decay: 0.999, say: evaluators, and runs that start from this one, take an exponential moving average of the
        tokenizer's parameters (`vqim.optim.average`). None, as in the paper: the parameters themselves.

    Attributes:
      evaluated: prefix of the parameters' names, or of their average's, that evaluation takes.
    """

    def __init__(
        self, model: ImageTokenizer, optimizer: Optimizer, learning_rate: Schedule, *,
        quantizer_weight: float = 1.0, logit_laplace_weight: float = 0.1, l2_weight: float = 1.0,
        perceptual: Perceptual | None = None, perceptual_weight: float = 0.1,
        adversary: Adversary | None = None,
        max_gradient_norm: float | None = None, num_micro_batches: int = 1, dtype: str = "float32",
        ema_decay: float | None = None,
    ):
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {sorted(DTYPES)}, got {dtype!r}")
        self.model, self.optimizer, self.learning_rate = model, optimizer, learning_rate
        self.weights = {"quantizer": quantizer_weight, "logit_laplace": logit_laplace_weight, "l2": l2_weight,
                        "perceptual": perceptual_weight}
        for name, weight in self.weights.items():
            if not weight >= 0:
                raise ValueError(f"{name}_weight must be at least 0, got {weight}")
        check_positive(num_micro_batches=num_micro_batches)
        if max_gradient_norm is not None and not max_gradient_norm > 0:
            raise ValueError(f"max_gradient_norm must be positive or None, got {max_gradient_norm}")
        self.perceptual, self.max_gradient_norm = perceptual, max_gradient_norm
        self.num_micro_batches, self.dtype = num_micro_batches, DTYPES[dtype]
        check_decay(ema_decay)
        self.ema_decay, self.evaluated = ema_decay, "params/tokenizer/" if ema_decay is None else "ema/tokenizer/"
        self._params = spec(model)
        self.checked = ["loss", *self._params]
        self.adversary = adversary
        if adversary is not None:
            adversary.check_model(model)
            self.checked += adversary.checked

    def init_spec(self) -> Spec:
        """`params/tokenizer`, `ema/tokenizer`, `optimizer/tokenizer`, `frozen/lpips`, the adversary's, health flags."""
        frozen = self.perceptual.init_spec() if self.perceptual else {}
        return {
            **prefixed("params/tokenizer/", self._params),
            **(average_spec("tokenizer", self._params) if self.ema_decay is not None else {}),
            **prefixed("optimizer/tokenizer/", self.optimizer.init_spec(self._params)),
            **prefixed("frozen/lpips/", frozen),
            **(self.adversary.init_spec() if self.adversary else {}),
            **health_spec(self.checked),
        }

    def check_data(self, data: Any) -> None:
        """Raises ValueError unless the data are pictures of the model's size."""
        check_image_data(data, self.model)

    def host_scalars(self, step: int) -> dict[str, float]:
        """Learning rates, the losses' weights, and numbers of the model and of the average that change."""
        weights = {f"weight/{name}": weight for name, weight in self.weights.items()
                   if name != "perceptual" or self.perceptual and weight}
        return {"learning_rate": self.learning_rate(step), **weights, **self.model.host_scalars(step),
                **({} if self.ema_decay is None else {"ema_rate": average_rate(self.ema_decay, step)}),
                **(self.adversary.host_scalars(step) if self.adversary else {})}

    def program(self, step: int) -> str:
        """One for all steps without an adversary; see `Adversary.program`."""
        return self.adversary.program(step) if self.adversary else TRAIN

    def train_step(
        self, state: State, batch: dict[str, Tensor], scalars: dict[str, Tensor], kernels: Kernels,
        program: str = TRAIN,
    ) -> dict[str, Tensor]:
        """One update of `state` in place; see `vqim.training.task.Task`."""
        adversary = self.adversary if program != TRAIN_BEFORE_ADVERSARY else None
        params = trainable(state, "tokenizer")

        def differentiate(part: dict[str, Tensor], key: Tensor) -> dict[str, Any]:
            return self._differentiate(
                state, params, part, scalars, Context(kernels, self.dtype, key, scalars), adversary, program)

        key = step_key(scalars["seed"], scalars["step"], "tokenizer")
        computed = accumulate(differentiate, batch, key, self.num_micro_batches)
        grads, metrics = computed["grads"], computed["metrics"]
        checked = [metrics["loss"], *grads.values()]
        if adversary:
            checked += [computed["discriminator_loss"], *computed["discriminator_grads"].values()]
        # What a program does not compute is not bad.
        checked += [torch.zeros_like(metrics["loss"])] * (len(self.checked) - len(checked))
        keep = check_finite(state, checked, scalars["step"])
        metrics |= update_network(
            state, "tokenizer", grads, self.optimizer, scalars, keep, self.max_gradient_norm)
        if self.ema_decay is not None:
            update_average(state, "tokenizer", scalars["ema_rate"], keep)
        if adversary:
            metrics |= adversary.update(state, computed["discriminator_grads"], metrics, scalars, keep)
        return metrics | {name: (used > 0).float().mean() for name, used in computed["usage"].items()}

    def reconstruct(
        self, state: State, batch: dict[str, Tensor], kernels: Kernels,
    ) -> tuple[Tensor, Quantized, Reconstruction]:
        """Images [B, C, H, W] in [0, 1], their codes and their reconstructions, in evaluation mode and float32."""
        images_BCHW = images_to_float(batch["images"])
        params = select(state, self.evaluated)
        quantized, reconstruction = apply(self.model.forward, params, images_BCHW, Context(kernels))
        return images_BCHW, quantized, reconstruction

    def lpips(self, state: State, a_BCHW: Tensor, b_BCHW: Tensor) -> Tensor | None:
        """LPIPS of each pair of images, [B], in float32; None where the task trains without it."""
        if self.perceptual is None:
            return None
        return self.perceptual(select(state, "frozen/lpips/"), a_BCHW, b_BCHW, torch.float32)

    def describe(self) -> dict[str, int]:
        """Numbers of parameters: encoder, quantizer, decoder, discriminator."""
        parts: dict[str, int] = {}
        for name, leaf in self._params.items():
            part = f"tokenizer/{name.split('/')[0]}"
            parts[part] = parts.get(part, 0) + leaf.size
        return parts | (self.adversary.describe() if self.adversary else {})

    def _differentiate(
        self, state: State, params: State, batch: dict[str, Tensor], scalars: dict[str, Tensor], context: Context,
        adversary: Adversary | None, program: str,
    ) -> dict[str, Any]:
        """Metrics, both networks' gradients and the use of codes in one micro-batch."""
        images_BCHW = images_to_float(batch["images"])
        quantized, reconstruction = apply(self.model.forward, params, images_BCHW, context)
        losses = self._reconstruction_losses(images_BCHW, reconstruction, select(state, "frozen/lpips/"))
        reconstruction_loss = torch.stack([scalars[f"weight/{name}"] * value for name, value in losses.items()]).sum()
        terms = [reconstruction_loss, *(scalars["weight/quantizer"] * value for value in quantized.losses.values())]
        losses |= quantized.losses
        metrics: dict[str, Tensor] = {}
        computed: dict[str, Any] = {"usage": _usage(quantized, self.model.grid)}
        if adversary:
            contest = adversary.judge(state, images_BCHW, reconstruction.mean_BCHW, scalars, context, program)
            weight = adversary.generator_weight(contest, reconstruction_loss, params, scalars)
            losses["adversarial"] = contest.generator_loss
            terms.append(weight * contest.generator_loss)
            metrics = {"weight/adversarial": weight, **contest.metrics}
            computed["discriminator_loss"] = contest.discriminator_loss.detach()
            computed["discriminator_grads"] = contest.gradients()
        loss = torch.stack(terms).sum()
        shown = {f"loss/{name}": value.detach() for name, value in losses.items()}
        return computed | {"metrics": {"loss": loss.detach(), **shown, **metrics}, "grads": gradients(loss, params)}

    def _reconstruction_losses(
        self, images_BCHW: Tensor, reconstruction: Reconstruction, lpips: State,
    ) -> dict[str, Tensor]:
        """What compares a reconstruction with its picture, by name, before its weight."""
        losses = {"l2": (images_BCHW - reconstruction.mean_BCHW).square().mean()}
        if reconstruction.location_BCHW is not None and reconstruction.log_scale_BCHW is not None:
            losses["logit_laplace"] = logit_laplace(
                images_BCHW, reconstruction.location_BCHW, reconstruction.log_scale_BCHW).mean()
        if self.perceptual is not None and self.weights["perceptual"]:
            losses["perceptual"] = self.perceptual(lpips, images_BCHW, reconstruction.mean_BCHW, self.dtype).mean()
        return losses


def _usage(quantized: Quantized, grid: TokenGrid) -> dict[str, Tensor]:
    """By each level's metric's name, float32 1.0 for each code of its vocabulary that occurs, 0.0 for the others."""
    usage = {}
    for name, level, indices in zip(grid.codebook_names, grid.levels, quantized.indices, strict=True):
        unused = torch.zeros(level.vocabulary, device=indices.device)
        usage[f"{name}/batch_usage"] = unused.index_fill(0, indices.flatten(), 1.0)
    return usage


def check_image_data(data: Any, model: ImageTokenizer) -> None:
    """Raises ValueError unless the data's pictures, or cached tokens, are those of the tokenizer."""
    levels = getattr(data, "levels", None)
    if levels is not None and [list(level) for level in levels] != model.grid.as_lists():
        raise ValueError(f"the token cache must have the tokenizer's grid {model.grid.as_lists()} "
                         f"([height, width, channels, vocabulary] of each level), it has {levels}")
    if data.image_size != model.image_size:
        raise ValueError(f"image_size of the data must be the tokenizer's {model.image_size}, got {data.image_size}")
