"""Attention against torch's, causality, and one position at a time."""
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vqim.nn.attention import Cache, SelfAttention
from vqim.nn.module import apply
from vqim.runtime.plain import plain_attention
from vqim.runtime.torch import SHORT_SEQUENCE, TorchKernels


def copy_to_torch(params, num_heads):
    """torch.nn.MultiheadAttention with these parameters."""
    width = params["out/bias_O"].numel()
    module = nn.MultiheadAttention(width, num_heads, batch_first=True)
    module.load_state_dict({
        "in_proj_weight": torch.cat([params[f"{name}/kernel_IO"].T for name in ("query", "key", "value")]),
        "in_proj_bias": torch.cat([params[f"{name}/bias_O"] for name in ("query", "key", "value")]),
        "out_proj.weight": params["out/kernel_IO"].T, "out_proj.bias": params["out/bias_O"]})
    return module


@pytest.mark.parametrize("causal", [False, True])
def test_self_attention_is_torchs_multihead_attention(draw_params, context, causal):
    attention = SelfAttention(12, 3, causal=causal)
    params, x = draw_params(attention), torch.randn(2, 7, 12)
    mask = torch.ones(7, 7).triu(1).bool() if causal else None
    expected, _ = copy_to_torch(params, 3)(x, x, x, attn_mask=mask)
    torch.testing.assert_close(apply(attention.forward, params, x, context), expected)


@pytest.mark.parametrize("causal", [False, True])
def test_plain_attention_is_torchs_fused_one(causal):
    q, k, v = (torch.randn(2, 3, 9, 4) for _ in range(3))
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    torch.testing.assert_close(plain_attention(q, k, v, causal=causal), expected)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_does_not_change_where_the_kernel_changes(causal):
    for num_tokens in (SHORT_SEQUENCE, SHORT_SEQUENCE + 1):
        q, k, v = (torch.randn(1, 2, num_tokens, 4) for _ in range(3))
        expected = plain_attention(q, k, v, causal=causal)
        torch.testing.assert_close(TorchKernels().attention(q, k, v, causal=causal), expected)


def test_bfloat16_attention_has_a_float32_softmax():
    q, k, v = (torch.randn(1, 2, 64, 8).bfloat16() for _ in range(3))
    expected = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    out = plain_attention(q, k, v, causal=False)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), expected, rtol=0.02, atol=0.01)


def test_a_later_token_never_changes_what_comes_before_it(draw_params, context):
    attention = SelfAttention(8, 2, causal=True)
    params, x = draw_params(attention), torch.randn(2, 6, 8)
    before = apply(attention.forward, params, x, context)
    for t in range(6):
        changed = x.clone()
        changed[:, t] += 1
        after = apply(attention.forward, params, changed, context)
        torch.testing.assert_close(after[:, :t], before[:, :t], rtol=0, atol=0)
        assert ((after[:, t:] - before[:, t:]).abs().amax((0, 2)) > 1e-4).all()


def test_without_causality_every_token_sees_every_other(draw_params, context):
    attention = SelfAttention(8, 2, causal=False)
    params, x = draw_params(attention), torch.randn(1, 4, 8)
    changed = x.clone()
    changed[:, 3] += 1
    difference = apply(attention.forward, params, changed, context) - apply(attention.forward, params, x, context)
    assert (difference.abs().amax(-1) > 1e-5).all()


def test_steps_give_what_the_whole_sequence_gives(draw_params, context):
    attention = SelfAttention(8, 2, causal=True)
    params, x = draw_params(attention), torch.randn(3, 5, 8)
    whole = apply(attention.forward, params, x, context)
    # What is not yet seen must not be read.
    keys, values = (context.kernels.empty_cache((1, 3, 2, 5, 4), x.dtype, x.device).fill_(1e4) for _ in range(2))
    for t in range(5):
        out, _ = apply(attention.step, params, x[:, t:t + 1], Cache(keys[0], values[0]), torch.tensor(t), context)
        torch.testing.assert_close(out[:, 0], whole[:, t])


def test_attentions_dropout_acts_before_the_output_projection(draw_params, context, training_context):
    attention = SelfAttention(8, 2, causal=False, dropout_rate=0.5)
    params, x = draw_params(attention), torch.randn(1, 3, 8)
    params["out/kernel_IO"], params["out/bias_O"] = torch.eye(8), torch.full((8,), 100.0)
    out = apply(attention.forward, params, x, training_context(0)) - 100
    kept = apply(attention.forward, params, x, context) - 100
    dropped = out.abs() < 1e-4
    assert 4 <= dropped.sum() <= 20
    torch.testing.assert_close(out[~dropped], 2 * kept[~dropped], rtol=1e-3, atol=1e-4)


def test_a_width_that_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="width must be a multiple of num_heads, got width 10 and num_heads 4"):
        SelfAttention(10, 4, causal=True)
