"""Use of codes and likelihoods of tokens, of one and two levels, against counting by hand."""
import math

import numpy as np
import pytest
import torch

from vqim.contracts.context import Context
from vqim.contracts.evaluation import About
from vqim.contracts.grid import Level, TokenGrid
from vqim.evaluation.passes import Predictions, Reconstructions, evaluate
from vqim.evaluation.token_metrics import CodebookUse, Likelihood
from vqim.nn.module import apply
from vqim.prior.autoregressive import AutoregressivePrior
from vqim.runtime.torch import TorchRuntime
from vqim.state.leaf import select
from vqim.tokenizer.model import images_to_float

RUNTIME = TorchRuntime()
SIZES = (12, 20)


def measure(evaluator, run, data):
    task, state = run
    return evaluate(evaluator.begin(task, data, state, RUNTIME))


def codes_of(run, prefix, data):
    """Each level's codes of all images."""
    task, state = run
    images_BCHW = images_to_float(torch.from_numpy(data.images))
    return apply(task.objective.tokenizer.encode, select(state, prefix), images_BCHW, Context(RUNTIME.kernels)).indices


def entropy(indices):
    shares = indices.flatten().bincount().double() / indices.numel()
    return -sum(share * math.log2(share) for share in shares.tolist() if share)


def test_the_use_of_each_levels_codes_is_measured_as_table_4_does(tokenizer_run, data):
    run = tokenizer_run(sizes=SIZES)
    results = measure(Reconstructions([CodebookUse()], batch_size=128), run, data)
    for level, (indices, size) in enumerate(zip(codes_of(run, "params/tokenizer/", data), SIZES, strict=True)):
        name = f"codebook/level_{level}"
        assert results[f"{name}/usage"] == len(indices.unique()) / size
        assert results[f"{name}/usage_per_batch"] == len(indices[:256].unique()) / size  # the rest is no whole batch
        assert results[f"{name}/entropy_bits"] == pytest.approx(entropy(indices))
        assert results[f"{name}/perplexity"] == pytest.approx(2 ** entropy(indices))
        np.testing.assert_array_equal(results[f"{name}/histogram"].values, np.sort(indices.flatten()))
    assert not {name for name in results
                if not name.startswith(("codebook/level_0/", "codebook/level_1/", "protocol/"))}


def test_one_level_keeps_the_short_names(tokenizer_run, data):
    run = tokenizer_run(sizes=(20,))
    results = measure(Reconstructions([CodebookUse()], batch_size=128), run, data)
    assert results.keys() == {"protocol/codebook/usage"} | {f"codebook/{measure}" for measure in (
        "usage", "usage_per_batch", "entropy_bits", "perplexity", "histogram", "latent_distance", "latent_spread",
        "unused_distance", "diagnosis")}
    indices, = codes_of(run, "params/tokenizer/", data)
    assert results["codebook/usage_per_batch"] == len(indices[:256].unique()) / 20


def test_a_diagnosis_says_for_how_many_evaluations_of_a_run_codes_have_been_unused(tokenizer_run, data):
    task, state = tokenizer_run(sizes=(20,))
    evaluator = Reconstructions([CodebookUse()], batch_size=128)
    diagnoses = [evaluate(evaluator.begin(task, data, state, RUNTIME))["codebook/diagnosis"] for _ in range(3)]
    assert ["in a row" in words for words in diagnoses] == [False, True, True]
    assert "Half of them have been unused in 3 evaluations in a row, or more." in diagnoses[2]
    another, state = tokenizer_run(sizes=(20,))
    assert evaluate(evaluator.begin(another, data, state, RUNTIME))["codebook/diagnosis"] == diagnoses[0]


