"""Transformer blocks against torch's, stacks against blocks of their own, and dropout in all of its places."""
import dataclasses

import pytest
import torch
from torch import nn

from vqim.contracts.context import Context
from vqim.nn.attention import Cache
from vqim.nn.layers import Dense
from vqim.nn.module import apply, spec
from vqim.nn.transformer import Stack, TransformerBlock, lay_out_arrays
from vqim.runtime.torch import TorchKernels
from vqim.state.init import full_index
from vqim.state.random import fold_key

WIDTH, HEADS, HIDDEN, LAYERS, TOKENS = 8, 2, 12, 3, 5


def make_block(causal=False, dropout_rate=0.0):
    return TransformerBlock(WIDTH, HEADS, HIDDEN, causal=causal, dropout_rate=dropout_rate)


def make_stack(**kwargs):
    return Stack(make_block(**kwargs), LAYERS)


def of_layer(params, layer):
    """One block's parameters, cut from those of a stack."""
    return {name.removeprefix("block/"): array[layer] for name, array in params.items()}


def copy_to_torch(params):
    """torch.nn.TransformerEncoderLayer with these parameters."""
    module = nn.TransformerEncoderLayer(
        WIDTH, HEADS, HIDDEN, dropout=0.0, activation="gelu", batch_first=True, norm_first=True, layer_norm_eps=1e-6)
    names = {"self_attn.out_proj": "attention/out", "linear1": "expand", "linear2": "contract"}
    weights = {f"{theirs}.weight": params[f"{ours}/kernel_IO"].T for theirs, ours in names.items()}
    weights |= {f"{theirs}.bias": params[f"{ours}/bias_O"] for theirs, ours in names.items()}
    for theirs, ours in (("norm1", "attention_norm"), ("norm2", "feed_forward_norm")):
        weights |= {f"{theirs}.weight": params[f"{ours}/gain_D"], f"{theirs}.bias": params[f"{ours}/bias_D"]}
    projections = [f"attention/{name}" for name in ("query", "key", "value")]
    weights["self_attn.in_proj_weight"] = torch.cat([params[f"{name}/kernel_IO"].T for name in projections])
    weights["self_attn.in_proj_bias"] = torch.cat([params[f"{name}/bias_O"] for name in projections])
    module.load_state_dict(weights)
    return module.train()  # evaluation takes a fused path of its own


@pytest.mark.parametrize("causal", [False, True])
def test_a_block_is_torchs_pre_norm_encoder_layer(draw_params, context, causal):
    block = make_block(causal=causal)
    params, x = draw_params(block), torch.randn(2, TOKENS, WIDTH)
    mask = nn.Transformer.generate_square_subsequent_mask(TOKENS) if causal else None
    expected = copy_to_torch(params)(x, src_mask=mask)
    torch.testing.assert_close(apply(block.forward, params, x, context), expected)


def test_a_stack_is_its_blocks_one_after_another(draw_params, context):
    stack, block = make_stack(), make_block()
    params, x = draw_params(stack), torch.randn(2, TOKENS, WIDTH)
    outputs = [x]
    for layer in range(LAYERS):
        outputs.append(apply(block.forward, of_layer(params, layer), outputs[-1], context))
    torch.testing.assert_close(apply(stack.forward, params, x, context), outputs[-1])
    collected = apply(stack.collect, params, x, context, lambda x_BTD: x_BTD.mean(1))
    torch.testing.assert_close(collected, torch.stack([output.mean(1) for output in outputs[1:]]))


def test_the_gradient_of_a_stack_is_that_of_its_blocks(draw_params, training_context):
    stack, block = make_stack(dropout_rate=0.2), make_block(dropout_rate=0.2)
    params, x, weights = draw_params(stack), torch.randn(2, TOKENS, WIDTH), torch.randn(2, TOKENS, WIDTH)
    context = training_context(3)

    stacked = {name: array.clone().requires_grad_() for name, array in params.items()}
    (apply(stack.forward, stacked, x, context) * weights).sum().backward()

    layers = [{name: array.clone().requires_grad_() for name, array in of_layer(params, layer).items()}
              for layer in range(LAYERS)]
    for number, layer in enumerate(layers):
        x = apply(block.forward, layer, x, context.fold(torch.tensor(number, dtype=torch.int32)))
    (x * weights).sum().backward()

    for name, array in stacked.items():
        expected = torch.stack([layer[name.removeprefix("block/")].grad for layer in layers])
        assert expected.abs().max() > 1e-6 or name.endswith("key/bias_O")  # softmax ignores what all keys share
        torch.testing.assert_close(array.grad, expected)


