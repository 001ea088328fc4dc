"""Guidance: scales by hand, guided logits by hand, and samplers that follow a schedule."""
import math

import numpy as np
import pytest
import torch

from vqim.nn.module import apply
from vqim.prior.guidance import GuidanceSchedule, check_learnt_without_classes, guided_logits, has_branch
from vqim.prior.sampler import StepwiseSampler

LABELS = np.array([0, 1, 2, 3, -1], np.int32)


@pytest.mark.parametrize(("schedule", "scales"), [
    (GuidanceSchedule(), [3, 3, 3, 3, 3]),
    (GuidanceSchedule("linear"), [1, 1.5, 2, 2.5, 3]),
    (GuidanceSchedule("linear", power=2.0), [1, 1.125, 1.5, 2.125, 3]),
    (GuidanceSchedule("cosine"), [1, 2 - math.sqrt(0.5), 2, 2 + math.sqrt(0.5), 3]),
    (GuidanceSchedule("cosine", power=0.5), [1, 2, 2 - math.cos(math.pi * math.sqrt(0.5)),
                                              2 - math.cos(math.pi * math.sqrt(0.75)), 3]),
    (GuidanceSchedule(interval=(0.2, 0.6)), [1, 3, 3, 1, 1]),
    (GuidanceSchedule("linear", interval=(0.4, 1.0)), [1, 1, 2, 2.5, 3])])
def test_scales_of_five_steps_are_those_made_by_hand(schedule, scales):
    assert [schedule.scale(3.0, step, 5) for step in range(5)] == pytest.approx(scales)


def test_a_sampler_of_one_step_has_the_whole_scale():
    assert GuidanceSchedule("cosine").scale(3.0, 0, 1) == pytest.approx(3.0)


@pytest.mark.parametrize("schedule", [
    GuidanceSchedule("linear"), GuidanceSchedule("cosine", 2.0), GuidanceSchedule(interval=(0.5, 1.0))])
def test_a_scale_of_one_is_one_in_every_step_and_has_no_second_branch(schedule):
    assert {schedule.scale(1.0, step, 5) for step in range(5)} == {1.0}
    assert has_branch(2.0) and not has_branch(1.0)


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_guided_logits_are_the_formulas_and_missing_codes_stay_missing(scale):
    told, untold = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    told[:, 1, 4] = untold[:, 1, 4] = -np.inf

    def logits_of(tokens, labels):
        assert labels.tolist() == [7, -1, 8, -1, 9, -1] and tokens[:, 0].tolist() == [0, 0, 1, 1, 2, 2]
        return torch.stack([torch.from_numpy((untold if label < 0 else told)[row])
                            for row, label in zip(tokens[:, 0].tolist(), labels.tolist(), strict=True)])

    found = guided_logits(logits_of, torch.arange(3)[:, None].expand(3, 4), torch.tensor([7, 8, 9]),
                          torch.tensor(scale)).numpy()
    expected = told + (scale - 1) * (np.where(np.isinf(told), 0, told) - np.where(np.isinf(untold), 0, untold))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_each_step_of_a_stepwise_sampler_has_its_own_scale(make_prior, draw_params, sample_tokens, context):
    prior, schedule = make_prior(), GuidanceSchedule("linear")
    params = draw_params(prior)
    params = params | {name: torch.zeros_like(params[name]) for name in ("norm/bias_D", "head/bias_O")}
    tokens = sample_tokens(prior, params, LABELS, temperature=0.0, guidance=6.0, guidance_schedule=schedule)
    told = apply(prior.forward, params, tokens, torch.from_numpy(LABELS), context).double().numpy()
    untold = apply(prior.forward, params, tokens, None, context).double().numpy()
    scales = np.array([1, 2, 3, 4, 5, 6])[:, None]
    np.testing.assert_array_equal(tokens[..., 0], (told + (scales - 1) * (told - untold)).argmax(-1))
    constant = sample_tokens(prior, params, LABELS, temperature=0.0, guidance=6.0)
    assert not torch.equal(tokens, constant)


def test_a_scheduled_scale_of_one_gives_the_tokens_of_a_sampler_without_guidance(
        make_prior, draw_params, sample_tokens):
    prior = make_prior()
    params, labels = draw_params(prior), np.arange(500) % 4
    plain = sample_tokens(prior, params, labels)
    scheduled = sample_tokens(prior, params, labels, guidance=1.0, guidance_schedule=GuidanceSchedule("cosine"))
    assert (plain != scheduled).double().mean() <= 0.001


@pytest.mark.parametrize(("wrong", "message"), [
    ({"shape": "sine"}, "shape must be one of constant, linear, cosine; got 'sine'"),
    ({"power": 0.0}, "power must be positive, got 0.0"),
    ({"interval": (0.5, 0.5)}, r"interval must be two shares of the steps, 0 <= begin < end <= 1, got \(0.5, 0.5\)"),
    ({"interval": (0.0, 1.5)}, "interval must be two shares of the steps")])
def test_schedules_out_of_range_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        GuidanceSchedule(**wrong)


def test_a_schedule_for_a_prior_without_classes_is_refused_with_a_scale_alone(make_prior, runtime):
    prior, schedule = make_prior(num_classes=0), GuidanceSchedule("linear")
    StepwiseSampler(guidance_schedule=schedule).bind(prior, runtime, 4, torch.float32)
    with pytest.raises(ValueError, match=r"guidance must be 1\.0 for a prior without classes, got 2\.0"):
        StepwiseSampler(guidance=2.0, guidance_schedule=schedule).bind(prior, runtime, 4, torch.float32)


def test_guidance_of_a_prior_that_always_had_the_class_is_refused(make_prior):
    sampler = StepwiseSampler(guidance=2.0)
    with pytest.raises(ValueError, match="guidance must be 1.0 for a prior that was trained with every image's class"):
        check_learnt_without_classes(sampler, make_prior(class_dropout_rate=0.0))
    check_learnt_without_classes(sampler, make_prior(class_dropout_rate=0.1))
    check_learnt_without_classes(StepwiseSampler(), make_prior(class_dropout_rate=0.0))
