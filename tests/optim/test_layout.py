import pytest
import torch

from vqim.optim.adafactor import Adafactor
from vqim.state.leaf import Leaf

KERNEL = Leaf((36, 2048, 8192), axes=("layers", "in", "out"))


def slots(leaf, **arguments):
    return Adafactor(**arguments).init_spec({"w": leaf})


def describe(spec):
    return {name: (leaf.shape, leaf.axes) for name, leaf in spec.items()}


@pytest.mark.parametrize("leaf, expected", [
    (KERNEL, {
        "m_int8/w": ((36, 2048, 8192), ("layers", "in", "out")), "m_scale/w": ((36, 8192), ("layers", "out")),
        "v_row/w": ((36, 2048), ("layers", "in")), "v_col/w": ((36, 8192), ("layers", "out"))}),
    (Leaf((8192, 2048), axes=("vocabulary", "features")), {
        "m_int8/w": ((8192, 2048), ("vocabulary", "features")), "m_scale/w": ((8192,), ("vocabulary",)),
        "v_row/w": ((8192,), ("vocabulary",)), "v_col/w": ((2048,), ("features",))}),
    (Leaf((512, 256, 3, 3), axes=("out", "in", "kh", "kw")), {
        "m_int8/w": ((512, 256, 3, 3), ("out", "in", "kh", "kw")), "m_scale/w": ((512,), ("out",)),
        "v_row/w": ((512, 3, 3), ("out", "kh", "kw")), "v_col/w": ((256, 3, 3), ("in", "kh", "kw"))}),
    (Leaf((32, 32, 2048), axes=("height", "width", "features")), {
        "m_int8/w": ((32, 32, 2048), ("height", "width", "features")), "m_scale/w": ((32, 32), ("height", "width")),
        "v/w": ((32, 32, 2048), ("height", "width", "features"))}),
    (Leaf((36, 2048), axes=("layers", "features")), {
        "m_int8/w": ((36, 2048), ("layers", "features")), "m_scale/w": ((36,), ("layers",)),
        "v/w": ((36, 2048), ("layers", "features"))}),
    (Leaf((3, 5), axes=("in", "out")), {
        "m_int8/w": ((3, 5), ("in", "out")), "m_scale/w": ((), ()), "v/w": ((3, 5), ("in", "out"))}),
    (Leaf(()), {"m/w": ((), ()), "v/w": ((), ())}),
    (Leaf((4,), axes=("layers",)), {"m/w": ((4,), ("layers",)), "v/w": ((4,), ("layers",))}),
])
def test_slots_drop_the_axes_that_they_are_reduced_over_and_never_layers(leaf, expected):
    assert describe(slots(leaf)) == expected


def test_slots_have_the_dtype_that_was_asked_for():
    for moment, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        assert slots(KERNEL, first_moment=moment)["m/w"].dtype == dtype
    assert slots(KERNEL)["m_int8/w"].dtype == torch.int8
    assert not any(name.startswith("m") for name in slots(KERNEL, first_moment="none"))


def vim_large():
    """VIM-Large of Table 2: 36 blocks of width 2048, hidden 8192; 8192 codes, 32 x 32 positions, 1000 classes."""
    layers, width, hidden, codes = 36, 2048, 8192, 8192
    shapes = {"attention/qkv": (width, 3 * width), "attention/output": (width, width), "mlp/up": (width, hidden),
              "mlp/down": (hidden, width)}
    spec = {
        "tokens/table": Leaf((codes, width), axes=("vocabulary", "features")),
        "classes/table": Leaf((1000, width), axes=("vocabulary", "features")),
        "positions": Leaf((32, 32, width), axes=("height", "width", "features")),
        "head/kernel": Leaf((width, codes), axes=("in", "out")),
        "head/bias": Leaf((codes,), axes=("features",)),
        "norm/gain": Leaf((width,), axes=("features",)),
        "norm/bias": Leaf((width,), axes=("features",)),
    }
    for name, shape in shapes.items():
        spec[f"blocks/{name}/kernel"] = Leaf((layers, *shape), axes=("layers", "in", "out"))
        spec[f"blocks/{name}/bias"] = Leaf((layers, shape[1]), axes=("layers", "features"))
    for norm in ("norm1", "norm2"):
        for part in ("gain", "bias"):
            spec[f"blocks/{norm}/{part}"] = Leaf((layers, width), axes=("layers", "features"))
    return spec


def test_vim_large_needs_1_1_bytes_a_parameter_for_the_first_moment(capsys):
    spec = vim_large()
    parameters = sum(leaf.size for leaf in spec.values())
    slots = Adafactor().init_spec(spec)
    first = sum(leaf.num_bytes for name, leaf in slots.items() if name.startswith("m"))
    second = sum(leaf.num_bytes for name, leaf in slots.items() if name.startswith("v"))
    assert first + second == sum(leaf.num_bytes for leaf in slots.values())
    with capsys.disabled():
        print(f"\nVIM-Large, {parameters / 1e6:.0f}M parameters: bytes per parameter of int8 values and scales "
              f"{first / parameters:.4f}, second moments {second / parameters:.4f}; Adam 8; "
              f"GB {(first + second) / 1e9:.2f} and {8 * parameters / 1e9:.2f}")
    assert 1.0 < first / parameters <= 1.1
    assert second / parameters <= 0.05
