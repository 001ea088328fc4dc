"""Crop, resize, flip: equal to Pillow's resampling, boxes within their bounds, random numbers from the generator."""
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import RandomResizedCrop as TorchvisionCrop

from vqim.data import transforms
from vqim.data.transforms import CenterCrop, RandomCrop, RandomResizedCrop, Resize, crop_box


def rng(seed=0):
    return np.random.default_rng(seed)


def difference(x, y):
    return np.abs(np.asarray(x).astype(int) - np.asarray(y)).max()


@pytest.fixture
def picture(emoji):
    """A 40x64 image."""
    return np.ascontiguousarray(emoji["images"][700][12:52])


@pytest.mark.parametrize("size", [16, 32, 48, 100])
def test_resize_is_pillows_bicubic_within_one_level(picture, size):
    expected = Image.fromarray(picture).resize((size, size), Image.Resampling.BICUBIC)
    assert difference(Resize()(picture, size, rng()), expected) <= 1


@pytest.mark.parametrize("size", [16, 20, 40])
def test_centre_crop_scales_the_shorter_side_and_keeps_the_middle(picture, size):
    scaled = Image.fromarray(picture).resize((int(64 * size / 40), size), Image.Resampling.BICUBIC)
    left = (scaled.width - size) // 2
    assert difference(CenterCrop()(picture, size, rng()), scaled.crop((left, 0, left + size, size))) <= 1


def test_centre_crop_of_an_upright_image_keeps_the_middle_too(picture):
    upright = np.ascontiguousarray(picture.swapaxes(0, 1))
    scaled = Image.fromarray(upright).resize((20, 32), Image.Resampling.BICUBIC)
    assert difference(CenterCrop()(upright, 20, rng()), scaled.crop((0, 6, 20, 26))) <= 1


def test_a_image_of_the_right_size_is_not_changed(emoji):
    whole = RandomCrop(flip_probability=0), RandomResizedCrop((1, 1), (1, 1), flip_probability=0)
    for transform in (CenterCrop(), Resize(), *whole):
        np.testing.assert_array_equal(transform(emoji["images"][3], 64, rng()), emoji["images"][3])


def test_random_resized_crop_is_pillows_crop_and_resize_of_the_drawn_box(picture):
    for seed in range(20):
        top, left, height, width = crop_box(40, 64, (0.3, 0.9), (0.7, 1.5), rng(seed))
        part = Image.fromarray(picture).crop((left, top, left + width, top + height))
        expected = part.resize((24, 24), Image.Resampling.BICUBIC)
        actual = RandomResizedCrop((0.3, 0.9), (0.7, 1.5), flip_probability=0)(picture, 24, rng(seed))
        # The two round filter weights differently, which shows at sharp edges. A box off by one has a mean above 5.
        assert difference(actual, expected) <= 8
        assert np.abs(actual.astype(int) - np.asarray(expected)).mean() < 0.3


@pytest.mark.parametrize("transform", [RandomCrop, RandomResizedCrop, CenterCrop, Resize])
def test_a_flip_is_left_to_right(picture, transform):
    flipped = transform(flip_probability=1)(picture, 32, rng())
    np.testing.assert_array_equal(flipped[:, ::-1], transform(flip_probability=0)(picture, 32, rng()))


def test_flips_come_as_often_as_asked(emoji):
    image = emoji["images"][0][:4, :4]
    generator, plain = rng(), Resize()(image, 4, rng())
    flips = sum((Resize(0.3)(image, 4, generator) != plain).any() for _ in range(2000))
    assert abs(flips - 600) < 3 * (2000 * 0.3 * 0.7) ** 0.5


@given(
    height=st.integers(1, 600), width=st.integers(1, 600), seed=st.integers(0, 2**32),
    scale=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted),
    ratio=st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)).map(sorted),
)
def test_a_crop_box_lies_within_the_image(height, width, seed, scale, ratio):
    top, left, crop_height, crop_width = crop_box(height, width, scale, ratio, rng(seed))
    assert crop_height >= 1 and crop_width >= 1
    assert 0 <= top <= height - crop_height and 0 <= left <= width - crop_width


@given(seed=st.integers(0, 2**32))
def test_a_crop_box_has_the_area_and_shape_that_were_asked_for(seed):
    _, _, height, width = crop_box(1000, 1000, (0.2, 0.6), (0.5, 2.0), rng(seed))
    assert 0.2 - 0.002 <= height * width / 1e6 <= 0.6 + 0.002
    assert 0.5 - 0.005 <= width / height <= 2.0 + 0.01


def test_crop_boxes_are_distributed_as_torchvisions():
    torch.manual_seed(0)
    image = torch.zeros(3, 300, 400)
    theirs = np.array([TorchvisionCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(3000)])
    generator = rng()
    ours = np.array([crop_box(300, 400, (0.08, 1.0), (3 / 4, 4 / 3), generator) for _ in range(3000)])
    standard_error = np.hypot(theirs.std(0), ours.std(0)) / 3000**0.5
    assert (np.abs(theirs.mean(0) - ours.mean(0)) < 4 * standard_error).all()
    np.testing.assert_allclose(ours.std(0), theirs.std(0), rtol=0.06)


