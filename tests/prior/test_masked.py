"""The masked prior: its size, who sees whom, the loss by a slow loop, what it measures, expects and gives as features.

    B batch, N positions, K codes a position
"""
import dataclasses
import math

import numpy as np
import pytest
import torch

from vqim.contracts.context import Context
from vqim.contracts.grid import Level, TokenGrid
from vqim.nn.module import apply, spec
from vqim.nn.transformer import TransformerBlock
from vqim.prior.masked import MaskedPrior
from vqim.runtime.torch import TorchKernels
from vqim.state.random import fold_key

LEVELS = (Level(1, 2, 2, 5), Level(2, 3, 2, 7))
"""Two levels of different vocabularies: 2 and 6 positions, rows 0 to 4 and 5 to 11 of the table."""
NO_SUMS = ("attention/out/kernel_IO", "attention/out/bias_O", "contract/kernel_IO", "contract/bias_O")


def draw_tokens(prior, batch_size=3):
    return torch.cat([torch.randint(level.vocabulary, (batch_size, level.num_positions, level.channels))
                      for level in prior.grid.levels], 1)


def training(key, context):
    return dataclasses.replace(context, key=torch.tensor(key, dtype=torch.int32))


@pytest.mark.parametrize(("channels", "num_classes", "total"), [
    (4, 0, 307_035_392), (4, 1000, 308_059_392), (1, 0, 304_673_792), (8, 0, 311_102_592)])
def test_movqs_masked_prior_has_this_many_parameters(channels, num_classes, total):
    width, hidden, layers, vocabulary = 1024, 4096, 24, 1024
    prior = MaskedPrior(TokenGrid((Level(16, 16, channels, vocabulary),)), num_classes, width=width, num_layers=layers,
                        num_heads=16, hidden=hidden)
    attention = 4 * (width * width + width)
    feed_forward = width * hidden + hidden + hidden * width + width
    chunks = (vocabulary + 1) * width // channels
    head = width * channels * vocabulary + channels * vocabulary
    expected = (layers * (attention + feed_forward + 4 * width) + 2 * width + chunks + 16 * 16 * width
                + (num_classes + 1) * width + head)
    assert sum(leaf.size for leaf in spec(prior).values()) == expected == total


def test_logits_depend_on_every_known_code_and_on_no_masked_one(make_masked, draw_params, context):
    prior = make_masked()
    params, tokens, labels = draw_params(prior), draw_tokens(prior), torch.tensor([0, 1, 2])
    seen = tokens.clone()
    seen[:, 4, 1] = -1
    logits = apply(prior.logits, params, seen, labels, context)
    assert logits.shape == (3, 6, 2, 11) and logits.dtype == torch.float32
    for position, channel in np.ndindex(6, 2):
        changed = seen.clone()
        changed[:, position, channel] = torch.where(
            changed[:, position, channel] < 0, -1, (changed[:, position, channel] + 1) % 11)
        moved = (apply(prior.logits, params, changed, labels, context) - logits).abs().amax((1, 2, 3))
        assert (moved > 1e-5).all() if (position, channel) != (4, 1) else (moved == 0).all()


def test_the_class_changes_the_logits_of_every_code(make_masked, draw_params, context):
    prior = make_masked()
    params, tokens = draw_params(prior), draw_tokens(prior, 1)
    by_label = [apply(prior.logits, params, tokens, torch.tensor([label]), context) for label in (-1, 0, 3)]
    for one, another in ((0, 1), (0, 2), (1, 2)):
        assert ((by_label[one] - by_label[another]).abs().amax(-1) > 1e-5).all()
    assert torch.equal(apply(prior.logits, params, tokens, None, context), by_label[0])


def test_without_attention_a_position_is_its_codes_embeddings_side_by_side(make_masked, draw_params, context):
    prior = make_masked(LEVELS)
    params, tokens = draw_params(prior), draw_tokens(prior)
    tokens[0, 0, 1] = tokens[1, 7, 0] = tokens[2, 3] = -1
    for name in NO_SUMS:
        params[f"blocks/block/{name}"] = torch.zeros_like(params[f"blocks/block/{name}"])
    logits = apply(prior.logits, params, tokens, torch.tensor([3, 0, -1]), context)
    p = {name: array.double().numpy() for name, array in params.items()}
    for b, n in np.ndindex(3, 8):
        level, first, place = (0, 0, n) if n < 2 else (1, 5, n - 2)
        chunks = [p["mask_Z"] if code < 0 else p["code_table_VZ"][first + code] for code in tokens[b, n].tolist()]
        positions = p["positions_hwD" if level == 0 else "positions_1_hwD"].reshape(-1, 8)
        x = np.concatenate(chunks) + positions[place]
        x = (x - x.mean()) / np.sqrt(x.var() + 1e-6) * p["norm/gain_D"] + p["norm/bias_D"]
        size = LEVELS[level].vocabulary
        for k in range(2):
            columns = slice(2 * first + k * size, 2 * first + (k + 1) * size)
            expected = x @ p["head/kernel_IO"][:, columns] + p["head/bias_O"][columns]
            np.testing.assert_allclose(logits[b, n, k, :size], expected, rtol=1e-4, atol=1e-5)
            assert (logits[b, n, k, size:] == -torch.inf).all()


