"""Gumbel-softmax quantisation: DALL-E's dVAE (Ramesh et al., 2021), and VQGAN trained so (ViT-VQGAN Table 3 *).

    B batch, h w latent size, D latent width, V vocabulary, K = 1 codes a position
"""
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqim.contracts.context import Context
from vqim.contracts.grid import Level
from vqim.contracts.optimizer import Schedule
from vqim.nn.gumbel import gumbel_noise
from vqim.nn.layers import Dense, check_positive
from vqim.nn.module import parameter
from vqim.optim.schedules import Constant
from vqim.state.init import Normal
from vqim.tokenizer.model import Codes, Quantized


class GumbelQuantizer(nn.Module):
    """A distribution over codes at each position. Training draws from it, in a way that lets gradients pass.

    Training mixes the codes' vectors with the weights softmax((logits + Gumbel noise) / temperature) (Jang et al.,
    2017). At a low temperature, one code has nearly all of the weight. `straight_through` gives that code all of the
    weight, with the gradient of the mixture. Evaluation takes the likeliest code.

    Published settings:
      DALL-E's dVAE (Appendix A.2): temperature WarmupCosine(1, 1 / 16, 0, 150_000), not straight-through; its KL weight
        of 6.6, of a loss summed over pixels, is a kl_weight of 6.6 / 192 beside their mean, and rises to it from 0 over
        the first 5,000 steps.
      taming-transformers' class: straight-through, kl_weight 5e-4. Its model vqgan_gumbel_f8 (8192 codes at 32x32):
        temperature WarmupCosine(0.9, 1e-6, 0, 1_000_001), kl_weight 1e-8.

    Args:
      width_in: the width of the encoder's latents.
      width_out: the width of the decoder's inputs.
      vocabulary: the number of codes.
      temperature: a schedule for the temperature, above 0 at every step.
      straight_through: whether the decoder sees one code at each position also in training.
      kl_weight: the weight of the divergence from the uniform distribution, in nats per position; a number or a
        schedule.
      project: whether latents are projected to logits. False takes them as logits; width_in must then be `vocabulary`.
    """

    def __init__(
        self, width_in: int, width_out: int, vocabulary: int, temperature: Schedule,
        straight_through: bool = True, kl_weight: float | Schedule = 5e-4, project: bool = True,
    ):
        super().__init__()
        check_positive(width_in=width_in, width_out=width_out, vocabulary=vocabulary)
        if not project and width_in != vocabulary:
            raise ValueError(f"width_in must be vocabulary = {vocabulary} where latents are not projected to logits, "
                             f"got {width_in}")
        if not temperature(0) > 0:
            raise ValueError(f"temperature must be above 0, got {temperature(0)} at step 0")
        if not callable(kl_weight) and kl_weight < 0:
            raise ValueError(f"kl_weight must be at least 0, got {kl_weight}")
        self.kl_weight = kl_weight if callable(kl_weight) else Constant(kl_weight)
        self.width_in, self.width_out, self.vocabulary = width_in, width_out, vocabulary
        self.temperature, self.straight_through = temperature, straight_through
        self.logits = Dense(width_in, vocabulary) if project else None
        self.codebook_VD = parameter((vocabulary, width_out), Normal(1.0), "vocabulary", "features")
        self.widening = ("codebook_VD",)  # only the logits determine tokens

    def levels(self, height: int, width: int) -> tuple[Level, ...]:
        """One level, with a code for each latent."""
        return (Level(height, width, 1, self.vocabulary),)

    def host_scalars(self, step: int) -> dict[str, float]:
        """The temperature and the weight of the divergence."""
        return {"temperature": self.temperature(step), "kl_weight": self.kl_weight(step)}

    def forward(self, latents_BhwD: Tensor, context: Context) -> Quantized:
        """Latents [B, h, w, width_in] to codes: drawn if the context has a key, else the likeliest, without losses."""
        logits_BhwV = (latents_BhwD if self.logits is None else self.logits(latents_BhwD, context)).float()
        key = context.draw_key("noise")
        if key is None:
            indices = (logits_BhwV.argmax(-1)[..., None],)
            return Quantized(self.lookup(indices, context), indices, {})
        uniform_BhwV = context.kernels.uniform(key, tuple(logits_BhwV.shape), logits_BhwV.device)
        noisy_BhwV = logits_BhwV + gumbel_noise(uniform_BhwV)
        weights_BhwV = (noisy_BhwV / context.scalars["temperature"]).softmax(-1)
        indices_Bhw1 = noisy_BhwV.argmax(-1)[..., None]
        if self.straight_through:
            chosen_BhwV = (indices_Bhw1 == torch.arange(self.vocabulary, device=indices_Bhw1.device)).float()
            weights_BhwV = chosen_BhwV - weights_BhwV.detach() + weights_BhwV
        losses = {"kl": context.scalars["kl_weight"] * divergence_from_uniform(logits_BhwV).mean()}
        vectors_BhwD = weights_BhwV.to(context.dtype) @ self.codebook_VD.to(context.dtype)
        return Quantized(Codes(vectors_BhwD, vectors_BhwD), (indices_Bhw1,), losses)

    def lookup(self, indices: tuple[Tensor, ...], context: Context) -> Codes:
        """Codes [B, h, w, 1] to vectors [B, h, w, width_out]."""
        vectors_BhwD = F.embedding(indices[0][..., 0], self.codebook_VD).to(context.dtype)
        return Codes(vectors_BhwD, vectors_BhwD)


def divergence_from_uniform(logits_V: Tensor) -> Tensor:
    """KL(softmax(logits) || uniform) in nats: float32 [..., V] to [...]."""
    log_q_V = logits_V.log_softmax(-1)
    return (log_q_V.exp() * (log_q_V + math.log(logits_V.shape[-1]))).sum(-1)
