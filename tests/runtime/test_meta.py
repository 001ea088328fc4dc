"""`step_flops` against counts by hand: 6 operations a parameter of a matrix and position, and attention's products."""
import functools

import pytest
import torch

from vqim.contracts.learning import Learner
from vqim.frozen.from_run import FromRun
from vqim.nn.module import spec
from vqim.optim.adamw import AdamW
from vqim.optim.schedules import Constant
from vqim.prior.autoregressive import AutoregressivePrior
from vqim.prior.objective import PriorObjective
from vqim.runtime.meta import step_flops
from vqim.tokenizer.model import ImageTokenizer
from vqim.tokenizer.objective import TokenizerObjective
from vqim.tokenizer.quantizer.vector import VectorQuantizer
from vqim.tokenizer.terms import L2, LogitLaplace
from vqim.tokenizer.vit import ViTDecoder, ViTEncoder
from vqim.training.gradient_task import GradientTask

B, N, V, Z = 2, 16, 64, 4
SIZES = {"width": 32, "num_layers": 3, "num_heads": 4, "hidden": 48}
ATTENTION = SIZES["num_layers"] * 2 * (2 * N * N * SIZES["width"])
"""Of one image, forward: q k^T, and the weights times v, two operations for each pair of positions and feature."""


def tokenizer(width_multiple=1):
    sizes = SIZES | {"width": SIZES["width"] * width_multiple}
    return ImageTokenizer(
        ViTEncoder(16, 4, **sizes), VectorQuantizer(sizes["width"], sizes["width"], V, Z), ViTDecoder(16, 4, **sizes),
        16)


def matrices(module):
    """Number of elements of all kernels."""
    return sum(leaf.size for leaf in spec(module).values() if "out" in leaf.axes)


def learner():
    return functools.partial(Learner, optimizer=AdamW(), learning_rate=Constant(1e-3))


def tokenizer_task():
    return GradientTask(TokenizerObjective(tokenizer(), learner(), [L2(), LogitLaplace()]))


def prior_task():
    prior = functools.partial(AutoregressivePrior, dropout_rate=0.1, **SIZES)
    return GradientTask(PriorObjective(FromRun(tokenizer(), "nowhere"), prior, learner(), 3))


def batch(**arrays):
    return {"labels": torch.zeros(B, dtype=torch.int32), "valid": torch.ones(B, dtype=torch.bool), **arrays}


def tokens():
    return batch(tokens=torch.zeros(B, N, 1, dtype=torch.int32))


def pictures():
    return batch(images=torch.zeros(B, 16, 16, 3, dtype=torch.uint8))


def test_a_prior_costs_six_operations_a_matrix_element_and_token_plus_attention():
    task = prior_task()
    expected = 6 * matrices(task.objective.prior) * B * N + 3 * ATTENTION * B
    assert step_flops(task, task.init_spec(), tokens()) == expected


def test_making_the_tokens_costs_the_encoder_and_the_search_in_the_codebook_forward():
    task = prior_task()
    model = task.objective.tokenizer
    forward = 2 * (matrices(model.encoder) + matrices(model.quantizer.project_in) + V * Z) * B * N
    # The codes' vectors are projected for the decoder too, which nobody asks for here.
    unused = 2 * matrices(model.quantizer.project_out) * B * N
    cost = step_flops(task, task.init_spec(), pictures()) - step_flops(task, task.init_spec(), tokens())
    assert cost == forward + unused + ATTENTION * B


def test_a_tokenizer_costs_three_forward_passes_less_what_needs_no_gradient():
    task = tokenizer_task()
    model = task.objective.tokenizer
    expected = 6 * matrices(model) * B * N + 2 * 3 * ATTENTION * B
    expected += 2 * V * Z * B * N  # the search in the codebook has no gradient
    expected -= 2 * matrices(model.encoder.embed) * B * N  # neither have the images
    assert step_flops(task, task.init_spec(), pictures()) == expected


@pytest.mark.parametrize("stage", ["tokenizer", "prior"])
def test_operations_grow_with_the_batch_and_allocate_nothing(stage):
    task = prior_task() if stage == "prior" else tokenizer_task()
    small = pictures()
    large = {name: array[:1].expand(2**30, *array.shape[1:]) for name, array in small.items()}
    assert step_flops(task, task.init_spec(), large) == step_flops(task, task.init_spec(), small) * 2**30 // B
