"""Masks of pixels as masks of tokens, and what samplers can fill."""
import numpy as np
import pytest

from vqim.contracts.grid import Level, TokenGrid
from vqim.prior.editing import check_fillable, match, token_mask
from vqim.prior.masked_sampler import MaskedSampler
from vqim.prior.sampler import StepwiseSampler

GRID = TokenGrid((Level(4, 4, 1, 8),))


def box(top, bottom, left, right, size=8):
    mask = np.zeros((1, size, size), bool)
    mask[:, top:bottom, left:right] = True
    return mask


def test_tokens_are_masked_where_their_cells_have_a_masked_pixel():
    masked = token_mask(box(3, 5, 1, 3), GRID)  # cells of 2x2 pixels: rows 1 and 2, columns 0 and 1
    assert masked.dtype == bool and masked.shape == (1, 16, 1)
    assert masked[0, :, 0].nonzero()[0].tolist() == [4, 5, 8, 9]


def test_a_masked_pixel_masks_its_token_in_every_level_and_channel():
    masked = token_mask(box(5, 6, 0, 1), TokenGrid((Level(2, 2, 2, 8), Level(4, 4, 2, 8))))
    assert masked.shape == (1, 20, 2) and (masked[..., 0] == masked[..., 1]).all()
    assert masked[0, :, 0].nonzero()[0].tolist() == [2, 4 + 8]


def test_cells_of_broken_pixels_are_refused():
    with pytest.raises(ValueError, match="mask must have whole pixels for each of 4x4 tokens, got 10x10"):
        token_mask(np.ones((1, 10, 10), bool), GRID)


def test_a_masked_sampler_fills_any_mask():
    check_fillable(token_mask(box(3, 5, 1, 3), GRID), MaskedSampler())


@pytest.mark.parametrize("first", [0, 5, 15])
def test_a_stepwise_sampler_fills_all_from_one_token_on(first):
    masked = (np.arange(16) >= first)[None, :, None]
    check_fillable(masked, StepwiseSampler())


@pytest.mark.parametrize("sampler", [StepwiseSampler(), object()])
def test_a_sampler_that_goes_in_order_refuses_tokens_kept_behind_drawn_ones(sampler):
    masked = np.concatenate([np.ones((1, 16, 1), bool), token_mask(box(2, 4, 0, 8), GRID)])
    with pytest.raises(ValueError, match=r"mask must reach from its first token to the end of the image: \w+ draws row "
                                         r"by row .* token 8 is to be kept after token 4 is drawn.*MaskedSampler"):
        check_fillable(masked, sampler)


def test_of_several_levels_a_stepwise_sampler_draws_the_whole_image_or_nothing():
    grid = TokenGrid((Level(2, 2, 1, 8), Level(4, 4, 1, 8)))
    check_fillable(token_mask(box(0, 8, 0, 8), grid), StepwiseSampler(), num_levels=2)
    with pytest.raises(ValueError, match="Mask the whole image, whose levels follow one another, or take a masked"):
        check_fillable(token_mask(box(4, 8, 0, 8), grid), StepwiseSampler(), num_levels=2)


def test_one_image_and_one_mask_serve_all_draws():
    images, masks = match(np.zeros((1, 8, 8, 3), np.uint8), box(0, 4, 0, 8)[0], 3)
    assert images.shape == (3, 8, 8, 3) and masks.shape == (3, 8, 8) and masks.sum() == 3 * 32


@pytest.mark.parametrize(("mask", "message"), [
    (np.zeros((8, 8), bool), "mask must be True for some pixels of every image"),
    (np.ones((8, 8), np.uint8), r"mask must be bools \[8, 8\], True .* each of 2 images; got uint8 \[8, 8\]"),
    (np.ones((4, 8), bool), r"got bool \[4, 8\]"),
    (np.ones((3, 8, 8), bool), r"got bool \[3, 8, 8\]")])
def test_masks_of_a_wrong_kind_are_refused(mask, message):
    with pytest.raises(ValueError, match=message):
        match(np.zeros((2, 8, 8, 3), np.uint8), mask, 2)


def test_images_of_another_number_than_the_labels_are_refused():
    with pytest.raises(ValueError, match="images must be one, or one for each of 3 labels, got 2"):
        match(np.zeros((2, 8, 8, 3), np.uint8), np.ones((8, 8), bool), 3)
