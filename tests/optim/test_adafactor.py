import math
import shutil
import sys

import numpy as np
import pytest
import timm.optim
import torch

from vqim.optim import adafactor_cpu
from vqim.optim.adafactor import Adafactor
from vqim.optim.groups import Group
from vqim.state.leaf import Leaf

SPEC = {
    "kernel": Leaf((40, 48), axes=("in", "out")),
    "convolution": Leaf((33, 16, 3, 3), axes=("out", "in", "kh", "kw")),
    "embedding": Leaf((70, 36), axes=("vocabulary", "features")),
    "positions": Leaf((4, 5, 36), axes=("height", "width", "features")),
    "bias": Leaf((48,), axes=("features",)),
    "small": Leaf((3, 5), axes=("in", "out")),
    "scalar": Leaf(()),
}
SCALE_AXES = {  # which axes share an int8 scale, written out by hand
    "kernel": (0,), "convolution": (1, 2, 3), "embedding": (1,), "positions": (2,), "bias": (0,), "small": (0, 1),
}
FACTORED = {"kernel": (0, 1), "convolution": (0, 1), "embedding": (0, 1)}  # where the second largest size is >= 16
STACKED = {
    name: Leaf((3, *leaf.shape), axes=("layers", *leaf.axes)) for name, leaf in SPEC.items()
}


def draw(seed, spec=SPEC, scale=1.0):
    generator = np.random.default_rng(seed)
    return {name: torch.from_numpy(np.asarray(scale * generator.standard_normal(leaf.shape), np.float32))
            for name, leaf in spec.items()}


def zeros(spec):
    return {name: torch.zeros(leaf.shape, dtype=leaf.dtype) for name, leaf in spec.items()}


def scalars(step, rate=1e-2, keep=True):
    return {"learning_rate": torch.tensor(rate), "step": torch.tensor(step, dtype=torch.int32),
            "keep": torch.tensor(keep)}


class Reference:
    """The algorithm once more, in float64 NumPy, from the formulas of praxis and T5X, for one unstacked parameter."""

    def __init__(self, name, w, *, moment="int8", decay="adam", clip=1.0, relative=False, weight_decay=0.0):
        self.w, self.moment, self.decay, self.clip, self.relative = np.float64(w), moment, decay, clip, relative
        self.weight_decay = weight_decay if w.ndim > 1 else 0.0
        self.factored, self.scale_axes = FACTORED.get(name), SCALE_AXES.get(name)
        self.m, self.v, self.r, self.c = np.zeros(w.shape), 0.0, 0.0, 0.0
        self.q = None

    def step(self, g, t, a, beta1=0.9, beta2=0.96):
        b = beta2 * (1 - beta2 ** (t - 1)) / (1 - beta2**t) if self.decay == "adam" else 1 - t**-0.8
        g = np.float64(g)
        squared = g**2 + 1e-30
        if self.factored:
            i, j = self.factored
            self.r = b * self.r + (1 - b) * squared.mean(j, keepdims=True)
            self.c = b * self.c + (1 - b) * squared.mean(i, keepdims=True)
            u = g / np.sqrt(self.r * self.c / self.r.mean(i, keepdims=True))
        else:
            self.v = b * self.v + (1 - b) * squared
            u = g / np.sqrt(self.v)
        if self.clip:
            u = u / max(1.0, np.sqrt(np.mean(u**2)) / self.clip)
        s = a * max(np.sqrt(np.mean(self.w**2)), 1e-3) if self.relative else a
        m = s * u if self.moment == "none" else beta1 * self.m + (1 - beta1) * s * u
        self.w = self.w - m - a * self.weight_decay * self.w
        self.m = m
        if self.moment == "int8" and self.scale_axes is not None:
            scale = np.abs(m).max(self.scale_axes, keepdims=True) / 127
            self.q = np.rint(m / np.where(scale > 0, scale, 1))
            self.m = self.q * scale


CASES = [
    {}, {"moment": "float32"}, {"moment": "none"},
    {"moment": "float32", "decay": "power", "relative": True, "clip": None, "weight_decay": 0.1},
    {"decay": "power", "relative": True, "clip": 0.5, "weight_decay": 0.1},
]


