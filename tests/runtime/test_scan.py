"""Identical layers as one loop of an XLA program, on a mesh of data = fsdp = tensor = 2, and rematerialisation."""
import re

import numpy as np
import pytest
import torch

from tests.support.processes import UNOPTIMISED, run_on_xla
from vqim.contracts.context import Context
from vqim.nn.module import apply, spec
from vqim.nn.transformer import Stack, TransformerBlock
from vqim.runtime.settings import TorchSettings, XlaSettings
from vqim.runtime.torch import TorchKernels

REMAT = ("none", "products", "blocks")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("scan")


@pytest.fixture(scope="module")
def results(directory):
    pytest.importorskip("torch_xla")
    run_on_xla("tests.runtime.scan_checks", directory / "results.npz", num_devices=8,
               flags=f"{UNOPTIMISED} --xla_dump_to={directory} --xla_dump_hlo_as_text")
    return dict(np.load(directory / "results.npz"))


def gradients(results, way):
    """By parameter."""
    return {name.removeprefix(f"{way} "): array for name, array in results.items() if name.startswith(f"{way} block/")}


@pytest.mark.parametrize("remat", [*REMAT, "unfilled"])
def test_loss_and_gradients_are_those_of_the_layers_one_after_another_with_dropout(results, remat):
    expected, found = gradients(results, "loop"), gradients(results, remat)
    assert len(expected) == 16 and expected.keys() == found.keys()
    np.testing.assert_allclose(results[f"{remat} loss"], results["loop loss"], rtol=1e-6)
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-7, err_msg=name)


def test_evaluation_gives_what_the_layers_one_after_another_give(results):
    np.testing.assert_allclose(results["evaluated"], results["evaluated by loop"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("way", ["loop", *REMAT])
def test_a_step_is_traced_to_the_same_program_each_time(results, way):
    assert not results[f"{way} compilations"].any()


def test_a_deeper_stack_is_no_larger_a_program(results):
    assert results["instructions 2"] == results["instructions 6"] > 100


def test_no_stack_of_weights_or_of_their_gradients_is_gathered(results, directory):
    # The last program updates the weights, and returns a loss alone.
    text = max(directory.glob("*after_optimizations.txt")).read_text()
    assert "while(" in text
    gathered = [shape.split(",") for shape in re.findall(r"= \w+\[([\d,]+)\]\S* all-gather\(", text)]
    assert gathered and not [shape for shape in gathered if shape[0] == "3" and len(shape) > 2]


@pytest.mark.parametrize("settings", [TorchSettings, XlaSettings])
def test_another_word_for_rematerialisation_is_refused(settings):
    with pytest.raises(ValueError, match="remat must be one of 'none', 'products', 'blocks', got 'all'"):
        settings(remat="all")


def test_layers_written_out_are_not_made_again():
    with pytest.raises(ValueError, match="unroll needs remat = 'none', got 'blocks'"):
        XlaSettings(unroll=True, remat="blocks")


class CountedKernels(TorchKernels):
    """Counts the masks that it draws."""

    drawn = 0

    def keep_mask(self, key, rate, shape, device):
        self.drawn += 1
        return super().keep_mask(key, rate, shape, device)


@pytest.mark.parametrize("remat", ["products", "blocks"])
def test_on_torch_rematerialisation_repeats_the_forward_pass_with_the_same_masks(remat):
    stack = Stack(TransformerBlock(8, 2, 12, causal=True, dropout_rate=0.3), 3)
    generator = torch.Generator().manual_seed(0)
    params = {name: 0.3 * torch.randn(leaf.shape, generator=generator) for name, leaf in spec(stack).items()}
    found, drawn = {}, {}
    for way in ("none", remat):
        kernels = CountedKernels(way)
        leaves = {name: array.clone().requires_grad_() for name, array in params.items()}
        x_BTD = torch.ones(2, 5, 8).cumsum(1)
        out_BTD = apply(stack.forward, leaves, x_BTD, Context(kernels, key=torch.tensor(3, dtype=torch.int32)))
        found[way] = [out_BTD, *torch.autograd.grad(out_BTD.square().sum(), list(leaves.values()))]
        drawn[way] = kernels.drawn
    for expected, array in zip(found["none"], found[remat], strict=True):
        torch.testing.assert_close(array, expected, rtol=0, atol=0)
    assert drawn[remat] == 2 * drawn["none"] == 24
