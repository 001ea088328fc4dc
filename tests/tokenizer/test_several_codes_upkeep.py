"""A codebook that K codes a position share follows its latents and restarts, in micro-batches too."""
import functools

import numpy as np
import pytest
import torch

from vqim.contracts.context import Context
from vqim.contracts.learning import Learner
from vqim.nn.module import apply, arrays_spec, statistics_spec
from vqim.optim.adamw import AdamW
from vqim.optim.schedules import Constant
from vqim.runtime.torch import TorchKernels, TorchRuntime
from vqim.state.init import full_index
from vqim.tokenizer.model import ImageTokenizer
from vqim.tokenizer.objective import TokenizerObjective
from vqim.tokenizer.quantizer.hierarchical import HierarchicalQuantizer
from vqim.tokenizer.quantizer.multichannel import MultichannelQuantizer
from vqim.tokenizer.quantizer.residual import ResidualQuantizer
from vqim.tokenizer.quantizer.upkeep import advance_codebook
from vqim.tokenizer.quantizer.vector import VectorQuantizer
from vqim.tokenizer.terms import L2
from vqim.tokenizer.vit import ViTDecoder, ViTEncoder
from vqim.training.gradient_task import GradientTask
from vqim.training.state import start

RUNTIME, KEY, DECAY = TorchRuntime(), torch.tensor(7, dtype=torch.int32), 0.9
CHUNKS, DEPTHS = "chunks", "depths"


def make_quantizer(kind, **upkeep):
    if kind == CHUNKS:
        return MultichannelQuantizer(16, 16, 12, code_dim=6, channels=3, **upkeep)
    return ResidualQuantizer(16, 16, 12, code_dim=4, depth=3, **upkeep)


def arrays_of(quantizer):
    arrays = {name: torch.from_numpy(leaf.init(name, leaf.shape, 0, full_index(leaf.shape)))
              for name, leaf in arrays_spec(quantizer).items()}
    return arrays | {"codebook_VZ": 30 * arrays["codebook_VZ"]}  # so that many codes are found


def sums_of(quantizer, arrays, latents, parts):
    """The sums over micro-batches, whose images alternate as in a training step."""
    total = None
    for number in range(parts):
        context = Context(TorchKernels(), key=KEY, step_key=KEY, micro_batch=(number, parts))
        part = apply(quantizer.forward, arrays, latents[number::parts], context).sums
        total = part if total is None else {name: total[name] + part[name] for name in part}
    return total


