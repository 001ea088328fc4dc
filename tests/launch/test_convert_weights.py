"""launch.convert_weights: another project's checkpoint becomes a run that the other verbs take for one of ours."""
import json

import numpy as np
import pytest
import torch

from tests.third_party.dalle_reference import Decoder, Encoder
from tests.third_party.taming_reference import Model

TRAINING = """# A tokenizer of the tests.
include 'gin/debug/optimizer.gin'
include 'gin/data/emoji.gin'
IMAGE_SIZE = 16
NUM_STEPS = 12
train.task = @training.GradientTask()
training.GradientTask.objective = @tokenizer.TokenizerObjective()
tokenizer.TokenizerObjective.learner = @training.Learner
tokenizer.TokenizerObjective.terms = [@tokenizer.L2()]
tokenizer.TokenizerObjective.model = %TOKENIZER
training.Learner.optimizer = @optim.AdamW()
training.Learner.learning_rate = @optim.WarmupCosine()
train.data = @data.Images()
train.evaluators = [@evaluation.Reconstructions()]
evaluation.Reconstructions.metrics = [@evaluation.Distances(), @evaluation.CodebookUse()]
evaluation.Reconstructions.batch_size = 64
"""

CNN = TRAINING + """
include 'gin/model/cnn_tokenizer.gin'
CHANNELS = 32
MULTIPLIERS = (1, 1, 1)
NUM_BLOCKS = 1
LATENT_WIDTH = 12
VOCABULARY = 40
CODE_DIM = 20
tokenizer.VectorQuantizer.normalize = False
"""

DVAE = TRAINING + """
TOKENIZER = @tokenizer.ImageTokenizer()
tokenizer.ImageTokenizer.encoder = @tokenizer.DVAEEncoder()
tokenizer.ImageTokenizer.quantizer = @tokenizer.GumbelQuantizer()
tokenizer.ImageTokenizer.decoder = @tokenizer.DVAEDecoder()
tokenizer.ImageTokenizer.image_size = %IMAGE_SIZE
tokenizer.DVAEEncoder.hidden = 8
tokenizer.DVAEEncoder.num_blocks = 1
tokenizer.DVAEEncoder.vocabulary = 24
tokenizer.GumbelQuantizer.width_in = 24
tokenizer.GumbelQuantizer.width_out = 12
tokenizer.GumbelQuantizer.vocabulary = 24
tokenizer.GumbelQuantizer.project = False
tokenizer.GumbelQuantizer.temperature = @optim.Constant()
optim.Constant.peak = 1.0
tokenizer.DVAEDecoder.hidden = 8
tokenizer.DVAEDecoder.num_blocks = 1
tokenizer.DVAEDecoder.width = 12
"""


@pytest.fixture
def convert(verbs):
    """`convert(format, gin file's text, files)`: runs the command; files are state_dicts by name."""
    def run(format_name, text, files, *flags):
        (verbs.directory / "theirs.gin").write_text(text)
        for name, content in files.items():
            torch.save(content, verbs.directory / name)
        return verbs("convert_weights", f"--format={format_name}", *(f"--weights={name}" for name in files),
                     "--gin_file=theirs.gin", "--workdir=run", *flags)
    return run


@pytest.fixture
def vqgan():
    torch.manual_seed(0)
    return Model(32, (1, 1, 1), 1, 12, 20, 40).state_dict()


def test_a_converted_vqgan_is_evaluated_and_trained_on(convert, verbs, vqgan, arrays):
    done = convert("taming", CNN, {"last.ckpt": {"state_dict": vqgan}})
    assert done.code == 0, done.err
    saved, _ = arrays(verbs.directory / "run", 0)
    for ours, theirs in (("quantizer/codebook_VZ", "quantize.embedding.weight"),
                         ("decoder/levels/2/blocks/1/conv_2/kernel_OIHW", "decoder.up.0.block.1.conv2.weight")):
        np.testing.assert_array_equal(saved[f"params/tokenizer/{ours}"], vqgan[theirs].numpy())

    done = verbs("evaluate", "--workdir=run")
    assert done.code == 0, done.err
    assert json.loads((verbs.directory / "run/evaluation.json").read_text())["step"] == 0

    done = verbs("train", "--gin_file=theirs.gin", "--workdir=run")
    assert done.code == 0, done.err
    assert "Going on from step 0" in done.err
    trained, _ = arrays(verbs.directory / "run", 12)
    assert trained.keys() == saved.keys()
    change = trained["params/tokenizer/encoder/conv_in/bias_O"] - vqgan["encoder.conv_in.bias"].numpy()
    assert 0 < np.abs(change).max() < 0.05


def test_moving_averages_begin_as_the_converted_parameters(convert, verbs, vqgan, arrays):
    done = convert("taming", CNN + "training.Learner.ema_decay = 0.999\n", {"last.ckpt": {"state_dict": vqgan}})
    assert done.code == 0, done.err
    saved, _ = arrays(verbs.directory / "run", 0)
    averages = {name.replace("ema/", "params/", 1) for name in saved if name.startswith("ema/")}
    assert averages and all(
        np.array_equal(saved[name], saved[name.replace("params/", "ema/", 1)]) for name in averages)
    # As train would have written it: the same experiment goes on from there.
    assert (verbs.directory / "run/config.gin").read_text().count("ema_decay = 0.999") == 1


def test_a_converted_dvae_is_evaluated(convert, verbs):
    torch.manual_seed(0)
    modules = Encoder(8, 1, 24), Decoder(8, 1, 24, 12)
    done = convert("dalle", DVAE, dict(zip(("encoder.pt", "decoder.pt"), (m.state_dict() for m in modules),
                                           strict=True)))
    assert done.code == 0, done.err
    done = verbs("evaluate", "--workdir=run")
    assert done.code == 0, done.err


def test_a_run_with_checkpoints_is_not_overwritten(convert, verbs, vqgan, files):
    for expected in (0, 2):
        before = files(verbs.directory / "run") if expected else None
        done = convert("taming", CNN, {"last.ckpt": vqgan})
        assert done.code == expected, done.err
    assert "--workdir must have no checkpoints yet; run has steps [0]" in done.err
    assert files(verbs.directory / "run") == before


@pytest.mark.parametrize(("format_name", "text", "message"), [
    ("dalle", CNN, "--weights must be given 2 times for --format=dalle, got 1"),
    ("taming", CNN.replace("VOCABULARY = 40", "VOCABULARY = 48"),
     "quantizer/codebook_VZ, made of quantize.embedding.weight: expected [48, 20], got [40, 20]"),
])
def test_what_does_not_fit_is_refused_before_anything_is_written(convert, verbs, vqgan, format_name, text, message):
    done = convert(format_name, text, {"last.ckpt": vqgan})
    assert done.code == 2 and message in done.err
    assert not (verbs.directory / "run").exists()
