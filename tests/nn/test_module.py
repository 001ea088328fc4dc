"""Modules describe parameters, hold none, and are called with arrays by name."""
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from vqim.nn.layers import Dense
from vqim.nn.module import apply, arrays_spec, parameter, spec, stack_parameters, statistic, statistics_spec
from vqim.nn.transformer import Stack, TransformerBlock
from vqim.state.init import Constant, Normal


class Pair(nn.Module):
    """Two dense layers, and methods of several names."""

    def __init__(self):
        super().__init__()
        self.first, self.second = Dense(2, 3), Dense(3, 1)

    def encode(self, x, context):
        return self.first(x, context)

    def forward(self, x, context):
        return self.second(self.encode(x, context), context)


def test_names_have_slashes_and_parameters_no_data():
    pair = Pair()
    assert list(spec(pair)) == ["first/kernel_IO", "first/bias_O", "second/kernel_IO", "second/bias_O"]
    assert all(parameter.is_meta for parameter in pair.parameters())


def test_any_method_can_be_applied(draw_params, context):
    pair, x = Pair(), torch.randn(4, 2)
    params = draw_params(pair)
    encoded = x @ params["first/kernel_IO"] + params["first/bias_O"]
    torch.testing.assert_close(apply(pair.encode, params, x, context), encoded)
    torch.testing.assert_close(
        apply(pair.forward, params, x, context=context), encoded @ params["second/kernel_IO"] + params["second/bias_O"])


def test_a_module_is_the_same_after_it_was_applied(draw_params, context):
    pair = Pair()
    apply(pair.forward, draw_params(pair), torch.randn(4, 2), context)
    assert all(parameter.is_meta for parameter in pair.parameters())


def test_threads_that_apply_one_module_do_not_see_each_others_arrays(draw_params, context):
    stack = Stack(TransformerBlock(16, 2, 32, causal=False), 4)
    cases = [(draw_params(stack), torch.randn(2, 3, 16)) for _ in range(2)]
    expected = [apply(stack.forward, *case, context) for case in cases]

    def call(number):
        return all(torch.equal(apply(stack.forward, *cases[number], context), expected[number]) for _ in range(40))

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(call, (0, 1)))
    assert all(parameter.is_meta for parameter in stack.parameters())


def test_missing_and_unknown_arrays_are_refused(draw_params, context):
    params = draw_params(Pair())
    bias = params.pop("first/bias_O")
    with pytest.raises(RuntimeError, match=r"of Pair: missing \['first/bias_O'\], unexpected \[\]"):
        apply(Pair().forward, params, torch.randn(4, 2), context)
    with pytest.raises(RuntimeError, match=r"missing \[\], unexpected \['third/bias_O'\]"):
        apply(Pair().forward, {**params, "first/bias_O": bias, "third/bias_O": bias}, torch.randn(4, 2), context)


def test_parameters_that_do_not_know_their_leaf_are_refused():
    with pytest.raises(TypeError, match=r"Linear.weight is a plain nn.Parameter: declare it with nn.parameter\(\)"):
        spec(nn.Linear(2, 2))


class Counted(nn.Module):
    """A parameter and a statistic."""

    def __init__(self):
        super().__init__()
        self.gain_D = parameter((3,), Constant(1.0), "features")
        self.mean_D = statistic((3,), Normal(), "features")

    def forward(self, x_D):
        return self.gain_D * (x_D - self.mean_D)


def test_statistics_are_listed_beside_parameters_and_not_among_them():
    module = Counted()
    assert (list(spec(module)), list(statistics_spec(module))) == (["gain_D"], ["mean_D"])
    assert list(arrays_spec(module)) == ["gain_D", "mean_D"]


def test_statistics_ask_for_no_gradient():
    assert {name: value.requires_grad for name, value in Counted().named_parameters()} == {
        "gain_D": True, "mean_D": False}


def test_a_call_needs_statistics_too():
    arrays = {"gain_D": torch.tensor([1.0, 2.0, 3.0]), "mean_D": torch.ones(3)}
    assert apply(Counted().forward, arrays, torch.full((3,), 3.0)).tolist() == [2, 4, 6]
    with pytest.raises(RuntimeError, match=r"missing \[.mean_D.\], unexpected \[\]"):
        apply(Counted().forward, {"gain_D": arrays["gain_D"]}, torch.ones(3))


def test_statistics_of_stacked_blocks_stay_statistics():
    module = Counted()
    stack_parameters(module, 4)
    assert (list(spec(module)), list(statistics_spec(module))) == (["gain_D"], ["mean_D"])
    assert [(leaf.shape, leaf.axes) for leaf in arrays_spec(module).values()] == [((4, 3), ("layers", "features"))] * 2