def test_every_layer_of_a_stack_starts_as_a_block_on_its_own():
    stacked, single = make_stack().block.expand.kernel_IO.leaf, make_block().expand.kernel_IO.leaf
    assert stacked.shape == (LAYERS, *single.shape) and stacked.axes == ("layers", *single.axes)
    assert stacked.init == dataclasses.replace(single.init, num_stacked=1)
    assert single.init.bound == pytest.approx((6 / (WIDTH + HIDDEN)) ** 0.5)  # the fans of one layer


def test_a_new_stack_is_the_identity(context):
    stack, x = make_stack(), torch.randn(2, TOKENS, WIDTH)
    params = {name: torch.from_numpy(leaf.init(name, leaf.shape, 0, full_index(leaf.shape)))
              for name, leaf in spec(stack).items()}
    assert torch.equal(apply(stack.forward, params, x, context), x)
    assert (params["block/attention/value/kernel_IO"] != 0).all() and (params["block/expand/kernel_IO"] != 0).all()


def make_cache(context):
    sizes = (LAYERS, 2, HEADS, TOKENS, WIDTH // HEADS)
    return Cache(*(context.kernels.empty_cache(sizes, torch.float32, torch.device("cpu")) for _ in range(2)))


@pytest.mark.parametrize("cut", [False, True])
def test_steps_through_a_stack_give_what_the_whole_sequence_gives(draw_params, context, cut):
    stack = make_stack(causal=True)
    params, x = draw_params(stack), torch.randn(2, TOKENS, WIDTH)
    whole = apply(stack.forward, params, x, context)
    cache = make_cache(context)
    cache.keys.fill_(1e4)
    cache.values.fill_(1e4)
    for t in range(TOKENS):
        out = apply(stack.step, params, x[:, t:t + 1], cache, torch.tensor(t), context, t if cut else None)
        torch.testing.assert_close(out[:, 0], whole[:, t])


class TwoStacks(nn.Module):
    """One stack after another, and a dense layer beside them."""

    def __init__(self):
        super().__init__()
        self.first, self.second = make_stack(causal=True), make_stack(causal=True)
        self.head = Dense(WIDTH, 3)

    def forward(self, x_BTD, context):
        return self.head(self.second(self.first(x_BTD, context), context), context)

    def step(self, x_B1D, caches, position, context):
        for stack, cache in zip((self.first, self.second), caches, strict=True):
            x_B1D = stack.step(x_B1D, cache, position, context)
        return self.head(x_B1D, context)


def test_steps_with_arrays_laid_out_for_them_give_what_the_whole_sequence_gives(draw_params, context):
    model = TwoStacks()
    params, x = draw_params(model), torch.randn(2, TOKENS, WIDTH)
    whole = apply(model.forward, params, x, context)
    laid_out = lay_out_arrays(model, params, context.kernels, context.dtype)
    assert laid_out.keys() == params.keys() - {"head/kernel_IO", "head/bias_O"}
    laid_out = {**params, **laid_out}
    caches = [make_cache(context) for _ in range(2)]
    for t in range(TOKENS):
        out = apply(model.step, laid_out, x[:, t:t + 1], caches, torch.tensor(t), context)
        torch.testing.assert_close(out[:, 0], whole[:, t])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_rows", [1, 7, 64])
@pytest.mark.parametrize(("num_inputs", "num_outputs"), [(24, 40), (1024, 1040)])
def test_products_with_kernels_laid_out_are_those_of_the_kernels(dtype, num_rows, num_inputs, num_outputs):
    kernel_LIO, bias = torch.randn(2, num_inputs, num_outputs) / num_inputs**0.5, torch.randn(num_outputs)
    x = torch.randn(num_rows, 1, num_inputs).to(dtype)
    laid_out = TorchKernels().lay_out(kernel_LIO, dtype, is_kernel=True)
    tolerance = {"rtol": 0.02, "atol": 0.04} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
    for kernel, kernel_IO in zip(laid_out, kernel_LIO, strict=True):
        y = TorchKernels().linear(x, kernel, bias)
        assert y.dtype == dtype and y.shape == (num_rows, 1, num_outputs)
        torch.testing.assert_close(y.double(), x.double() @ kernel_IO.double() + bias.double(), **tolerance)


def test_large_kernels_are_laid_out_for_onednn_and_small_ones_stay():
    large, small = (TorchKernels().lay_out(torch.randn(1, 1024, size), torch.float32, is_kernel=True)[0]
                    for size in (512, 256))
    assert large.is_mkldnn and not small.is_mkldnn


def test_no_layer_of_a_causal_stack_sees_what_comes_later(draw_params, context):
    stack = make_stack(causal=True)
    params, x = draw_params(stack), torch.randn(2, TOKENS, WIDTH)
    changed = x.clone()
    changed[:, 3:] += 1
    before, after = (apply(stack.collect, params, inputs, context, lambda x: x) for inputs in (x, changed))
    torch.testing.assert_close(after[:, :, :3], before[:, :, :3], rtol=0, atol=0)


def test_bfloat16_activations_are_near_the_float32_ones(draw_params, context):
    stack = make_stack()
    params, x = draw_params(stack), torch.randn(2, TOKENS, WIDTH)
    out = apply(stack.forward, params, x.bfloat16(), Context(TorchKernels(), torch.bfloat16))
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), apply(stack.forward, params, x, context), rtol=0.05, atol=0.05)


