"""Priors that draw several codes a position one by one: who sees whom, steps beside whole sequences, draws, losses."""
import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch

from vqim.contracts.context import Context
from vqim.contracts.grid import Level, TokenGrid
from vqim.nn.module import apply, spec
from vqim.prior.autoregressive import AutoregressivePrior
from vqim.prior.rq_transformer import RQTransformer
from vqim.runtime.torch import TorchKernels

SIZES = {"width": 8, "num_layers": 2, "num_heads": 2, "hidden": 12, "dropout_rate": 0.0}
CLASSES = {AutoregressivePrior: {}, RQTransformer: {"num_depth_layers": 2, "code_dim": 6}}
GRIDS = {"one level": (Level(2, 2, 3, 7),), "two levels": (Level(1, 2, 2, 5), Level(2, 2, 2, 9))}
LABELS = torch.tensor([0, 3, -1])


@pytest.fixture(params=CLASSES, ids=lambda prior: prior.__name__)
def make(request):
    """`make(levels, ...)`: a prior of either class, by default with four classes."""
    def build(levels, num_classes=4, **settings):
        arguments = {**SIZES, **CLASSES[request.param], **settings}
        return request.param(TokenGrid(levels), num_classes, **arguments)
    return build


@pytest.fixture(params=GRIDS)
def prior(request, make):
    return make(GRIDS[request.param])


@pytest.fixture
def tokens(prior):
    return draw_tokens(prior.grid)


def draw_tokens(grid, batch_size=3):
    return torch.cat([torch.randint(level.vocabulary, (batch_size, level.num_positions, level.channels))
                      for level in grid.levels], 1)


def vocabularies(grid):
    """That of each place in the sequence."""
    return [level.vocabulary for level in grid.levels for _ in range(level.num_positions * level.channels)]


def finite(logits):
    return torch.where(torch.isinf(logits), 0.0, logits)


def without_biases(params):
    """With them, all images and places would say the same."""
    return {name: torch.zeros_like(array) if "/bias_" in name else array for name, array in params.items()}


def test_a_codes_logits_depend_on_codes_before_it_in_channel_and_position_alone(prior, tokens, draw_params, context):
    params, num_codes = draw_params(prior), prior.grid.num_channels
    logits = finite(apply(prior.forward, params, tokens, LABELS, context))
    assert logits.shape == (3, prior.num_steps, prior.vocabulary)
    for place, vocabulary in enumerate(vocabularies(prior.grid)):
        changed, (position, channel) = tokens.clone(), divmod(place, num_codes)
        changed[:, position, channel] = (tokens[:, position, channel] + 1) % vocabulary
        after = finite(apply(prior.forward, params, changed, LABELS, context))
        # Sums of codes in another order of the same codes would differ in the last bits.
        assert (after - logits)[:, :place + 1].abs().max() < 1e-6
        assert ((after - logits)[:, place + 1:].abs().amax(-1) > 1e-5).all()


def test_two_codes_of_a_position_that_change_places_change_what_follows(prior, tokens, draw_params, context):
    params = draw_params(prior)
    tokens[:, 0, 0], tokens[:, 0, 1] = 1, 2
    swapped = tokens.clone()
    swapped[:, 0, 0], swapped[:, 0, 1] = 2, 1
    logits, after = (finite(apply(prior.forward, params, some, LABELS, context)) for some in (tokens, swapped))
    next_position = prior.grid.num_channels
    assert ((after - logits)[:, next_position:].abs().amax(-1) > 1e-4).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_give_the_logits_of_the_whole_sequence(prior, tokens, draw_params, context, dtype):
    context = dataclasses.replace(context, dtype=dtype)
    params = draw_params(prior)
    whole = apply(prior.forward, params, tokens, LABELS, context).float()
    cache = prior.empty_cache(3, dtype, torch.device("cpu"), context.kernels)
    for array in cache.values():
        assert array.dtype == dtype and array.shape[1] == 3
        array += 1e4  # what is not yet seen must not be read
    drawn = torch.full((3, prior.num_steps), 4)  # neither are this step's draw and those after it
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.1, "atol": 0.1}
    for step in range(prior.num_steps):
        logits = apply(prior.step, params, drawn, LABELS, cache, torch.tensor(step, dtype=torch.int32), context)
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits, whole[:, step], **tolerance)
        drawn[:, step] = tokens.flatten(1)[:, step]


