"""SeQ-GAN's regulariser of codebook use (Gu et al., 2022, section 3.4): the entropy of the soft assignment to codes.

    P latents of a (micro-)batch, Z code dimension, V vocabulary
"""
import math

from torch import Tensor

_SMALLEST = 1e-6  # of squared distances, so that the root's gradient is finite


def unevenness(z_PZ: Tensor, codes_VZ: Tensor) -> Tensor:
    """log V - H(d), in nats: how far the codes' soft use d is from even use; 0 where all codes are used alike.

    d is the mean over latents of softmax(-|z - e|), with Euclidean distances as printed. H is concave, so that one
    latent may choose one code, as long as the batch uses them all.

    The sign. The text says that "penalizing the entropy" makes d smoother, and adds gamma H(d) to a loss that is
    minimised. That would lower the entropy, and empty the codebook. What is meant, as in the works that it cites for
    it, is to raise the entropy: here gamma (log V - H(d)) is added, whose gradient is that of -gamma H(d).

    It is not a mean over images: the entropy of a batch's mean use is more than the mean of its parts' entropies. Under
    data sharding d is the mean over the whole batch; in micro-batches each part is asked for even use by itself, which
    is harder to fulfil with few latents.

    Args:
      z_PZ: float32 latents in the codes' space.
      codes_VZ: float32 codes; gradients reach both.
    """
    squared_PV = z_PZ.square().sum(-1, keepdim=True) + codes_VZ.square().sum(-1) - 2 * z_PZ @ codes_VZ.mT
    use_V = (-squared_PV.clamp_min(_SMALLEST).sqrt()).softmax(-1).mean(0)
    # A use that rounds to zero adds zero, and has a finite gradient.
    entropy = -(use_V * use_V.clamp_min(1e-30).log()).sum()
    return math.log(len(codes_VZ)) - entropy
