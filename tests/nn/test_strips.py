"""Strips of images: what one sees of its neighbours, against slices of the whole image."""
import pytest
import torch
import torch.nn.functional as F

from vqim.nn.strips import add_neighbours, cut_strips, join_strips, zero_outside

IMAGES = torch.arange(2 * 3 * 12 * 5, dtype=torch.float32).reshape(2, 3, 12, 5) + 1


@pytest.mark.parametrize("num_rows", [0, 2, 4])
def test_a_strip_is_a_slice_of_the_image_with_zeros_around_it(num_rows):
    strips = cut_strips(IMAGES, 3, num_rows)
    padded = F.pad(IMAGES, (0, 0, num_rows, num_rows))
    for image in range(2):
        for strip in range(3):
            expected = padded[image, :, 4 * strip:4 * strip + 4 + 2 * num_rows]
            assert torch.equal(strips[3 * image + strip], expected)


@pytest.mark.parametrize("num_strips", [1, 2, 3])
def test_strips_that_get_their_neighbours_rows_are_as_if_cut_with_them(num_strips):
    strips = cut_strips(IMAGES, num_strips, 0)
    assert torch.equal(add_neighbours(strips, num_strips, 3), cut_strips(IMAGES, num_strips, 3))


@pytest.mark.parametrize("num_strips", [1, 2, 3])
def test_joined_strips_are_the_image(num_strips):
    assert torch.equal(join_strips(cut_strips(IMAGES, num_strips, 0), num_strips), IMAGES)


@pytest.mark.parametrize("num_strips", [1, 2, 3])
def test_rows_outside_of_the_image_become_zero_and_no_others(num_strips):
    strips = cut_strips(IMAGES, num_strips, 2)
    assert torch.equal(zero_outside(torch.where(strips == 0, 7.0, strips), num_strips, 2), strips)
