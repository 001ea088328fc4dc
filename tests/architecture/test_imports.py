"""Imports point one way: `state <- contracts <- nn <- tokenizer <- prior <- probe`; each library has its one place."""
import ast
import subprocess
import sys

import pytest

# What a package may import of the rest of vqim. `vqim.trained` is a module: the Python way in.
ALLOWED = {
    "vqim": {"vqim.trained"},
    "vqim.third_party": set(),
    "vqim.state": set(),
    "vqim.contracts": {"vqim.state"},
    "vqim.data": {"vqim.state", "vqim.contracts", "vqim.third_party"},
    "vqim.optim": {"vqim.state", "vqim.contracts"},
    "vqim.checkpoint": {"vqim.state"},
    "vqim.runtime": {"vqim.state", "vqim.contracts"},
    "vqim.training": {"vqim.state", "vqim.contracts", "vqim.checkpoint", "vqim.runtime", "vqim.nn", "vqim.optim"},
    "vqim.nn": {"vqim.state", "vqim.contracts"},
    "vqim.frozen": {"vqim.state", "vqim.contracts", "vqim.nn", "vqim.checkpoint", "vqim.third_party"},
    "vqim.tokenizer": {"vqim.state", "vqim.contracts", "vqim.nn", "vqim.optim", "vqim.frozen"},
    "vqim.prior": {"vqim.state", "vqim.contracts", "vqim.nn", "vqim.optim", "vqim.frozen", "vqim.tokenizer"},
    "vqim.probe": {
        "vqim.state", "vqim.contracts", "vqim.nn", "vqim.optim", "vqim.frozen", "vqim.tokenizer", "vqim.prior"},
    "vqim.classifier": {"vqim.state", "vqim.contracts", "vqim.nn", "vqim.optim", "vqim.frozen", "vqim.tokenizer"},
    "vqim.evaluation": {"vqim.state", "vqim.contracts", "vqim.frozen", "vqim.tokenizer", "vqim.classifier"},
    "vqim.registry": {"vqim"},
    "vqim.trained": {
        "vqim.state", "vqim.contracts", "vqim.checkpoint", "vqim.nn", "vqim.data", "vqim.tokenizer", "vqim.prior",
        "vqim.classifier", "vqim.evaluation", "vqim.training", "vqim.registry"},
    "launch": {"vqim"},
}

# Where an outside library may be imported.
PLACES = {
    "gin": {"vqim.registry"},
    "absl.flags": {"launch"},
    "tensorstore": {"vqim.checkpoint"},
    "torch_xla": {"vqim.runtime"},
    "torchax": {"vqim.runtime"},
    "jax": {"vqim.runtime"},
    "jaxlib": {"vqim.runtime"},
    "libtpu": {"vqim.runtime"},
}


def is_within(module: str, package: str) -> bool:
    """Whether a module is the package or a part of it."""
    return module == package or module.startswith(package + ".")


def room_of(module: str) -> str | None:
    """The package of ALLOWED that a module belongs to: its first two names, `vqim` alone, or `launch`."""
    if module.split(".")[0] in ("launch", "tests"):
        return module.split(".")[0]
    return ".".join(module.split(".")[:2])


def test_every_room_of_the_house_has_its_rule(sources):
    rooms = {room_of(source.module) for source in sources} - {"tests"}
    assert rooms - ALLOWED.keys() == set(), "say in ALLOWED what these packages may import"


@pytest.mark.parametrize("room", ALLOWED)
def test_imports_point_one_way(sources, room):
    wrong = [
        f"{source.path} imports {name}"
        for source in sources if room_of(source.module) == room
        for name in sorted(source.imports)
        if name.split(".")[0] in ("vqim", "launch", "tests") and room_of(name) != room
        and not any(is_within(name, allowed) for allowed in ALLOWED[room])
    ]
    assert wrong == [], f"{room} may import {sorted(ALLOWED[room]) or 'nothing'} of the project"


@pytest.mark.parametrize("library", PLACES)
def test_an_outside_library_is_imported_in_its_place_only(sources, library):
    wrong = [
        f"{source.path} imports {name}"
        for source in sources if room_of(source.module) != "tests"
        for name in sorted(source.imports)
        if is_within(name, library) and not any(is_within(source.module, place) for place in PLACES[library])
    ]
    assert wrong == [], f"{library} is for {sorted(PLACES[library])}"


def test_links_to_the_launchers_are_for_the_wheel_only(sources):
    wrong = [source.path for source in sources for name in source.imports if is_within(name, "vqim._launch")]
    assert wrong == [], "import `launch`; inside of launch/, `from . import ...`"


def test_launchers_import_each_other_relatively(sources, root):
    # In a wheel launch/ is vqim._launch, where an absolute `import launch` would find nothing.
    launchers = [source for source in sources if room_of(source.module) == "launch"]
    absolute = [
        f"{source.path}:{node.lineno}"
        for source in launchers
        for node in ast.walk(ast.parse((root / source.path).read_text()))
        if (isinstance(node, ast.ImportFrom) and not node.level and is_within(node.module, "launch"))
        or (isinstance(node, ast.Import) and any(is_within(alias.name, "launch") for alias in node.names))
    ]
    assert absolute == [], "write `from . import ...`"


def test_programs_that_tests_import_have_no_flag_twice(sources, root):
    # All tests of a process share absl's flags: two programs with one flag end the collection.
    programs = sorted({
        module for source in sources if room_of(source.module) == "tests"
        for name in source.imports if is_within(name, "launch")
        for module in (name, name.rpartition(".")[0]) if (root / f"{module.replace('.', '/')}.py").is_file()})
    assert "launch.cache_tokens" in programs
    done = subprocess.run([sys.executable, "-c", f"import {', '.join(programs)}"], cwd=root, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr


def test_third_party_is_imported_by_the_name_that_a_wheel_has_too(sources):
    wrong = [source.path for source in sources for name in source.imports if is_within(name, "third_party")]
    assert wrong == [], "import it as vqim.third_party"


def test_gin_is_gin_config_and_not_the_folder():
    import gin

    assert hasattr(gin, "parse_config"), gin.__path__


def test_the_import_of_vqim_alone_imports_nothing(root):
    def loaded(statement):
        command = [sys.executable, "-c", f"import sys; {statement}; print(*sys.modules)"]
        return set(subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.split())

    new = loaded("import vqim") - loaded("pass")
    assert {name.split(".")[0] for name in new} - sys.stdlib_module_names == {"vqim"}
    assert {name for name in new if name.startswith("vqim.")} == set()
