"""Distances of samples to training images, by slow loops on real emoji and by constructed copies."""
import numpy as np
import pytest

from vqim.evaluation.copies import measure_copies
from vqim.third_party.noto_emoji import find_dataset


@pytest.fixture(scope="module")
def emoji():
    return np.load(find_dataset())["images"][:120, ::4, ::4]


def rms(a, b):
    return np.sqrt(np.mean((a / 255 - b / 255) ** 2))


def test_the_nearest_training_image_is_that_of_a_slow_search_mirrored_ones_too(emoji):
    samples, training, held_out = emoji[:10], emoji[20:80], emoji[80:]
    found = measure_copies(samples, training, held_out, 0.05)
    slow = np.array([[min(rms(a, b), rms(a, b[:, ::-1])) for b in training] for a in samples])
    np.testing.assert_array_equal(found.nearest_N, slow.argmin(1))
    np.testing.assert_allclose(found.to_nearest_N, slow.min(1), rtol=1e-5)
    real = [min(min(rms(a, b), rms(a, b[:, ::-1])) for b in training) for a in held_out]
    assert found.median_ratio == pytest.approx(np.median(slow.min(1)) / np.median(real), rel=1e-5)


def test_copies_of_training_images_are_near_duplicates_also_if_mirrored(emoji):
    training = emoji[:60]
    noisy = np.clip(training[:20].astype(int) + np.random.default_rng(0).integers(-3, 4, training[:20].shape), 0, 255)
    samples = np.concatenate([training[:20], training[20:40, :, ::-1], noisy.astype(np.uint8)])
    found = measure_copies(samples, training, emoji[60:], 0.02)
    assert found.near_duplicates == 1 and found.median_ratio < 0.1
    np.testing.assert_array_equal(found.nearest_N, [*range(20), *range(20, 40), *range(20)])


def test_held_out_images_taken_as_samples_have_ratios_of_one(emoji):
    found = measure_copies(emoji[60:], emoji[:60], emoji[60:], 0.1)
    assert found.median_ratio == found.spread_ratio == 1
    assert found.near_duplicates == found.real_near_duplicates


def test_the_spread_is_the_mean_distance_of_pairs_beside_that_of_real_images(emoji):
    samples, held_out = emoji[:6], emoji[60:70]
    pairs = {name: np.mean([rms(a, b) for i, a in enumerate(images) for j, b in enumerate(images) if i != j])
             for name, images in (("samples", samples), ("real", held_out))}
    found = measure_copies(samples, emoji[20:40], held_out, 0.1)
    assert found.spread_ratio == pytest.approx(pairs["samples"] / pairs["real"], rel=1e-5)
