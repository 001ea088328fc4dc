"""Masks: the schedules' closed forms, how many codes are masked and which, and the Halton order by hand."""
import math

import numpy as np
import pytest
import torch

from vqim.contracts.grid import Level, TokenGrid
from vqim.prior.masking import choose_masked, halton_order, mask_ratio, masked_after_steps, ranks

CLOSED_FORMS = {
    "cosine": lambda r: math.cos(math.pi * r / 2), "arccos": lambda r: 2 * math.acos(r) / math.pi,
    "linear": lambda r: 1 - r, "square": lambda r: 1 - r * r, "cubic": lambda r: 1 - r * r * r,
    "root": lambda r: 1 - math.sqrt(r)}


@pytest.mark.parametrize("schedule", CLOSED_FORMS)
def test_mask_ratios_are_the_schedules_closed_forms(schedule):
    r = torch.arange(11, dtype=torch.float64) / 10
    expected = [CLOSED_FORMS[schedule](x) for x in r.tolist()]
    np.testing.assert_allclose(mask_ratio(schedule, r), expected, atol=1e-12)
    assert expected[0] == pytest.approx(1) and expected[-1] == pytest.approx(0, abs=1e-12)


def test_ranks_count_the_smaller_values_and_split_ties():
    values = torch.tensor([[0.3, -1.0, torch.inf, 0.2], [5.0, 5.0, 5.0, -2.0]])
    assert ranks(values).tolist() == [[2, 0, 3, 1], [1, 2, 3, 0]]


def test_the_smallest_draws_are_masked_and_at_least_one_is():
    uniform = torch.tensor([[0.9, 0.2, 0.5, 0.1, 0.7]]).expand(4, 5)
    masked = choose_masked(torch.tensor([0.0, 0.21, 0.6, 1.0]), uniform)
    assert masked.int().tolist() == [[0, 0, 0, 1, 0], [0, 1, 0, 1, 0], [0, 1, 1, 1, 0], [1, 1, 1, 1, 1]]


def test_the_codes_of_a_position_are_masked_independently_of_each_other():
    masked = choose_masked(torch.full((20_000,), 0.5), torch.rand(20_000, 6))
    assert (masked.sum(1) == 3).all()
    both = masked.reshape(-1, 3, 2).all(-1).double().mean(0)  # 3 of 6 at random: 3/6 times 2/5
    np.testing.assert_allclose(both, 0.2, atol=5 * math.sqrt(0.2 * 0.8 / 20_000))


@pytest.mark.parametrize("schedule", CLOSED_FORMS)
@pytest.mark.parametrize("num_steps", [8, 12])
def test_steps_leave_the_schedules_share_of_masked_places(schedule, num_steps):
    left = masked_after_steps(schedule, np.array([1024]), num_steps)[:, 0].tolist()
    exact = [1024 * CLOSED_FORMS[schedule](step / num_steps) for step in range(1, num_steps)]
    assert left == [*(math.floor(number + 1e-6) for number in exact), 0]


def test_every_step_settles_a_place_and_leaves_one_to_the_next():
    left = masked_after_steps("cosine", np.array([8, 3, 1, 0]), 8)
    # floor(8 cos(pi t / 16)) is 7, 7, 6, 5, 4, 3, 1: the second 7 would settle nothing.
    assert left[:, 0].tolist() == [7, 6, 5, 4, 3, 2, 1, 0]
    assert left[:, 1].tolist() == [2, 1, 0, 0, 0, 0, 0, 0]
    assert left[:, 2].tolist() == left[:, 3].tolist() == 8 * [0]
    assert masked_after_steps("cosine", np.array([8]), 1).tolist() == [[0]]


def test_whole_shares_are_not_rounded_down():
    assert masked_after_steps("linear", np.array([9]), 3)[:, 0].tolist() == [6, 3, 0]


def test_a_small_grids_halton_order_is_that_made_by_hand():
    # Rows 1/2, 1/4, 3/4, 1/8, 5/8, 3/8, 7/8, 1/16, 9/16, 5/16 of 2; columns 1/3, 2/3, 1/9, 4/9, 7/9, 2/9, 5/9, 8/9,
    # 1/27, 10/27 of 3. The places: (1, 1), (0, 2), (1, 0), (0, 1), (1, 2), (0, 0).
    assert halton_order(TokenGrid((Level(2, 3, 1, 4),))).tolist() == [5, 3, 1, 2, 0, 4]


def test_channels_come_one_after_another_and_so_do_levels():
    order = halton_order(TokenGrid((Level(2, 3, 2, 4), Level(1, 2, 2, 4))))
    assert order[:12].tolist() == [5, 11, 3, 9, 1, 7, 2, 8, 0, 6, 4, 10]
    assert order[12:].tolist() == [12, 14, 13, 15] or order[12:].tolist() == [13, 15, 12, 14]


def test_a_quarter_of_the_halton_order_reaches_every_part_of_the_grid():
    first = halton_order(TokenGrid((Level(16, 16, 1, 4),))).reshape(16, 16) < 64
    blocks = first.reshape(4, 4, 4, 4).sum((1, 3))
    assert blocks.min() >= 2 and blocks.max() <= 6
