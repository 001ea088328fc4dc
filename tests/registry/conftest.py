"""Small components under the module `testing`, and a gin that is as it was after each test."""
import gin
import pytest

from vqim.registry.config import load


class Net:
    def __init__(self, width: int, sizes: tuple[int, ...] = (1,), activation: str = "gelu"):
        if width % 2:
            raise ValueError(f"width must be even, got {width}")
        self.width, self.sizes, self.activation = width, sizes, activation


class Adam:
    def __init__(self, beta1: float = 0.9, beta2: float = 0.99):
        self.beta1, self.beta2 = beta1, beta2


class Absent:
    def __init__(self, path: str):
        raise FileNotFoundError(f"there is no folder {path}")


def toy(*, net=None, optimizer=None, parts=(), make_net=None, num_steps: int = 1, built=None):
    """A root that gives back what it was given, and calls `built` when all of it exists."""
    made = make_net() if make_net else None
    if num_steps < 0:
        raise ValueError(f"num_steps must not be negative, got {num_steps}")
    if built:
        built()
    return {"net": net, "optimizer": optimizer, "parts": parts, "made": made, "num_steps": num_steps}


def judge(*, net=None, num_images: int = 1):
    """The root of another verb."""


@pytest.fixture
def register():
    """Registers a component for the length of a test."""
    gin.clear_config(clear_constants=True)  # which unlocks it: a test before this one may have loaded a configuration
    selectors = []

    def register_one(component, module, **options):
        gin.register(component, module=module, **options)
        selectors.append(f"{module}.{component.__name__}")

    yield register_one
    gin.clear_config(clear_constants=True)
    for selector in selectors:
        gin.config._REGISTRY.pop(selector)


@pytest.fixture(autouse=True)
def components(register):
    """gin's tables are global: nothing of a test reaches the next one, nor the tests of other folders."""
    for component in (Net, Adam, Absent, toy, judge):
        register(component, "testing")


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Writes gin files, name=text, into an empty working directory."""
    monkeypatch.chdir(tmp_path)

    def write(**texts):
        for name, text in texts.items():
            (tmp_path / f"{name}.gin").write_text(text)

    return write


@pytest.fixture
def load_text(files):
    """Loads `text` as the file a.gin, and bindings."""
    def load_one(text, *bindings):
        files(a=text)
        return load(["a.gin"], list(bindings), [])

    return load_one
