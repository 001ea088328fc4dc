"""The measures against closed forms, scikit-image's numbers and a slow SSIM; averages under padding; the baselines."""
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from vqim.data.source import Emoji
from vqim.evaluation import distances


def random_images(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random(shape, np.float32))


@pytest.fixture(name="emoji_NHWC", scope="module")
def read_emoji() -> np.ndarray:
    source = Emoji("validation")
    return np.stack([np.asarray(source[i].image) for i in range(0, len(source), 20)])


def slow_ssim(a_HW: np.ndarray, b_HW: np.ndarray) -> float:
    """Wang et al. (2004), window by window, in float64."""
    offsets = np.arange(-5, 6)
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None, :] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for y in range(5, a_HW.shape[0] - 5):
        for x in range(5, a_HW.shape[1] - 5):
            a, b = (image[y - 5:y + 6, x - 5:x + 6] for image in (a_HW, b_HW))
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            variance_a, variance_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
            covariance = (window * (a - mean_a) * (b - mean_b)).sum()
            values.append((2 * mean_a * mean_b + 1e-4) * (2 * covariance + 9e-4)
                          / ((mean_a**2 + mean_b**2 + 1e-4) * (variance_a + variance_b + 9e-4)))
    return float(np.mean(values))


def test_errors_of_a_constant_difference_are_known():
    a_BCHW = torch.full((1, 3, 4, 4), 0.5)
    b_BCHW = a_BCHW + 0.1
    assert distances.l1(a_BCHW, b_BCHW).item() == pytest.approx(0.1, rel=1e-5)
    assert distances.l2(a_BCHW, b_BCHW).item() == pytest.approx(0.01, rel=1e-5)
    assert distances.psnr(a_BCHW, b_BCHW).item() == pytest.approx(20.0, rel=1e-5)


def test_identical_images_have_the_largest_psnr_and_no_infinity():
    a_BCHW = random_images(0, 2, 3, 8, 8)
    assert distances.psnr(a_BCHW, a_BCHW).tolist() == pytest.approx([100.0, 100.0])


def test_psnr_and_ssim_give_scikit_images_numbers():
    # scikit-image 0.26 on the same arrays in float64: peak_signal_noise_ratio(data_range=1), and
    # structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1,
    # channel_axis=0).
    a_BCHW, b_BCHW = random_images(1, 2, 3, 24, 31), random_images(2, 2, 3, 24, 31)
    b_BCHW[1] = 0.8 * a_BCHW[1] + 0.2 * b_BCHW[1]
    assert distances.psnr(a_BCHW, b_BCHW).tolist() == pytest.approx([7.769616, 21.801126], abs=1e-4)
    assert distances.ssim(a_BCHW, b_BCHW).tolist() == pytest.approx([0.02979380, 0.95398487], abs=1e-5)


def test_ssim_equals_a_slow_one_on_images(emoji_NHWC):
    images_NHWC = emoji_NHWC[3:5, 8:40, 16:46]
    a_BCHW = distances.unit_range(images_NHWC)
    b_BCHW = distances.unit_range(distances.downscaled_copy(images_NHWC))
    expected_B = [np.mean([slow_ssim(a, b) for a, b in zip(x, y, strict=True)])
                  for x, y in zip(a_BCHW.double().numpy(), b_BCHW.double().numpy(), strict=True)]
    assert distances.ssim(a_BCHW, b_BCHW).tolist() == pytest.approx(expected_B, abs=1e-5)


def test_ssim_refuses_images_smaller_than_its_window():
    with pytest.raises(ValueError, match="at least 11x11"):
        distances.ssim(torch.zeros(1, 3, 10, 20), torch.zeros(1, 3, 10, 20))


