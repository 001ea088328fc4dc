"""Haar packets beside the recursion in float64, one image at a time; the distance beside its definition."""
import numpy as np
import pytest
import torch

from vqim.data.source import Emoji
from vqim.evaluation.frechet import Moments, frechet_distance
from vqim.evaluation.wavelets import PacketMoments, haar_packets, scale, wavelet_distance


def emoji(split, count=60, size=32):
    source = Emoji(split)
    images = np.stack([np.asarray(source[i].image) for i in range(count)])[:, ::64 // size, ::64 // size]
    return torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32) / 255)


def slow_packets(image_HW, level):
    """Low and high passes by the orthonormal Haar filters, in float64, in natural order."""
    if not level:
        return [image_HW]
    low, high = ((image_HW[0::2] + sign * image_HW[1::2]) / np.sqrt(2) for sign in (1, -1))
    found = []
    for half in (low, high):
        for sign in (1, -1):
            found += slow_packets((half[:, 0::2] + sign * half[:, 1::2]) / np.sqrt(2), level - 1)
    return found


def moments(images, level, batch_size=20):
    packets = haar_packets(images, level).numpy()
    found = PacketMoments(*packets.shape[1:])
    for start in range(0, len(packets), batch_size):
        found.add(packets[start:start + batch_size])
    return found


@pytest.mark.parametrize("level", [1, 2, 4])
def test_packets_are_those_of_the_recursion(level):
    images = emoji("train", 2)
    found = haar_packets(images, level).numpy()
    for image, packets in zip(images.double().numpy(), found, strict=True):
        channels = [np.stack(slow_packets(channel, level)).reshape(4**level, -1) for channel in image]
        np.testing.assert_allclose(packets / scale(level), np.concatenate(channels, axis=1), rtol=1e-6, atol=1e-6)


def test_packets_are_whole_numbers_and_keep_the_energy():
    images = emoji("train", 4)
    found = haar_packets(images).double()
    assert torch.equal(found, found.round())
    torch.testing.assert_close((found / scale()).square().sum((1, 2)), images.double().square().sum((1, 2, 3)),
                               rtol=1e-6, atol=0)


def test_the_distance_is_the_mean_of_the_bands_frechet_distances():
    a, b = emoji("train"), emoji("validation")
    expected = []
    packets = [np.stack([np.concatenate([np.stack(slow_packets(c, 2)).reshape(16, -1) for c in image], axis=1)
                         for image in images.double().numpy()]) for images in (a, b)]
    for band in range(16):
        pair = [Moments(packets[0].shape[2]) for _ in range(2)]
        for one, values in zip(pair, packets, strict=True):
            one.add(values[:, band])
        expected.append(frechet_distance(*(one.gaussian() for one in pair)))
    found = wavelet_distance(*(moments(images, 2).gaussians(scale(2)) for images in (a, b)))
    assert found == pytest.approx(np.mean(expected), rel=1e-5)


def test_the_distance_does_not_depend_on_the_batch_size_by_a_bit():
    images, other = emoji("train"), moments(emoji("validation"), 4).gaussians(scale())
    values = {wavelet_distance(moments(images, 4, size).gaussians(scale()), other) for size in (1, 7, 60)}
    assert len(values) == 1


def test_a_set_is_at_distance_0_from_itself():
    one = moments(emoji("train"), 4).gaussians(scale())
    assert wavelet_distance(one, one) < 1e-12


def test_sizes_without_whole_packets_are_refused():
    with pytest.raises(ValueError, match="multiples of 16, got 24x32"):
        haar_packets(torch.zeros(1, 3, 24, 32))


def test_sets_of_other_sizes_are_refused():
    small, large = (moments(emoji("train", size=size), 4).gaussians(scale()) for size in (16, 32))
    with pytest.raises(ValueError, match="images of one size, got 256 bands of 3 values and 256 of 12"):
        wavelet_distance(small, large)
