"""A component of each kind from outside of vqim/, named in a gin file, works end to end, without edits to the house."""
import ast
import io
import json
import pathlib
import re
import sys
import zipfile

import gin
import numpy as np
import pytest
from PIL import Image

import vqim
import vqim.registry.components  # noqa: F401  gin knows the components from here on
from vqim.checkpoint.manager import CheckpointManager
from vqim.data.source import Emoji
from vqim.frozen.from_run import FromRun
from vqim.registry.config import load
from vqim.runtime.torch import TorchRuntime
from vqim.training.loop import train

HERE = pathlib.Path(__file__).parent
PLUGINS = sorted(path for path in HERE.glob("*.py") if not path.name.startswith(("test_", "xla_", "__")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("plugins")


@pytest.fixture(scope="module")
def run(folder):
    """`run(name, bindings)`: trains a gin file of this folder once, in 20 steps; returns its run directory."""
    before = set(gin.config._REGISTRY._selector_map)
    sys.path.insert(0, str(HERE))

    def trained(name, *bindings):
        workdir = folder / name
        if not workdir.exists():
            config = load([str(HERE / f"{name}.gin") if (HERE / f"{name}.gin").exists() else f"gin/debug/{name}.gin"],
                          ["NUM_STEPS = 20", *bindings], [str(HERE)])
            experiment = config.call("train")
            config.refuse_unused(except_for=(r"runtime\.",))
            (folder / name).mkdir()
            (folder / name / "config.gin").write_text(config.text())
            train(experiment, workdir=workdir, runtime=TorchRuntime(), config=config.text())
            gin.clear_config()
        return workdir

    yield trained
    sys.path.remove(str(HERE))
    for name in set(gin.config._REGISTRY._selector_map) - before:
        gin.config._REGISTRY.pop(name)
    for path in PLUGINS:
        sys.modules.pop(path.stem, None)
    gin.clear_config()


@pytest.fixture(scope="module")
def ema_run(run):
    return run("ema_tokenizer", "training.GradientTask.num_micro_batches = 2")


@pytest.fixture(scope="module")
def table_run(run, ema_run):
    return run("table_prior", f"TOKENIZER_RUN = {str(ema_run)!r}")


@pytest.fixture(scope="module")
def first_run(run):
    return run("tokenizer_tiny")


def metrics(workdir):
    """All numbers that a run has shown, the newest of each name, and the first."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {name: [row[name] for row in rows if name in row] for row in rows for name in row}


@pytest.mark.parametrize("path", PLUGINS, ids=lambda path: path.stem)
def test_a_plugin_is_short_and_uses_public_names_alone(path):
    tree = ast.parse(path.read_text())
    assert len(path.read_text().splitlines()) <= 80
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names]
    others = [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)
              and isinstance(node.value, ast.Name) and node.value.id != "self"]
    assert [name for name in names + others if name.startswith("_") and not name.startswith("__")] == []


def test_a_quantizer_keeps_a_statistic_that_has_no_slots_and_moves(ema_run):
    checkpoint = CheckpointManager(ema_run / "checkpoints").open()
    codebook = "statistics/tokenizer/quantizer/codebook_VZ"
    assert checkpoint.names("codebook") == [codebook]
    codebook_VZ = checkpoint.read(codebook)
    assert np.isfinite(codebook_VZ).all()
    # Means of latents: most of a codebook that began as N(0, 1) draws has come to where the latents are.
    assert metrics(ema_run)["codebook/usage"][-1] > 0.7


def test_a_prior_with_two_codes_a_position_is_drawn_by_its_own_sampler(table_run):
    model = vqim.load(str(table_run), runtime="torch")
    tokens_NPK = model.sample_tokens(["Flags", 3, -1], seed=1)
    assert tokens_NPK.shape == (3, 16, 2)
    assert len({tokens.tobytes() for tokens in tokens_NPK}) == 3
    assert model.images(tokens_NPK).shape == (3, 16, 16, 3)


def test_a_prior_with_two_codes_a_position_learns_and_its_bits_are_measured(table_run):
    shown = metrics(table_run)
    assert shown["evaluation/bits_per_token"][-1] < 6  # log2 of 64 codes, where it began
    assert shown["loss"][-1] < shown["loss"][0]


def test_a_metric_over_a_set_measures_reconstructions_and_samples(ema_run, table_run):
    model = vqim.load(str(ema_run), runtime="torch")
    split = Emoji("validation")
    images_NHWC = np.stack([model.prepare(split[i].image) for i in range(len(split))])
    colours_NC = model.reconstruct(images_NHWC).mean((1, 2)) / 255 - 0.5
    assert metrics(ema_run)["evaluation/colour_distance"][-1] == pytest.approx(
        (colours_NC**2).sum(1).mean(), rel=1e-5)
    assert 0 < metrics(table_run)["samples/colour_distance"][-1] < 0.75


def test_a_decoder_sees_the_codes_in_every_block_and_an_encoder_attends_nowhere(run):
    names = CheckpointManager(run("spatial_decoder", "train.batch_size = 4") / "checkpoints").open().names("^params/")
    decoder = [name for name in names if "/decoder/" in name]
    norms = {match[1] for name in decoder if (match := re.match(r"(.*?/(?:norm_1|norm_2|norm))/", name))}
    assert len(norms) > 10
    assert all(f"{norm}/scale/kernel_OIHW" in names for norm in norms)
    assert [name for name in names if "/encoder/" in name and "attention" in name] == []


def test_a_loss_term_looks_through_another_network(run):
    workdir = run("feature_term", "train.batch_size = 8")
    assert metrics(workdir)["loss/features"][-1] > 0
    assert CheckpointManager(workdir / "checkpoints").open().names("alexnet") == []  # its package has it


def test_a_second_phase_trains_a_decoder_for_codes_that_stay(run, first_run):
    first = CheckpointManager(first_run / "checkpoints").open()
    second = CheckpointManager(run("second_phase", f"FIRST_RUN = {str(first_run)!r}") / "checkpoints").open()
    for name in first.names("^params/"):
        assert (first.read(name) == second.read(name)).all() == ("/decoder/" not in name), name
    assert [name for name in second.names("^optimizer/") if "/decoder/" not in name] == []
    assert second.metadata["origins"] == [{"run": str(first_run), "step": 20, "arrays": len(first.names("^params/"))}]


def test_after_it_an_images_tokens_are_the_same_and_so_is_their_fingerprint(run, first_run):
    second_run = run("second_phase", f"FIRST_RUN = {str(first_run)!r}")
    images_NHWC = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), np.uint8)
    before, after = (vqim.load(str(workdir), runtime="torch") for workdir in (first_run, second_run))
    assert (before.tokens(images_NHWC) == after.tokens(images_NHWC)).all()
    names = before.tokenizer.deciding_arrays()
    assert len({FromRun(model.tokenizer, str(workdir)).fingerprint(names)
                for model, workdir in ((before, first_run), (after, second_run))}) == 1


def test_images_are_read_from_zip_archives(run, folder):
    archives = folder / "archives"
    archives.mkdir()
    for split in ("train", "validation"):
        source = Emoji(split)
        with zipfile.ZipFile(archives / f"{split}.zip", "w") as archive:
            for number in range(0, len(source), 4):
                png = io.BytesIO()
                Image.fromarray(source[number].image).save(png, "png")
                name = source.class_names[source[number].label].replace("/", "_")
                archive.writestr(f"{name}/{number}.png", png.getvalue())
    workdir = run("zip_tokenizer", f"ARCHIVES = {str(archives)!r}")
    assert metrics(workdir)["evaluation/psnr"][-1] > 10
    assert json.loads((workdir / "run.json").read_text())["num_examples"] == {"train": 381, "validation": 93}
