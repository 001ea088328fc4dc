"""Experiments of the papers, shrunk by gin/debug/shrink*.gin, learn the emoji set, on the runs that they need.

One is trained for every choice of components; the others differ from it in numbers and data alone, which test_files.py
builds at full size.
"""
import hashlib
import json
import re

import gin
import pytest

import vqim.registry.components  # noqa: F401  gin knows the components from here on
from tests.gin.files import ROOT, whole_text
from vqim.registry.config import load
from vqim.runtime.torch import TorchRuntime
from vqim.training.loop import train

STAND_INS = {"runs/dalle_dvae": "runs/dvae_imagenet"}
"""Weights that are OpenAI's, and the experiment that makes some like them."""


def shrinking(name):
    """The files that shrink an experiment, as it and what it includes say; empty for files that are small as they are.

    A twin of something that a file has replaced is not its own: for each thing the first line counts, which is the
    file's own before those of what it includes.
    """
    twins = {}
    for thing, twin in re.findall(r"^# Small twin of the (\w+): (\S+)$", whole_text(name), re.MULTILINE):
        twins.setdefault(thing, twin)
    # What replaces comes after what it replaces a part of.
    return [twin for twin in reversed(twins.values()) if twin != "none"] if "run" in twins else []


def needed_runs(name):
    """By macro, the runs that an experiment and what it includes ask for."""
    return dict(re.findall(r"^(TOKENIZER_RUN|PRIOR_RUN|START_RUN) = '(.*)'", whole_text(name), re.M))


def making(run):
    """The experiment that makes a run."""
    return STAND_INS.get(run, run).replace("runs/", "gin/exp/") + ".gin"


def components(name):
    """What of the text says which components there are: names but those of data, the losses, twins and dtype."""
    text = re.sub("#.*", "", whole_text(name))
    names = {word for word in re.findall(r"@([\w./]+)", text) if not word.startswith("data.")}
    terms = re.findall(r"\bterms = (.*)", text)[:1]  # the file's own, which replaces those of what it includes
    return frozenset(names), tuple(terms), tuple(shrinking(name)), "bfloat16" in text


SHRINKABLE = [name for path in sorted((ROOT / "gin/exp").rglob("*.gin"))
              if shrinking(name := path.relative_to(ROOT).as_posix())]
NEEDED = {making(run) for name in SHRINKABLE for run in needed_runs(name).values()}
# Of those with the same components the last one: one that others need, whose run is made anyway, if there is one.
EXPERIMENTS = list({components(name): name for name in sorted(SHRINKABLE, key=lambda name: (name in NEEDED, name))
                    }.values())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("experiments")


def run(name, folder):
    """Trains a shrunken experiment, after the run that it needs; returns its directory.

    Experiments whose shrunken configurations are the same, such as those of two data sets, are trained once.
    """
    bindings = ["NUM_CLASSES = 9"] if "NUM_CLASSES = 1000" in whole_text(name) else []
    if "frozen.VGG16" in (text := whole_text(name)) and "bfloat16" in text:
        # A minute of VGG16 where a CPU has no such products; vim_large_imagenet_fast learns in bfloat16.
        bindings.append("training.GradientTask.dtype = 'float32'")
    for macro, needed in needed_runs(name).items():
        bindings.append(f"{macro} = {str(run(making(needed), folder))!r}")
    gin.clear_config()
    config = load([name, *shrinking(name)], bindings, [])
    workdir = folder / hashlib.sha256(config.text().encode()).hexdigest()[:16]
    if not workdir.exists():
        experiment = config.call("train")
        config.refuse_unused(except_for=(r"runtime\.",))
        train(experiment, workdir=workdir, runtime=TorchRuntime(), config=config.text())
    gin.clear_config()
    return workdir


def test_no_choice_of_components_is_forgotten():
    assert len(SHRINKABLE) >= 85 and len(EXPERIMENTS) >= 30


def losses(name, folder):
    """The rows with losses of a shrunken experiment."""
    rows = [json.loads(line) for line in (run(name, folder) / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "loss" in row]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_shrunken_experiment_learns(name, folder):
    last, begun = losses(name, folder)[-1], name
    # What goes on from another run has learnt already: it is compared with the beginning of that one.
    while needed := re.findall(r"^START_RUN = 'runs/(.*)'", whole_text(begun), re.M):
        begun = f"gin/exp/{needed[0]}.gin"
    first = losses(begun, folder)[0]
    # An adversary's loss rises as it should; what the tokenizer is for falls.
    loss = next(key for key in ("loss/l2", "loss/l1", "loss") if key in last)
    assert last[loss] < 0.95 * first[loss]
