import itertools
import math

import pytest

from vqim.optim.schedules import Constant, WarmupCosine, WarmupExponential, WarmupLinear

STAGE1 = WarmupCosine(1e-4, 5e-5, warmup_steps=50_000, total_steps=500_000)
STAGE2 = WarmupExponential(4.5e-4, 1e-5, warmup_steps=5_000, decay_start=80_000, total_steps=450_000)

# SeQ-GAN's Table 10 on ImageNet: autoregressive and masked.
EXPONENTIAL = WarmupExponential(1e-4, 5e-6, warmup_steps=0, decay_start=80_000, total_steps=1_500_000)
LINEAR = WarmupLinear(1e-4, 0.0, warmup_steps=0, decay_start=50_000, total_steps=1_500_000)


@pytest.mark.parametrize("schedule, step, expected", [
    (STAGE1, 0, 1e-4 / 50_000),
    (STAGE1, 24_999, 5e-5),
    (STAGE1, 49_999, 1e-4),
    (STAGE1, 50_000, 1e-4),
    (STAGE1, 275_000, 7.5e-5),  # half way down the cosine
    (STAGE1, 500_000, 5e-5),
    (STAGE1, 600_000, 5e-5),
    (STAGE2, 2_499, 2.25e-4),
    (STAGE2, 4_999, 4.5e-4),
    (STAGE2, 80_000, 4.5e-4),
    (STAGE2, 265_000, math.sqrt(4.5e-4 * 1e-5)),  # the geometric mean, half way
    (STAGE2, 450_000, 1e-5),
    (STAGE2, 999_999, 1e-5),
    (EXPONENTIAL, 0, 1e-4),
    (EXPONENTIAL, 790_000, math.sqrt(1e-4 * 5e-6)),
    (EXPONENTIAL, 1_500_000, 5e-6),
    (LINEAR, 0, 1e-4),
    (LINEAR, 50_000, 1e-4),
    (LINEAR, 775_000, 5e-5),  # half way down the line
    (LINEAR, 1_500_000, 0.0),
    (LINEAR, 2_000_000, 0.0),
    (WarmupLinear(1.0, 0.5, warmup_steps=4, decay_start=4, total_steps=8), 1, 0.5),
    (WarmupLinear(1.0, 0.5, warmup_steps=4, decay_start=4, total_steps=8), 6, 0.75),
    (Constant(0.1), 0, 0.1),
    (Constant(0.1, warmup_steps=4), 1, 0.05),
    (Constant(0.1, warmup_steps=4), 100, 0.1),
])
def test_schedule_has_the_papers_value(schedule, step, expected):
    assert schedule(step) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("schedule, warmup", [(STAGE1, 50_000), (STAGE2, 5_000)])
def test_rises_through_warmup_and_never_after(schedule, warmup):
    values = [schedule(step) for step in range(0, 500_001, 100)]
    rising, falling = values[:warmup // 100], values[warmup // 100:]
    assert all(a < b for a, b in itertools.pairwise(rising))
    assert all(a >= b for a, b in itertools.pairwise(falling))


def test_exponential_decay_multiplies_by_the_same_factor_each_step():
    ratios = [STAGE2(step + 1000) / STAGE2(step) for step in (80_000, 200_000, 449_000)]
    assert ratios == pytest.approx([(1e-5 / 4.5e-4) ** (1000 / 370_000)] * 3)


@pytest.mark.parametrize("build, argument", [
    (lambda: Constant(-1.0), "peak"),
    (lambda: Constant(1.0, warmup_steps=1.5), "warmup_steps"),
    (lambda: WarmupCosine(1e-4, 2e-4, 1, 10), "final"),
    (lambda: WarmupCosine(1e-4, 0.0, 10, 10), "total_steps"),
    (lambda: WarmupExponential(1e-4, 0.0, 1, 2, 3), "final"),
    (lambda: WarmupExponential(1e-4, 1e-5, 5, 2, 9), "decay_start"),
    (lambda: WarmupExponential(1e-4, 1e-5, 5, 9, 9), "total_steps"),
    (lambda: WarmupLinear(1e-4, 2e-4, 1, 2, 3), "final"),
    (lambda: WarmupLinear(1e-4, 0.0, 5, 2, 9), "decay_start"),
    (lambda: WarmupLinear(1e-4, 0.0, 5, 9, 9), "total_steps"),
])
def test_impossible_schedule_is_refused_by_argument_name(build, argument):
    with pytest.raises(ValueError, match=f"^{argument} must be"):
        build()
