"""Codebooks that follow their latents, and restarts of codes that nothing chooses, beside NumPy written out."""
import functools

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch

from vqim.contracts.context import Context
from vqim.contracts.learning import Learner
from vqim.nn.module import apply, arrays_spec, spec, statistics_spec
from vqim.optim.adamw import AdamW
from vqim.optim.schedules import Constant
from vqim.runtime.torch import TorchKernels, TorchRuntime
from vqim.state.init import full_index
from vqim.tokenizer.model import ImageTokenizer
from vqim.tokenizer.objective import TokenizerObjective
from vqim.tokenizer.quantizer.upkeep import USE_DECAY, advance_codebook, upkeep_sums
from vqim.tokenizer.quantizer.vector import VectorQuantizer
from vqim.tokenizer.terms import L2
from vqim.tokenizer.vit import ViTDecoder, ViTEncoder
from vqim.training.gradient_task import GradientTask
from vqim.training.state import start

KEY = torch.tensor(7, dtype=torch.int32)


def training_context(micro_batch=(0, 1)):
    return Context(TorchKernels(), key=KEY, step_key=KEY, micro_batch=micro_batch)


def sums_of(z_PZ, indices_P, vocabulary, parts=1):
    """The sums over micro-batches of equal size, whose rows alternate as in a training step."""
    total = None
    for number in range(parts):
        part = upkeep_sums(z_PZ[number::parts], indices_P[number::parts], vocabulary, training_context((number, parts)))
        total = part if total is None else {name: total[name] + part[name] for name in part}
    return total


@pytest.fixture
def latents():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(24, 3, generator=generator), torch.randint(0, 5, (24,), generator=generator)


def test_sums_are_counts_and_sums_of_latents_by_code(latents):
    z_PZ, indices_P = latents
    sums = sums_of(z_PZ, indices_P, 8)
    for code in range(8):
        chosen = [z for z, index in zip(z_PZ.numpy(), indices_P.tolist(), strict=True) if index == code]
        assert sums["counts"][code] == len(chosen)
        np.testing.assert_allclose(sums["vectors"][code], np.sum(chosen, 0) if chosen else np.zeros(3), atol=1e-5)


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_each_pick_is_one_latent_of_the_whole_batch_whatever_its_parts(latents, parts):
    z_PZ, indices_P = latents
    picks_VZ = sums_of(z_PZ, indices_P, 8, parts)["picks"]
    rows = {tuple(row) for row in z_PZ.tolist()}
    assert all(tuple(pick) in rows for pick in picks_VZ.tolist())
    assert len({tuple(pick) for pick in picks_VZ.tolist()}) > 3


def test_counts_and_vectors_do_not_depend_on_micro_batches(latents):
    z_PZ, indices_P = latents
    whole, parts = sums_of(z_PZ, indices_P, 8), sums_of(z_PZ, indices_P, 8, 4)
    torch.testing.assert_close(whole["counts"], parts["counts"])
    torch.testing.assert_close(whole["vectors"], parts["vectors"])


def test_an_ema_code_is_the_running_mean_of_its_latents(latents):
    z_PZ, indices_P = latents
    decay, codebook_VZ, use_V = 0.9, torch.randn(5, 3), torch.rand(5) + 0.5
    new = advance_codebook(codebook_VZ, use_V, sums_of(z_PZ, indices_P, 5), decay, 0.0).arrays
    for code in range(5):
        chosen = z_PZ.numpy()[indices_P.numpy() == code].astype(np.float64)
        share = len(chosen) * 5 / 24
        use = decay * use_V[code].item() + (1 - decay) * share
        total = decay * use_V[code].item() * codebook_VZ[code].numpy() + (1 - decay) * 5 / 24 * chosen.sum(0)
        assert new["use_V"][code].item() == pytest.approx(use, rel=1e-5)
        np.testing.assert_allclose(new["codebook_VZ"][code], total / use, rtol=1e-4)


def test_an_ema_code_that_nothing_chooses_stays_however_small_its_use(latents):
    z_PZ, indices_P = latents
    codebook_VZ, use_V = torch.randn(6, 3), torch.tensor([1.0, 1, 1, 1, 1, 1e-12])
    new = advance_codebook(codebook_VZ, use_V, sums_of(z_PZ, indices_P, 6), 0.9, 0.0).arrays
    assert torch.equal(new["codebook_VZ"][5], codebook_VZ[5]) and new["use_V"][5] < 1e-12