def masks_by_hand(prior, key, shape):
    """The masks of `loss`: ceil(cos(pi r / 2) S) of each image's smallest draws, r and the draws by their keys."""
    kernels, key = TorchKernels(), fold_key(torch.tensor(key, dtype=torch.int32), "mask")
    places = shape[1] * shape[2]
    r = kernels.uniform(fold_key(key, "ratio"), shape[:1], torch.device("cpu")).numpy()
    draws = kernels.uniform(fold_key(key, "places"), (shape[0], places), torch.device("cpu")).numpy()
    masked = np.zeros(draws.shape, bool)
    for row, ratio in enumerate(r):
        masked[row, np.argsort(draws[row])[:math.ceil(math.cos(math.pi * ratio / 2) * places)]] = True
    return masked.reshape(shape)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_that_of_a_slow_loop_over_the_masked_codes(make_masked, draw_params, context, smoothing):
    prior = make_masked(LEVELS, dropout_rate=0.0, label_smoothing=smoothing)
    params, tokens, labels = draw_params(prior), draw_tokens(prior, 5), torch.tensor([0, 1, 2, 3, -1])
    masked = masks_by_hand(prior, 11, tuple(tokens.shape))
    assert 5 < masked.sum() < masked.size - 5
    seen = torch.where(torch.from_numpy(masked), -1, tokens)
    logits = apply(prior.logits, params, seen, labels, context).double().numpy()
    losses, bits = [], []
    for b, n, k in zip(*masked.nonzero(), strict=True):
        row = logits[b, n, k, :LEVELS[0 if n < 2 else 1].vocabulary]
        target = np.full(len(row), smoothing / len(row))
        target[tokens[b, n, k]] += 1 - smoothing
        log_p = row - np.log(np.exp(row).sum())
        losses.append(-(target * log_p).sum())
        bits.append(-log_p[tokens[b, n, k]] / math.log(2))
    loss, metrics = apply(prior.loss, params, tokens, labels, training(11, context))
    assert loss.item() == pytest.approx(np.mean(losses), rel=1e-5)
    assert metrics["loss/bits_per_masked_token"].item() == pytest.approx(np.mean(bits), rel=1e-5)


