"""Quantizers with state that gradients do not move: what their sums are, and where what they change is written."""
import functools

import numpy as np
import pytest
import torch

from tests.support.steps import RUNTIME, make_state, run_step
from vqim.contracts.context import Context
from vqim.contracts.learning import Advanced, Learner
from vqim.nn.module import apply, statistic
from vqim.optim.adamw import AdamW
from vqim.optim.schedules import Constant
from vqim.state import init
from vqim.state.leaf import select
from vqim.tokenizer.model import ImageTokenizer, Quantized
from vqim.tokenizer.objective import TokenizerObjective
from vqim.tokenizer.quantizer.hierarchical import HierarchicalQuantizer
from vqim.tokenizer.quantizer.vector import VectorQuantizer
from vqim.tokenizer.terms import L2
from vqim.tokenizer.vit import ViTDecoder, ViTEncoder
from vqim.training.gradient_task import GradientTask

SEVEN = 7.0


class CountingQuantizer(VectorQuantizer):
    """Counts how often each code has been found, and makes code 0 a vector of sevens in every step."""

    def __init__(self, width_in, width_out, vocabulary=16):
        super().__init__(width_in, width_out, vocabulary, code_dim=4)
        self.counts_V = statistic((vocabulary,), init.Constant(0.0), "vocabulary")

    def forward(self, latents_BhwD, context):
        quantized = super().forward(latents_BhwD, context)
        counts_V = torch.bincount(quantized.indices[0].flatten(), minlength=self.vocabulary).float()
        return Quantized(quantized.codes, quantized.indices, quantized.losses, {"counts": counts_V})

    def advance(self, sums, context):
        is_first_V = torch.arange(self.vocabulary) == 0
        return Advanced({"counts_V": self.counts_V + sums["counts"],
                         "codebook_VZ": torch.where(is_first_V[:, None], SEVEN, self.codebook_VZ)})


def make_task(quantizer, ema_decay=None, num_micro_batches=1):
    sizes = {"num_layers": 1, "num_heads": 2, "hidden": 24}
    model = ImageTokenizer(ViTEncoder(16, 4, 32, **sizes), quantizer,
                           ViTDecoder(16, 4, quantizer.width_out, **sizes), image_size=16)
    learner = functools.partial(Learner, optimizer=AdamW(), learning_rate=Constant(1e-2), ema_decay=ema_decay)
    return GradientTask(TokenizerObjective(model, learner, [L2()]), num_micro_batches)


@pytest.fixture(name="batch")
def batch_of_emoji(emoji):
    return RUNTIME.put({"images": emoji, "labels": np.zeros(len(emoji), np.int32)})


def count_codes(task, state, batch, level=0):
    """How often each code of a level is found by the parameters as they are."""
    model, images = task.objective.tokenizer, batch["images"].permute(0, 3, 1, 2) / 255
    arrays = select(state, "params/tokenizer/") | select(state, "statistics/tokenizer/")
    indices = apply(model.encode, arrays, images, Context(RUNTIME.kernels)).indices[level]
    return np.bincount(indices.flatten(), minlength=16)


@pytest.mark.parametrize("num_micro_batches", [1, 4])
def test_sums_are_of_the_whole_batch(batch, num_micro_batches):
    task = make_task(CountingQuantizer(32, 32), num_micro_batches=num_micro_batches)
    state, expected = make_state(task), np.zeros(16)
    for step in range(2):
        expected += count_codes(task, state, batch)
        run_step(task, state, batch, step)
    assert state["statistics/tokenizer/quantizer/counts_V"].tolist() == expected.tolist()
    assert expected.sum() == 2 * 32 * 16 and (expected > 0).sum() > 2


def test_a_parameter_that_is_replaced_is_replaced_after_the_update(batch):
    task, plain = make_task(CountingQuantizer(32, 32)), make_task(VectorQuantizer(32, 32, 16, code_dim=4))
    state, expected = make_state(task), make_state(plain)
    run_step(task, state, batch)
    run_step(plain, expected, batch)
    codebook, moved = (arrays["params/tokenizer/quantizer/codebook_VZ"] for arrays in (state, expected))
    assert (codebook[0] == SEVEN).all() and torch.equal(codebook[1:], moved[1:])


def test_the_moving_average_of_what_is_replaced_takes_the_new_value_and_no_other(batch):
    task, plain = make_task(CountingQuantizer(32, 32), 0.5), make_task(VectorQuantizer(32, 32, 16, code_dim=4), 0.5)
    state, expected = make_state(task), make_state(plain)
    for arrays in (state, expected):
        for name in arrays:
            if name.startswith("ema/"):
                arrays[name].copy_(arrays[name.replace("ema/", "params/")] + 1)
    # A step in the middle of training, where an average moves half of the way.
    run_step(task, state, batch, 100)
    run_step(plain, expected, batch, 100)
    average, other = (arrays["ema/tokenizer/quantizer/codebook_VZ"] for arrays in (state, expected))
    assert (average[0] == SEVEN).all() and torch.equal(average[1:], other[1:])
    assert not torch.equal(average[1:], state["params/tokenizer/quantizer/codebook_VZ"][1:])


def test_nothing_is_replaced_in_a_step_that_is_not_finite(batch):
    task = make_task(CountingQuantizer(32, 32), ema_decay=0.5)
    state = make_state(task)
    state["params/tokenizer/decoder/head/expand/bias_O"][0] = torch.nan
    codebook = state["params/tokenizer/quantizer/codebook_VZ"].clone()
    run_step(task, state, batch)
    assert not state["statistics/tokenizer/quantizer/counts_V"].any()
    assert torch.equal(state["params/tokenizer/quantizer/codebook_VZ"], codebook)


def test_each_level_of_a_hierarchy_advances_by_its_own_sums(batch):
    top, bottom = CountingQuantizer(32, 32), CountingQuantizer(32 + 32, 8)
    task = make_task(HierarchicalQuantizer(32, top, bottom, num_blocks=1))
    state = make_state(task)
    expected = [count_codes(task, state, batch, level) for level in (0, 1)]
    run_step(task, state, batch)
    for name, counts in zip(("top", "bottom"), expected, strict=True):
        assert state[f"statistics/tokenizer/quantizer/{name}/counts_V"].tolist() == counts.tolist()
        assert (state[f"params/tokenizer/quantizer/{name}/codebook_VZ"][0] == SEVEN).all()
    assert [counts.sum() for counts in expected] == [32 * 4, 32 * 16]


def test_a_level_without_such_state_stays_beside_one_with_it(batch):
    task = make_task(HierarchicalQuantizer(
        32, CountingQuantizer(32, 32), VectorQuantizer(32 + 32, 8, 16, code_dim=4), num_blocks=1))
    state = make_state(task)
    expected = count_codes(task, state, batch)
    run_step(task, state, batch)
    statistics = {name: array.tolist() for name, array in state.items() if name.startswith("statistics/")}
    assert statistics == {"statistics/tokenizer/quantizer/top/counts_V": expected.tolist()}


def test_sums_are_not_shown(batch):
    task = make_task(CountingQuantizer(32, 32))
    assert {name for name in run_step(task, make_state(task), batch) if "count" in name or "quantizer" in name} == set()
