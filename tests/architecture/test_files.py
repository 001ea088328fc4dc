"""Files are small, named after one job, finished, gin/ holds no Python, and names of tests are short claims."""
import ast
import re

import pytest

MAX_LINES = 400
MAX_NAME = 80
VAGUE_NAMES = {"utils.py", "util.py", "helpers.py", "misc.py", "common.py"}


def test_no_file_is_longer_than_400_lines(sources, root):
    lengths = {source.path: len((root / source.path).read_text().splitlines()) for source in sources}
    assert {path: length for path, length in lengths.items() if length > MAX_LINES} == {}


def test_no_file_is_named_after_no_job(sources):
    assert [source.path for source in sources if source.path.rpartition("/")[2] in VAGUE_NAMES] == []


@pytest.mark.parametrize("folder", ["vqim", "launch", "third_party", "tests", "gin", "docs"])
def test_nothing_is_left_to_do(root, folder):
    # Built from two halves, so that this file does not find itself.
    unfinished = re.compile("TO" "DO|FIX" "ME|XX" "X")
    text_files = [path for path in (root / folder).rglob("*") if path.suffix in (".py", ".gin", ".md", ".sh")]
    found = [
        f"{path.relative_to(root)}:{number}"
        for path in text_files
        for number, line in enumerate(path.read_text().splitlines(), start=1) if unfinished.search(line)
    ]
    assert found == []


def test_the_gin_folder_holds_gin_files_only(root):
    # One __init__.py here would hide gin-config from everything that is run from the checkout.
    others = [path for path in (root / "gin").rglob("*") if path.is_file() and path.suffix != ".gin"]
    assert [str(path.relative_to(root)) for path in others] == []


def test_every_module_says_what_it_is_for(sources, root):
    silent = [
        source.path for source in sources
        if source.folder.split("/")[0] != "tests" and not ast.get_docstring(ast.parse((root / source.path).read_text()))
    ]
    assert silent == []


def test_names_of_tests_have_a_subject_and_at_most_80_characters(sources, root):
    names = [
        (source.path, node.name) for source in sources if source.folder.split("/")[0] == "tests"
        for node in ast.walk(ast.parse((root / source.path).read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]
    assert len(names) > 1000
    assert [(path, name) for path, name in names if len(name) > MAX_NAME] == []
    # `its` and `that prior` are clear beside the test before, and not where a failure is read.
    assert [(path, name) for path, name in names if name.split("_")[1] in ("it", "its", "they", "their")] == []