def test_each_step_masks_other_codes_and_the_same_key_the_same(make_masked, draw_params, context):
    prior = make_masked(dropout_rate=0.0)
    params, tokens = draw_params(prior), draw_tokens(prior)
    one, again, other = (apply(prior.loss, params, tokens, None, training(key, context))[0] for key in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_a_masked_prior_that_knows_nothing_loses_the_logarithm_of_its_vocabulary(make_masked, draw_params, context):
    prior = make_masked()
    params = {name: torch.zeros_like(array) for name, array in draw_params(prior).items()}
    tokens = draw_tokens(prior)
    assert apply(prior.loss, params, tokens, None, training(0, context))[0].item() == pytest.approx(math.log(11))
    measures = apply(prior.measure, params, tokens, None, context)
    np.testing.assert_allclose(measures["bits_per_masked_token"], 3 * [math.log2(11)], rtol=1e-6)


def test_gradients_reach_every_parameter(make_masked, draw_params, context):
    prior = make_masked(LEVELS)
    params = {name: array.requires_grad_() for name, array in draw_params(prior).items()}
    tokens, labels = draw_tokens(prior, 8), torch.tensor(2 * [0, 1, 2, -1])
    apply(prior.loss, params, tokens, labels, training(0, context))[0].backward()
    assert [name for name, array in params.items() if array.grad is None or not array.grad.abs().sum() > 0] == []


class Recorder(MaskedPrior):
    """A masked prior that notes what it sees."""

    seen: list

    def logits(self, tokens_BNK, labels_B, context):
        self.seen.append(tokens_BNK)
        return super().logits(tokens_BNK, labels_B, context)


def make_recorder(levels=(Level(2, 3, 2, 11),)):
    prior = Recorder(TokenGrid(levels), 4, width=8, num_layers=2, num_heads=2, hidden=12)
    prior.seen = []
    return prior


def test_measures_are_means_over_codes_whose_masking_an_images_tokens_decide(draw_params, context):
    prior = make_recorder()
    params, tokens, labels = draw_params(prior), draw_tokens(prior, 40), torch.arange(40) % 4
    measures = apply(prior.measure, params, tokens, labels, context)
    seen, = prior.seen
    masked = (seen < 0).numpy()
    assert torch.equal(torch.where(seen < 0, tokens, seen), tokens)
    assert masked.any((1, 2)).all() and len(set(masked.sum((1, 2)).tolist())) > 5
    assert masked.mean() == pytest.approx(2 / math.pi, abs=0.15)  # the mean of cos(pi r / 2), rounded up
    logits = apply(prior.logits, params, seen, labels, context).double().numpy()
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    bits = -np.take_along_axis(log_p, tokens.numpy()[..., None], -1)[..., 0] / math.log(2)
    right = logits.argmax(-1) == tokens.numpy()
    for name, values in (("bits_per_masked_token", bits), ("masked_token_accuracy", right)):
        expected = [values[row][masked[row]].mean() for row in range(40)]
        np.testing.assert_allclose(measures[name], expected, rtol=1e-4, atol=1e-6)
    assert "bits_per_token" not in measures
    order = torch.randperm(40)[:7]
    again = apply(prior.measure, params, tokens[order], labels[order], context)
    torch.testing.assert_close(again["bits_per_masked_token"], measures["bits_per_masked_token"][order])


def test_expected_codes_are_the_likeliest_given_the_true_other_half(draw_params, context):
    prior = make_recorder(LEVELS)
    params, tokens, labels = draw_params(prior), draw_tokens(prior), torch.tensor([0, 1, -1])
    expected = apply(prior.expected, params, tokens, labels, context)
    first, second = prior.seen
    assert torch.equal((first < 0), (second >= 0)) and (first[0] < 0).sum() == 8  # of 16
    assert len(torch.unique(first < 0, dim=0)) == 1  # the halves are those of every image
    for seen in (first, second):
        logits = apply(prior.logits, params, seen, labels, context)
        assert torch.equal(expected[seen < 0], logits.argmax(-1)[seen < 0])


def test_features_of_a_masked_prior_are_averages_over_unmasked_tokens(make_masked, draw_params, context):
    prior = make_masked()
    params, tokens = draw_params(prior), draw_tokens(prior)
    block = TransformerBlock(8, 2, 12, causal=False)
    codes = params["code_table_VZ"][tokens].reshape(3, 6, 8) + params["positions_hwD"].reshape(6, 8)
    x = torch.cat([params["class_table_CD"][-1].expand(3, 1, 8), codes], 1)
    expected = []
    for layer in range(2):
        of_layer = {name.removeprefix("blocks/block/"): array[layer]
                    for name, array in params.items() if name.startswith("blocks/block/")}
        x = apply(block.forward, of_layer, x, context)
        expected.append(x[:, 1:].mean(1))
    torch.testing.assert_close(apply(prior.features, params, tokens, context), torch.stack(expected))


def test_classes_of_a_masked_prior_are_dropped_at_their_rate_in_training(make_masked, draw_params, context):
    prior = make_masked((Level(1, 1, 1, 5),), dropout_rate=0.0, class_dropout_rate=0.3)
    params, tokens = draw_params(prior), torch.full((4000, 1, 1), -1)
    labels = torch.ones(4000, dtype=torch.int64)
    untold = apply(prior.logits, params, tokens[:1], None, context)
    in_training = apply(prior.logits, params, tokens, labels, training(0, context))
    dropped = torch.isclose(in_training, untold, atol=1e-5).all((1, 2, 3)).sum().item()
    assert abs(dropped - 1200) < 5 * math.sqrt(4000 * 0.3 * 0.7)
    told = apply(prior.logits, params, tokens[:4], labels[:4], context)
    assert not torch.isclose(told, untold, atol=1e-5).all((1, 2, 3)).any()


def test_a_masked_prior_in_bfloat16_loses_about_the_same(make_masked, draw_params, context):
    prior = make_masked(dropout_rate=0.0)
    params, tokens = draw_params(prior), draw_tokens(prior)
    losses = [apply(prior.loss, params, tokens, None, training(3, Context(TorchKernels(), dtype)))[0].item()
              for dtype in (torch.float32, torch.bfloat16)]
    assert losses[1] == pytest.approx(losses[0], rel=0.02) and losses[0] != losses[1]


@pytest.mark.parametrize(("wrong", "message"), [
    ({"width": 9}, "width must be a multiple of the tokenizer's 2 codes a position, got 9"),
    ({"label_smoothing": 1.0}, "label_smoothing must be at least 0 and below 1, got 1.0"),
    ({"schedule": "sine"}, "schedule must be one of cosine, arccos, linear, square, cubic, root; got 'sine'"),
    ({"num_classes": -1}, "num_classes must be at least 0, got -1")])
def test_arguments_of_a_masked_prior_out_of_range_are_refused(make_masked, wrong, message):
    with pytest.raises(ValueError, match=message):
        make_masked(**wrong)
