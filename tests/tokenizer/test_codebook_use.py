"""Entropy and k-means, SeQ-GAN's regularisers of codebook use, beside NumPy written out."""
import functools

import numpy as np
import pytest
import torch

from vqim.contracts.learning import Learner
from vqim.nn.module import statistics_spec
from vqim.optim.adamw import AdamW
from vqim.optim.schedules import Constant
from vqim.runtime.torch import TorchKernels, TorchRuntime
from vqim.tokenizer.model import ImageTokenizer
from vqim.tokenizer.objective import TokenizerObjective
from vqim.tokenizer.quantizer.entropy import unevenness
from vqim.tokenizer.quantizer.hierarchical import HierarchicalQuantizer
from vqim.tokenizer.quantizer.kmeans import KMeans, centres, kept
from vqim.tokenizer.quantizer.vector import VectorQuantizer
from vqim.tokenizer.terms import L2
from vqim.tokenizer.vit import ViTDecoder, ViTEncoder
from vqim.training.gradient_task import GradientTask
from vqim.training.state import start

RUNTIME = TorchRuntime()


def printed_entropy(z_PZ, codes_VZ):
    """H of section 3.4, in float64."""
    z, codes = z_PZ.double().numpy(), codes_VZ.double().numpy()
    use = np.zeros(len(codes))
    for latent in z:
        weights = np.exp(-np.array([np.linalg.norm(latent - code) for code in codes]))
        use += weights / weights.sum() / len(z)
    return -sum(share * np.log(share) for share in use)


def test_unevenness_is_what_the_printed_entropy_lacks_of_its_largest():
    z_PZ, codes_VZ = torch.randn(40, 5), 3 * torch.randn(7, 5)
    expected = np.log(7) - printed_entropy(z_PZ, codes_VZ)
    assert unevenness(z_PZ, codes_VZ).item() == pytest.approx(expected, rel=1e-5) and expected > 0.05


def test_even_use_costs_nothing_and_one_code_alone_log_v():
    codes_VZ = 100 * torch.eye(4)
    assert unevenness(codes_VZ, codes_VZ).item() == pytest.approx(0, abs=1e-5)
    assert unevenness(codes_VZ[:1].expand(4, -1), codes_VZ).item() == pytest.approx(np.log(4), rel=1e-4)


def test_lowering_it_spreads_the_use_of_codes():
    # The sign that the text prints would do the opposite.
    z_PZ, codes_VZ = torch.randn(64, 2), 4 + torch.randn(8, 2)
    codes_VZ[0] = 0  # nearest to nearly all latents
    before, moved_VZ = printed_entropy(z_PZ, codes_VZ), codes_VZ.clone().requires_grad_()
    for _ in range(50):
        (gradient,) = torch.autograd.grad(unevenness(z_PZ, moved_VZ), moved_VZ)
        moved_VZ = (moved_VZ - 2.0 * gradient).detach().requires_grad_()
    after = printed_entropy(z_PZ, moved_VZ.detach())
    assert after > before + 0.2


def test_gradients_are_finite_where_a_latent_is_its_code():
    z_PZ = torch.randn(3, 2).requires_grad_()
    codes_VZ = z_PZ.detach().clone().requires_grad_()
    gradients = torch.autograd.grad(unevenness(z_PZ, codes_VZ), [z_PZ, codes_VZ])
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def make_task(num_micro_batches=1, **settings):
    sizes = {"num_layers": 1, "num_heads": 2, "hidden": 24}
    quantizer = VectorQuantizer(32, 32, 16, code_dim=4, **settings)
    model = ImageTokenizer(ViTEncoder(16, 4, 32, **sizes), quantizer, ViTDecoder(16, 4, 32, **sizes), image_size=16)
    learner = functools.partial(Learner, optimizer=AdamW(), learning_rate=Constant(1e-3))
    return GradientTask(TokenizerObjective(model, learner, [L2()]), num_micro_batches)


@pytest.fixture(name="batch")
def batch_of_emoji(emoji):
    return RUNTIME.put({"images": emoji, "labels": np.zeros(len(emoji), np.int32)})


def run_step(task, state, batch, step):
    scalars = RUNTIME.scalars({**task.host_scalars(step), "step": step, "seed": 0})
    return task.train_step(state, batch, scalars, RUNTIME.kernels, task.objective.program(step))


def test_the_regulariser_counts_by_its_weight_and_trains_encoder_and_codes(batch):
    plain, regular = make_task(), make_task(entropy_weight=0.5)
    states = [start(task.init_spec(), 0, RUNTIME).arrays for task in (plain, regular)]
    shown = [run_step(task, state, batch, 0) for task, state in zip((plain, regular), states, strict=True)]
    assert "loss/entropy" not in shown[0] and shown[1]["loss/entropy"] > 1e-3
    difference = shown[1]["loss"] - shown[0]["loss"]
    assert difference.item() == pytest.approx(shown[1]["loss/entropy"].item(), rel=1e-3)
    for name in ("params/tokenizer/quantizer/codebook_VZ", "params/tokenizer/encoder/patches/kernel_IO"):
        if name in states[0]:
            assert not torch.equal(states[0][name], states[1][name])