def test_the_loss_is_minus_the_mean_log_probability_of_all_codes(prior, tokens, draw_params, context):
    params = draw_params(prior)
    logits = apply(prior.forward, params, tokens, LABELS, context).double().numpy()
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    nats = -np.log(np.take_along_axis(probabilities, tokens.flatten(1)[..., None].numpy(), -1)[..., 0])
    loss, metrics = apply(prior.loss, params, tokens, LABELS, context)
    assert loss.item() == pytest.approx(nats.mean(), rel=1e-5)
    assert metrics["loss/bits_per_token"].item() == pytest.approx(nats.mean() / math.log(2), rel=1e-5)
    measures = apply(prior.measure, params, tokens, LABELS, context)
    np.testing.assert_allclose(measures["bits_per_token"], nats.mean(1) / math.log(2), rtol=1e-5)
    expected = apply(prior.expected, params, tokens, LABELS, context)
    np.testing.assert_array_equal(expected, logits.argmax(-1).reshape(tokens.shape))
    np.testing.assert_allclose(measures["token_accuracy"], (expected == tokens).float().mean((1, 2)))


def test_a_prior_that_knows_nothing_loses_the_logarithm_of_each_codes_vocabulary(prior, tokens, draw_params, context):
    params = {name: torch.zeros_like(array) for name, array in draw_params(prior).items()}
    expected = np.mean(np.log(vocabularies(prior.grid)))
    assert apply(prior.loss, params, tokens, None, context)[0].item() == pytest.approx(expected)


def test_gradients_are_finite_and_reach_every_parameter(prior, tokens, draw_params, context):
    params = {name: array.requires_grad_() for name, array in draw_params(prior).items()}
    apply(prior.loss, params, tokens, LABELS, context)[0].backward()
    for name, array in params.items():
        assert torch.isfinite(array.grad).all() and array.grad.any(), name


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_greedy_tokens_are_the_likeliest_of_the_whole_sequences_logits(
        prior, draw_params, sample_tokens, context, guidance):
    params, labels = without_biases(draw_params(prior)), np.array([0, 1, 2, 3, -1], np.int32)
    tokens = sample_tokens(prior, params, labels, temperature=0.0, guidance=guidance)
    assert tokens.shape == (5, prior.grid.num_positions, prior.grid.num_channels)
    told, untold = (apply(prior.forward, params, tokens, classes, context).numpy()
                    for classes in (torch.from_numpy(labels), None))
    for place, vocabulary in enumerate(vocabularies(prior.grid)):
        c, u = told[:, place, :vocabulary], untold[:, place, :vocabulary]
        np.testing.assert_array_equal(tokens.flatten(1)[:, place], (c + (guidance - 1) * (c - u)).argmax(-1))
    assert len(tokens.unique(dim=0)) > 1 and len(tokens.unique()) > 2


def test_codes_are_drawn_from_the_models_joint_distribution(make, draw_params, sample_tokens, context):
    prior = make((Level(1, 2, 2, 2),), num_classes=2)
    params, labels = without_biases(draw_params(prior)), np.arange(6000, dtype=np.int32) % 3 - 1
    params["head/kernel_IO"] = 2 * params["head/kernel_IO"]
    drawn = sample_tokens(prior, params, labels).flatten(1).numpy()
    sequences = torch.tensor(list(itertools.product(range(2), repeat=4)))
    for label in (-1, 0, 1):
        logits = apply(prior.forward, params, sequences.reshape(16, 2, 2), torch.full((16,), label), context)
        by_code = logits.double().softmax(-1).gather(-1, sequences[..., None])[..., 0]
        probabilities = by_code.prod(1).numpy()
        assert probabilities.sum() == pytest.approx(1, abs=1e-5) and probabilities.max() > 2 * probabilities.min()
        counts = np.bincount(drawn[labels == label] @ [8, 4, 2, 1], minlength=16)
        expected = counts.sum() * probabilities
        assert ((counts - expected) ** 2 / expected).sum() < 15 + 5 * math.sqrt(2 * 15)