def test_a_gradient_codebook_moves_only_where_it_restarts(latents):
    z_PZ, indices_P = latents
    codebook_VZ, use_V = torch.randn(6, 3), torch.full((6,), 0.5)
    use_V[5] = 0.01  # and nothing chooses it: below 0.1
    sums = sums_of(z_PZ, indices_P, 6)
    found = advance_codebook(codebook_VZ, use_V, sums, None, 0.1)
    assert (found.arrays["codebook_VZ"][:5] == codebook_VZ[:5]).all()
    restarted = found.arrays["codebook_VZ"][5]
    assert restarted.norm().item() == pytest.approx(codebook_VZ[5].norm().item(), rel=1e-5)
    torch.testing.assert_close(restarted / restarted.norm(), sums["picks"][5] / sums["picks"][5].norm())
    assert found.arrays["use_V"][5] == 1 and found.metrics["restarted"] == 1


@hypothesis.given(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.integers(1, 60))
def test_mean_use_stays_one_and_an_unused_code_decays(indices, steps):
    use_V, codebook_VZ = torch.ones(7), torch.zeros(7, 2)
    sums = sums_of(torch.zeros(len(indices), 2), torch.tensor(indices), 7)
    for _ in range(steps):
        use_V = advance_codebook(codebook_VZ, use_V, sums, None, 0.0).arrays["use_V"]
    assert use_V.mean().item() == pytest.approx(1, rel=1e-4)
    for code in set(range(7)) - set(indices):
        assert use_V[code].item() == pytest.approx(USE_DECAY**steps, rel=1e-3)


@pytest.mark.parametrize(("settings", "argument"), [
    ({"ema_decay": 1.0}, "ema_decay"), ({"ema_decay": -0.1}, "ema_decay"), ({"restart_below": 1.0}, "restart_below"),
    ({"restart_below": -1}, "restart_below")])
def test_settings_out_of_their_ranges_are_refused(settings, argument):
    with pytest.raises(ValueError, match=argument):
        VectorQuantizer(8, 8, 16, 4, **settings)


def test_without_upkeep_a_quantizer_has_no_statistics_and_gives_no_sums():
    quantizer = VectorQuantizer(8, 8, 16, 4)
    arrays = {name: torch.from_numpy(leaf.init(name, leaf.shape, 0, full_index(leaf.shape)))
              for name, leaf in arrays_spec(quantizer).items()}
    assert statistics_spec(quantizer) == {}
    quantized = apply(quantizer.forward, arrays, torch.randn(2, 4, 4, 8), training_context())
    assert quantized.sums == {} and set(quantized.losses) == {"codebook", "commitment"}


def test_an_ema_codebook_is_no_parameter_and_has_no_codebook_loss():
    quantizer = VectorQuantizer(8, 8, 16, 4, ema_decay=0.9)
    assert "codebook_VZ" not in spec(quantizer) and set(statistics_spec(quantizer)) == {"codebook_VZ", "use_V"}


def make_task(num_micro_batches=1, trains=".*", **upkeep):
    sizes = {"num_layers": 1, "num_heads": 2, "hidden": 16}
    model = ImageTokenizer(ViTEncoder(16, 4, 16, **sizes), VectorQuantizer(16, 16, 32, 4, **upkeep),
                           ViTDecoder(16, 4, 16, **sizes), 16)
    learner = functools.partial(Learner, optimizer=AdamW(), learning_rate=Constant(3e-3), trains=trains)
    return GradientTask(TokenizerObjective(model, learner, [L2()]), num_micro_batches)


def train(task, num_steps):
    runtime = TorchRuntime()
    state, generator = start(task.init_spec(), 0, runtime), np.random.default_rng(0)
    for step in range(num_steps):
        batch = runtime.put({"images": generator.integers(0, 256, (4, 16, 16, 3), np.uint8)})
        scalars = runtime.scalars({**task.host_scalars(step), "step": step, "seed": 0})
        shown = task.train_step(state.arrays, batch, scalars, runtime.kernels)
    return state.arrays, shown


@pytest.mark.parametrize("upkeep", [
    {"ema_decay": 0.9}, {"restart_below": 0.3}, {"ema_decay": 0.9, "restart_below": 0.3}])
def test_a_training_step_moves_the_codebook_and_shows_what_restarted(upkeep):
    arrays, shown = train(make_task(2, **upkeep), 30)
    section = "statistics" if "ema_decay" in upkeep else "params"
    assert np.isfinite(arrays[f"{section}/tokenizer/quantizer/codebook_VZ"].numpy()).all()
    assert {"codebook/restarted", "codebook/dead"} <= set(shown)


def test_with_restarts_no_code_stays_unused():
    least = {below: train(make_task(restart_below=below), 80)[0]["statistics/tokenizer/quantizer/use_V"].min()
             for below in (1e-9, 0.3)}
    assert least[1e-9] < 0.05 < 0.3 <= least[0.3]


def test_a_quantizer_that_is_not_trained_restarts_nothing():
    task = make_task(restart_below=0.3, trains="decoder/.*")
    before = start(task.init_spec(), 0, TorchRuntime()).arrays
    after, _ = train(task, 20)
    for name in ("params/tokenizer/quantizer/codebook_VZ", "statistics/tokenizer/quantizer/use_V"):
        assert (before[name] == after[name]).all()