def test_several_codes_a_position_are_measured_in_all_and_by_channel():
    grid, generator = TokenGrid((Level(4, 4, 3, 20),)), torch.Generator().manual_seed(0)
    tokens = torch.stack([torch.randint(0, size, (300, 16), generator=generator) for size in (2, 9, 20)], -1)
    tally = CodebookUse().tally(About("reconstructions", 300, grid, 0))
    for start in (0, 128, 256):  # the last batch is filled up
        batch = torch.cat([tokens[start:start + 128], torch.full((128, 16, 3), 19)])[:128]
        tally.add({"tokens": batch.numpy()}, np.arange(start, start + 128) < 300)
    results = tally.result()
    for name, indices in {"codebook": tokens, **{f"codebook/channel_{k}": tokens[..., k] for k in range(3)}}.items():
        assert results[f"{name}/usage"] == len(indices.unique()) / 20
        assert results[f"{name}/entropy_bits"] == pytest.approx(entropy(indices))
        assert results[f"{name}/perplexity"] == pytest.approx(2 ** entropy(indices))
    assert [results[f"codebook/channel_{k}/usage"] for k in range(3)] == [0.1, 0.45, 1.0]
    np.testing.assert_array_equal(results["codebook/histogram"].values, np.sort(tokens.flatten()))


def test_a_priors_bits_are_compared_with_the_unigram_of_each_level(prior_run, data):
    run = prior_run(sizes=SIZES)
    task, state = run
    results = measure(Predictions([Likelihood()], batch_size=128), run, data)
    top, bottom = codes_of(run, "frozen/tokenizer/", data)
    unigram = (4 * entropy(top) + 16 * entropy(bottom)) / 20
    assert results["evaluation/unigram_bits_per_token"] == pytest.approx(unigram)
    tokens, labels = torch.cat([top.flatten(1), bottom.flatten(1)], 1)[..., None], torch.from_numpy(data.labels)
    params, context = select(state, "params/prior/"), Context(RUNTIME.kernels)
    bits = apply(task.objective.prior.token_losses, params, tokens, labels, context).mean().item() / math.log(2)
    assert results["evaluation/bits_per_token"] == pytest.approx(bits, rel=1e-5)
    assert results["evaluation/bits_saved"] == pytest.approx(1 - bits / unigram, rel=1e-4)
    likeliest = apply(task.objective.prior.expected, params, tokens, labels, context)
    assert results["evaluation/token_accuracy"] == pytest.approx((likeliest == tokens).float().mean().item())


class Unlikely(AutoregressivePrior):
    """A prior that measures something else than bits."""

    def measure(self, tokens_BNK, labels_B, context):
        return {"masked_loss": tokens_BNK.float().mean((1, 2))}


def test_a_prior_that_measures_no_bits_saves_none(prior_run, data):
    run = prior_run(prior=Unlikely)
    results = measure(Predictions([Likelihood()], batch_size=128), run, data)
    indices, = codes_of(run, "frozen/tokenizer/", data)
    assert {name: value for name, value in results.items() if isinstance(value, float)} == pytest.approx({
        "evaluation/masked_loss": indices.float().mean().item(),
        "evaluation/unigram_bits_per_token": entropy(indices)}, rel=1e-5)


def test_cached_tokens_are_measured_as_those_of_their_images(prior_run, data):
    run = prior_run()
    expected = measure(Predictions([Likelihood(), CodebookUse()], batch_size=128), run, data)
    indices, = codes_of(run, "frozen/tokenizer/", data)

    class Cached(type(data)):
        """The tokens of the same images."""

        def evaluation(self, *arguments, **keywords):
            tokens = {image.tobytes(): codes.numpy().reshape(-1, 1).astype(np.int32)
                      for image, codes in zip(self.images, indices, strict=True)}
            for batch in super().evaluation(*arguments, **keywords):
                yield {"tokens": np.stack([tokens[image.tobytes()] for image in batch.pop("images")]), **batch}

    found = measure(Predictions([Likelihood(), CodebookUse()], batch_size=128), run, Cached())
    for name, value in expected.items():
        if isinstance(value, float):
            assert found[name] == pytest.approx(value, rel=1e-5), name