def looked_up(kind, arrays, latents):
    """By loops in float64: all chunks or remainders that were looked up, and the codes that they found."""
    p = {name: array.double().numpy() for name, array in arrays.items()}
    z_BhwZ = latents.double().numpy() @ p["project_in/kernel_IO"] + p["project_in/bias_O"]
    found = []
    for z in z_BhwZ.reshape(-1, z_BhwZ.shape[-1]):
        parts = np.split(z, 3) if kind == CHUNKS else [z] * 3
        total = np.zeros_like(parts[0])
        for part in parts:
            rest = part if kind == CHUNKS else part - total
            code = ((rest - p["codebook_VZ"]) ** 2).sum(-1).argmin()
            total = total + p["codebook_VZ"][code]
            found.append((rest, code))
    return found


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("kind", [CHUNKS, DEPTHS])
def test_an_ema_code_is_the_mean_of_what_chose_it_over_all_codes_of_a_position(kind, parts):
    quantizer = make_quantizer(kind, ema_decay=DECAY)
    arrays, latents = arrays_of(quantizer), torch.randn(4, 3, 3, 16)
    sums = sums_of(quantizer, arrays, latents, parts)
    new = apply(quantizer.advance, arrays, sums, Context(TorchKernels())).arrays
    found = looked_up(kind, arrays, latents)
    assert len(found) == 4 * 9 * 3 and len({code for _, code in found}) > 4
    for code in range(12):
        chosen = [rest for rest, index in found if index == code]
        use = DECAY + (1 - DECAY) * len(chosen) * 12 / len(found)
        total = DECAY * arrays["codebook_VZ"][code].double().numpy() + (1 - DECAY) * 12 / len(found) * sum(chosen)
        assert new["use_V"][code].item() == pytest.approx(use, rel=1e-5)
        np.testing.assert_allclose(new["codebook_VZ"][code], total / use, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("kind", [CHUNKS, DEPTHS])
def test_a_dead_code_restarts_at_something_that_was_looked_up(kind, parts):
    quantizer = make_quantizer(kind, restart_below=0.5)
    arrays, latents = arrays_of(quantizer), torch.randn(4, 3, 3, 16)
    arrays["use_V"] = torch.where(torch.arange(12) % 2 == 0, 1e-6, 1.0)
    arrays["codebook_VZ"][::2] += 100  # too far away to be found
    new = apply(quantizer.advance, arrays, sums_of(quantizer, arrays, latents, parts), Context(TorchKernels()))
    rests = np.array([rest for rest, _ in looked_up(kind, arrays, latents)])
    assert new.metrics["restarted"] == 6
    for code in range(12):
        if code % 2:
            assert torch.equal(new.arrays["codebook_VZ"][code], arrays["codebook_VZ"][code])
        else:
            # At its own length: these codes are not normalised, so that another length would be another place.
            gaps = np.abs(rests - new.arrays["codebook_VZ"][code].double().numpy()).max(-1)
            assert gaps.min() < 1e-4


def test_codes_of_which_directions_count_keep_their_lengths():
    sums = {"counts": torch.tensor([4.0, 0.0]), "vectors": torch.zeros(2, 2), "picks": torch.tensor([[3.0, 4.0]] * 2)}
    codebook, use = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([1.0, 0.0])
    for keep_lengths, expected in ((True, [1.2, 1.6]), (False, [3.0, 4.0])):
        new = advance_codebook(codebook, use, sums, None, 0.1, keep_lengths=keep_lengths)
        assert new.arrays["codebook_VZ"][1].tolist() == pytest.approx(expected)


def make_task(quantizer, num_micro_batches=1):
    sizes = {"num_layers": 1, "num_heads": 2, "hidden": 16}
    model = ImageTokenizer(ViTEncoder(16, 4, 16, **sizes), quantizer,
                           ViTDecoder(16, 4, quantizer.width_out, **sizes), 16)
    learner = functools.partial(Learner, optimizer=AdamW(), learning_rate=Constant(3e-3))
    return GradientTask(TokenizerObjective(model, learner, [L2()]), num_micro_batches)


def train(task, num_steps, emoji):
    state = start(task.init_spec(), 0, RUNTIME)
    for step in range(num_steps):
        scalars = RUNTIME.scalars({**task.host_scalars(step), "step": step, "seed": 0})
        shown = task.train_step(state.arrays, RUNTIME.put({"images": emoji}), scalars, RUNTIME.kernels)
    return state.arrays, shown


@pytest.mark.parametrize("kind", [CHUNKS, DEPTHS])
def test_micro_batches_change_neither_codebook_nor_use(kind, emoji):
    whole, parts = (train(make_task(make_quantizer(kind, ema_decay=0.9, restart_below=0.3), number), 3, emoji)[0]
                    for number in (1, 2))
    for name in ("codebook_VZ", "use_V"):
        name = f"statistics/tokenizer/quantizer/{name}"
        # Restarts pick by place in the batch, which micro-batches order differently; three steps restart nothing yet.
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", [CHUNKS, DEPTHS])
def test_with_restarts_no_code_stays_unused_under_two_micro_batches(kind, emoji):
    for upkeep in ({"restart_below": 0.2}, {"restart_below": 0.2, "ema_decay": 0.9}):
        arrays, shown = train(make_task(make_quantizer(kind, **upkeep), 2), 60, emoji)
        assert arrays["statistics/tokenizer/quantizer/use_V"].min() >= 0.2
        assert {"codebook/restarted", "codebook/dead", "codebook/batch_usage"} <= set(shown)
        assert shown["codebook/batch_usage"] > 0.5


def test_each_level_of_a_hierarchy_has_its_own_upkeep(emoji):
    quantizer = HierarchicalQuantizer(
        16, VectorQuantizer(32, 32, 12, 4, ema_decay=0.9, restart_below=0.2),
        VectorQuantizer(16 + 32, 8, 12, 4, restart_below=0.2), num_blocks=1)
    assert set(statistics_spec(quantizer)) == {"top/codebook_VZ", "top/use_V", "bottom/use_V"}
    arrays, shown = train(make_task(quantizer, 2), 40, emoji)
    for level in ("top", "bottom"):
        assert arrays[f"statistics/tokenizer/quantizer/{level}/use_V"].min() >= 0.2
        assert f"codebook/{level}/restarted" in shown
