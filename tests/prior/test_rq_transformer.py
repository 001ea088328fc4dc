"""The RQ-transformer beside the paper's equations, computed in loops; its parameters beside the published ones."""
import math

import numpy as np
import pytest
import torch

from vqim.contracts.grid import Level, TokenGrid
from vqim.nn.module import apply, spec
from vqim.prior.rq_transformer import RQTransformer

LEVELS = (Level(1, 2, 3, 5), Level(2, 2, 3, 9))
SIZES = {"width": 8, "num_layers": 2, "num_depth_layers": 3, "num_heads": 2, "hidden": 12, "code_dim": 6}
# Width, spatial and depth layers, heads, codes, classes; millions of parameters, as the paper prints them.
PUBLISHED = {
    "FFHQ": (1024, 24, 4, 16, 2048, 0, 355),
    "ImageNet small": (1536, 12, 4, 24, 16384, 1000, 480),
    "ImageNet 1.4B": (1536, 42, 6, 24, 16384, 1000, 1400),
    "ImageNet 3.8B": (2560, 42, 6, 40, 16384, 1000, 3800)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_have_this_many_parameters(name):
    width, spatial, depth, heads, codes, num_classes, millions = PUBLISHED[name]
    prior = RQTransformer(TokenGrid((Level(8, 8, 4, codes),)), num_classes, width=width, num_layers=spatial,
                          num_depth_layers=depth, num_heads=heads, hidden=4 * width)
    blocks = (spatial + depth) * (12 * width**2 + 13 * width)
    embeddings = 2 * (256 * width + width) + (num_classes + 1 + 8 * 8 + 4) * width
    head = 2 * width + width * codes + codes
    as_published = blocks + embeddings + head  # with the codebook's vectors, which are the tokenizer's
    total = sum(leaf.size for leaf in spec(prior).values())
    assert total == as_published + 4 * codes * 256
    assert as_published / 1e6 == pytest.approx(millions, rel=0.02)


def numpy_norm(x, gain, bias):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * gain + bias


def numpy_transformer(x_TD, p, name, num_heads=2):
    """The last output of a causal transformer, in loops over layers and heads; the last input sees all inputs."""
    erf = np.vectorize(math.erf)
    for layer in range(len(p[f"{name}/block/expand/bias_O"])):
        q = {key.removeprefix(f"{name}/block/"): value[layer] for key, value in p.items() if key.startswith(f"{name}/")}

        def dense(x, which, q=q):
            return x @ q[f"{which}/kernel_IO"] + q[f"{which}/bias_O"]

        normed = numpy_norm(x_TD, q["attention_norm/gain_D"], q["attention_norm/bias_D"])
        queries, keys, values = (dense(normed, f"attention/{which}") for which in ("query", "key", "value"))
        attended = np.zeros_like(x_TD)
        for head in np.split(np.arange(x_TD.shape[1]), num_heads):
            for t in range(len(x_TD)):
                weights = np.exp(keys[:t + 1][:, head] @ queries[t, head] / math.sqrt(len(head)))
                attended[t, head] = weights / weights.sum() @ values[:t + 1][:, head]
        x_TD = x_TD + dense(attended, "attention/out")
        hidden = dense(numpy_norm(x_TD, q["feed_forward_norm/gain_D"], q["feed_forward_norm/bias_D"]), "expand")
        x_TD = x_TD + dense(hidden * (1 + erf(hidden / math.sqrt(2))) / 2, "contract")
    return x_TD[-1]


def numpy_logits(p, tokens_NK, label):
    """Section 3.2.2 with a table for each depth: u_t and h_t, v_td and the logits, for one image of LEVELS."""
    num_codes, num_rows = 3, 5 + 9
    first_row, vocabulary = [0] * 2 + [5] * 4, [5] * 2 + [9] * 4
    positions = np.concatenate([p["positions_hwD"].reshape(-1, 8), p["positions_1_hwD"].reshape(-1, 8)])

    def code(n, k):
        return p["code_tables_TZ"][k * num_rows + first_row[n] + tokens_NK[n, k]]

    u, found = [p["class_table_CD"][label]], []
    for n in range(len(tokens_NK)):
        h = numpy_transformer(np.stack(u), p, "spatial")
        v = [h + p["depths_KD"][0]]
        for k in range(num_codes):
            out = numpy_norm(numpy_transformer(np.stack(v), p, "depth"), p["norm/gain_D"], p["norm/bias_D"])
            columns = slice(first_row[n], first_row[n] + vocabulary[n])
            found.append(out @ p["head/kernel_IO"][:, columns] + p["head/bias_O"][columns])
            if k + 1 < num_codes:
                so_far = sum(code(n, i) for i in range(k + 1))
                v.append(so_far @ p["depth_embed/kernel_IO"] + p["depth_embed/bias_O"] + p["depths_KD"][k + 1])
        all_codes = sum(code(n, k) for k in range(num_codes))
        u.append(all_codes @ p["spatial_embed/kernel_IO"] + p["spatial_embed/bias_O"] + positions[n])
    return found


def test_logits_are_those_of_the_papers_equations(draw_params, context):
    prior = RQTransformer(TokenGrid(LEVELS), 4, **SIZES)
    params, labels = draw_params(prior), torch.tensor([2, -1])
    tokens = torch.cat([torch.randint(level.vocabulary, (2, level.num_positions, 3)) for level in LEVELS], 1)
    logits = apply(prior.forward, params, tokens, labels, context)
    p = {name: array.double().numpy() for name, array in params.items()}
    for b in range(2):
        for place, expected in enumerate(numpy_logits(p, tokens[b].numpy(), int(labels[b]))):
            np.testing.assert_allclose(logits[b, place, :len(expected)], expected, rtol=1e-4, atol=1e-4)
            assert (logits[b, place, len(expected):] == -torch.inf).all()


def test_one_code_a_position_is_refused():
    with pytest.raises(ValueError, match="several codes at each position, this tokenizer gives one; Autoregressive"):
        RQTransformer(TokenGrid((Level(2, 2, 1, 8),)), 0, **SIZES)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"num_classes": -1}, "num_classes must be at least 0, got -1"),
    ({"num_depth_layers": 0}, "num_depth_layers must be a whole number of at least 1, got 0"),
    ({"code_dim": 0}, "code_dim must be a whole number of at least 1, got 0"),
    ({"class_dropout_rate": 1.0}, "class_dropout_rate must be at least 0 and below 1, got 1.0"),
    ({"num_heads": 3}, "width must be a multiple of num_heads, got width 8 and num_heads 3")])
def test_impossible_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        RQTransformer(TokenGrid(LEVELS), **{"num_classes": 0, **SIZES, **arguments})


def test_two_steps_of_a_position_leave_the_same_spatial_entries(draw_params, context):
    prior = RQTransformer(TokenGrid(LEVELS), 0, **SIZES)
    params, drawn = draw_params(prior), torch.randint(5, (2, prior.num_steps))
    cache = prior.empty_cache(2, torch.float32, torch.device("cpu"), context.kernels)
    for step in range(5):
        before = cache["spatial_keys"].clone()
        apply(prior.step, params, drawn, None, cache, torch.tensor(step), context)
        changed = (cache["spatial_keys"] != before).flatten(3).any((0, 1, 2)).nonzero().flatten() // 4
        assert changed.unique().tolist() == ([step // 3] if step % 3 == 0 else [])
