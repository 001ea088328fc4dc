"""BUILD is true: every Python file is in one target, and a target's deps are the imports of its files.

BUILD is Python's syntax, so `ast` reads it. The rules: a folder is a `py_library` named by its path; a folder of tests
is the `pytest_test` <folder>/test (its executable would be in the way of the folder otherwise); a file of launch/ with
a `run` has a `launcher` beside the library. A failure prints the block as it should stand.
"""
import ast
import dataclasses
import graphlib

import pytest

RULES = ("py_library", "launcher", "pytest_test")


@dataclasses.dataclass(frozen=True)
class Target:
    """A rule of BUILD that has Python sources.

    Attributes:
      rule: one of RULES.
      name: of the target, without the colon.
      sources: paths of its Python files; those behind the link vqim/third_party by the name through the link.
      deps: names of targets of this BUILD, in the order written.
    """

    rule: str
    name: str
    sources: frozenset[str]
    deps: tuple[str, ...]


def expand(node, root):
    """The paths that `srcs` names, as a list or as a glob."""
    if isinstance(node, ast.List):
        return {element.value for element in node.elts}
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "glob" and not node.keywords:
        patterns = [pattern.value for pattern in node.args[0].elts]
        return {path.relative_to(root).as_posix() for pattern in patterns for path in root.glob(pattern)}
    raise AssertionError(f"BUILD:{node.lineno}: srcs are a list of files or a glob, not {ast.unparse(node)}")


def read_build(root):
    """The targets of BUILD that hold Python."""
    targets = []
    for node in ast.parse((root / "BUILD").read_text()).body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and ast.unparse(node.value.func) in RULES:
            words = {word.arg: word.value for word in node.value.keywords}
            deps = tuple(dep.value.removeprefix(":") for dep in words["deps"].elts) if "deps" in words else ()
            paths = frozenset(expand(words["srcs"], root)) if "srcs" in words else frozenset()
            targets.append(Target(ast.unparse(node.value.func), words["name"].value, paths, deps))
    return targets


def path_in_build(source):
    """How BUILD names a file: those of third_party/ as they are imported."""
    return f"vqim/{source.path}" if source.path.startswith("third_party/") else source.path


def is_launcher(source, root):
    """Whether a file is one of launch/ that a user runs: it has a `run` without arguments."""
    functions = [node for node in ast.parse((root / source.path).read_text()).body if isinstance(node, ast.FunctionDef)]
    return source.folder == "launch" and any(node.name == "run" and not node.args.args for node in functions)


def rule_and_name(source):
    """The target that a file belongs to."""
    folder = path_in_build(source).rpartition("/")[0]
    return ("pytest_test", f"{folder}/test") if folder.split("/")[0] == "tests" else ("py_library", folder)


def true_targets(sources, root):
    """The targets that the files and their imports ask for, by name."""
    place = {source.module: rule_and_name(source)[1] for source in sources}
    members = {}
    for source in sources:
        members.setdefault(rule_and_name(source), []).append(source)
    launchers = [source.path.removesuffix(".py") for source in sources if is_launcher(source, root)]
    targets = {name: Target("launcher", name, frozenset(), ("launch",)) for name in launchers}
    for (rule, name), files in members.items():
        imported = {module for source in files for module in source.imports}
        # `import a.b` of a package without an __init__.py of its own names no file.
        deps = {place[module] for module in imported if module in place} - {name}
        targets[name] = Target(rule, name, frozenset(map(path_in_build, files)), tuple(sorted(deps)))
    return targets


def written(target):
    """A target as it should stand in BUILD."""
    lines = [f"{target.rule}(", f'    name = "{target.name}",']
    if target.sources:
        lines.append(f'    srcs = glob(["{target.name.removesuffix("/test")}/*.py"]),')
    if target.deps:
        lines += ["    deps = [", *(f'        ":{dep}",' for dep in target.deps), "    ],"]
    return "\n".join([*lines, ")"])


def test_every_target_is_as_the_files_and_their_imports_ask(sources, root):
    found = {target.name: target for target in read_build(root)}
    wanted = true_targets(sources, root)
    wrong = [written(target) for name, target in sorted(wanted.items()) if found.get(name) != target]
    assert wrong == [], "these blocks of BUILD should be (other attributes aside):\n" + "\n\n".join(wrong)
    assert sorted(found.keys() - wanted.keys()) == [], "these targets of BUILD have no files"


def test_every_python_file_is_in_one_target(sources, root):
    listed = sorted(path for target in read_build(root) for path in target.sources)
    assert listed == sorted(map(path_in_build, sources))


def test_no_target_depends_on_itself_in_the_end(root):
    graph = {target.name: target.deps for target in read_build(root)}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail("folders import each other: " + " -> ".join(error.args[1]))


def test_names_of_targets_are_unique(root):
    names = [target.name for target in read_build(root)]
    assert len(names) == len(set(names))
