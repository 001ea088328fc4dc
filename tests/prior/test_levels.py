"""A prior over several levels of tokens whose vocabularies differ: who is embedded as what, who may say what."""
import math

import numpy as np
import pytest
import torch

from vqim.contracts.grid import Level, TokenGrid
from vqim.nn.module import apply, spec
from vqim.prior.autoregressive import AutoregressivePrior

LEVELS = (Level(1, 2, 1, 5), Level(2, 2, 1, 11), Level(2, 3, 1, 7))
"""2 + 4 + 6 positions; rows 0 to 4, 5 to 15 and 16 to 22 of the token table."""
LEVEL_OF = [0] * 2 + [1] * 4 + [2] * 6
FIRST_ROW = [0, 5, 16]


@pytest.fixture(name="prior")
def make_prior():
    return AutoregressivePrior(
        TokenGrid(LEVELS), 4, width=8, num_layers=2, num_heads=2, hidden=12, dropout_rate=0.0)


@pytest.fixture(name="tokens")
def random_tokens():
    return torch.cat([torch.randint(LEVELS[level].vocabulary, (3, 1, 1)) for level in LEVEL_OF], 1)


LABELS = torch.tensor([0, 3, -1])


def test_one_level_has_the_parameters_that_it_always_had(make_prior):
    names = {name for name in spec(make_prior()) if not name.startswith("blocks/")}
    assert names == {"class_table_CD", "token_table_VD", "positions_hwD", "norm/gain_D", "norm/bias_D",
                     "head/kernel_IO", "head/bias_O"}


def test_all_levels_share_a_table_and_a_head_and_each_has_positions(prior):
    shapes = {name: leaf.shape for name, leaf in spec(prior).items()}
    assert shapes["token_table_VD"] == (23, 8) and shapes["head/kernel_IO"] == (8, 23)
    assert [shapes[name] for name in ("positions_hwD", "positions_1_hwD", "positions_2_hwD")] == [
        (1, 2, 8), (2, 2, 8), (2, 3, 8)]


def test_the_logits_of_a_position_are_those_of_its_levels_codes_alone(prior, draw_params, tokens, context):
    logits = apply(prior.forward, draw_params(prior), tokens, LABELS, context)
    assert logits.shape == (3, 12, 11)
    for position, level in enumerate(LEVEL_OF):
        size = LEVELS[level].vocabulary
        assert torch.isfinite(logits[:, position, :size]).all()
        assert (logits[:, position, size:] == -torch.inf).all()


def test_without_attention_only_the_token_before_predicts_by_its_level_and_position(
        prior, draw_params, tokens, context):
    params = draw_params(prior)
    for name in ("attention/out/kernel_IO", "attention/out/bias_O", "contract/kernel_IO", "contract/bias_O"):
        params[f"blocks/block/{name}"] = torch.zeros_like(params[f"blocks/block/{name}"])
    logits = apply(prior.forward, params, tokens, LABELS, context)
    p = {name: array.double().numpy() for name, array in params.items()}
    positions = [p["positions_hwD"][0, 0], p["positions_hwD"][0, 1],
                 *(p["positions_1_hwD"][i, j] for i, j in np.ndindex(2, 2)),
                 *(p["positions_2_hwD"][i, j] for i, j in np.ndindex(2, 3))]
    for b, i in np.ndindex(3, 12):
        if i == 0:
            x = p["class_table_CD"][LABELS[b]]
        else:
            x = p["token_table_VD"][FIRST_ROW[LEVEL_OF[i - 1]] + tokens[b, i - 1, 0]] + positions[i - 1]
        x = (x - x.mean()) / np.sqrt(x.var() + 1e-6) * p["norm/gain_D"] + p["norm/bias_D"]
        columns = slice(FIRST_ROW[LEVEL_OF[i]], FIRST_ROW[LEVEL_OF[i]] + LEVELS[LEVEL_OF[i]].vocabulary)
        expected = x @ p["head/kernel_IO"][:, columns] + p["head/bias_O"][columns]
        np.testing.assert_allclose(logits[b, i, :len(expected)], expected, rtol=1e-4, atol=1e-5)


