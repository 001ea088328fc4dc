"""launch.evaluate, launch.sample and launch.cache_tokens on finished runs."""
import contextlib
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.launch.verbs import train_flags
from vqim.data.token_cache import Tokens
from vqim.training.summaries import read_metrics

TOKENIZER, PRIOR = "--workdir=runs/debug/tokenizer", "--workdir=runs/debug/prior"


def last_evaluation(run):
    """The numbers of a run's last evaluation."""
    rows = [row for row in read_metrics(run) if row["step"] == 40 and "loss" not in row]
    return {name: value for row in rows for name, value in row.items() if isinstance(value, float) and name != "time"}


def images(folder):
    """The PNGs of a folder by name."""
    return {path.name: np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))}


@pytest.mark.parametrize("name", ["tokenizer", "prior", "probe"])
def test_evaluating_a_finished_run_gives_the_numbers_of_its_last_evaluation(verbs, runs, name):
    expected = last_evaluation(runs / name)
    assert len(expected) >= 1
    for _ in range(2):
        done = verbs("evaluate", f"--workdir=runs/debug/{name}")
        assert done.code == 0, done.err
    found = json.loads((runs / name / "evaluation.json").read_text())
    assert {key: value for key, value in found.items() if isinstance(value, int | float)} == {"step": 40, **expected}
    for metric, value in expected.items():
        assert f"{metric}: {value:.6g}\n" in done.out
    # The second call replaced what the first one had written.
    assert len(read_metrics(runs / name / "evaluation")) == 1


def test_an_evaluation_may_have_other_settings(verbs, runs):
    done = verbs("evaluate", TOKENIZER, "--gin_bindings=evaluation.Reconstructions.batch_size = 100")
    assert done.code == 0, done.err
    # Another batch size adds the same numbers in another order, and has batches of other images.
    for name, value in last_evaluation(runs / "tokenizer").items():
        if name != "codebook/usage_per_batch":
            assert json.loads((runs / "tokenizer/evaluation.json").read_text())[name] == pytest.approx(value, rel=1e-4)


def test_a_metric_that_a_pass_cannot_serve_is_refused_with_its_line(verbs, runs):
    done = verbs("evaluate", PRIOR, "--gin_bindings=evaluation.Predictions.metrics = [@evaluation.Accuracy()]")
    assert done.code == 2 and "Traceback" not in done.err, done.err
    assert "Predictions cannot measure what this run makes: metrics: Accuracy needs logits_LBY" in done.err
    assert "--gin_bindings number 1: evaluation.Predictions.metrics = [@evaluation.Accuracy()]" in done.err


def test_samples_are_images_by_class_names_and_numbers_the_same_for_the_same_seed(verbs, runs):
    for out, seed in (("a", 3), ("b", 3), ("c", 4)):
        done = verbs("sample", PRIOR, "--num_images=5", "--labels=0,Food & Drink,-1", f"--out={out}", f"--seed={seed}",
                     "--batch_size=2")
        assert done.code == 0, done.err
    first, again, other = (images(verbs.directory / out) for out in "abc")
    names = [path.split("_", 1) for path in first]
    assert [number for number, *_ in names[:5]] == ["00000", "00001", "00002", "00003", "00004"]
    assert names[0][1] == names[3][1] != names[1][1] == names[4][1] == "Food_&_Drink.png"
    assert names[2][1] == "any.png"
    assert {image.shape for name, image in first.items() if name != "grid.png"} == {(16, 16, 3)}
    assert done.out == "5 images in c\n"
    labels = "--labels=0,Food & Drink,-1"
    for rest in (["--num_images=3"], ["--num_images=2", "--first=3"]):
        done = verbs("sample", PRIOR, labels, "--out=in_parts", "--seed=3", *rest)
        assert done.code == 0, done.err
    parts = images(verbs.directory / "in_parts")
    assert parts.keys() == first.keys()
    assert all((parts[name] == first[name]).all() for name in first if name != "grid.png")
    done = verbs("sample", PRIOR, labels, "--out=all.npz", "--seed=3", "--num_images=5")
    assert done.code == 0, done.err
    with np.load(verbs.directory / "all.npz") as arrays:
        np.testing.assert_array_equal(arrays["arr_0"], [first[name] for name in sorted(first) if name != "grid.png"])
        assert arrays["arr_1"][0] == arrays["arr_1"][3] == 0 and arrays["arr_1"][2] == -1
    assert not [path for path in verbs.directory.iterdir() if path.name.startswith("all.npz.")]
    assert "there is a file all.npz; --overwrite replaces it" in verbs("sample", PRIOR, "--out=all.npz").err
    assert first.keys() == again.keys() and all((first[name] == again[name]).all() for name in first)
    assert any((first[name] != other[name]).any() for name in first)


