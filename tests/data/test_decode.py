"""Decoding: each kind of image file gives the RGB pixels that it should, and damage is noticed."""
import io

import numpy as np
import pytest
from PIL import Image

from vqim.data.decode import CorruptImageError, decode
from vqim.data.image_arrays import to_image_arrays, to_rgb


def encode(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def picture(emoji):
    """A colourful 64x48 image."""
    return Image.fromarray(emoji["images"][1500][:48])


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF", "PPM"])
def test_lossless_files_give_the_pixels_back(picture, kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    np.testing.assert_array_equal(decode(encode(picture, kind, **options)), np.asarray(picture))


@pytest.mark.parametrize("options", [{"quality": 90}, {"quality": 60, "progressive": True}, {"subsampling": 0}])
def test_jpeg_pixels_are_pillows(picture, options):
    data = encode(picture, "JPEG", **options)
    # Both are builds of libjpeg-turbo, whose versions may round colours differently by one.
    difference = decode(data).astype(int) - np.asarray(Image.open(io.BytesIO(data)))
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_grey_files_have_three_equal_channels(picture, kind):
    data = encode(picture.convert("L"), kind)
    expected = np.asarray(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(decode(data), np.stack([expected] * 3, axis=-1))


def test_transparent_pixels_are_composited_on_white():
    rgba = np.array([[[200, 100, 0, 255], [200, 100, 0, 0], [200, 100, 0, 51]]], np.uint8)
    # 51 / 255 = 0.2: 0.2 * (200, 100, 0) + 0.8 * 255 = (244, 224, 204)
    expected = [[[200, 100, 0], [255, 255, 255], [244, 224, 204]]]
    np.testing.assert_array_equal(decode(encode(Image.fromarray(rgba), "PNG")), expected)


def test_grey_with_alpha_is_composited_on_white():
    grey_alpha = Image.merge("LA", [Image.new("L", (1, 1), 100), Image.new("L", (1, 1), 51)])
    np.testing.assert_array_equal(decode(encode(grey_alpha, "PNG")), [[[224] * 3]])


def test_palettes_become_their_colours(picture):
    palette = picture.quantize(16)
    np.testing.assert_array_equal(decode(encode(palette, "PNG")), np.asarray(palette.convert("RGB")))


def test_the_transparent_colour_of_a_palette_becomes_white():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    np.testing.assert_array_equal(decode(encode(image, "PNG", transparency=1)), [[[10, 20, 30], [255, 255, 255]]])


def test_sixteen_bit_grey_keeps_its_upper_eight_bits():
    image = Image.fromarray(np.array([[0, 255, 256, 0x80FF, 0xFFFF]], np.uint16))
    for kind in ("PNG", "TIFF"):
        np.testing.assert_array_equal(decode(encode(image, kind))[0, :, 0], [0, 0, 1, 0x80, 0xFF])


def test_cmyk_jpeg_becomes_rgb():
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert np.abs(decode(encode(red, "JPEG", quality=95)).astype(int) - [255, 0, 0]).max() <= 4


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_images_are_turned_upright(picture, orientation, kind):
    stored_from_upright = {
        1: lambda x: x, 2: lambda x: x[:, ::-1], 3: lambda x: x[::-1, ::-1], 4: lambda x: x[::-1],
        5: lambda x: x.swapaxes(0, 1), 6: lambda x: np.rot90(x, 1), 7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
        8: lambda x: np.rot90(x, -1)}
    upright = np.asarray(picture)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(stored_from_upright[orientation](upright)))
    decoded = decode(encode(stored, kind, exif=exif))
    assert decoded.shape == upright.shape
    # JPEG at Pillow's default quality: far from exact at edges, but a wrong turn would be off by much more.
    assert np.abs(decoded.astype(int) - upright).mean() < (0.001 if kind == "PNG" else 6)


def test_an_open_image_is_what_its_file_gives():
    turned = Image.Exif()
    turned[0x0112] = 6
    rng = np.random.default_rng(0)
    for image, options in [
        (Image.fromarray(rng.integers(0, 256, (8, 8, 4), np.uint8)), {}),
        (Image.fromarray(rng.integers(0, 2**16, (8, 8), np.uint16)), {}),
        (Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)), {"exif": turned}),
    ]:
        data = encode(image, "PNG", **options)
        opened = Image.open(io.BytesIO(data))
        np.testing.assert_array_equal(to_rgb(opened), decode(data))
        np.testing.assert_array_equal(to_image_arrays(opened, 8)[0], decode(data))


def test_the_first_frame_of_an_animation_is_taken(picture):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (decode(data) == [255, 0, 0]).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
def test_truncated_files_are_corrupt(picture, kind):
    data = encode(picture, kind)
    with pytest.raises(CorruptImageError):
        decode(data[:len(data) // 2])


@pytest.mark.parametrize("data", [b"", b"not an image", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_other_bytes_are_corrupt(data):
    with pytest.raises(CorruptImageError):
        decode(data)


def test_floating_point_images_are_refused_with_a_reason():
    image = Image.fromarray(np.ones((2, 2), np.float32))
    with pytest.raises(CorruptImageError, match="no defined range"):
        decode(encode(image, "TIFF"))


def test_an_image_that_is_too_large_says_so(picture, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow refuses twice as many
    with pytest.raises(CorruptImageError, match="larger than Pillow's limit of 2,000 pixels; scale it down first"):
        decode(encode(picture, "PNG"))
