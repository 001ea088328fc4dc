"""The rows of SeQ-GAN's tables that docs/papers.md gives as bindings: each builds at full size and is what it says."""
import re

import gin
import pytest

import vqim.registry.components  # noqa: F401  gin knows the components from here on
from tests.gin.files import ROOT
from vqim.nn.module import spec
from vqim.registry.config import load

PAGE = (ROOT / "docs/papers.md").read_text().partition("Other rows are `seq_gan_ablation_imagenet`")[2]
TABLE = re.findall(r"^\| ((?:Table [156]|Figure 5), [^|]+) \| (`[^|]+`) \|$", PAGE, re.MULTILINE)
ROWS = {row: re.findall(r"`([^`]+)`", bindings) for row, bindings in TABLE}


@pytest.fixture
def build(tmp_path):
    """`build(row)`: the objective of a row of the tables."""
    (tmp_path / "vgg16.pth").touch()  # is read when a run starts

    def built(row):
        weights = f"VGG16_WEIGHTS = {str(tmp_path / 'vgg16.pth')!r}"
        config = load(["gin/exp/seq_gan_ablation_imagenet.gin"], [*ROWS[row], weights], [])
        experiment = config.call("train", needs_data=False)
        config.refuse_unused(except_for=(r"runtime\.", r"data\."))
        return experiment.task.objective

    yield built
    gin.clear_config()


def test_no_row_is_forgotten():
    assert len(ROWS) == 13


@pytest.mark.parametrize("row", ROWS)
def test_a_row_builds_and_uses_all_of_its_bindings(row, build):
    assert build(row).learners()


@pytest.mark.parametrize(("row", "parameters"), [
    ("Table 1, +Conv x2", 69_946_755), ("Table 1, +Attention x2", 61_442_435), ("Table 1, 2x training", 54_595_971)])
def test_the_tokenizers_of_table_1_have_their_parameters(row, parameters, build):
    assert sum(leaf.size for leaf in spec(build(row).tokenizer).values()) == parameters


@pytest.mark.parametrize(("row", "shape"), [
    ("Table 5, VQGAN", (1024, 256)), ("Table 5, F&N", (8192, 32)), ("Table 5, K-means", (1024, 256))])
def test_the_codebooks_of_table_5_have_their_shapes(row, shape, build):
    quantizer = build(row).tokenizer.quantizer
    assert spec(quantizer)["codebook_VZ"].shape == shape and quantizer.entropy_weight == 0
    assert (quantizer.kmeans is not None) == (row == "Table 5, K-means")


@pytest.mark.parametrize(("row", "networks"), [
    ("Table 6, A", {"vgg16_classifier"}), ("Table 6, E", {"vgg16_classifier"}),
    ("Figure 5, alpha 0.4", {"vgg16_classifier"}), ("Table 5, VQGAN", {"vgg16"})])
def test_the_losses_have_the_networks_that_they_need(row, networks, build):
    assert build(row).frozen.keys() == networks