@pytest.mark.parametrize("shape", [(10, 1000), (1000, 10), (7, 7)])
def test_where_no_box_fits_the_middle_is_torchvisions(shape):
    scale, ratio = (1.0, 1.0), (0.9, 1.1) if shape != (7, 7) else (5.0, 6.0)
    theirs = TorchvisionCrop.get_params(torch.zeros(3, *shape), list(scale), list(ratio))
    assert crop_box(*shape, scale, ratio, rng()) == theirs


def coordinates(height, width, step):
    """An image whose red is `step` times a pixel's row and whose green is `step` times its column."""
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    return (step * np.stack([rows, columns, 0 * rows], -1)).astype(np.uint8)


@given(
    height=st.integers(40, 250), width=st.integers(40, 250), size=st.integers(20, 60), seed=st.integers(0, 2**32),
    fraction=st.floats(0.5, 1),
)
def test_a_random_crop_never_distorts(height, width, size, seed, fraction):
    # Rows and columns of the original advance equally fast from pixel to pixel, by shorter side / scaled size: from
    # middle to middle of the outer quarters, as resampling bends ramps at the border of the image.
    crop = RandomCrop(fraction, flip_probability=0)(coordinates(height, width, 1), size, rng(seed)).astype(float)
    quarter, span = size // 4, size - 1 - 2 * (size // 4)
    down = crop[-1 - quarter, size // 2, 0] - crop[quarter, size // 2, 0]
    across = crop[size // 2, -1 - quarter, 1] - crop[size // 2, quarter, 1]
    rounding = 1 + span * min(height, width) / size * 0.5 / size  # of levels, and of the scaled longer side
    assert abs(down - across) <= rounding
    shorter = min(height, width)
    assert shorter / np.ceil(size / fraction) * span - rounding <= down <= shorter / size * span + rounding


@pytest.mark.parametrize(("height", "width"), [(8, 13), (13, 8), (8, 8)])
def test_a_random_crop_draws_every_position_equally_often(height, width):
    generator, picture = rng(), coordinates(height, width, 10)
    crops = [RandomCrop(flip_probability=0)(picture, 8, generator) for _ in range(1200)]
    corners = [tuple(crop[0, 0, :2] // 10) for crop in crops]
    counts = {corner: corners.count(corner) for corner in np.ndindex(height - 7, width - 7)}
    assert sum(counts.values()) == 1200
    num = len(counts)
    assert all(abs(count - 1200 / num) <= 4 * (1200 / num * (1 - 1 / num)) ** 0.5 for count in counts.values())
    for crop, (top, left) in zip(crops, corners, strict=True):
        np.testing.assert_array_equal(crop, picture[top:top + 8, left:left + 8])


def test_a_random_crop_draws_sizes_evenly_up_to_the_share_that_was_asked_for(monkeypatch):
    sizes = []
    monkeypatch.setattr(transforms, "_resize", lambda image, size: sizes.append(size) or np.zeros((*size, 3), np.uint8))
    generator = rng()
    for _ in range(2000):
        RandomCrop(0.8)(np.zeros((50, 100, 3), np.uint8), 20, generator)
    counts = [sizes.count([size, 2 * size]) for size in range(20, 26)]  # 25 is 20 / 0.8
    assert sum(counts) == 2000
    assert all(abs(count - 2000 / 6) < 4 * (2000 / 6 * 5 / 6) ** 0.5 for count in counts)


def test_random_numbers_come_from_the_generator_alone(picture):
    for transform in RandomResizedCrop((0.1, 1.0)), RandomCrop(0.7):
        np.testing.assert_array_equal(transform(picture, 32, rng(5)), transform(picture, 32, rng(5)))
        assert (transform(picture, 32, rng(5)) != transform(picture, 32, rng(6))).any()


@pytest.mark.parametrize(("arguments", "message"), [
    ({"scale": (0, 1)}, "scale: expected"), ({"scale": (0.5, 0.4)}, "scale: expected"),
    ({"scale": (0.5, 1.5)}, r"scale: .* got \(0.5, 1.5\)"), ({"ratio": (2, 1)}, "ratio: expected"),
    ({"ratio": (1, 1, 1)}, "ratio: expected"), ({"flip_probability": 1.5}, "flip_probability: .* got 1.5"),
])
def test_values_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        RandomResizedCrop(**arguments)


@pytest.mark.parametrize("fraction", [0, -0.5, 1.01, float("nan")])
def test_a_crop_of_an_impossible_share_is_refused(fraction):
    with pytest.raises(ValueError, match="min_crop_fraction: expected"):
        RandomCrop(min_crop_fraction=fraction)