def lloyd(latents, first, iterations):
    """k-means in float64; a centre without latents goes back to where it started."""
    found = first.copy()
    for _ in range(iterations):
        nearest = [int(np.argmin(((latent - found) ** 2).sum(1))) for latent in latents]
        found = np.array([np.mean([latent for latent, n in zip(latents, nearest, strict=True) if n == code], 0)
                          if code in nearest else first[code] for code in range(len(first))])
    return found


def test_centres_are_those_of_lloyds_algorithm():
    generator = np.random.default_rng(0)
    latents = generator.normal(size=(24, 3)).astype(np.float32)
    first = latents[:8].copy()
    first[3] = 50  # nearest to no latent
    found = centres(torch.from_numpy(latents), torch.from_numpy(first), 4, TorchKernels())
    expected = lloyd(latents.astype(np.float64), first.astype(np.float64), 4)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-5)
    assert np.all(found.numpy()[3] == 50)


def test_the_reservoir_keeps_the_latents_of_the_last_batches():
    reservoir = torch.zeros(6, 1)
    for batch in range(1, 6):
        reservoir = kept(reservoir, torch.full((2, 1), float(batch)))
    assert reservoir[:, 0].tolist() == [5, 5, 4, 4, 3, 3]


@pytest.mark.parametrize("num_micro_batches", [1, 2])
def test_the_codebook_is_made_anew_when_it_is_due_and_not_before(batch, num_micro_batches):
    task = make_task(num_micro_batches, kmeans=KMeans(every=3, until=3, batches=2, iterations=5), restart_below=0.0)
    name, reservoir = "params/tokenizer/quantizer/codebook_VZ", "statistics/tokenizer/quantizer/reservoir_RZ"
    state = start(task.init_spec(), 0, RUNTIME).arrays
    assert [task.objective.program(step) for step in range(6)] == [
        "train", "train", "train_then_rebuild", "train", "train", "train"]
    for step in range(4):
        before = state[name].clone()
        run_step(task, state, batch, step)
        moved = (state[name] - before).abs().max().item()
        if step == 2:
            kept_RZ = state[reservoir]
            expected = lloyd(kept_RZ.double().numpy(), kept_RZ[:16].double().numpy(), 5)
            np.testing.assert_allclose(state[name].numpy(), expected, rtol=1e-4, atol=1e-4)
            assert moved > 0.1
        else:
            assert moved < 3e-3  # an update of Adam


def test_tokens_do_not_depend_on_the_reservoir(batch):
    model = make_task(kmeans=KMeans(every=8)).objective.tokenizer
    assert "quantizer/reservoir_RZ" in statistics_spec(model)
    assert "quantizer/reservoir_RZ" not in model.deciding_arrays()


@pytest.mark.parametrize("settings", [{"ema_decay": 0.9}, {"restart_below": 0.1}])
def test_k_means_beside_another_upkeep_is_refused(settings):
    with pytest.raises(ValueError, match="kmeans must be None where codes follow running means"):
        VectorQuantizer(4, 4, 8, code_dim=None, kmeans=KMeans(), **settings)


def test_k_means_in_a_hierarchy_is_refused():
    top = VectorQuantizer(32, 32, 8, code_dim=4, kmeans=KMeans())
    with pytest.raises(ValueError, match="must not be re-initialised by k-means"):
        HierarchicalQuantizer(32, top, VectorQuantizer(64, 8, 8, code_dim=4))


def test_a_reservoir_that_is_not_full_in_time_is_refused():
    with pytest.raises(ValueError, match="batches must be at most every = 4, to have been filled by then; got 8"):
        KMeans(every=4)


@pytest.mark.parametrize(("settings", "message"), [
    ({"entropy_weight": -1.0}, "entropy_weight must be at least 0, got -1.0"),
    ({"initial_bound": 0.0}, r"initial_bound must be above 0, or None for N\(0, 1\); got 0.0")])
def test_settings_out_of_their_ranges_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        VectorQuantizer(4, 4, 8, code_dim=None, **settings)


def test_a_bound_gives_vqgans_uniform_codes():
    spec = make_task(initial_bound=1 / 16).init_spec()
    codes = start(spec, 0, RUNTIME).arrays["params/tokenizer/quantizer/codebook_VZ"]
    assert codes.abs().max() <= 1 / 16 and codes.std().item() == pytest.approx(1 / 16 / 3**0.5, rel=0.15)
