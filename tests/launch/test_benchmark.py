"""The benchmark: its command, how it times, and that the plain peers do the work that they stand for."""
import json
import math
import time

import pytest
import torch

from launch.benchmark_cases import SIZES, Case
from launch.benchmark_growth import exponent, resized
from launch.benchmark_packages import NEEDED
from launch.benchmark_peers import PlainCNN, PlainPrior, PlainTokenizer
from launch.benchmark_timing import measure, peak_memory
from vqim.nn.module import arrays_spec
from vqim.runtime.torch import TorchRuntime
from vqim.tokenizer.cnn import CNNDecoder, CNNEncoder

OURS = {"sample_ar": 8, "sample_masked": 8, "train_tokenizer": 2, "train_cnn": 2, "train_prior": 2, "encode": 2,
        "decode": 2, "data": 256,
        "optimizer": 2 * (2 * 32 * 128 + 32)}
"""What a call of each case does at the tiny size: tokens, images or parameters."""

TIMM, DECODERS = "timm, vector-quantize-pytorch", {"transformers GPT-2", "x-transformers"}
PEERS = {"sample_ar": DECODERS, "train_prior": DECODERS, "train_tokenizer": {TIMM}, "encode": {TIMM}, "decode": {TIMM},
         "train_cnn": {"diffusers VQModel"}}
"""The packages of each case, which run, or are said to be missing."""


def test_all_cases_run_at_the_tiny_size(verbs):
    done = verbs("benchmark", "all", "--size=tiny", "--rounds=1", "--threads=1", "--json")
    assert done.code == 0, done.err
    cases = {case["case"]: case for case in json.loads(done.out)["cases"]}
    assert {name: case["amount"] for name, case in cases.items()} == OURS
    for case in cases.values():
        rows = case["contestants"]
        assert len(rows) > 1 and all(row["median_ms"] > 0 for row in rows.values())
        assert rows[next(iter(rows))]["speed_of_ours"] == 1
        assert PEERS.get(case["case"], set()) == {
            peer for peer in NEEDED if peer in case["missing"] or any(name.startswith(peer) for name in rows)}


def test_the_plain_cnn_has_as_many_parameters_as_ours():
    size = SIZES["tiny"]
    channels, multipliers = size.cnn
    plain = PlainCNN(channels, multipliers, size.width, size.vocabulary)
    encoder, decoder = (network(channels, multipliers, 2, size.width) for network in (CNNEncoder, CNNDecoder))
    ours = sum(math.prod(leaf.shape) for network in (encoder, decoder) for leaf in arrays_spec(network).values())
    theirs = sum(array.numel() for network in (plain.encoder, plain.decoder) for array in network.parameters())
    assert ours == theirs
    assert plain.loss(torch.rand(2, 3, size.image_size, size.image_size)).isfinite()
    assert plain.encoder(torch.zeros(1, 3, 8, 8)).shape == (1, 32, 2, 2)


def test_growth_is_printed_with_its_exponent(verbs):
    done = verbs("benchmark", "decode", "--along=batch", "--size=tiny", "--rounds=1", "--threads=1", "--json")
    assert done.code == 0, done.err
    case, = json.loads(done.out)["cases"]
    assert case["values"] == [1, 4, 16, 64]
    for row in case["contestants"].values():
        assert row["exponent"] == pytest.approx(exponent(case["values"], row["median_ms"]))
    assert verbs("benchmark", "data", "--along=batch").code != 0


def test_exponents_are_those_of_powers():
    assert exponent([2, 4, 16], [12, 48, 768]) == pytest.approx(2)
    assert exponent([1, 10], [5, 5]) == pytest.approx(0)


@pytest.mark.parametrize(("along", "tokens", "batch", "codes"), [
    ("tokens", 1024, 8, 8192), ("batch", 256, 1024, 8192), ("codes", 256, 8, 1024)])
def test_a_resized_case_differs_in_what_is_varied_alone(along, tokens, batch, codes):
    size = resized(SIZES["base"], along, 1024)
    assert (size.num_tokens, size.batch_size, size.vocabulary) == (tokens, batch, codes)


def test_an_unknown_case_is_refused(verbs):
    done = verbs("benchmark", "sample", "--size=tiny")
    assert done.code != 0
    assert "expected one case of sample_ar, sample_masked, " in done.out + done.err


def test_a_contestant_that_takes_three_times_as_long_is_a_third_as_fast():
    def wait(seconds):
        time.sleep(seconds)
        return torch.zeros(1)

    case = Case("tokens", 1, {"ours": lambda: wait(0.03), "theirs": lambda: wait(0.09)})
    measured = measure(case, {}, TorchRuntime(), 3)
    assert measured["theirs"].median == pytest.approx(0.09, rel=0.3)
    assert measured["theirs"].ratio == pytest.approx(1 / 3, rel=0.3)
    assert len(measured["theirs"].seconds) == 3


def test_peak_memory_is_what_a_call_takes_while_it_runs():
    peak = peak_memory(lambda: torch.ones(64 * 2**20).sum())
    if peak is None:
        pytest.skip("this system does not tell")
    # Of 256 MiB. Linux counts a process's pages in batches for each core: tens of MiB where there are many cores.
    assert 200 * 2**20 < peak < 300 * 2**20


def test_the_plain_cache_gives_the_logits_of_the_whole_sequence():
    torch.manual_seed(0)
    prior = PlainPrior(16, 2, 2, 11, 6, causal=True)
    inputs = torch.cat([torch.full((3, 1), 11), torch.randint(0, 11, (3, 5))], 1)
    caches = [torch.full((2, 3, 2, 6, 8), torch.nan) for _ in prior.blocks]
    with torch.no_grad():
        whole = prior(inputs)
        for place in range(6):
            x_31D = prior.table(inputs[:, place:place + 1]) + prior.positions.weight[place]
            for block, cache in zip(prior.blocks, caches, strict=True):
                x_31D = block(x_31D, True, cache, place)
            torch.testing.assert_close(prior.head(prior.norm(x_31D))[:, 0], whole[:, place])


def test_the_plain_samplers_draw_every_token_of_the_vocabulary():
    torch.manual_seed(0)
    for tokens in (PlainPrior(16, 1, 2, 5, 30, causal=True).sample(4),
                   PlainPrior(16, 1, 2, 5, 30, causal=False).fill(4, 8)):
        assert tokens.shape == (4, 30) and set(tokens.unique().tolist()) == set(range(5))


def test_the_plain_tokenizer_draws_images_of_its_own_tokens():
    torch.manual_seed(0)
    tokenizer, images = PlainTokenizer(8, 4, 16, 1, 2, 7), torch.rand(3, 3, 8, 8)
    assert tokenizer.encode(images).shape == (3, 4)
    assert tokenizer.decode(tokenizer.encode(images)).shape == images.shape
    tokenizer.loss(images).backward()
    assert all(parameter.grad is not None for parameter in tokenizer.parameters())