class RecordedKernels(TorchKernels):
    """Remembers the keys of the masks that it makes."""

    def __init__(self):
        super().__init__()
        self.masks = []

    def keep_mask(self, key, rate, shape, device):
        self.masks.append((key.item(), rate, shape))
        return super().keep_mask(key, rate, shape, device)


def test_dropout_acts_in_the_papers_places_with_a_key_each(draw_params):
    stack, kernels = make_stack(dropout_rate=0.1), RecordedKernels()
    key = torch.tensor(7, dtype=torch.int32)
    apply(stack.forward, draw_params(stack), torch.randn(2, TOKENS, WIDTH), Context(kernels, key=key))
    # Section 4: "A dropout ratio of 0.1 is used in all residual, activation and attention outputs."
    places = [("attention", WIDTH), ("attention residual", WIDTH), ("activation", HIDDEN),
              ("feed-forward residual", WIDTH)]
    assert kernels.masks == [
        (fold_key(fold_key(key, layer), place).item(), 0.1, (2, TOKENS, size))
        for layer in range(LAYERS) for place, size in places]
    assert len({mask[0] for mask in kernels.masks}) == 4 * LAYERS


def test_evaluation_draws_no_mask(draw_params, context):
    stack = make_stack(dropout_rate=0.5)
    params, x = draw_params(stack), torch.randn(2, TOKENS, WIDTH)
    expected = apply(make_stack().forward, params, x, context)
    torch.testing.assert_close(apply(stack.forward, params, x, context), expected, rtol=0, atol=0)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"width": 0}, "width must be a whole number of at least 1, got 0"),
    ({"hidden": 1.5}, "hidden must be a whole number of at least 1, got 1.5"),
    ({"num_heads": 3}, "width must be a multiple of num_heads"),
    ({"dropout_rate": 1.0}, "dropout_rate must be at least 0 and below 1, got 1.0"),
])
def test_a_block_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        TransformerBlock(**{"width": 8, "num_heads": 2, "hidden": 8, "causal": True, **arguments})


def test_a_stack_of_no_layers_is_refused():
    with pytest.raises(ValueError, match="num_layers must be a whole number of at least 1, got 0"):
        Stack(make_block(), 0)
