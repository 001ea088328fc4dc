"""What follows a prior, over four codes a position: vqim.load, evaluation, probe, token cache, rejection."""
import contextlib
import json

import gin
import numpy as np
import pytest
import torch

import vqim
from launch.cache_tokens import write_cache
from tests.product.conftest import PRIORS, TOKENIZERS, TWO_STEPS, trained
from vqim.contracts.context import Context
from vqim.data.source import Emoji
from vqim.evaluation.passes import Predictions, evaluate
from vqim.evaluation.samples import Samples
from vqim.evaluation.token_metrics import CodebookUse, Likelihood
from vqim.frozen.from_run import FromRun
from vqim.nn.module import apply
from vqim.state import sections

TOKENIZER, PRIOR = "MoVQ", "RQ-transformer"
NUM_CODES, VOCABULARY = 4, 24


@pytest.fixture(scope="module")
def run(prior_run):
    return prior_run(TOKENIZER, PRIOR)


@pytest.fixture(scope="module")
def model(run):
    return vqim.load(str(run), runtime="torch", batch_size=4)


@pytest.fixture(scope="module")
def emoji(model):
    source = Emoji("validation")
    return np.stack([model.prepare(source[i].image) for i in range(6)])


@pytest.fixture(scope="module")
def prior_arrays(model):
    return model.prior.prior_arrays(model.arrays)


@pytest.fixture(scope="module")
def context(model):
    return Context(model.runtime.kernels)


def test_images_become_tokens_of_all_channels_and_come_back_by_all_of_them(model, emoji):
    tokens = model.tokens(emoji)
    assert tokens.shape == (6, 16, NUM_CODES)
    images = model.images(tokens)
    assert np.abs(images.astype(int) - model.decode(model.encode(emoji))).max() <= 1
    for channel in range(NUM_CODES):
        changed = tokens.copy()
        changed[..., channel] = (changed[..., channel] + 1) % VOCABULARY
        assert (model.images(changed) != images).any((1, 2, 3)).all()


def test_tokens_with_another_number_of_channels_are_refused(model, emoji):
    tokens = model.tokens(emoji)
    for wrong in (tokens[..., :1], tokens[..., 0], tokens.reshape(6, 64, 1)):
        with pytest.raises(ValueError, match=r"tokens must be integers \[N, 16, 4\], got int64 "):
            model.images(wrong)


def test_given_channels_stay_and_the_others_are_drawn(model, emoji):
    given = model.tokens(emoji)
    given[:, 5:], given[:, :, 2:] = -1, -1
    drawn = model.sample_tokens([0, 1, 2, 3, 4, -1], given=given)
    np.testing.assert_array_equal(drawn[given >= 0], given[given >= 0])
    assert drawn.min() >= 0 and (drawn[:, :5, 2:] != model.tokens(emoji)[:, :5, 2:]).any()


def test_features_are_those_of_the_spatial_blocks(model, emoji, prior_arrays, context):
    features = model.features(emoji)
    assert features.shape == (6, 2, 32)
    tokens_BNK = torch.from_numpy(model.tokens(emoji))
    expected = apply(model.prior.prior.features, prior_arrays, tokens_BNK, context)
    np.testing.assert_allclose(features, expected.transpose(0, 1), rtol=1e-4, atol=1e-5)


class Validation:
    """The six emoji and their labels as a split."""

    class_names, num_classes, image_size = (), 9, 16

    def __init__(self, images):
        self.images, self.labels = images, np.arange(6, dtype=np.int32)

    def num_examples(self, split):
        return 6

    def evaluation(self, batch_size, **_):
        for rows in ([0, 1, 2, 3], [4, 5, 5, 5]):
            yield {"images": self.images[rows], "labels": self.labels[rows],
                   "valid": np.array([True, True, rows[2] != 5, rows[3] != 5])}


def test_likelihood_counts_the_codes_of_all_channels(model, emoji, prior_arrays, context):
    data = Validation(emoji)
    results = evaluate(Predictions([Likelihood()], batch_size=4).begin(
        model.experiment.task, data, model.arrays, model.runtime))
    tokens_BNK = torch.from_numpy(model.tokens(emoji))
    logits_BSV = apply(model.prior.prior.forward, prior_arrays, tokens_BNK, torch.arange(6), context)
    shares_BS = logits_BSV.double().softmax(-1).gather(-1, tokens_BNK.flatten(1)[..., None])[..., 0]
    assert results["evaluation/bits_per_token"] == pytest.approx(-shares_BS.log2().mean().item(), rel=1e-5)
    frequencies = tokens_BNK.flatten().bincount().double() / tokens_BNK.numel()
    entropy = -sum(share * np.log2(share) for share in frequencies.tolist() if share)
    assert results["evaluation/unigram_bits_per_token"] == pytest.approx(entropy)