def build(case, **more):
    return Adafactor(
        first_moment=case.get("moment", "int8"), decay=case.get("decay", "adam"),
        clip_threshold=case.get("clip", 1.0), scale_by_parameter=case.get("relative", False),
        weight_decay=case.get("weight_decay", 0.0), min_factored_size=16, **more)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_a_float64_transcription_over_50_steps(case):
    params, optimizer = draw(0), build(case)
    slots = zeros(optimizer.init_spec(SPEC))
    references = {name: Reference(name, w.numpy(), **case) for name, w in params.items()}
    for step in range(50):
        grads, rate = draw(step + 1, scale=10.0 ** (step % 5 - 3)), 1e-2 * (1 + step % 7)
        optimizer.update(params, grads, slots, **scalars(step, rate))
        for name, reference in references.items():
            reference.step(grads[name].numpy(), step + 1, rate)
    for name, reference in references.items():
        change = np.abs(reference.w).max()
        if reference.q is None:
            np.testing.assert_allclose(params[name], reference.w, rtol=2e-5, atol=2e-6 * change, err_msg=name)
        else:  # a value near the middle of two levels may be rounded either way
            levels = np.abs(slots[f"m_int8/{name}"].numpy() - reference.q)
            assert levels.max() <= 1 and np.mean(levels > 0) <= 0.01, name
            np.testing.assert_allclose(params[name], reference.w, atol=5e-4 * change, err_msg=name)


def test_first_step_of_a_vector_is_a_tenth_of_the_rate_times_the_sign():
    params, optimizer = zeros(SPEC), Adafactor(clip_threshold=None)
    grads = draw(1)
    optimizer.update(params, grads, zeros(optimizer.init_spec(SPEC)), **scalars(0, 0.5))
    torch.testing.assert_close(params["bias"], -0.05 * grads["bias"].sign())


