"""Any tokenizer with any prior, by gin alone: two steps, four samples, decoded; what makes no sense is refused."""
import itertools
import json
import math

import gin
import numpy as np
import pytest

import vqim
from tests.product.conftest import CLASSES, PRIORS, TOKENIZERS, write_prior
from vqim.registry.config import ConfigError, load

SEVERAL_CODES = {"MoVQ": 4, "RQ": 3}
"""Codes a position; others have one."""
REFUSED = [(tokenizer, "RQ-transformer") for tokenizer in TOKENIZERS if tokenizer not in SEVERAL_CODES]
PAIRS = [pair for pair in itertools.product(TOKENIZERS, PRIORS) if pair not in REFUSED]


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize(("tokenizer", "prior"), PAIRS)
def test_a_prior_over_a_tokenizer_trains_and_draws_images(prior_run, tokenizer, prior, classes):
    run = prior_run(tokenizer, prior, classes)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 2
    model = vqim.load(str(run), runtime="torch", batch_size=4)
    grid = model.tokenizer.grid
    # A prior that knows nothing yet loses about the logarithm of the vocabulary, which is that of a code's choices.
    nats = np.average([math.log(level.vocabulary) for level in grid.levels],
                      weights=[level.num_positions for level in grid.levels])
    assert losses[0] == pytest.approx(nats, rel=0.1)
    labels = [0, "Flags", -1, 8] if classes == "classes" else 4
    tokens = model.sample_tokens(labels, seed=1)
    assert tokens.shape == (4, grid.num_positions, SEVERAL_CODES.get(tokenizer, 1))
    assert len({image.tobytes() for image in tokens}) == 4
    for level, codes in zip(grid.levels, grid.split(tokens), strict=True):
        assert codes.min() >= 0 and codes.max() < level.vocabulary
    images = model.sample(labels, seed=1)
    assert images.dtype == np.uint8 and images.shape == (4, 16, 16, 3)
    np.testing.assert_array_equal(images, model.images(tokens))


@pytest.mark.parametrize(("tokenizer", "prior"), REFUSED)
def test_a_pair_that_makes_no_sense_is_refused_with_a_sentence_and_its_line(folder, tokenizer, prior):
    file = write_prior(folder, tokenizer, prior)
    gin.clear_config()
    with pytest.raises(ConfigError) as refused:
        load([str(file)], ["TOKENIZER_RUN = 'nowhere'"], []).call("train")
    gin.clear_config()
    line = 1 + file.read_text().splitlines().index("    num_depth_layers = 1")
    assert ("RQTransformer goes through several codes at each position, this tokenizer gives one; AutoregressivePrior "
            "models such tokens") in str(refused.value)
    assert f"{file}:{line}" in str(refused.value)
