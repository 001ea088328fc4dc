"""What patches share because their codes are equal, against cases with a known answer."""
import numpy as np
import pytest

from vqim.contracts.evaluation import About
from vqim.contracts.grid import Level, TokenGrid
from vqim.evaluation.repetition import Repetition

LEVEL = Level(2, 2, 2, 9)
# Positions 0 and 3 have equal codes, in both channels; 1 and 2 share but one of two.
TOKENS_BNK = np.array([[[1, 5], [1, 6], [2, 6], [1, 5]]])


def image(patches, size=3):
    """An image [1, 2 size, 2 size, 3] whose four patches are grey."""
    grey_HW = np.kron(np.reshape(patches, (2, 2)), np.ones((size, size)))
    return np.repeat(grey_HW[None, ..., None], 3, 3).astype(np.uint8)


def measure(originals, images, tokens_BNK=TOKENS_BNK):
    tally = Repetition().tally(About("reconstructions", 1, TokenGrid((LEVEL,)), 0))
    tally.add({"originals": image(originals), "images": image(images), "tokens": tokens_BNK}, np.array([True]))
    return {name.split("/")[1]: value for name, value in tally.result().items()}


@pytest.mark.parametrize("patches, variance, explained", [
    ((15, 90, 91, 15), 0.0, 0.0),  # one patch for equal codes
    ((10, 0, 0, 20), 1.0, 1.0),  # the originals' deviations, -5 and 5
    ((20, 0, 0, 10), 1.0, -1.0),
    ((25, 0, 0, 35), 1.0, 1.0),  # another mean is no repetition
    ((13, 0, 0, 17), 0.16, 0.4),  # deviations of 2 in place of 5
])
def test_deviations_within_groups_of_equal_codes_are_compared(patches, variance, explained):
    assert measure((10, 40, 200, 20), patches) == {
        "share": 0.5, "variance": pytest.approx(variance), "explained": pytest.approx(explained)}


def test_images_whose_codes_all_differ_have_no_repetition():
    alone_BNK = np.arange(8).reshape(1, 4, 2)
    assert measure((10, 40, 200, 20), (15, 90, 91, 15), alone_BNK) == {
        "share": 0.0, "variance": 1.0, "explained": 0.0}


def test_repetition_refuses_tokens_of_several_levels():
    with pytest.raises(ValueError, match="Repetition needs tokens of one level, got 2"):
        Repetition().tally(About("reconstructions", 1, TokenGrid((LEVEL, LEVEL)), 0))
