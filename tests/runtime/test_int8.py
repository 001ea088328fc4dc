"""Products with 8-bit kernels: as exact as their rounding, each row for itself, and samplers that use them."""
import numpy as np
import pytest
import torch

from vqim.contracts.grid import Level, TokenGrid
from vqim.nn.module import arrays_spec
from vqim.prior.autoregressive import AutoregressivePrior
from vqim.prior.sampler import StepwiseSampler
from vqim.runtime.int8 import int8_kernel, int8_linear
from vqim.runtime.torch import TorchKernels, TorchRuntime


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_a_product_is_as_exact_as_the_rounding_of_its_factors():
    x, kernel_IO = draw(5, 3, 96), draw(96, 40)
    y = int8_linear(x, int8_kernel(kernel_IO))
    assert y.dtype == torch.float32 and y.shape == (5, 3, 40)
    # 63 levels to each side of zero for a row, 127 for an output's kernel: half a level is lost at most.
    lost_x = x.abs().amax(-1, keepdim=True).double() / 63 / 2
    lost_O = kernel_IO.abs().amax(0).double() / 127 / 2
    bound = (lost_x * kernel_IO.abs().double().sum(0) + x.abs().double().sum(-1, keepdim=True) * lost_O
             + 96 * lost_x * lost_O) * (1 + 1e-5)
    error = (y.double() - x.double() @ kernel_IO.double()).abs()
    assert (error <= bound).all() and error.max() > 1e-3


def test_a_row_does_not_depend_on_the_others():
    kernel, x = int8_kernel(draw(64, 32)), draw(6, 64)
    x[3] *= 1e4
    x[4] = 0
    alone = torch.cat([int8_linear(row[None], kernel) for row in x])
    assert torch.equal(int8_linear(x, kernel), alone)
    assert torch.equal(alone[4], torch.zeros(32))


def test_kernels_of_a_stack_are_laid_out_in_int8_with_their_bias_in_float32():
    kernel_LIO, bias_O, x = draw(2, 24, 40), draw(40), draw(7, 1, 24)
    for kernel, kernel_IO in zip(TorchKernels().lay_out(kernel_LIO, torch.int8, is_kernel=True), kernel_LIO,
                                 strict=True):
        y = TorchKernels().linear(x, kernel, bias_O)
        assert torch.equal(y, int8_linear(x, int8_kernel(kernel_IO)) + bias_O)


PRIOR = AutoregressivePrior(TokenGrid((Level(3, 3, 1, 16),)), 3, 32, 2, 2, 64, 0.0)
ARRAYS = {name: 0.3 * draw(*leaf.shape) for name, leaf in arrays_spec(PRIOR).items()}


def tokens(numbers, sampler):
    draw_batch = sampler.bind(PRIOR, TorchRuntime(), len(numbers), torch.float32)
    return draw_batch(ARRAYS, np.array(numbers, np.int32) % 3, np.array(numbers), 0)


def test_an_image_drawn_in_int8_does_not_depend_on_its_batch():
    sampler = StepwiseSampler(int8=True)
    together = tokens(range(100), sampler)
    assert torch.equal(together, torch.cat([tokens(range(5), sampler), tokens(range(5, 100), sampler)]))
    exact = tokens(range(100), StepwiseSampler())
    assert 0.5 < (together == exact).float().mean() < 1  # the same draws from nearly the same distributions


def test_int8_is_refused_for_priors_in_bfloat16():
    with pytest.raises(ValueError, match="int8 needs the torch runtime on a CPU and a prior in float32, got torch on "
                                         "cpu and bfloat16"):
        StepwiseSampler(int8=True).bind(PRIOR, TorchRuntime(), 2, torch.bfloat16)