@pytest.mark.parametrize("flags, message", [
    ([PRIOR, "--labels=9"], "--labels must be class numbers below 9 or names among ["),
    ([PRIOR, "--labels=0,dragons"], "got 'dragons'"),
    ([PRIOR, "--top_p=0"], "--top_p must be"),
    ([TOKENIZER], "--workdir: this needs the run of a prior, this one trains a tokenizer"),
])
def test_samples_that_cannot_be_drawn_are_refused(verbs, runs, files, flags, message):
    before = files(runs)
    done = verbs("sample", "--num_images=2", *flags)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert files(runs) == before


def test_a_prior_trains_on_cached_tokens_which_are_those_of_the_images(verbs, runs):
    done = verbs("cache_tokens", TOKENIZER, "--num_views=2", "--out=cache", "--batch_size=100")
    assert done.code == 0, done.err
    tokens = Tokens(verbs.directory / "cache")
    assert tokens.num_examples("train") + tokens.num_examples("validation") == 1892
    with contextlib.closing(tokens.training(64, 0)) as loader:
        assert next(loader)["tokens"].shape == (64, 16, 1)

    # The whole validation set, measured on the cached tokens and on images that the tokenizer reads.
    cached = ("train.data = @data.Tokens()", "data.Tokens.path = 'cache'")
    done = verbs("evaluate", PRIOR, *(f"--gin_bindings={line}" for line in cached))
    assert done.code == 0, done.err
    expected, found = last_evaluation(runs / "prior"), json.loads((runs / "prior/evaluation.json").read_text())
    assert found["step"] == 40 and expected and {name: found[name] for name in expected} == expected

    done = verbs("train", *train_flags("gin/debug/prior_tiny.gin", "cached", *cached, "train.num_steps = 10"))
    assert done.code == 0, done.err
    assert read_metrics(verbs.directory / "cached")[0]["step"] == 10

    # A tokenizer that has gone on training is another one.
    verbs.train("tokenizer_tiny", "train.num_steps = 41", workdir="runs/debug/tokenizer")
    done = verbs("train", *train_flags("gin/debug/prior_tiny.gin", "refused", *cached))
    assert done.code == 2
    assert "token cache cache: expected tokens of the tokenizer in use, fingerprint " in done.err
    assert not (verbs.directory / "refused").exists()

    # Runs that have begun have its old arrays in their checkpoints: they go on with the old cache, and with no new one.
    go_on = train_flags("gin/debug/prior_tiny.gin", "cached", *cached, "train.num_steps = 12")
    assert verbs("train", *go_on).code == 0 and read_metrics(verbs.directory / "cached")[-1]["step"] == 12
    shutil.rmtree(verbs.directory / "cache")
    assert verbs("cache_tokens", TOKENIZER, "--out=cache", "--batch_size=100").code == 0
    done = verbs("train", *go_on, "--gin_bindings=train.num_steps = 14")
    assert done.code == 2
    assert "train.data: token cache cache: expected tokens of the tokenizer in use" in done.err
    done = verbs("evaluate", PRIOR, *(f"--gin_bindings={line}" for line in cached))
    assert done.code == 2
    assert "train.data: token cache cache: expected tokens of the tokenizer in use" in done.err


def test_a_cache_in_bfloat16_says_how_many_tokens_differ_and_is_not_mixed(verbs, runs):
    rough = "--gin_bindings=training.GradientTask.evaluation_dtype = 'bfloat16'"
    done = verbs("cache_tokens", TOKENIZER, "--out=rough", "--batch_size=128", rough)
    assert done.code == 0, done.err
    assert verbs("cache_tokens", TOKENIZER, "--out=exact", "--batch_size=100").code == 0
    found, exact = (np.load(verbs.directory / name / "validation/tokens.npy") for name in ("rough", "exact"))
    assert 0 < (found != exact).mean() < 0.2
    assert done.out == (f"{(found != exact).mean():.3%} of the tokens of {len(exact):,} validation images differ from "
                        "those in float32\n")
    cached = ("train.data = @data.Tokens()", "data.Tokens.path = 'rough'", "train.num_steps = 2")
    done = verbs("train", *train_flags("gin/debug/prior_tiny.gin", "refused", *cached))
    assert done.code == 2
    assert "the token cache was computed in bfloat16, this run tokenises in float32" in done.err
    assert not (verbs.directory / "refused").exists()
    verbs.train("prior_tiny", *cached, "training.GradientTask.evaluation_dtype = 'bfloat16'",
                "train.evaluators = []", workdir="accepted")


@pytest.mark.parametrize("flags, message", [
    ([TOKENIZER, "--out=cache"], "--out must be a new folder; cache holds validation."),
    ([PRIOR, "--out=new"], "--workdir must be the run of a tokenizer, runs/debug/prior trains a prior"),
])
def test_a_cache_that_cannot_be_written_is_refused(verbs, runs, files, flags, message):
    (verbs.directory / "cache/validation").mkdir(parents=True)
    (verbs.directory / "cache/validation/tokens.npy").write_text("old")
    before = files(verbs.directory)
    done = verbs("cache_tokens", *flags)
    assert done.code == 2, done.err
    assert message in done.err
    assert files(verbs.directory) == before