def test_given_codes_stay_and_the_others_are_drawn_given_them(prior, draw_params, sample_tokens, context):
    params, labels = without_biases(draw_params(prior)), np.array([0, 1, 2, 3, -1], np.int32)
    given = np.full((5, prior.grid.num_positions, prior.grid.num_channels), -1, np.int64)
    given[0, :2], given[1, 0, 1], given[2, :, 0], given[3] = 3, 4, 1, 2
    tokens = sample_tokens(prior, params, labels, given=given, temperature=0.0)
    likeliest = apply(prior.expected, params, tokens, torch.from_numpy(labels), context)
    np.testing.assert_array_equal(tokens, np.where(given >= 0, given, likeliest))


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_an_image_is_drawn_by_its_number_whatever_the_batch(prior, draw_params, sample_tokens, guidance):
    params, labels = draw_params(prior), np.arange(8) % 5 - 1
    all_8 = sample_tokens(prior, params, labels, seed=3, guidance=guidance)
    assert len(all_8.unique(dim=0)) == 8
    for numbers in ([7], [5, 0, 3]):
        alone = sample_tokens(prior, params, labels[numbers], seed=3, numbers=numbers, guidance=guidance)
        assert torch.equal(alone, all_8[numbers])


def test_a_prior_without_classes_ignores_labels(make, draw_params, context):
    prior = make(GRIDS["one level"], num_classes=0)
    params, tokens = draw_params(prior), draw_tokens(prior.grid)
    told = apply(prior.forward, params, tokens, torch.tensor([5, 0, 7]), context)
    assert torch.equal(told, apply(prior.forward, params, tokens, None, context))


def test_features_see_all_codes_and_no_class(prior, tokens, draw_params, context):
    params, features = draw_params(prior), {}
    for name, some in (("all", tokens), ("another last code", tokens.clone())):
        some[:, -1, -1] = 0 if name == "all" else 1
        features[name] = apply(prior.features, params, some, context)
    assert features["all"].shape == (2, 3, 8) and features["all"].dtype == torch.float32
    assert ((features["all"] - features["another last code"]).abs().amax(-1) > 1e-4).all()


def test_classes_are_dropped_at_their_rate_in_training_alone(make, draw_params):
    prior = make((Level(1, 1, 2, 3),), class_dropout_rate=0.3)
    params, tokens = draw_params(prior), torch.zeros(4000, 1, 2, dtype=torch.int64)
    ones = torch.ones(4000, dtype=torch.int64)
    by_key = {key: apply(prior.forward, params, tokens, ones, Context(
        TorchKernels(), key=None if key is None else torch.tensor(key, dtype=torch.int32)))[:, 0] for key in (0, None)}
    told = by_key[None][0]
    assert torch.isclose(by_key[None], told, atol=1e-4).all()
    untold = ~torch.isclose(by_key[0], told, atol=1e-4).all(-1)
    assert abs(untold.sum().item() - 1200) < 5 * math.sqrt(4000 * 0.3 * 0.7)


def test_one_code_a_position_is_a_sequence_of_positions_as_before():
    one, several = (AutoregressivePrior(TokenGrid((Level(2, width, channels, 7),)), 4, **SIZES)
                    for width, channels in ((6, 1), (2, 3)))
    assert {name: leaf.shape for name, leaf in spec(one).items()} == {
        name: leaf.shape for name, leaf in spec(several).items()}


def test_a_row_of_several_codes_is_a_longer_row_of_single_ones(draw_params, context):
    one, several = (AutoregressivePrior(TokenGrid((Level(2, width, channels, 7),)), 4, **SIZES)
                    for width, channels in ((6, 1), (2, 3)))
    params, tokens = draw_params(one), draw_tokens(several.grid)
    torch.testing.assert_close(apply(several.forward, params, tokens, LABELS, context),
                               apply(one.forward, params, tokens.reshape(3, 12, 1), LABELS, context))
