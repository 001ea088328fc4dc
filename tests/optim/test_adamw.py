import math

import pytest
import torch

from vqim.optim import adamw
from vqim.optim.adamw import AdamW, one_minus_power
from vqim.optim.groups import Group
from vqim.state.leaf import Leaf

SPEC = {
    "kernel": Leaf((7, 5), axes=("in", "out")),
    "bias": Leaf((5,), axes=("features",)),
    "blocks/kernel": Leaf((2, 3, 4), axes=("layers", "in", "out")),
    "scalar": Leaf(()),
}


def draw(seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(leaf.shape, generator=generator) for name, leaf in SPEC.items()}


def zeros(spec):
    return {name: torch.zeros(leaf.shape, dtype=leaf.dtype) for name, leaf in spec.items()}


def scalars(step, rate=1e-2, keep=True):
    return {"learning_rate": torch.tensor(rate), "step": torch.tensor(step, dtype=torch.int32),
            "keep": torch.tensor(keep)}


@pytest.fixture(params=["fused", "written out"], autouse=True)
def kernel(request, monkeypatch):
    """Every test runs the kernel of CPU and CUDA, and the arithmetic that other devices are given."""
    if request.param == "written out":
        monkeypatch.setattr(AdamW, "_fused", AdamW._written_out)


