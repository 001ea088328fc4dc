"""VIM: Table 2's sizes, who sees whom, steps against the whole sequence, losses and features by hand."""
import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch

from vqim.contracts.context import Context
from vqim.contracts.grid import Level, TokenGrid
from vqim.nn.module import apply, spec
from vqim.nn.transformer import TransformerBlock
from vqim.prior.autoregressive import AutoregressivePrior
from vqim.runtime.torch import TorchKernels

# Table 2: (#Blocks, #Heads, Model Dim, Hidden Dim)
TABLE_2 = {"Base": (24, 16, 1536, 6144), "Large": (36, 32, 2048, 8192)}


@pytest.mark.parametrize(("size", "num_classes", "total"), [
    ("Base", 0, 706_707_968), ("Base", 1000, 708_243_968),
    ("Large", 0, 1_848_563_712), ("Large", 1000, 1_850_611_712)])
def test_priors_of_table_2_have_this_many_parameters(size, num_classes, total):
    layers, heads, width, hidden = TABLE_2[size]
    grid = TokenGrid((Level(32, 32, 1, 8192),))
    prior = AutoregressivePrior(grid, num_classes, width=width, num_layers=layers, num_heads=heads, hidden=hidden)
    attention = 4 * (width * width + width)
    feed_forward = width * hidden + hidden + hidden * width + width
    tables = (num_classes + 1 + 8192 + 32 * 32) * width
    expected = layers * (attention + feed_forward + 4 * width) + tables + 2 * width + width * 8192 + 8192
    assert sum(leaf.size for leaf in spec(prior).values()) == expected == total


def draw_tokens(prior, batch_size=3):
    return torch.randint(prior.vocabulary, (batch_size, prior.num_steps, 1))


def other(tokens, prior):
    return (tokens + 1) % prior.vocabulary


def test_a_tokens_logits_depend_on_all_tokens_before_it_and_on_no_other(make_prior, draw_params, context):
    prior = make_prior()
    params, tokens, labels = draw_params(prior), draw_tokens(prior), torch.tensor([0, 1, 2])
    logits = apply(prior.forward, params, tokens, labels, context)
    assert logits.shape == (3, 6, 11)
    for i in range(6):
        changed = tokens.clone()
        changed[:, i] = other(tokens[:, i], prior)
        after = apply(prior.forward, params, changed, labels, context)
        assert torch.equal(after[:, :i + 1], logits[:, :i + 1])
        assert ((after[:, i + 1:] - logits[:, i + 1:]).abs().amax(-1) > 1e-5).all()


def test_the_class_changes_the_logits_of_every_token(make_prior, draw_params, context):
    prior = make_prior()
    params, tokens = draw_params(prior), draw_tokens(prior, 1)
    by_label = torch.cat([apply(prior.forward, params, tokens, torch.tensor([label]), context)
                          for label in (-1, 0, 1, 2, 3)])
    for one, another in itertools.combinations(by_label, 2):
        assert ((one - another).abs().amax(-1) > 1e-5).all()


