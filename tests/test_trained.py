"""`vqim.load`: a finished run in a person's hands, on real emoji images."""
import json
import shutil

import gin
import numpy as np
import pytest
import torch
from PIL import Image

import vqim
from tests.launch.verbs import Verbs
from vqim.checkpoint.manager import CheckpointManager
from vqim.contracts.context import Context
from vqim.nn.module import apply
from vqim.registry.config import ConfigError
from vqim.registry.run_config import read_config
from vqim.runtime.torch import TorchKernels, TorchRuntime
from vqim.state.init import Constant
from vqim.state.leaf import Leaf, select
from vqim.third_party.noto_emoji import find_dataset
from vqim.trained import open_run

SECOND_DECODER = ("train.start_from = [@training.StartFrom()]", "training.StartFrom.run = 'tokenizer'",
                  "training.Learner.trains = 'decoder/.*'", "training.Learner.ema_decay = 0.9")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs: a `tokenizer`, a `prior` over its tokens, `decoder`, its second one, and `other`, another tokenizer."""
    directory = tmp_path_factory.mktemp("runs")
    verbs = Verbs(directory, tmp_path_factory.mktemp("logs"))
    verbs.train("tokenizer_tiny", workdir="tokenizer")
    verbs.train("prior_tiny", "TOKENIZER_RUN = 'tokenizer'", "train.evaluators = []", workdir="prior")
    verbs.train("tokenizer_tiny", *SECOND_DECODER, "train.num_steps = 20", "train.evaluators = []", workdir="decoder")
    verbs.train("tokenizer_tiny", "train.seed = 1", "train.num_steps = 2", "train.evaluators = []", workdir="other")
    return directory


@pytest.fixture(scope="module")
def load(runs):
    """`load(name)`: one of the runs."""
    def open_run(name, **settings):
        paths = {key: str(runs / settings.pop(key)) for key in ("tokenizer_run",) if key in settings}
        return vqim.load(str(runs / name), runtime="torch", **paths, **settings)

    return open_run


@pytest.fixture(scope="module")
def tokenizer(load):
    return load("tokenizer", batch_size=5)


@pytest.fixture(scope="module")
def prior(load):
    return load("prior", batch_size=8)


@pytest.fixture(scope="module")
def validation(tokenizer):
    """The emoji that the run did not train on, as its evaluation sees them: uint8 [N, 16, 16, 3]."""
    with np.load(find_dataset()) as arrays:
        images = arrays["images"][arrays["is_validation"]]
    return np.stack([tokenizer.prepare(image) for image in images])


@pytest.fixture(scope="module")
def emoji(validation):
    return validation[:7]


# ---- A tokenizer.


def test_reconstructions_have_the_psnr_of_the_runs_last_evaluation(tokenizer, validation, runs):
    squares = ((tokenizer.reconstruct(validation) / 255 - validation / 255) ** 2).mean((1, 2, 3))
    last = json.loads((runs / "tokenizer/metrics.jsonl").read_text().splitlines()[-1])
    assert (-10 * np.log10(squares)).mean() == pytest.approx(last["evaluation/psnr"], abs=1e-4)


def test_tokens_are_those_of_the_checkpoints_parameters(tokenizer, emoji, runs):
    checkpoint = CheckpointManager(runs / "tokenizer/checkpoints").open()
    params = {name.removeprefix("params/tokenizer/"): torch.from_numpy(checkpoint.read(name))
              for name in checkpoint.names() if name.startswith("params/tokenizer/")}
    images_BCHW = torch.from_numpy(emoji / np.float32(255)).permute(0, 3, 1, 2)
    expected = apply(tokenizer.tokenizer.tokens, params, images_BCHW, Context(TorchKernels()))
    tokens = tokenizer.tokens(emoji)
    assert tokens.dtype == np.int64 and tokens.shape == (7, 16, 1)
    np.testing.assert_array_equal(tokens, expected)


def test_the_step_of_an_open_run_is_not_removed(runs):
    run = vqim.load(str(runs / "tokenizer"), runtime="torch")
    manager = CheckpointManager(runs / "tokenizer/checkpoints")
    assert not manager.remove(run.step) and run.step in manager.steps()


def test_a_run_in_bfloat16_has_tokens_of_its_own_and_codes_in_float32(runs, tokenizer, validation):
    workdir = str(runs / "tokenizer")
    config = read_config(workdir, bindings=["training.GradientTask.evaluation_dtype = 'bfloat16'"])
    rough = open_run(config, workdir, TorchRuntime())
    context = Context(TorchKernels(), torch.bfloat16)
    images_BCHW = torch.from_numpy(validation / np.float32(255)).permute(0, 3, 1, 2)
    expected = apply(rough.tokenizer.tokens, rough._tokenizer_arrays, images_BCHW, context)
    np.testing.assert_array_equal(rough.tokens(validation), expected)
    assert (rough.tokens(validation) != tokenizer.tokens(validation)).any()
    codes = rough.encode(validation[:3])
    assert codes.vectors_BhwZ.dtype == codes.latents_BhwD.dtype == np.float32
    np.testing.assert_array_equal(rough.decode(codes), rough.reconstruct(validation[:3]))


def test_images_through_tokens_are_images_through_codes(tokenizer, emoji):
    through_codes = tokenizer.decode(tokenizer.encode(emoji))
    assert through_codes.dtype == np.uint8 and through_codes.shape == emoji.shape
    assert np.abs(tokenizer.images(tokenizer.tokens(emoji)).astype(int) - through_codes).max() <= 1


def test_results_do_not_depend_on_the_batch_size(load, tokenizer, emoji):
    np.testing.assert_array_equal(load("tokenizer", batch_size=2).tokens(emoji), tokenizer.tokens(emoji))


KINDS = {
    "floats": lambda images: images / np.float32(255),
    "doubles": lambda images: images / 255,
    "a uint8 tensor": torch.from_numpy,
    "a tensor of channels first": lambda images: torch.from_numpy(images).permute(0, 3, 1, 2) / 255,
    "a list of arrays": list,
    "a list of PIL images": lambda images: [Image.fromarray(image) for image in images],
    "a list of PIL images with an alpha channel": lambda images: [Image.fromarray(image).convert("RGBA")
                                                                  for image in images],
}


@pytest.mark.parametrize("kind", KINDS)
def test_images_of_any_kind_have_the_same_tokens(tokenizer, emoji, kind):
    np.testing.assert_array_equal(tokenizer.tokens(KINDS[kind](emoji)), tokenizer.tokens(emoji))


@pytest.mark.parametrize("make", [
    lambda image: image, Image.fromarray, lambda image: torch.from_numpy(image).permute(2, 0, 1)])
def test_a_single_image_is_a_batch_of_one(tokenizer, emoji, make):
    np.testing.assert_array_equal(tokenizer.tokens(make(emoji[0])), tokenizer.tokens(emoji[:1]))


@pytest.mark.parametrize(("shape", "dtype"), [
    ((2, 4, 64, 3), np.uint8), ((2, 8, 32, 3), np.uint8), ((2, 32, 32, 3), np.uint8), ((2, 3, 16, 16), np.uint8),
    ((2, 16, 16, 4), np.uint8), ((2, 16, 16), np.uint8), ((16, 16), np.float32)])
def test_images_of_another_shape_are_refused(tokenizer, shape, dtype):
    with pytest.raises(ValueError, match=r"images must be .* of 16x16 pixels with 3 channels .*; got .*\[.*`prepare`"):
        tokenizer.tokens(np.zeros(shape, dtype))


def test_no_image_is_refused(tokenizer):
    with pytest.raises(ValueError, match=r"images must be uint8, .*; got no image"):
        tokenizer.tokens(np.zeros((0, 16, 16, 3), np.uint8))


@pytest.mark.parametrize("dtype", [np.int64, np.uint16, np.bool_])
def test_images_of_another_dtype_are_refused(tokenizer, dtype):
    with pytest.raises(ValueError, match=r"images must be uint8, or floats in \[0, 1\], .*; got "):
        tokenizer.tokens(np.zeros((2, 16, 16, 3), dtype))


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, 255.0), (0.0, np.nan), (0.0, np.inf)])
def test_floats_out_of_range_are_refused_with_their_range(tokenizer, low, high):
    images = np.zeros((1, 16, 16, 3), np.float32)
    images[0, 0, 0, 0], images[0, 1, 1, 1] = low, high
    with pytest.raises(ValueError, match=r"floats in \[0, 1\].*; got floats from .*\. Divide by 255, or map \[-1, 1\]"):
        tokenizer.tokens(images)


@pytest.mark.parametrize("images", [[], [np.zeros((2, 16, 16, 3), np.uint8)]])
def test_lists_of_anything_but_single_images_are_refused(tokenizer, images):
    with pytest.raises(ValueError, match="images: a list must hold single images, and at least one"):
        tokenizer.tokens(images)


@pytest.mark.parametrize(("tokens", "message"), [
    (np.zeros((2, 15, 1), int), r"tokens must be integers \[N, 16, 1\], got int64 \[2, 15, 1\]"),
    (np.zeros((2, 32, 1), int), r"tokens must be integers \[N, 16, 1\], got int64 \[2, 32, 1\]"),
    (np.zeros((2, 16), int), r"got int64 \[2, 16\]"), (np.zeros((2, 16, 1)), "got float64"),
    (np.full((2, 16, 1), 64), "tokens must be from 0 to 63, got 64"),
    (np.full((2, 16, 1), -1), "tokens must be from 0 to 63, got -1"),
])
def test_tokens_that_are_not_the_grids_are_refused(tokenizer, tokens, message):
    with pytest.raises(ValueError, match=message):
        tokenizer.images(tokens)


def test_an_image_of_any_size_is_prepared_as_the_runs_evaluation_does(tokenizer):
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    prepared = tokenizer.prepare(image)
    assert prepared.dtype == np.uint8 and prepared.shape == (16, 16, 3)
    image[:, :4] = image[:, 56:] = 0  # far from the square in the middle
    np.testing.assert_array_equal(tokenizer.prepare(image), prepared)


# ---- A prior.

LABELS = ["Flags", 0, "Objects", 3, 3, -1, "Flags"]


def test_samples_are_images_of_the_tokens_that_are_drawn(prior):
    tokens, images = prior.sample_tokens(LABELS, seed=3), prior.sample(LABELS, seed=3)
    assert images.dtype == np.uint8 and images.shape == (7, 16, 16, 3)
    np.testing.assert_array_equal(images, prior.images(tokens))


def test_an_image_of_a_seed_is_the_same_whatever_the_batch_size(load, prior):
    np.testing.assert_array_equal(load("prior", batch_size=3).sample_tokens(LABELS), prior.sample_tokens(LABELS))


def test_an_image_of_a_seed_is_the_same_however_many_are_drawn(prior):
    np.testing.assert_array_equal(prior.sample_tokens(LABELS[:2]), prior.sample_tokens(LABELS)[:2])


def test_images_from_a_number_on_are_the_later_images_of_a_seed(prior):
    np.testing.assert_array_equal(prior.sample_tokens(LABELS[4:], first=4), prior.sample_tokens(LABELS)[4:])


def test_another_seed_draws_other_tokens(prior):
    assert (prior.sample_tokens(LABELS, seed=1) != prior.sample_tokens(LABELS, seed=2)).mean() > 0.1


def test_names_and_numbers_of_classes_mean_the_same(prior):
    numbers = [prior.facts.class_names.index("Flags"), prior.facts.class_names.index("Objects")]
    assert prior.labels(["Flags", "Objects"]).tolist() == numbers == prior.labels(numbers).tolist()


def test_a_number_of_images_is_of_no_class(prior):
    np.testing.assert_array_equal(prior.sample_tokens(3), prior.sample_tokens([-1, -1, -1]))
    np.testing.assert_array_equal(prior.sample_tokens(np.int64(3), seed=np.int64(0)), prior.sample_tokens(3))
    for none in (0, []):
        with pytest.raises(ValueError, match="labels must ask for one image or more, got none"):
            prior.sample(none)


@pytest.mark.parametrize("label", [9, -2, "--1", "²", "Dragons"])
def test_classes_that_are_not_there_are_refused(prior, label):
    with pytest.raises(ValueError, match=f"labels must be class numbers below 9 or names among .*; got '{label}'"):
        prior.sample([label])


def test_settings_of_the_sampler_are_taken(prior):
    greedy = [prior.sample_tokens(LABELS, seed=seed, temperature=0.0) for seed in (1, 2)]
    np.testing.assert_array_equal(*greedy)
    assert (greedy[0] != prior.sample_tokens(LABELS, seed=1)).any()


def test_settings_that_the_sampler_does_not_have_are_refused(prior):
    with pytest.raises(ValueError, match="warmth: StepwiseSampler has no such setting; it has temperature, top_k, "):
        prior.sample(LABELS, warmth=1.0)


def test_given_tokens_stay(prior, emoji):
    given = prior.tokens(emoji)
    given[:, 8:] = -1
    drawn = prior.sample_tokens(LABELS, given=given)
    np.testing.assert_array_equal(drawn[:, :8], given[:, :8])
    assert drawn.min() >= 0


def test_given_tokens_are_checked(prior):
    for shape, value, message in (((1, 16, 1), 0, "given must have tokens for each of 7 images, got 1"),
                                  ((7, 16, 1), 64, "tokens must be from -1 to 63, got 64")):
        with pytest.raises(ValueError, match=message):
            prior.sample(LABELS, given=np.full(shape, value))


class Brightness:
    """Nine classes; of a class is what is as bright as its number says."""

    num_classes, image_size = 9, 16

    def init_spec(self):
        return {"scale": Leaf((), Constant(8.0))}

    def __call__(self, arrays, images_BCHW, *, context):
        return arrays["scale"] * images_BCHW.mean((1, 2, 3))[:, None] * torch.arange(9)


def test_a_judge_gives_log_probabilities_of_wanted_classes_and_hits(load):
    prior, images = load("prior", batch_size=3), np.random.default_rng(0).integers(0, 256, (7, 16, 16, 3), np.uint8)
    wanted = np.array([0, 1, 2, 3, 4, 8, 8])
    logits = 8 * (images / 255).mean((1, 2, 3))[:, None] * np.arange(9)
    expected = np.log(np.exp(logits) / np.exp(logits).sum(1, keepdims=True))[np.arange(7), wanted]
    scores, hits = prior.judge(Brightness())(images, wanted)
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    assert hits.tolist() == [False] * 5 + [True] * 2  # the brighter, the likelier the last class


def test_features_are_each_layers_output_averaged_over_positions(prior, emoji, runs):
    features = prior.features(emoji)
    assert features.dtype == np.float32 and features.shape == (7, 2, 32)
    arrays = {name: torch.from_numpy(array) for name, array in checkpoint_arrays(runs / "prior").items()}
    tokens_BNK = torch.from_numpy(prior.tokens(emoji))
    network = prior.prior.prior
    expected = apply(network.features, select(arrays, "params/prior/"), tokens_BNK, Context(TorchKernels()))
    np.testing.assert_allclose(features, expected.transpose(0, 1), rtol=1e-4, atol=1e-5)


def checkpoint_arrays(run):
    checkpoint = CheckpointManager(run / "checkpoints").open()
    return {name: checkpoint.read(name) for name in checkpoint.names()}


@pytest.mark.parametrize("use", [lambda model: model.sample(1), lambda model: model.features(np.zeros(1))])
def test_what_needs_a_prior_is_refused_of_a_tokenizer(tokenizer, use):
    with pytest.raises(ValueError, match="this needs the run of a prior, this one trains a tokenizer"):
        use(tokenizer)


# ---- Which run, which arrays.


def test_another_decoder_shows_the_same_tokens(load, prior):
    other = load("prior", tokenizer_run="decoder")
    tokens = other.sample_tokens(LABELS)
    np.testing.assert_array_equal(tokens, prior.sample_tokens(LABELS))
    images = other.images(tokens)
    np.testing.assert_array_equal(images, load("decoder").images(tokens))
    assert (images != prior.images(tokens)).any()


def test_a_tokenizer_run_of_other_tokens_is_refused_with_the_arrays_that_differ(load):
    with pytest.raises(ConfigError, match="tokenizer_run must make the same tokens as the prior's own tokenizer; they "
                                          "differ in encoder/"):
        load("prior", tokenizer_run="other")


def test_networks_are_read_as_their_moving_averages_unless_told_otherwise(load, emoji, runs):
    arrays = checkpoint_arrays(runs / "decoder")
    name = "decoder/head/contract/kernel_IO"
    for ema, section in ((True, "ema"), (False, "params")):
        model = load("decoder", ema=ema)
        shown = {key: torch.from_numpy(array) for key, array in arrays.items()}
        own = select(shown, "params/tokenizer/") | (select(shown, "ema/tokenizer/") if ema else {})
        assert np.array_equal(own[name], arrays[f"{section}/tokenizer/{name}"])
        expected = apply(model.tokenizer.images, own, torch.from_numpy(model.tokens(emoji)), Context(TorchKernels()))
        expected_BHWC = (255 * expected).round().permute(0, 2, 3, 1).numpy().astype(np.uint8)
        np.testing.assert_array_equal(model.reconstruct(emoji), expected_BHWC)


def test_an_earlier_checkpoint_is_read_if_asked_for(load, tokenizer, emoji):
    earlier = load("tokenizer", step=20)
    assert (earlier.step, tokenizer.step) == (20, 40)
    assert (earlier.reconstruct(emoji) != tokenizer.reconstruct(emoji)).any()


def test_a_folder_without_a_run_and_a_step_without_a_checkpoint_are_refused(load, runs, tmp_path):
    with pytest.raises(ConfigError, match="expected the directory of a run, with config.gin in it; got "):
        vqim.load(str(tmp_path))
    with pytest.raises(ConfigError, match="30"):
        load("tokenizer", step=30)
    (tmp_path / "begun").mkdir()
    shutil.copy(runs / "tokenizer/config.gin", tmp_path / "begun")
    with pytest.raises(ConfigError, match="has no committed checkpoint; .*. The run has to be trained first"):
        vqim.load(str(tmp_path / "begun"))


def test_a_runtime_that_does_not_exist_is_refused(runs):
    with pytest.raises(ConfigError, match="runtime must be auto, torch or xla, got 'cuda'"):
        vqim.load(str(runs / "tokenizer"), runtime="cuda")


@pytest.mark.parametrize("step", [None, 30])
def test_no_configuration_stays_in_force_also_after_a_refusal(load, step):
    gin.clear_config()
    try:
        load("tokenizer", step=step)
    except ConfigError:
        assert step == 30
    assert gin.config_str() == "" and not gin.config_is_locked()