def test_a_tokens_logits_depend_on_all_tokens_before_it_and_on_no_other(prior, draw_params, tokens, context):
    params = draw_params(prior)
    logits = apply(prior.forward, params, tokens, LABELS, context).clamp_min(-100)
    for i in range(12):
        changed = tokens.clone()
        changed[:, i] = (tokens[:, i] + 1) % LEVELS[LEVEL_OF[i]].vocabulary
        after = apply(prior.forward, params, changed, LABELS, context).clamp_min(-100)
        assert torch.equal(after[:, :i + 1], logits[:, :i + 1])
        assert ((after[:, i + 1:] - logits[:, i + 1:]).abs().amax(-1) > 1e-5).all()


def test_steps_give_the_logits_of_the_whole_sequence(prior, draw_params, tokens, context):
    params = draw_params(prior)
    whole = apply(prior.forward, params, tokens, LABELS, context)
    cache = prior.empty_cache(3, torch.float32, torch.device("cpu"), context.kernels)
    drawn = torch.full((3, 12), 4)
    for i in range(12):
        logits = apply(prior.step, params, drawn, LABELS, cache, torch.tensor(i, dtype=torch.int32), context)
        torch.testing.assert_close(logits, whole[:, i], rtol=1e-4, atol=1e-5)
        drawn[:, i] = tokens[:, i, 0]


def test_a_prior_that_knows_nothing_loses_the_logarithm_of_each_levels_vocabulary(prior, draw_params, tokens, context):
    params = {name: torch.zeros_like(array) for name, array in draw_params(prior).items()}
    expected = [math.log(LEVELS[level].vocabulary) for level in LEVEL_OF]
    losses = apply(prior.token_losses, params, tokens, None, context)
    np.testing.assert_allclose(losses, np.tile(expected, (3, 1)), rtol=1e-6)
    assert apply(prior.loss, params, tokens, None, context)[0].item() == pytest.approx(np.mean(expected))


def test_gradients_are_finite_and_reach_every_levels_parameters(prior, draw_params, tokens, context):
    params = {name: array.requires_grad_() for name, array in draw_params(prior).items()}
    apply(prior.loss, params, tokens, LABELS, context)[0].backward()
    for name, array in params.items():
        assert torch.isfinite(array.grad).all(), name
        if name.startswith("positions"):
            assert array.grad.flatten(0, 1)[:-1].any(-1).all(), name  # the last token's is no input
    unused = set(range(23)) - {FIRST_ROW[level] + token for row in tokens[:, :-1, 0].tolist()
                               for level, token in zip(LEVEL_OF, row, strict=False)}
    by_row = params["token_table_VD"].grad.any(-1)
    assert [row for row in range(23) if not by_row[row]] == sorted(unused)


@pytest.mark.parametrize("settings", [
    {}, {"top_k": 9}, {"top_p": 0.9}, {"temperature": 0.0}, {"guidance": 3.0}, {"guidance": 0.0},
    {"guidance": 3.0, "top_p": 0.9}, {"guidance": 3.0, "temperature": 0.0}])
def test_samples_have_codes_of_their_level(prior, draw_params, sample_tokens, settings):
    tokens = sample_tokens(prior, draw_params(prior), np.arange(64) % 5 - 1, **settings)
    assert tokens.shape == (64, 12, 1)
    for position, level in enumerate(LEVEL_OF):
        assert 0 <= tokens[:, position].min() and tokens[:, position].max() < LEVELS[level].vocabulary


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_greedy_tokens_are_the_likeliest_of_the_whole_sequences_logits(
        prior, draw_params, sample_tokens, context, guidance):
    params, labels = draw_params(prior), np.array([0, 1, 2, 3, -1], np.int32)
    for name in ("norm/bias_D", "head/bias_O"):  # which would have all positions say the same
        params[name] = torch.zeros_like(params[name])
    tokens = sample_tokens(prior, params, labels, temperature=0.0, guidance=guidance)
    told, untold = (apply(prior.forward, params, tokens, classes, context).numpy()
                    for classes in (torch.from_numpy(labels), None))
    for position, level in enumerate(LEVEL_OF):
        codes = slice(LEVELS[level].vocabulary)
        c, u = told[:, position, codes], untold[:, position, codes]
        np.testing.assert_array_equal(tokens[:, position, 0], (c + (guidance - 1) * (c - u)).argmax(-1))
    assert tokens[:, 2:6].max() > 4  # the second level uses codes that the first does not have