def test_gradient_energy_of_stripes_and_of_a_step_is_known():
    stripes_HW = torch.tensor([0.0, 1.0]).repeat(4, 2)  # every pair in a row differs by 1, none in a column
    step_HW = torch.cat([torch.zeros(2, 4), torch.full((2, 4), 0.5)])  # one of three pairs of rows, by 0.5
    images_BCHW = torch.stack([stripes_HW, step_HW])[:, None]
    torch.testing.assert_close(distances.gradient_energy(images_BCHW), torch.tensor([1.0, 0.25 / 3]))


def test_blur_takes_gradient_energy_from_every_image(emoji_NHWC):
    images_BCHW = distances.unit_range(emoji_NHWC)
    sharp_BCHW, blurred_BCHW = images_BCHW[..., 1:-1, 1:-1], F.avg_pool2d(images_BCHW, 3, stride=1)
    assert (distances.gradient_energy(blurred_BCHW) < distances.gradient_energy(sharp_BCHW)).all()


@given(st.integers(1, 40), st.integers(1, 9))
def test_averages_over_padded_batches_equal_the_mean_over_the_set(num_images, batch_size):
    values_N = np.random.default_rng(num_images).normal(size=num_images)
    averages = distances.Averages()
    for begin in range(0, num_images, batch_size):
        values_B = np.full(batch_size, np.nan)  # padding may hold anything
        part = values_N[begin:begin + batch_size]
        values_B[:len(part)] = part
        averages.add({"psnr": values_B}, np.arange(batch_size) < len(part))
    assert averages.result()["psnr"] == pytest.approx(values_N.mean(), rel=1e-9, abs=1e-12)


def test_averages_of_nothing_are_refused():
    averages = distances.Averages()
    averages.add({"psnr": np.zeros(2)}, np.array([False, False]))
    with pytest.raises(ValueError, match="no valid image"):
        averages.result()


def test_averages_refuse_batches_that_measure_different_things():
    averages = distances.Averages()
    averages.add({"psnr": np.zeros(2)}, np.array([True, True]))
    with pytest.raises(ValueError, match=r"\['psnr'\].*\['ssim'\]"):
        averages.add({"ssim": np.zeros(2)}, np.array([True, True]))


def test_mean_image_psnr_of_two_greys_is_known():
    # The training mean is 0.4; a validation image of 0.6 misses it by 0.2, one of 0.4 + 1/10 by 0.1.
    train_NHWC = np.stack([np.full((4, 4, 3), value, np.uint8) for value in (51, 153)])
    validation_NHWC = np.stack([np.full((4, 4, 3), value, np.uint8) for value in (153, 76)])
    errors = [(153 - 102) / 255, (76 - 102) / 255]
    expected = np.mean([-20 * np.log10(abs(error)) for error in errors])
    assert distances.mean_image_psnr(train_NHWC, validation_NHWC) == pytest.approx(expected, rel=1e-5)


def test_a_downscaled_copy_keeps_flat_regions_and_loses_pixels():
    flat_BHWC = np.full((1, 16, 16, 3), 77, np.uint8)
    checkerboard_BHWC = np.tile(255 * (np.indices((16, 16)).sum(0) % 2), (1, 3, 1, 1)).transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(distances.downscaled_copy(flat_BHWC), flat_BHWC)
    inside = distances.downscaled_copy(checkerboard_BHWC.astype(np.uint8))[0, 4:-4, 4:-4]
    assert inside.min() > 100 and inside.max() < 155  # antialiased: half grey, not aliased black or white


def test_a_downscaled_copy_is_nearer_to_a_image_than_the_mean_image(emoji_NHWC):
    copies = distances.downscaled_copy(emoji_NHWC)
    copies_psnr = distances.psnr(*map(distances.unit_range, (emoji_NHWC, copies))).mean().item()
    assert copies.dtype == np.uint8 and copies.shape == emoji_NHWC.shape
    assert 10 < distances.mean_image_psnr(emoji_NHWC, emoji_NHWC) < copies_psnr < 30


def test_float_host_images_are_refused():
    with pytest.raises(TypeError, match="uint8"):
        distances.unit_range(np.zeros((1, 4, 4, 3), np.float32))