def test_without_attention_a_token_is_predicted_from_the_one_before_and_its_position(make_prior, draw_params, context):
    prior = make_prior()
    params, tokens, labels = draw_params(prior), draw_tokens(prior), torch.tensor([3, 0, -1])
    for name in ("attention/out/kernel_IO", "attention/out/bias_O", "contract/kernel_IO", "contract/bias_O"):
        params[f"blocks/block/{name}"] = torch.zeros_like(params[f"blocks/block/{name}"])
    logits = apply(prior.forward, params, tokens, labels, context)
    p = {name: array.double().numpy() for name, array in params.items()}
    for b, i in np.ndindex(3, 6):
        if i == 0:
            x = p["class_table_CD"][labels[b] if labels[b] >= 0 else 4]
        else:
            row, column = divmod(i - 1, 3)
            x = p["token_table_VD"][tokens[b, i - 1, 0]] + p["positions_hwD"][row, column]
        x = (x - x.mean()) / np.sqrt(x.var() + 1e-6) * p["norm/gain_D"] + p["norm/bias_D"]
        np.testing.assert_allclose(logits[b, i], x @ p["head/kernel_IO"] + p["head/bias_O"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_give_the_logits_of_the_whole_sequence(make_prior, draw_params, context, dtype):
    prior = make_prior()
    context = dataclasses.replace(context, dtype=dtype)
    params, tokens, labels = draw_params(prior), draw_tokens(prior), torch.tensor([0, 3, -1])
    whole = apply(prior.forward, params, tokens, labels, context).float()
    cache = prior.empty_cache(3, dtype, torch.device("cpu"), context.kernels)
    assert [(array.shape, array.dtype) for array in cache.values()] == 2 * [((2, 3, 2, 6, 4), dtype)]
    for array in cache.values():
        array += 1e4  # what is not yet seen must not be read
    drawn = torch.full((3, 6), 7)  # neither are this step's draw and those after it
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.05}
    for i in range(6):
        logits = apply(prior.step, params, drawn, labels, cache, torch.tensor(i), context)
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits, whole[:, i], **tolerance)
        drawn[:, i] = tokens[:, i, 0]


def test_losses_are_minus_log_probabilities_in_nats(make_prior, draw_params, context):
    prior = make_prior()
    params, tokens, labels = draw_params(prior), draw_tokens(prior), torch.tensor([0, 1, 2])
    logits = apply(prior.forward, params, tokens, labels, context).double().numpy()
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = -np.log(np.take_along_axis(probabilities, tokens.numpy(), -1)[..., 0])
    losses = apply(prior.token_losses, params, tokens, labels, context)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    loss, metrics = apply(prior.loss, params, tokens, labels, context)
    assert loss.item() == pytest.approx(expected.mean(), rel=1e-6)
    assert metrics["loss/bits_per_token"].item() == pytest.approx(expected.mean() / math.log(2), rel=1e-6)


def test_measures_of_an_image_are_its_bits_a_token_and_the_share_of_likeliest_ones(make_prior, draw_params, context):
    prior = make_prior()
    params, tokens, labels = draw_params(prior), draw_tokens(prior, 40), torch.arange(40) % 4
    logits = apply(prior.forward, params, tokens, labels, context).double().numpy()
    tokens[:20] = torch.from_numpy(logits.argmax(-1)[:20, :, None])
    logits = apply(prior.forward, params, tokens, labels, context).double().numpy()
    log_probabilities = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    bits = -np.take_along_axis(log_probabilities, tokens.numpy(), -1)[..., 0] / np.log(2)
    measures = apply(prior.measure, params, tokens, labels, context)
    np.testing.assert_allclose(measures["bits_per_token"], bits.mean(1), rtol=1e-5)
    shares = (logits.argmax(-1) == tokens[..., 0].numpy()).mean(1)
    assert len(set(shares)) > 2
    np.testing.assert_allclose(measures["token_accuracy"], shares)


def test_the_expected_code_is_the_likeliest_given_the_true_ones_before_it(make_prior, draw_params, context):
    prior = make_prior()
    params, tokens, labels = draw_params(prior), draw_tokens(prior, 40), torch.arange(40) % 4
    expected = apply(prior.expected, params, tokens, labels, context)
    logits = apply(prior.forward, params, tokens, labels, context)
    assert expected.dtype == torch.int64 and torch.equal(expected, logits.argmax(-1, keepdim=True))


def test_a_prior_that_knows_nothing_loses_the_logarithm_of_its_vocabulary(make_prior, draw_params, context):
    prior = make_prior()
    params = {name: torch.zeros_like(array) for name, array in draw_params(prior).items()}
    loss, _ = apply(prior.loss, params, draw_tokens(prior), None, context)
    assert loss.item() == pytest.approx(math.log(11))


