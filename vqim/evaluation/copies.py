"""Whether samples are new images: distances between samples and the images that a model was trained on.

    N samples, M references, H W image size, P values of an image
"""
import dataclasses

import numpy as np

BLOCK = 256
"""Samples at a time, so that memory does not grow with their number."""

REFERENCES = 4096
"""References at a time: of more, a block's distances would have to be mapped by the system each time."""


@dataclasses.dataclass(frozen=True)
class Copies:
    """How near samples are to training images, and to each other, beside real images that were held out.

    Distances are root mean squares over an image's values, which are in [0, 1].

    Attributes:
      nearest_N: each sample's training image of the least distance, as its number.
      to_nearest_N: that distance.
      median_ratio: the median of these distances, over the same median of the held-out images. Well below 1, samples
        are copies.
      near_duplicates: the share of samples nearer to a training image than `threshold`.
      real_near_duplicates: that share of the held-out images; above 0 where the set itself has near-duplicates.
      threshold: the distance below which an image counts as a near-duplicate.
      spread_ratio: the mean distance between two samples, over that between two held-out images. Well below 1, the
        samples are alike.
    """

    nearest_N: np.ndarray
    to_nearest_N: np.ndarray
    median_ratio: float
    near_duplicates: float
    real_near_duplicates: float
    threshold: float
    spread_ratio: float


def measure_copies(
    samples_NHWC: np.ndarray, training_MHWC: np.ndarray, held_out_RHWC: np.ndarray, threshold: float,
) -> Copies:
    """Compares samples with training images and with held-out images, all uint8.

    Training images are also compared mirrored, since most training flips them.

    Args:
      samples_NHWC: the samples.
      training_MHWC: the images that the model was trained on.
      held_out_RHWC: real images that it was not trained on.
      threshold: the distance of near-duplicates. A copy passes through a tokenizer, so take the median distance
        between training images and their reconstructions, or a little more.
    """
    training_MP, num_training = _flat(np.concatenate([training_MHWC, training_MHWC[:, :, ::-1]])), len(training_MHWC)
    samples_NP, held_out_RP = _flat(samples_NHWC), _flat(held_out_RHWC)
    nearest_N, to_nearest_N = _nearest(samples_NP, training_MP)
    _, real_R = _nearest(held_out_RP, training_MP)
    return Copies(
        nearest_N % num_training, to_nearest_N, float(np.median(to_nearest_N) / np.median(real_R)),
        float((to_nearest_N < threshold).mean()), float((real_R < threshold).mean()), threshold,
        _mean_distance(samples_NP) / _mean_distance(held_out_RP))


def _flat(images_NHWC: np.ndarray) -> np.ndarray:
    """Values such that the Euclidean distance of two images is the root mean square of their difference."""
    values_NP = images_NHWC.reshape(len(images_NHWC), -1).astype(np.float32) / 255
    return values_NP / np.float32(np.sqrt(values_NP.shape[1]))


def _nearest(a_NP: np.ndarray, b_MP: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The number of each image's nearest reference, and the distance to it."""
    nearest_N, least_N = np.zeros(len(a_NP), np.int64), np.full(len(a_NP), np.inf)
    for j in range(0, len(b_MP), REFERENCES):
        block_MP = b_MP[j:j + REFERENCES]
        squares_M = (block_MP ** 2).sum(1)
        for i in range(0, len(a_NP), BLOCK):
            # Without the images' own squares, which are the same for all references.
            squares_NM = squares_M - 2 * a_NP[i:i + BLOCK] @ block_MP.T
            found_N, best_N = squares_NM.argmin(1), squares_NM.min(1)
            nearer_N = best_N < least_N[i:i + BLOCK]
            nearest_N[i:i + BLOCK][nearer_N] = found_N[nearer_N] + j
            least_N[i:i + BLOCK][nearer_N] = best_N[nearer_N]
    return nearest_N, np.linalg.norm(a_NP - b_MP[nearest_N], axis=1)  # exact also where it is almost 0


def _mean_distance(a_NP: np.ndarray) -> float:
    """The mean distance between two different images."""
    exact_NP = a_NP.astype(np.float64)  # in float32, an image would have a distance to itself
    squares_N = (exact_NP ** 2).sum(1)
    total = 0.0
    for i in range(0, len(a_NP), BLOCK):
        products_NM = exact_NP[i:i + BLOCK] @ exact_NP.T
        total += np.sqrt(np.maximum(squares_N[i:i + BLOCK, None] + squares_N - 2 * products_NM, 0)).sum()
    return float(total / (len(a_NP) * (len(a_NP) - 1)))