def test_first_step_of_a_rank_one_gradient_is_exactly_factored():
    spec, optimizer = {"w": Leaf((20, 30), axes=("in", "out"))}, Adafactor(first_moment="none", min_factored_size=2)
    gradient = torch.outer(torch.linspace(0.1, 9, 20), torch.linspace(-3, 5, 30))
    params = zeros(spec)
    optimizer.update(params, {"w": gradient}, zeros(optimizer.init_spec(spec)), **scalars(0, 0.5))
    torch.testing.assert_close(params["w"], -0.5 * gradient.sign())


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (7,)])
def test_equals_torch_adafactor_where_the_settings_coincide(shape):
    """torch.optim.Adafactor: no first moment, power decay, relative step; its own clip and factored V agree."""
    axes = ("in", "out")[:len(shape)] if len(shape) > 1 else ("features",)
    ours, theirs = {"w": draw(0, {"w": Leaf(shape, axes=axes)})["w"]}, None
    theirs = ours["w"].clone()
    optimizer = Adafactor(first_moment="none", decay="power", clip_threshold=1.0, scale_by_parameter=True,
                          min_factored_size=2)
    slots = zeros(optimizer.init_spec({"w": Leaf(shape, axes=axes)}))
    # its lr is capped by 1/sqrt(t), which 1e-2 is below for the first 50 steps
    reference = torch.optim.Adafactor([theirs], lr=1e-2, beta2_decay=-0.8, eps=(1e-30, 1e-3), d=1.0, weight_decay=0.0)
    for step in range(50):
        grad = draw(step + 1, {"w": Leaf(shape, axes=axes)})["w"]
        optimizer.update(ours, {"w": grad}, slots, **scalars(step, 1e-2))
        theirs.grad = grad
        reference.step()
    torch.testing.assert_close(ours["w"], theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_stack_is_updated_as_its_layers_would_be_apart(case):
    params, optimizer = draw(0, STACKED), build(case)
    apart = [{name: w[layer].clone() for name, w in params.items()} for layer in range(3)]
    slots = zeros(optimizer.init_spec(STACKED))
    single = build(case)
    slots_apart = [zeros(single.init_spec(SPEC)) for _ in range(3)]
    for step in range(3):
        grads = draw(step + 1, STACKED)
        for grad in grads.values():
            grad *= torch.tensor([1.0, 1e-4, 1e3]).reshape(3, *[1] * (grad.ndim - 1))
        optimizer.update(params, grads, slots, **scalars(step))
        for layer in range(3):
            single.update(apart[layer], {name: g[layer] for name, g in grads.items()}, slots_apart[layer],
                          **scalars(step))
    for layer in range(3):
        for name in SPEC:
            torch.testing.assert_close(params[name][layer], apart[layer][name], rtol=1e-6, atol=1e-7)
        for name, slot in slots_apart[layer].items():
            difference = (slots[name][layer].double() - slot.double()).abs()
            assert difference.max() <= (0 if slot.dtype == torch.int8 else 1e-6 * slot.abs().max().item()), name


@pytest.mark.parametrize("moment", ["int8", "bfloat16", "float32", "none"])
def test_no_bit_changes_where_keep_is_false_even_with_nan_gradients(moment):
    params, optimizer = draw(0), Adafactor(first_moment=moment, weight_decay=0.1, scale_by_parameter=True)
    slots = zeros(optimizer.init_spec(SPEC))
    optimizer.update(params, draw(1), slots, **scalars(0))
    params["scalar"].fill_(-0.0)
    before = {name: tensor.clone() for name, tensor in (params | slots).items()}
    grads = {name: torch.full_like(grad, math.nan) for name, grad in draw(2).items()}
    metrics = optimizer.update(params, grads, slots, **scalars(1, keep=False))
    for name, tensor in (params | slots).items():
        assert tensor.numpy(force=True).tobytes() == before[name].numpy().tobytes() if tensor.dtype != torch.bfloat16 \
            else torch.equal(tensor.view(torch.int16), before[name].view(torch.int16)), name
    assert metrics["update_norm"].item() == 0


def test_update_norm_is_the_length_of_the_change():
    params, optimizer = draw(0), Adafactor(weight_decay=0.1)
    before = {name: tensor.clone() for name, tensor in params.items()}
    metrics = optimizer.update(params, draw(1), zeros(optimizer.init_spec(SPEC)), **scalars(0))
    changes = torch.cat([(params[name] - before[name]).flatten() for name in SPEC])
    torch.testing.assert_close(metrics["update_norm"], changes.norm(), rtol=1e-4, atol=0)


def test_zero_gradients_move_nothing():
    params, optimizer = draw(0), Adafactor()
    before = {name: tensor.clone() for name, tensor in params.items()}
    slots = zeros(optimizer.init_spec(SPEC))
    for step in range(3):
        optimizer.update(params, zeros(SPEC), slots, **scalars(step))
    assert all(torch.equal(params[name], before[name]) for name in SPEC)
    assert all(not slot.any() for name, slot in slots.items() if name.startswith("m"))


def test_stochastic_rounding_repeats_with_its_seed_and_step_and_differs_with_others():
    def run(seed, step):
        params, optimizer = draw(0), Adafactor(rounding="stochastic", rounding_seed=seed, min_factored_size=16)
        slots = zeros(optimizer.init_spec(SPEC))
        optimizer.update(params, draw(1), slots, **scalars(step))
        return slots["m_int8/kernel"]

    assert torch.equal(run(1, 5), run(1, 5))
    assert not torch.equal(run(1, 5), run(2, 5))
    assert not torch.equal(run(1, 5), run(1, 6))


def test_groups_set_rate_and_decay_by_name():
    groups = [Group("kernel", 0.0), Group("bias", weight_decay=1.0), Group("(?!kernel|bias).*")]
    params, optimizer = draw(0), Adafactor(groups=groups)
    before = {name: tensor.clone() for name, tensor in params.items()}
    optimizer.update(params, zeros(SPEC), zeros(optimizer.init_spec(SPEC)), **scalars(0, 0.5))
    assert torch.equal(params["kernel"], before["kernel"])
    torch.testing.assert_close(params["bias"], 0.5 * before["bias"])


@pytest.mark.parametrize("arguments", [
    {"beta1": 1.0}, {"first_moment": "int4"}, {"rounding": "up"}, {"rounding": "stochastic", "first_moment": "none"},
    {"decay": "cosine"}, {"beta2": 0.0}, {"decay_power": 0.0}, {"clip_threshold": 0.0}, {"weight_decay": -1.0},
    {"min_factored_size": 0},
])
def test_impossible_setting_is_refused_by_argument_name(arguments):
    with pytest.raises(ValueError, match=f"^{next(iter(arguments))} must be"):
        Adafactor(**arguments)


KERNEL_CASES = [
    {}, {"weight_decay": 0.1, "scale_by_parameter": True, "clip_threshold": 0.5}, {"first_moment": "float32"},
    {"first_moment": "none", "clip_threshold": None, "weight_decay": 0.1},
]
KERNEL_SPEC = {
    "scale per column": Leaf((3, 45, 70), axes=("layers", "in", "out")),
    "scale per row": Leaf((70, 33), axes=("vocabulary", "features")),
}


@pytest.mark.skipif(not adafactor_cpu.is_available(), reason="the kernel needs a C compiler")
@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("case", KERNEL_CASES, ids=str)
def test_the_kernel_for_cpus_equals_the_plain_step(case, num_threads, monkeypatch):
    groups = [Group("scale per row", 2.0), Group("scale per column")]

    def run():
        params, optimizer = draw(0, KERNEL_SPEC), Adafactor(min_factored_size=16, groups=groups, **case)
        slots, norms = zeros(optimizer.init_spec(KERNEL_SPEC)), []
        for step in range(4):
            grads = draw(step + 1, KERNEL_SPEC, scale=10.0**step)
            metrics = optimizer.update(params, grads, slots, **scalars(step, keep=step != 2))
            norms.append(metrics["update_norm"])
        return params | slots | {"norms": torch.stack(norms)}

    threads = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    kernel = run()
    torch.set_num_threads(threads)
    monkeypatch.setattr(adafactor_cpu, "is_available", lambda: False)
    for name, expected in run().items():
        difference = (kernel[name].double() - expected.double()).abs()
        if expected.dtype == torch.int8:
            assert difference.max() <= 1 and (difference > 0).double().mean() <= 1e-3, name
        else:
            assert difference.max() <= 1e-5 * expected.abs().max(), name


@pytest.mark.parametrize(("compiler", "said"), [
    ("", "no C compiler"), ("nowhere/cc -O1", "could not be built by nowhere/cc -O1"),
    (f"{sys.executable} -c raise(SystemExit('no_such_option'))", "no_such_option")])
def test_without_a_compiler_that_works_the_plain_step_runs_and_says_so(monkeypatch, caplog, compiler, said):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setenv("CC", compiler)
    adafactor_cpu._library.cache_clear()
    try:
        params, optimizer = draw(0), Adafactor(min_factored_size=16)
        optimizer.update(params, draw(1), zeros(optimizer.init_spec(SPEC)), **scalars(0))
    finally:
        adafactor_cpu._library.cache_clear()
    assert not torch.equal(params["kernel"], draw(0)["kernel"])
    assert said in caplog.text


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (33, 20, 3, 3), (7,)])
@pytest.mark.parametrize("moment", ["float32", "none"])
def test_equals_timms_adafactor_where_the_settings_coincide(shape, moment):
    """timm 1.0 has the learning rate inside the first moment too, and factors convolutions over out and in."""
    axes = {1: ("features",), 2: ("in", "out"), 4: ("out", "in", "kh", "kw")}[len(shape)]
    spec = {"w": Leaf(shape, axes=axes)}
    ours, theirs = draw(0, spec), draw(0, spec)["w"]
    optimizer = Adafactor(first_moment=moment, decay="power", min_factored_size=17)
    slots = zeros(optimizer.init_spec(spec))
    reference = timm.optim.Adafactor([theirs], lr=1e-2, decay_rate=-0.8, betas=(0.9,) if moment == "float32" else None,
                                     weight_decay=0.0, scale_parameter=False, min_dim_size_to_factor=16)
    for step in range(50):
        grads = draw(step + 1, spec, scale=10.0 ** (step % 5 - 3))
        optimizer.update(ours, grads, slots, **scalars(step, 1e-2))
        theirs.grad = grads["w"]
        reference.step()
    torch.testing.assert_close(ours["w"], theirs, rtol=1e-4, atol=1e-5)
