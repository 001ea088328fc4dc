"""What launch.train refuses before any work: with file, line and remedy, exit code 2, and everything as it was."""
import numpy as np
import pytest

from tests.launch.verbs import train_flags

TOKENIZER, PRIOR = "gin/debug/tokenizer_tiny.gin", "gin/debug/prior_tiny.gin"


def refused(done):
    """The message of a command that was refused."""
    assert done.code == 2, done.err
    assert "Traceback" not in done.err
    head, _, message = done.err.partition("The configuration was refused.\n")
    assert head == ""
    return message


@pytest.mark.parametrize(("base", "lines", "messages"), [
    (TOKENIZER, "tokenizer.VectorQuantiser.vocabulary = 4",
     ["mine.gin:2: tokenizer.VectorQuantiser.vocabulary: nothing is registered as 'tokenizer.VectorQuantiser'. "
      "Did you mean tokenizer.VectorQuantizer?"]),
    (TOKENIZER, "train.num_stpes = 4",
     ["mine.gin:2: vqim.train has no parameter 'num_stpes'. Did you mean num_steps?"]),
    (TOKENIZER, "data.Idx.path = '/x'",
     ["Nothing uses these bindings:\n  data.Idx.path = '/x'  (mine.gin:2)\n", "Correct or delete the lines."]),
    (TOKENIZER, "train.batch_size = 16.0",
     ["mine.gin:2: vqim.train.batch_size expects int, got 16.0 (float). Write 16."]),
    (TOKENIZER, "optim.AdamW.beta1 = 1.5",
     ["optim.AdamW: beta1 must be in [0, 1), got 1.5\n  optim.AdamW.beta1 = 1.5  (mine.gin:2)"]),
    (TOKENIZER, "CODE_DIM = 0", ["code_dim must be", "CODE_DIM = 0  (mine.gin:2)"]),
    (TOKENIZER, "train.log_every = 0",
     ["vqim.train: log_every must be at least 1, got 0\n  vqim.train.log_every = 0  (mine.gin:2)"]),
    (TOKENIZER, "data.Images.image_size = 32",
     ["image_size of the data must be the tokenizer's 16, got 32", "data.Images.image_size = 32  (mine.gin:2)",
      "gin/debug/model.gin:2)"]),
    (PRIOR, "NUM_CLASSES = 8", ["num_classes must be the data's 9, or 0 to ignore them; got 8",
                                "NUM_CLASSES = 8  (mine.gin:2)"]),
    (TOKENIZER, "data.Images.source = @data.ImageFolder\ndata.ImageFolder.path = 'nowhere'",
     ["data.ImageFolder: path: expected a folder, but 'nowhere' does not exist", "(mine.gin:3)"]),
    (TOKENIZER, "data.Images.source = @data.ImageFolder\ndata.ImageFolder.path = 'empty'",
     ["empty: expected images, or subfolders of images, found neither. Images are files that end in", "(mine.gin:3)"]),
    (TOKENIZER, "data.Images.source = @data.Arrays\ndata.Arrays.path = 'labels.npz'",
     ["labels.npz: expected labels from 0 to 1, one for each of 2 class names, but label 3 is 7", "(mine.gin:3)"]),
    (TOKENIZER, "train.data = @data.Tokens()\ndata.Tokens.path = 'nowhere'",
     ["path: nowhere/train holds no token cache. Write one first", "data.Tokens.path = 'nowhere'  (mine.gin:3)"]),
])
def test_a_mistake_is_refused_with_its_line_before_a_run_begins(verbs, base, lines, messages):
    (verbs.directory / "empty").mkdir()
    np.savez(verbs.directory / "labels.npz", images=np.zeros([5, 16, 16, 3], np.uint8), labels=[0, 1, 0, 7, 1],
             class_names=["a", "b"], is_validation=[False, False, True, False, True])
    (verbs.directory / "mine.gin").write_text(f"include '{base}'\n{lines}\n")
    message = refused(verbs("train", *train_flags("mine.gin", "run")))
    for expected in messages:
        assert expected in message
    assert not (verbs.directory / "run").exists()


def test_a_command_that_names_no_gin_file_is_told_to(verbs):
    assert refused(verbs("train", "--workdir=run")).startswith("--gin_file must say what to train, such as ")


