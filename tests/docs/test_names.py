"""What the pages name exists: components and arguments, flags, files, experiments, metrics, Python's names and links.

Metric names come from string literals and f-strings in vqim/, since the runs that would print them take minutes: a
metric exists if its name, or what follows the section that an evaluation puts before it, is such a string. docs/log/
is held to links and the length of lines alone: a diary calls things what they were called on its day.
"""
import ast
import fnmatch
import functools
import importlib
import itertools
import re

import pytest
import torch.nn

import vqim.registry.components  # noqa: F401  gin knows the components from here on
from tests.support.processes import ROOT
from vqim.registry import config_names
from vqim.registry.config import ConfigError

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
DIARY = sorted((ROOT / "docs/log").glob("*.md"))
MAX_LENGTH = 120

ROOMS = "data|nn|frozen|tokenizer|prior|probe|classifier|optim|training|checkpoint|evaluation|runtime"
COMPONENT = re.compile(rf"(?<![\w.])((?:{ROOMS})\.[A-Z]\w*)(?:\.([a-z]\w*))?")
VERB_ARGUMENT = re.compile(r"(?<![\w./-])(train|sample)\.((?!(?:py|md)\b)[a-z]\w*)")
BLOCK = re.compile(rf"^(?:\w+/)?((?:{ROOMS})\.[A-Z]\w*|train|sample):[^\n]*\n((?: +\w.*\n)+)", re.MULTILINE)
NOT_OURS = {"tokenizer.VecQuantizer", "tokenizer.MyQuantizer"}  # a mistake that gin.md shows, a reader's own

FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"(?:(?<![\w./])launch\.|launch/pod/(?:run|watch)\.sh )(\w+)([^\n`]*)")
SHARED_VERBS = (
    "benchmark", "cache_tokens", "checkpoint", "compile", "convert_weights", "evaluate", "predict", "quickstart",
    "sample", "sweep", "train")
FILE = re.compile(r"[\w./{},<>*-]+\.(?:py|gin|sh|md|c|ipynb|bzl|toml|txt)|"
                  r"(?:vqim|gin|launch|tests|docs|third_party|\.ci)/[\w./{},<>*-]*")
OF_THE_READER = re.compile(r"(^|/)(my_|a\.gin|foo|utils\.py|RUN\.gin|\*\.gin)|^/|^runs/|^caches/|^\*/")
EXPERIMENT = re.compile(r"(?:table4/|vim_|vit_vqgan_|cnn_vqgan_|vqgan_|dvae_imagenet|probe_vim_)[\w{},/]+")
METRIC = re.compile(
    r"(evaluation|codebook|loss|samples|predictions|images|speed|discriminator|xla|rejection)/((?![\w/]*\.py)[\w/.]+)")
WHOLE = ("speed", "xla", "rejection")  # the code says these names in full
PYTHON = re.compile(r"vqim(?:\.\w+)+")


def visible(text):
    """The text without blocks of code, each character of which becomes a space, so that places stay."""
    return FENCED.sub(lambda block: re.sub(r"[^\n]", " ", block[0]), text)


def in_backticks(text):
    """Pieces of inline code, each with its place."""
    return [(match.start(), re.sub(r"\s*\n\s*", " ", match[1])) for match in re.finditer(r"`([^`]+)`", visible(text))]


def commands(text):
    """Place, verb and arguments of each launch command; lines that go on are one."""
    text = text.replace("\\\n", "  ")
    for match in re.finditer(r"`[^`\n]+\n[^`]+`", visible(text)):
        text = text[:match.start()] + match[0].replace("\n", " ") + text[match.end():]
    return [(match.start(), match[1], match[2]) for match in COMMAND.finditer(text)]


def expanded(name):
    """`a_{b,c}` as a shell does it: a_b and a_c; `<...>` is anything."""
    parts = re.split(r"\{([^}]*)\}", re.sub(r"<[^>]*>", "*", name))
    return ["".join(chosen) for chosen in
            itertools.product(*(part.split(",") if place % 2 else [part] for place, part in enumerate(parts)))]


