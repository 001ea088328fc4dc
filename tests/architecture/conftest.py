"""What the tests of the architecture read: every Python file of the checkout, and the modules that it imports."""
import ast
import dataclasses
import functools
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]
FOLDERS = ("vqim", "launch", "third_party", "tests")


@dataclasses.dataclass(frozen=True)
class Source:
    """A Python file.

    Attributes:
      path: relative to the checkout, with forward slashes.
      module: the name that it is imported by. third_party/ is imported as vqim.third_party (a symbolic link), so
        that an installed wheel has the same name for it.
      imports: absolute names of all modules that it imports, at whatever depth: under `if`, inside of functions.
    """

    path: str
    module: str
    imports: frozenset[str]

    @property
    def folder(self) -> str:
        """The folder that holds it, relative to the checkout."""
        return str(pathlib.PurePosixPath(self.path).parent)


def module_name(path: pathlib.PurePosixPath) -> str:
    """`vqim/nn/layers.py` -> `vqim.nn.layers`, `vqim/nn/__init__.py` -> `vqim.nn`."""
    parts = path.with_suffix("").parts
    if parts[0] == "third_party":
        parts = ("vqim", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_module(name: str) -> bool:
    """Whether the checkout has a module or a package of this name."""
    path = ROOT.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def imported_modules(tree: ast.AST, package: str) -> frozenset[str]:
    """The modules named by `import`, `from ... import` and `importlib.import_module("...")`.

    `from a import b` counts as an import of `a.b`, or of `a` where the checkout's module `a` has no module `b` in it.

    Args:
      tree: of the whole file.
      package: the package which relative imports start from.
    """
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            members = [f"{base}.{alias.name}" for alias in node.names]
            ours = is_module(base)
            names.update(base if ours and not is_module(member) else member for member in members)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
            if node.args and isinstance(node.args[0], ast.Constant):
                names.add(node.args[0].value)
    return frozenset(names)


def read_source(path: pathlib.Path) -> Source:
    """Parses one file."""
    relative = pathlib.PurePosixPath(path.relative_to(ROOT).as_posix())
    module = module_name(relative)
    package = module if relative.name == "__init__.py" else module.rpartition(".")[0]
    return Source(str(relative), module, imported_modules(ast.parse(path.read_text()), package))


@functools.cache
def read_sources() -> tuple[Source, ...]:
    """All Python files; those behind symbolic links (vqim/_launch and the like) once, at their own place."""
    paths = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    return tuple(read_source(path) for path in sorted(paths))


@pytest.fixture
def root() -> pathlib.Path:
    """The checkout."""
    return ROOT


@pytest.fixture
def sources() -> tuple[Source, ...]:
    """Every Python file of the checkout."""
    return read_sources()