@pytest.mark.parametrize("beta1, beta2, eps, decay", [
    (0.9, 0.999, 1e-8, 0.0), (0.9, 0.99, 1e-6, 0.1), (0.0, 0.9, 1e-8, 1.0),
])
def test_equals_torch_adamw_over_50_steps_with_a_moving_rate(beta1, beta2, eps, decay):
    ours, theirs = draw(0), draw(0)
    optimizer = AdamW(beta1, beta2, eps, decay)
    slots = zeros(optimizer.init_spec(SPEC))
    decayed = [theirs["kernel"], theirs["blocks/kernel"]]
    vectors = [theirs["bias"], theirs["scalar"]]
    reference = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}],
        betas=(beta1, beta2), eps=eps)
    for step in range(50):
        grads, rate = draw(step + 1, scale=10.0 ** (step % 5 - 3)), 1e-2 * (step + 1) / 50
        optimizer.update(ours, grads, slots, **scalars(step, rate))
        for name, tensor in theirs.items():
            tensor.grad = grads[name]
        for group in reference.param_groups:
            group["lr"] = rate
        reference.step()
    for name in SPEC:
        torch.testing.assert_close(ours[name], theirs[name], rtol=2e-5, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_first_step_is_the_sign_of_the_gradient_times_the_rate():
    params, optimizer = zeros(SPEC), AdamW()
    grads = draw(1)
    optimizer.update(params, grads, zeros(optimizer.init_spec(SPEC)), **scalars(0, 0.5))
    for name in SPEC:
        torch.testing.assert_close(params[name], -0.5 * grads[name].sign(), rtol=1e-5, atol=0)


def test_no_bit_changes_where_keep_is_false_even_with_nan_gradients():
    params, optimizer = draw(0), AdamW(weight_decay=0.1)
    params["scalar"] = torch.tensor(-0.0)
    slots = zeros(optimizer.init_spec(SPEC))
    optimizer.update(params, draw(1), slots, **scalars(0))
    params["scalar"].fill_(-0.0)
    before = {name: tensor.clone() for name, tensor in (params | slots).items()}
    grads = {name: torch.full_like(grad, math.nan) for name, grad in draw(2).items()}
    metrics = optimizer.update(params, grads, slots, **scalars(1, keep=False))
    for name, tensor in (params | slots).items():
        assert torch.equal(tensor.view(torch.int32), before[name].view(torch.int32)), name
    assert metrics["update_norm"].item() == 0


def test_decay_moves_weights_on_average_though_its_factor_rounds_to_one():
    # 1 - 1e-8 is 1 in float32. Each step's 1e-8 lies below the rounding of a weight of 1; Adam's own part, which
    # differs between weights, makes what is rounded up and down cancel over them, but in the first step, where it is
    # the rate for all of them.
    generator = torch.Generator().manual_seed(0)
    spec = {"kernel": Leaf((500, 400), axes=("in", "out"))}
    grads = [{"kernel": torch.randn(500, 400, generator=generator)} for _ in range(20)]
    means = []
    for decay in (0.0, 1e-4):
        params, optimizer = {"kernel": torch.ones(500, 400)}, AdamW(weight_decay=decay)
        slots = zeros(optimizer.init_spec(spec))
        for step in range(20):
            optimizer.update(params, grads[step], slots, **scalars(step, 1e-4))
        means.append(params["kernel"].double().mean().item())
    assert means[0] - means[1] == pytest.approx(19 * 1e-8, rel=0.02)


def test_decay_changes_nothing_where_keep_is_false_even_of_infinite_weights():
    params, optimizer = {name: torch.full(leaf.shape, math.inf) for name, leaf in SPEC.items()}, AdamW(weight_decay=0.1)
    optimizer.update(params, draw(1), zeros(optimizer.init_spec(SPEC)), **scalars(0, keep=False))
    assert all(torch.equal(tensor, torch.full_like(tensor, math.inf)) for tensor in params.values())


def test_a_parameter_updated_in_pieces_has_the_bits_of_one_updated_whole(monkeypatch):
    spec = {"kernel": Leaf((3, 100, 10), axes=("layers", "in", "out"))}
    found = []
    for piece in (2**18, 1024):
        monkeypatch.setattr(adamw, "_PIECE", piece)
        generator, optimizer = torch.Generator().manual_seed(0), AdamW(weight_decay=0.1)
        params, slots = {"kernel": torch.ones(3, 100, 10)}, zeros(optimizer.init_spec(spec))
        grads = {"kernel": torch.randn(3, 100, 10, generator=generator)}
        norm = optimizer.update(params, grads, slots, **scalars(3))["update_norm"]
        found.append((params | slots, norm))
    for name, array in found[0][0].items():
        assert torch.equal(array, found[1][0][name]), name
    torch.testing.assert_close(found[0][1], found[1][1])


def test_update_norm_is_the_length_of_the_change():
    params, optimizer = draw(0), AdamW(weight_decay=0.1)
    before = {name: tensor.clone() for name, tensor in params.items()}
    metrics = optimizer.update(params, draw(1), zeros(optimizer.init_spec(SPEC)), **scalars(0))
    changes = torch.cat([(params[name] - before[name]).flatten() for name in SPEC])
    torch.testing.assert_close(metrics["update_norm"], changes.norm(), rtol=1e-4, atol=0)


def test_learning_rate_multiplier_of_zero_freezes_its_group_alone():
    params, optimizer = draw(0), AdamW(groups=[Group("blocks/.*", 0.0), Group("(?!blocks/).*")], weight_decay=0.1)
    before = {name: tensor.clone() for name, tensor in params.items()}
    optimizer.update(params, draw(1), zeros(optimizer.init_spec(SPEC)), **scalars(0))
    assert {name for name in SPEC if torch.equal(params[name], before[name])} == {"blocks/kernel"}


def test_slots_have_the_shape_and_axes_of_their_parameters():
    spec = AdamW().init_spec(SPEC)
    assert set(spec) == {f"{slot}/{name}" for slot in "mv" for name in SPEC}
    for name, leaf in spec.items():
        assert (leaf.shape, leaf.axes, leaf.dtype) == (
            SPEC[name[2:]].shape, SPEC[name[2:]].axes, torch.float32)


def test_parameters_that_init_spec_never_saw_are_refused():
    optimizer = AdamW()
    slots = zeros(optimizer.init_spec(SPEC))
    with pytest.raises(ValueError, match="unknown \\['other'\\]"):
        optimizer.update(draw(0) | {"other": torch.zeros(1)}, draw(1), slots, **scalars(0))


@pytest.mark.parametrize("base, exponent", [(0.9999, 1), (0.999, 1), (0.99, 100_000), (0.5, 2), (0.0, 1)])
def test_bias_correction_has_float32_accuracy(base, exponent):
    got = one_minus_power(base, torch.tensor(float(exponent))).item()
    assert got == pytest.approx(1 - base**exponent, rel=1e-6)


@pytest.mark.parametrize("arguments", [{"beta1": 1.0}, {"beta2": -0.1}, {"eps": 0.0}, {"weight_decay": -1.0}])
def test_impossible_setting_is_refused_by_argument_name(arguments):
    with pytest.raises(ValueError, match=f"^{next(iter(arguments))} must be"):
        AdamW(**arguments)