def test_a_run_without_a_directory_is_refused(verbs):
    assert refused(verbs("train", f"--gin_file={TOKENIZER}")) == (
        "--workdir must name the run's directory, such as --workdir=runs/first; got none\n")


def test_another_experiments_directory_is_refused_with_what_differs_and_stays(verbs, runs, files):
    before = files(runs)
    (verbs.directory / "mine.gin").write_text(f"include '{TOKENIZER}'\n\ntrain.batch_size = 32\n")
    message = refused(verbs("train", *train_flags("mine.gin", "runs/debug/tokenizer", "VOCABULARY = 32")))
    assert message.startswith("runs/debug/tokenizer holds another experiment:\n")
    assert "  vqim.train.batch_size was 16, now 32 (mine.gin:3)\n" in message
    assert "  tokenizer.VectorQuantizer.vocabulary was 64, now 32 (" in message
    assert "--gin_bindings number 1: VOCABULARY = 32" in message
    assert "Use another --workdir, or give the values that the run there was started with." in message
    assert files(runs) == before


@pytest.mark.parametrize("workdir", ["photos", "photos/holiday.txt"])
def test_a_directory_with_other_things_in_it_and_a_file_are_refused(verbs, files, workdir):
    (verbs.directory / "photos").mkdir()
    (verbs.directory / "photos/holiday.txt").write_text("sun")
    before = files(verbs.directory)
    message = refused(verbs("train", *train_flags(TOKENIZER, workdir)))
    assert message.startswith("--workdir must be ")
    assert "holiday.txt" in message
    assert files(verbs.directory) == before


def test_a_dry_run_prints_configuration_size_operations_memory_and_writes_nothing(verbs, files):
    done = verbs("train", *train_flags(TOKENIZER, "run", "optim.AdamW.beta1 = 0.8"), "--dry_run")
    assert done.code == 0, done.err
    for line in ("AdamW.beta1 = 0.8\n", "AdamW.beta2 = 0.999\n", "VOCABULARY = 64\n", "train.seed = 0\n"):
        assert line in done.out
    # By hand: two projections of 32 x 4 and their biases, and the codebook.
    assert f"tokenizer/quantizer: {32 * 4 + 4 + 64 * 4 + 4 * 32 + 32} parameters\n" in done.out
    for word in ("tokenizer/encoder: ", " MiB in a checkpoint\n", " floating-point operations", "device cpu"):
        assert word in done.out
    assert files(verbs.directory) == {}


def test_a_prior_whose_tokenizer_was_not_trained_is_refused_and_a_dry_run_says_so(verbs, files):
    flags = train_flags(PRIOR, "run", "TOKENIZER_RUN = 'nowhere'")
    said = "tokenizer: run must be the directory of a run with a checkpoint, and nowhere has none: train it first"
    message = refused(verbs("train", *flags))
    assert message.startswith(said) and "TOKENIZER_RUN" in message
    assert said in verbs("train", *flags, "--dry_run").out
    assert files(verbs.directory) == {}


def test_a_prior_whose_tokenizer_is_another_than_its_file_says_is_refused(verbs, runs):
    message = refused(verbs("train", *train_flags(PRIOR, "other", "CODE_DIM = 8")))
    assert "tokenizer: run must have trained what is described here, and runs/debug/tokenizer has not: " in message
    assert "codebook_VZ: expected float32[64, 8], the checkpoint has float32[64, 4]" in message
    assert not (verbs.directory / "other").exists()


def test_a_dry_run_says_that_data_do_not_fit(verbs):
    done = verbs("train", *train_flags(PRIOR, "run", "NUM_CLASSES = 8"), "--dry_run")
    assert done.code == 0, done.err
    assert "data: they do not fit: num_classes must be the data's 9, or 0 to ignore them; got 8\n" in done.out


@pytest.mark.parametrize("verb", ["evaluate", "sample", "cache_tokens"])
def test_the_verbs_that_read_a_run_refuse_a_directory_that_has_none(verbs, verb):
    done = verbs(verb, "--workdir=nowhere", *(["--out=cache"] if verb == "cache_tokens" else []))
    assert refused(done) == "--workdir must be the directory of a run, with config.gin in it; got nowhere\n"
    assert not list(verbs.directory.iterdir())
