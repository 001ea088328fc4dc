"""k-means re-initialisation of a codebook: 'K-means' in SeQ-GAN's Table 5, after Lancucki et al. (2020).

Latents of the last batches are kept in a reservoir. Now and then, early in training, the codebook is replaced by the
centres of k-means over it, whatever the codes were. That is a program of its own with a fixed number of iterations.

    P latents of a (micro-)batch, R = batches * V latents in the reservoir, Z code dimension, V vocabulary
"""
import dataclasses

import torch
from torch import Tensor

from vqim.contracts.context import Kernels
from vqim.nn.layers import check_positive
from vqim.tokenizer.quantizer.distance import relative_distance


@dataclasses.dataclass(frozen=True)
class KMeans:
    """When a codebook is re-initialised, and how.

    The paper gives none of these numbers.

    Attributes:
      every: the codebook is re-initialised after every so many steps, at first after `every` steps.
      until: not after this step, so that codes can settle.
      batches: the number of batches of which the reservoir keeps latents: V of each, drawn from all of its positions.
      iterations: the number of iterations of Lloyd's algorithm.
    """

    every: int = 1_000
    until: int = 10_000
    batches: int = 8
    iterations: int = 10

    def __post_init__(self) -> None:
        check_positive(every=self.every, until=self.until, batches=self.batches, iterations=self.iterations)
        if self.until < self.every:
            raise ValueError(f"until must be at least every = {self.every}, the first step at which the codebook is "
                             f"re-initialised; got {self.until}")
        if self.batches > self.every:
            raise ValueError(f"batches must be at most every = {self.every}, to have been filled by then; got "
                             f"{self.batches}")

    def is_due(self, step: int) -> bool:
        """Whether the codebook is re-initialised at the end of the update number `step`, from 0."""
        return (step + 1) % self.every == 0 and step + 1 <= self.until


def kept(reservoir_RZ: Tensor, picks_VZ: Tensor) -> Tensor:
    """The reservoir after a step: a batch's picked latents (`upkeep.upkeep_sums`) come first, the oldest ones go."""
    return torch.cat([picks_VZ, reservoir_RZ[:-len(picks_VZ)]])


def centres(reservoir_RZ: Tensor, picks_VZ: Tensor, iterations: int, kernels: Kernels) -> Tensor:
    """The centres [V, Z] of k-means over the reservoir.

    It starts from the last batch's picks, which are draws from the latents. A centre that no latent is nearest to goes
    back to its pick.
    """
    centres_VZ = picks_VZ
    for _ in range(iterations):
        counts_V, sums_VZ = torch.zeros_like(picks_VZ[:, 0]), torch.zeros_like(picks_VZ)
        for block_VZ in reservoir_RZ.split(len(picks_VZ)):  # all at once would need R x V distances
            distance_VV = relative_distance(block_VZ, centres_VZ, kernels)
            more_V, more_VZ = kernels.sums_by_code(block_VZ, distance_VV.argmin(-1), len(picks_VZ))
            counts_V, sums_VZ = counts_V + more_V, sums_VZ + more_VZ
        means_VZ = sums_VZ / counts_V.clamp_min(1.0)[:, None]
        centres_VZ = torch.where(counts_V[:, None] > 0, means_VZ, picks_VZ)
    return centres_VZ
