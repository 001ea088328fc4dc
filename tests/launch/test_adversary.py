"""Batches that a discriminator cannot take are refused before a run begins."""
import pytest

from tests.launch.verbs import train_flags

ADVERSARY = (
    "tokenizer.TokenizerObjective.adversary = @tokenizer.Adversary()",
    "tokenizer.Adversary.discriminator = @tokenizer.StyleGAN2Discriminator()",
    "tokenizer.Adversary.learner = @discriminator/training.Learner", "tokenizer.StyleGAN2Discriminator.image_size = 16",
    "tokenizer.StyleGAN2Discriminator.max_channels = 8", "train.num_steps = 2", "train.evaluators = []")


def train(verbs, *bindings):
    return verbs("train", *train_flags("gin/debug/tokenizer_tiny.gin", "run", *ADVERSARY, *bindings))


@pytest.mark.parametrize("bindings", [
    ["train.batch_size = 6"], ["train.batch_size = 12", "training.GradientTask.num_micro_batches = 2"]])
def test_batches_that_cannot_be_grouped_for_their_deviation_are_refused_before_work(verbs, bindings):
    # Though it would come into play far later than the run ends.
    done = train(verbs, *bindings, "tokenizer.Adversary.start_step = 100")
    assert done.code == 2
    assert ("vqim.train: batch_size, of a micro-batch, must be a multiple of the discriminator's group_size 4 or "
            "smaller than it, got 6\n") in done.err
    assert f"  vqim.{bindings[0]}  (" in done.err
    assert not (verbs.directory / "run").exists()


@pytest.mark.parametrize("bindings", [
    ["train.batch_size = 8"], ["train.batch_size = 3"],
    ["train.batch_size = 16", "training.GradientTask.num_micro_batches = 2"]])
def test_batches_that_it_can_group_are_trained_on(verbs, bindings):
    done = train(verbs, *bindings)
    assert done.code == 0, done.err