def test_the_teacher_forced_view_decodes_the_likeliest_code_of_each_channel(model, emoji, prior_arrays, context):
    tokens_BNK = torch.from_numpy(model.tokens(emoji))
    batch = {"images": torch.from_numpy(emoji), "labels": torch.arange(6), "valid": torch.ones(6, dtype=torch.bool)}
    items = model.prior.predict(model.arrays, batch, context)
    logits_BSV = apply(model.prior.prior.forward, prior_arrays, tokens_BNK, torch.arange(6), context)
    expected = model.images(logits_BSV.argmax(-1).reshape(6, 16, NUM_CODES).numpy())
    np.testing.assert_array_equal((255 * items.images_BCHW).round().permute(0, 2, 3, 1), expected)
    np.testing.assert_array_equal(items.tokens_BNK, tokens_BNK)


def test_use_of_codes_counts_all_channels_of_samples(model):
    samples = Samples([CodebookUse()], num_images=2, batch_size=4, num_classes=3, seed=5)
    results = evaluate(samples.begin(model.experiment.task, None, model.arrays, model.runtime))
    tokens = model.sample_tokens([0, 0, 1, 1, 2, 2], seed=5)
    assert results["samples/codebook/usage"] == len(np.unique(tokens)) / VOCABULARY
    np.testing.assert_array_equal(results["samples/codebook/histogram"].values, np.sort(tokens.ravel()))


def test_a_probe_reads_the_features_of_such_a_prior(folder, run):
    file = folder / "probe.gin"
    network = PRIORS[PRIOR].replace("prior.PriorObjective.prior", "probe.PriorFeatures.prior")
    file.write_text(f"include 'gin/debug/probe_tiny.gin'\n{TOKENIZERS[TOKENIZER]}{network}{TWO_STEPS}")
    workdir = trained(file, folder / "probe", f"PRIOR_RUN = {str(run)!r}")
    losses = [json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 2 and np.isfinite(losses).all()


def test_a_prior_trains_on_cached_tokens_of_several_codes(folder, tokenizer_run, emoji):
    tokenizer = vqim.load(str(tokenizer_run(TOKENIZER)), runtime="torch", batch_size=4)
    network, data = tokenizer.tokenizer, tokenizer.experiment.data
    fingerprint = FromRun(network, str(tokenizer_run(TOKENIZER))).fingerprint(network.deciding_arrays())
    arrays = sections.network_arrays(tokenizer.arrays, "tokenizer")
    write_cache(folder / "cache", network, arrays, data, tokenizer.runtime, fingerprint=fingerprint, batch_size=256,
                seed=0, num_views=1)
    cached = np.load(folder / "cache/validation/tokens.npy")
    np.testing.assert_array_equal(cached[:6], tokenizer.tokens(emoji))
    file = folder / "on the cache.gin"
    lines = TWO_STEPS.replace("data.Images.num_threads = 1", "")
    file.write_text(f"include 'gin/debug/prior_tiny.gin'\n{TOKENIZERS[TOKENIZER]}{PRIORS[PRIOR]}{lines}"
                    f"train.data = @data.Tokens()\ndata.Tokens.path = {str(folder / 'cache')!r}\n")
    workdir = trained(file, folder / "on the cache", f"TOKENIZER_RUN = {str(tokenizer_run(TOKENIZER))!r}")
    first = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[0])
    assert first["loss"] == pytest.approx(np.log(VOCABULARY), rel=0.1)


@pytest.fixture(autouse=True)
def no_configuration_stays():
    with contextlib.ExitStack() as stack:
        stack.callback(gin.clear_config)
        yield


class Light:
    """A classifier that takes an image for class 1 where it is lighter than grey."""

    num_classes, image_size = 9, 16

    def init_spec(self):
        return {}

    def __call__(self, arrays, images_BCHW, *, context):
        light_B = images_BCHW.mean((1, 2, 3))
        return torch.stack([1 - light_B, light_B, *[torch.full_like(light_B, -9)] * 7], -1)


def test_a_classifier_judges_images_of_such_tokens(model):
    labels = np.array([0, 1, 0, 1, 0, 1])
    images = model.sample(labels.tolist(), seed=2)
    scores, hits = model.judge(Light())(images, labels)
    light = (images / 255).mean((1, 2, 3))
    logits = np.stack([1 - light, light, *[np.full(6, -9.0)] * 7], -1)
    expected = logits[np.arange(6), labels] - np.log(np.exp(logits).sum(-1))
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    np.testing.assert_array_equal(hits, logits.argmax(-1) == labels)


