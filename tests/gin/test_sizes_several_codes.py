"""The sizes of priors over several codes a position, as gin/model/sizes has them: parameters, by hand and printed."""
import gin
import pytest

import vqim.registry.components  # noqa: F401  gin knows the components from here on
from vqim.contracts.grid import Level, TokenGrid
from vqim.nn.module import spec
from vqim.registry.config import load

MOVQ, RQ_FFHQ, RQ_IMAGENET = (TokenGrid((Level(*level),)) for level in (
    (16, 16, 4, 1024), (8, 8, 4, 2048), (8, 8, 4, 16384)))


def blocks(num_layers, width):
    """Four square matrices, the feed-forward of four times the width, their biases and two norms, in each block."""
    return num_layers * (12 * width**2 + 13 * width)


def count(name, component, grid, num_classes, *bindings):
    try:
        config = load([f"gin/model/sizes/{name}.gin"], list(bindings), [])
        module = config.call(f"prior.{component}", grid=grid, num_classes=num_classes)
    finally:
        gin.clear_config()
    return sum(leaf.size for leaf in spec(module).values())


@pytest.mark.parametrize(("num_classes", "parameters"), [(0, 305_459_200), (1000, 306_483_200)])
def test_movqs_auto_prior_has_the_parameters_of_its_dimensions(num_classes, parameters):
    codes, places, width = 1024, 16 * 16 * 4, 1024
    tables = (num_classes + 1 + codes + places) * width
    expected = blocks(24, width) + tables + 2 * width + width * codes + codes
    assert count("movq_auto_prior", "AutoregressivePrior", MOVQ, num_classes) == expected == parameters
    assert parameters / 1e6 == pytest.approx(307, rel=0.006)  # the paper's, of both priors


@pytest.mark.parametrize(("size", "grid", "num_classes", "width", "layers", "parameters", "paper"), [
    ("355m", RQ_FFHQ, 0, 1024, 28, 357_489_664, 355), ("3800m", RQ_IMAGENET, 1000, 2560, 48, 3_839_265_280, 3800)])
def test_rq_transformers_have_the_parameters_of_their_dimensions(
        size, grid, num_classes, width, layers, parameters, paper):
    codes, vectors = grid.levels[0].vocabulary, 4 * grid.levels[0].vocabulary * 256
    projections, tables = 2 * (256 + 1) * width, (num_classes + 1 + 64 + 4) * width
    expected = vectors + projections + tables + blocks(layers, width) + 2 * width + width * codes + codes
    assert count(f"rq_transformer_{size}", "RQTransformer", grid, num_classes) == expected == parameters
    assert (parameters - vectors) / 1e6 == pytest.approx(paper, rel=0.006)