def test_features_are_every_blocks_output_averaged_over_the_tokens(make_prior, draw_params, context):
    prior = make_prior()
    params, tokens = draw_params(prior), draw_tokens(prior)
    block = TransformerBlock(8, 2, 12, causal=True)
    embedded = params["token_table_VD"][tokens[..., 0]] + params["positions_hwD"].reshape(6, 8)
    x = torch.cat([params["class_table_CD"][-1].expand(3, 1, 8), embedded], 1)
    expected = []
    for layer in range(2):
        of_layer = {name.removeprefix("blocks/block/"): array[layer]
                    for name, array in params.items() if name.startswith("blocks/block/")}
        x = apply(block.forward, of_layer, x, context)
        expected.append(x[:, 1:].mean(1))  # all six tokens, not the class
    torch.testing.assert_close(apply(prior.features, params, tokens, context), torch.stack(expected))


def test_features_in_bfloat16_are_averaged_in_float32(make_prior, draw_params):
    prior = make_prior()
    features = apply(prior.features, draw_params(prior), draw_tokens(prior), Context(TorchKernels(), torch.bfloat16))
    assert features.dtype == torch.float32
    assert not torch.equal(features, features.bfloat16().float())


def test_labels_of_minus_one_are_labels_not_given(make_prior, draw_params, context):
    prior = make_prior()
    params, tokens = draw_params(prior), draw_tokens(prior)
    untold = apply(prior.forward, params, tokens, None, context)
    assert torch.equal(apply(prior.forward, params, tokens, torch.tensor([-1, -1, -1]), context), untold)
    mixed = apply(prior.forward, params, tokens, torch.tensor([-1, 0, -1]), context)
    assert torch.equal(mixed[0], untold[0]) and not torch.equal(mixed[1], untold[1])


def test_a_prior_without_classes_ignores_labels(make_prior, draw_params, context):
    prior = make_prior(num_classes=0)
    params, tokens = draw_params(prior), draw_tokens(prior)
    labelled = apply(prior.forward, params, tokens, torch.tensor([5, 0, 7]), context)
    assert torch.equal(labelled, apply(prior.forward, params, tokens, None, context))


def count_untold(prior, params, key, num_images=4000):
    """How many images of class 1 are seen as if without a class."""
    tokens = torch.zeros(num_images, prior.num_steps, 1, dtype=torch.int64)
    context = Context(TorchKernels(), key=None if key is None else torch.tensor(key, dtype=torch.int32))
    first = apply(prior.forward, params, tokens, torch.ones(num_images, dtype=torch.int64), context)[:, 0]
    untold = apply(prior.forward, params, tokens[:1], None, Context(TorchKernels()))[0, 0]
    told = apply(prior.forward, params, tokens[:1], torch.tensor([1]), Context(TorchKernels()))[0, 0]
    is_untold = torch.isclose(first, untold, atol=1e-4).all(-1)
    assert (is_untold | torch.isclose(first, told, atol=1e-4).all(-1)).all()
    return is_untold.sum().item()


def test_classes_are_dropped_at_their_rate_in_training_alone(make_prior, draw_params):
    prior = make_prior(height=1, width=2, dropout_rate=0.0, class_dropout_rate=0.3)
    params = draw_params(prior)
    assert abs(count_untold(prior, params, key=0) - 1200) < 5 * math.sqrt(4000 * 0.3 * 0.7)
    assert count_untold(prior, params, key=None) == 0
    always_told = make_prior(height=1, width=2, dropout_rate=0.0)
    assert count_untold(always_told, params, key=0) == 0


def test_the_papers_dropout_is_the_default(make_prior):
    assert make_prior().blocks.block.dropout_rate == 0.1


@pytest.mark.parametrize(("arguments", "message"), [
    ({"num_classes": -1}, "num_classes must be at least 0, got -1"),
    ({"class_dropout_rate": 1.0}, "class_dropout_rate must be at least 0 and below 1, got 1.0"),
    ({"dropout_rate": 2.0}, "dropout_rate must be at least 0 and below 1, got 2.0"),
    ({"num_heads": 3}, "width must be a multiple of num_heads, got width 8 and num_heads 3")])
def test_impossible_arguments_are_refused(make_prior, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_prior(**arguments)
