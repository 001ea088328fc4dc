"""Token grids: lengths, one level or several, sequences of levels and back."""
import numpy as np
import pytest
import torch

from vqim.contracts.grid import Level, TokenGrid, join

TWO_LEVELS = TokenGrid((Level(2, 2, 3, 256), Level(4, 8, 3, 512)))


def test_a_sequence_reads_all_levels():
    assert TWO_LEVELS.num_positions == 2 * 2 + 4 * 8


def test_lists_say_the_same():
    assert TWO_LEVELS.as_lists() == [[2, 2, 3, 256], [4, 8, 3, 512]]


def test_levels_follow_one_another_in_raster_order():
    top, bottom = torch.randint(256, (5, 2, 2, 3)), torch.randint(512, (5, 4, 8, 3))
    tokens = join((top, bottom))
    assert tokens.shape == (5, 36, 3)
    for row, column in np.ndindex(2, 2):
        assert torch.equal(tokens[:, 2 * row + column], top[:, row, column])
    for row, column in np.ndindex(4, 8):
        assert torch.equal(tokens[:, 4 + 8 * row + column], bottom[:, row, column])


def test_splitting_gives_what_was_joined():
    indices = torch.randint(256, (5, 2, 2, 3)), torch.randint(512, (5, 4, 8, 3))
    for found, expected in zip(TWO_LEVELS.split(join(indices)), indices, strict=True):
        assert torch.equal(found, expected)


def test_host_arrays_are_split_like_tensors():
    tokens = np.arange(2 * 36 * 3).reshape(2, 36, 3)
    for on_host, on_device in zip(TWO_LEVELS.split(tokens), TWO_LEVELS.split(torch.from_numpy(tokens)), strict=True):
        np.testing.assert_array_equal(on_host, on_device.numpy())


def test_only_several_levels_are_numbered_in_summaries():
    assert TokenGrid((Level(4, 8, 1, 512),)).codebook_names == ("codebook",)
    assert TWO_LEVELS.codebook_names == ("codebook/level_0", "codebook/level_1")


@pytest.mark.parametrize("levels", [(), (Level(2, 2, 1, 8), Level(4, 4, 2, 8))])
def test_levels_of_different_channels_or_none_are_refused(levels):
    with pytest.raises(ValueError, match="levels must be at least one, all with the same number of channels, got "):
        TokenGrid(levels)
