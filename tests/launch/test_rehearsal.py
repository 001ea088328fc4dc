"""What cannot work is refused before a run directory is claimed, with the lines that are meant."""
import pytest

from tests.launch.verbs import train_flags

TOKENIZER = "gin/debug/tokenizer_tiny.gin"
ADVERSARY = """
tokenizer.TokenizerObjective.adversary = @tokenizer.Adversary()
tokenizer.Adversary.discriminator = @tokenizer.StyleGAN2Discriminator()
tokenizer.Adversary.learner = @discriminator/training.Learner
tokenizer.Adversary.adaptive_layer = 'decoder/head/contract/kernel_IO'
tokenizer.Adversary.start_step = 1000
tokenizer.StyleGAN2Discriminator.image_size = 16
tokenizer.StyleGAN2Discriminator.max_channels = 8
training.Learner.trains = 'encoder/.*'
discriminator/training.Learner.trains = '.*'
"""


@pytest.mark.parametrize(("lines", "messages"), [
    ("IMAGE_SIZE = 8", ["train.evaluators: Reconstructions cannot measure what this run makes: ",
                        "evaluation.Reconstructions.metrics = "]),
    ("evaluation.Reconstructions.metrics = [@evaluation.Lpips()]",
     ["train.evaluators: Reconstructions cannot measure what this run makes: ",
      "evaluation.Reconstructions.metrics = [@evaluation.Lpips()]  (mine.gin:2)"]),
    ("tokenizer.ImageTokenizer.decoder = @tokenizer.CNNDecoder()\ntokenizer.CNNDecoder:\n    channels = 32\n"
     "    multipliers = (1, 1, 1)\n    num_blocks = 1\n    width = 32",
     ["train.task: a step (program train) of 16 examples fails: terms has LogitLaplace, but the decoder gives no "
      "distribution", "tokenizer.TokenizerObjective.terms = "]),
    ("data.Images.num_threads = 100000", ["num_threads: expected an integer from 1 to ", "got 100000",
                                          "data.Images.num_threads = 100000  (mine.gin:2)"]),
    ("train.evaluators = [@evaluation.Reconstructions(), @again/evaluation.Reconstructions()]",
     ["train.evaluators: two measure ", "give one of them a `section`"]),
    ("train.keep = [@checkpoint.KeepBest()]\ncheckpoint.KeepBest:\n    metric = 'validation/psnr'\n    num = 1\n"
     "    mode = 'max'",
     ["checkpoint.KeepBest: metric must be one of what is measured, ", "evaluation/psnr", "got 'validation/psnr'",
      "checkpoint.KeepBest.metric = 'validation/psnr'  (mine.gin:4)"]),
])
def test_what_cannot_work_is_refused_before_work(verbs, lines, messages):
    (verbs.directory / "mine.gin").write_text(f"include '{TOKENIZER}'\n{lines}\n")
    done = verbs("train", *train_flags("mine.gin", "run"))
    assert done.code == 2 and "Traceback" not in done.err, done.err
    for message in messages:
        assert message in done.err
    assert not (verbs.directory / "run").exists()


@pytest.mark.parametrize("metrics", ["[@evaluation.Distances()]",
                                     "[@evaluation.WaveletDistance(), @evaluation.Distances()]"])
def test_a_metric_that_samples_beside_real_ones_cannot_serve_is_refused(verbs, metrics):
    (verbs.directory / "mine.gin").write_text(
        f"include 'gin/debug/prior_tiny.gin'\nevaluation.Samples.metrics = {metrics}\n"
        "evaluation.Samples.reference_split = 'validation'\n")
    done = verbs("train", *train_flags("mine.gin", "run"))
    assert done.code == 2 and "Traceback" not in done.err, done.err
    assert "Samples cannot measure what this run makes: metrics: Distances needs originals_BCHW, " in done.err
    assert not (verbs.directory / "run").exists()


def test_an_adaptive_weight_of_a_layer_that_is_not_trained_is_refused(verbs):
    (verbs.directory / "mine.gin").write_text(f"include '{TOKENIZER}'\n{ADVERSARY}")
    done = verbs("train", *train_flags("mine.gin", "run", "train.num_steps = 2000"))
    assert done.code == 2 and "Traceback" not in done.err, done.err
    assert "train.task: a step (program " in done.err and "adaptive_layer = 'decoder/head" in done.err
    assert not (verbs.directory / "run").exists()


@pytest.mark.parametrize("metric", ["evaluation/psnr", "loss"])
def test_a_best_step_by_what_is_measured_is_accepted(verbs, metric):
    done = verbs.train("tokenizer_tiny", "train.keep = [@checkpoint.KeepBest()]", "checkpoint.KeepBest.num = 1",
                       f"checkpoint.KeepBest.metric = {metric!r}", "checkpoint.KeepBest.mode = 'max'",
                       "train.num_steps = 2", workdir="run")
    assert "Saved checkpoint" in done.err


def test_a_home_folder_and_a_byte_order_mark_are_understood(verbs, monkeypatch):
    monkeypatch.setenv("HOME", str(verbs.directory))
    (verbs.directory / "mine.gin").write_text(f"include '{TOKENIZER}'\n", encoding="utf-8-sig")
    done = verbs("train", *train_flags("~/mine.gin", "~/run", "train.num_steps = 1"))
    assert done.code == 0 and (verbs.directory / "run/config.gin").exists(), done.err


def test_a_plugins_own_error_names_its_line_and_the_gin_line(verbs):
    (verbs.directory / "broken.py").write_text("import os\n\nos.environ['NOT THERE']\n")
    (verbs.directory / "mine.gin").write_text(f"import broken\ninclude '{TOKENIZER}'\n")
    done = verbs("train", *train_flags("mine.gin", "run"))
    assert done.code == 2 and "Traceback" not in done.err
    assert "mine.gin:1: the import of broken failed: KeyError: 'NOT THERE'" in done.err
    assert "broken.py:3" in done.err and "install" not in done.err

    (verbs.directory / "mending.py").write_text(
        "import gin\n\nclass Term:\n    def __init__(self, size: int = 1):\n        {}['size']\n\n"
        "gin.register(Term, module='plugin')\n")
    (verbs.directory / "mine.gin").write_text(
        f"import mending\ninclude '{TOKENIZER}'\n"
        "tokenizer.TokenizerObjective.terms = [@plugin.Term()]\nplugin.Term.size = 3\n")
    done = verbs("train", *train_flags("mine.gin", "run"))
    assert done.code == 2 and "Traceback" not in done.err, done.err
    assert "plugin.Term: KeyError: 'size', raised at " in done.err and "mending.py:5" in done.err
    assert "plugin.Term.size = 3  (mine.gin:4)" in done.err