@functools.cache
def flags_of(verb):
    """The flags of a verb, by its module's calls of absl; None where there is no such verb."""
    def defined(name):
        nodes = list(ast.walk(ast.parse((ROOT / f"launch/{name}.py").read_text())))
        calls = [node for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
        names = {call.args[0].value for call in calls if call.func.attr.startswith("DEFINE_")}
        parts = [alias.name for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 1
                 for alias in node.names if alias.name != "flags" and (ROOT / f"launch/{alias.name}.py").exists()]
        return names.union({"dry_run" for call in calls if call.func.attr == "define_dry_run"}, *map(defined, parts))

    if not (ROOT / f"launch/{verb}.py").exists():
        return None
    shared = defined("flags") - {"dry_run"} if verb in SHARED_VERBS else set()
    return defined(verb) | shared | {"help", "helpfull", "verbosity"}


@functools.cache
def sources():
    """Every text of the code that a page may quote a file's name from, as one."""
    paths = itertools.chain(*((ROOT / folder).rglob("*.*") for folder in ("vqim", "launch", "third_party")))
    return "\n".join(path.read_text() for path in paths if path.suffix in (".py", ".sh"))


@functools.cache
def file_names():
    """Names of the repository's files, without their folders."""
    folders = ("vqim", "gin", "launch", "tests", "docs", "third_party")
    inside = itertools.chain(*((ROOT / folder).rglob("*") for folder in folders))
    return {path.name for path in itertools.chain(inside, ROOT.iterdir())}


@functools.cache
def macros():
    """Macros that some gin file defines."""
    return {name for path in (ROOT / "gin").rglob("*.gin") for name in
            re.findall(r"^([A-Z]\w*) =", path.read_text(), re.MULTILINE)}


@functools.cache
def strings():
    """String literals of vqim/ and passes' names, which results may be called by, and patterns of its f-strings."""
    literals, patterns = set(), []
    for path in (ROOT / "vqim").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                literals |= {node.value} if re.fullmatch(r"[\w/.]+", node.value) else set()
            if isinstance(node, ast.ClassDef) and path.name == "passes.py":
                literals.add(node.name.lower())  # `images/predictions`
            if isinstance(node, ast.JoinedStr):
                fixed = [part.value if isinstance(part, ast.Constant) else None for part in node.values]
                name = re.sub(r"^\w+/", "", "".join(filter(None, fixed)))
                if re.fullmatch(r"[\w/.]{4,}", name):  # `loss/{name}` alone says nothing of the name
                    patterns.append("".join(r"([\w.]+?)" if text is None else re.escape(text) for text in fixed))
    return literals, re.compile("|".join(f"(?:{pattern})" for pattern in patterns))


def component_fault(selector, argument):
    """What is wrong with `selector` or its `argument`; None if nothing is."""
    if selector in NOT_OURS or selector.startswith("nn.") and hasattr(torch.nn, selector[3:]):
        return None
    try:
        accepted = config_names.parameters(config_names.complete(selector, "", ""))
    except ConfigError:
        return f"no component {selector}"
    return None if argument is None or argument in accepted else f"{selector} has no argument {argument}"


def wrong_components(text, folder):
    found = [(match.start(), match[1], match[2]) for match in COMPONENT.finditer(text)]
    found += [(match.start(), f"vqim.{match[1]}", match[2]) for match in VERB_ARGUMENT.finditer(text)]
    for block in BLOCK.finditer(text):
        name = f"vqim.{block[1]}" if block[1] in ("train", "sample") else block[1]
        found += [(block.start(), name, argument) for argument in re.findall(r"^ +(\w+) =", block[2], re.MULTILINE)]
    return [(place, fault) for place, *names in found if (fault := component_fault(*names))]


def wrong_flags(text, folder):
    for place, verb, arguments in commands(text):
        if flags_of(verb) is None:
            yield place, f"no verb launch.{verb}"
            continue
        for flag in re.findall(r"(?<=\s)--(\w+)", arguments):
            if flag not in flags_of(verb) and flag.removeprefix("no") not in flags_of(verb):
                yield place, f"launch.{verb} has no flag --{flag}"
        for name in re.findall(r"--gin_bindings=[\"']([A-Z]\w*) =", arguments):
            if name not in macros():
                yield place, f"no gin file defines {name}"
    somewhere = set().union(*(flags_of(path.stem) for path in (ROOT / "launch").glob("*.py")))
    scripts = "\n".join(path.read_text() for path in (*(ROOT / "launch/pod").glob("*.sh"),
                                                      *(ROOT / "tests/support").glob("*.py")))
    for place, code in in_backticks(text):
        flag = re.match(r"--(\w+)", code)
        if flag and not {flag[1], flag[1].removeprefix("no")} & somewhere and f"--{flag[1]}" not in scripts:
            yield place, f"nothing here has a flag --{flag[1]}"


def file_exists(name, folder):
    """Whether a page in `folder` may call a file so."""
    if OF_THE_READER.search(name):
        return True
    if "/" not in name:
        return bool(fnmatch.filter(file_names(), name)) or name in sources()
    return any(any(base.glob(name)) for base in (ROOT, ROOT / "vqim", folder) if not name.startswith(".."))


def wrong_files(text, folder):
    named = [(place, code) for place, code in in_backticks(text) if FILE.fullmatch(code)]
    named += [(place, name) for place, _, arguments in commands(text)
              for name in re.findall(r"--gin_file=([^\s'\"]+)", arguments)]
    named += [(match.start(), match[1]) for match in re.finditer(r"^include '([^']+)'", text, re.MULTILINE)]
    return [(place, f"no file {name}") for place, name in named
            for path in expanded(name) if not file_exists(path, folder)]


def wrong_experiments(text, folder):
    return [(place, f"no experiment {name}") for place, code in in_backticks(text) if EXPERIMENT.fullmatch(code)
            for name in expanded(code) if not (ROOT / f"gin/exp/{name}.gin").exists()]


def is_string(name):
    """Whether the code has such a literal, or an f-string that makes it of literals and numbers."""
    literals, patterns = strings()
    made = patterns.fullmatch(name)
    return name in literals or made is not None and all(
        part in literals or re.fullmatch(r"[\d.]+", part) for part in made.groups() if part)


def wrong_metrics(text, folder):
    for place, code in in_backticks(text):
        found = METRIC.fullmatch(code)
        if not found:
            continue
        names = {code} if found[1] in WHOLE else {code, found[2]}
        if found[1] == "samples":  # stands before what has a section already
            names.add(found[2].rpartition("/")[2])
        if not any(map(is_string, names)):
            yield place, f"no metric {code}"


def wrong_python(text, folder):
    for place, code in in_backticks(text):
        if PYTHON.fullmatch(code):
            try:
                functools.reduce(_attribute, code.split(".")[1:], importlib.import_module("vqim"))
            except (AttributeError, ImportError):
                yield place, f"no {code}"


def _attribute(owner, name):
    """An attribute, or a module of a package that nobody has imported yet."""
    return getattr(owner, name) if hasattr(owner, name) else importlib.import_module(f"{owner.__name__}.{name}")


def wrong_links(text, folder):
    for link in re.finditer(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", visible(text)):
        if link[1].startswith("http"):
            continue
        target = folder / link[1] if link[1] else None
        if target is not None and not target.exists():
            yield link.start(), f"no file {link[1]}"
        elif link[2] and link[2] not in anchors(text if target is None else target.read_text()):
            yield link.start(), f"no heading {link[1]}#{link[2]}"


def anchors(text):
    """What the headings of a page are linked by, as GitHub makes it."""
    headings = re.findall(r"^#+ (.*)$", visible(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def long_lines(text, folder):
    """Lines too long; tables, blocks of code and the targets of links do not count."""
    place = 0
    for line in visible(text).splitlines(keepends=True):
        length = len(re.sub(r"\]\([^)]*\)|<?https?://\S+", "]", line.rstrip("\n")))
        if length > MAX_LENGTH and not line.startswith(("|", "    ")):
            yield place, f"{length} characters"
        place += len(line)


def faults(find, pages):
    return [f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, place) + 1}: {fault}"
            for page in pages for text in [page.read_text()] for place, fault in find(text, page.parent)]


NAMES = [wrong_components, wrong_flags, wrong_files, wrong_experiments, wrong_metrics, wrong_python]


@pytest.mark.parametrize("find", [*NAMES, wrong_links, long_lines])
def test_what_the_pages_name_exists_and_their_lines_are_short(find):
    assert faults(find, PAGES) == []


@pytest.mark.parametrize("find", [wrong_links, long_lines])
def test_links_of_the_diary_exist_and_its_lines_are_short(find):
    assert faults(find, DIARY) == []


@pytest.mark.parametrize("find, right, wrong", [
    (wrong_components, "`data.Images`, `training.Learner.trains`", "data.Image"),
    (wrong_components, "`tokenizer.VectorQuantizer.vocabulary`", "`tokenizer.VectorQuantizer.vocab`"),
    (wrong_components, "tokenizer.L2:\n  weight = 1.0\n", "tokenizer.L2:\n  weigth = 1.0\n"),
    (wrong_components, "`train.num_steps = 100`", "--gin_bindings='train.steps = 100'"),
    (wrong_flags, "`launch.sample --top_p=0.9`", "python -m launch.sample --num_images=1 \\\n  --top_q=0.9"),
    (wrong_flags, "`launch.train\n--dry_run`", "`launch.evaluate\n--dry_run`"),
    (wrong_flags, "python -m launch.compile --top=3", "python -m launch.tokenize"),
    (wrong_flags, "launch.train --gin_bindings='NUM_STEPS = 3'", "launch.train --gin_bindings='NUMBER_STEPS = 3'"),
    (wrong_flags, "`--workdir`", "`--work_dir`"),
    (wrong_files, "`vqim/training/loop.py`, `vit.py`", "`vqim/training/loops.py`"),
    (wrong_files, "`gin/model/`, `shrink_<model>.gin`", "`gin/models/`"),
    (wrong_files, "launch.train --gin_file=gin/run/stage1_paper.gin", "launch.train --gin_file=gin/run/stage_1.gin"),
    (wrong_files, "`run.json`", "`runs.py`"),
    (wrong_experiments, "`table4/code_dim_{4,8}`", "`table4/code_dim_{4,9}`"),
    (wrong_metrics, "`evaluation/psnr`, `loss/l2`, `loss/<name>`", "`evaluation/psrn`"),
    (wrong_metrics, "`samples/codebook/usage`, `samples/psnr`", "`loss/l3`"),
    (wrong_metrics, "`evaluation/lpips_alexnet`, `rejection/judge_top1_at_0.5`", "`evaluation/lpips_alex`"),
    (wrong_metrics, "`speed/step_seconds`, `images/predictions`", "`speed/psnr`"),
    (wrong_python, "`vqim.load`, `vqim.registry.config.ConfigError`", "`vqim.open`"),
    (wrong_links, "[a](README.md)", "[a](READ.md)"),
    (wrong_links, "# A b\n[a](#a-b)", "# A b\n[a](#b-a)"),
    (long_lines, f"[{'x' * 110}](https://{'y' * 50})\n|{'x' * 130}\n```\n{'x' * 130}\n```\n", "x" * 121),
])
def test_a_wrong_name_is_found_and_a_right_one_is_not(find, right, wrong):
    assert list(find(right, ROOT)) == []
    assert len(list(find(wrong, ROOT))) == 1
