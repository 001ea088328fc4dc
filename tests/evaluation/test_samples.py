"""What is drawn from a prior: by number and seed, of each class, in batches of any size, on several processes."""
import numpy as np
import pytest
import torch

from tests.runtime.several_hosts import together
from vqim.contracts.context import Context
from vqim.evaluation.image_metrics import ShownImages
from vqim.evaluation.passes import evaluate
from vqim.evaluation.samples import Samples
from vqim.prior.sampler import StepwiseSampler
from vqim.runtime.torch import TorchRuntime
from vqim.state.leaf import select

RUNTIME = TorchRuntime()
CONTEXT = Context(RUNTIME.kernels)


def draw(samples, run, runtime=RUNTIME):
    """The images that a pass shows."""
    task, state = run
    return evaluate(samples.begin(task, None, state, runtime))["images/samples"]


def drawn_tokens(run, labels, seed=0, sampler=None):
    """All in one batch."""
    bound = (sampler or StepwiseSampler()).bind(run[0].objective.prior, RUNTIME, len(labels), torch.float32)
    return bound(select(run[1], "params/prior/"), labels, np.arange(len(labels)), seed)


def all_samples(run, batch_size, **arguments):
    """Every image that is drawn, uint8 [N, H, W, C]."""
    return draw(Samples([ShownImages(100)], batch_size=batch_size, **arguments), run)


def test_samples_of_no_image_are_refused():
    with pytest.raises(ValueError, match="num_images must be at least 1, got 0"):
        Samples([], num_images=0, batch_size=4)


@pytest.mark.parametrize("settings", [{}, {"guidance": 2.0, "temperature": 0.8}])
def test_an_image_of_a_seed_is_the_same_in_batches_of_any_size(prior_run, settings):
    run, sampler = prior_run(), StepwiseSampler(**settings)
    expected = drawn_tokens(run, np.repeat([0, 1, 2], 3), seed=4, sampler=sampler)
    images = run[0].objective.images(run[1], expected, CONTEXT)
    expected_images = (images * 255).round().byte().permute(0, 2, 3, 1).numpy()
    assert len(np.unique(expected_images.reshape(9, -1), axis=0)) == 9
    for batch_size in (1, 4, 20):
        found = all_samples(run, batch_size, num_images=3, seed=4, sampler=sampler)
        np.testing.assert_array_equal(found, expected_images)


def test_images_are_as_many_of_each_class_in_order_or_in_all_without_classes(prior_run):
    samples = Samples([], num_images=2, batch_size=4)
    assert samples.labels(prior_run()[0]).tolist() == [0, 0, 1, 1, 2, 2]
    assert samples.labels(prior_run(num_classes=0)[0]).tolist() == [-1, -1]
    assert len(all_samples(prior_run(num_classes=0), 4, num_images=6)) == 6


def test_the_first_classes_alone_are_drawn_as_they_are_among_all(prior_run):
    run = prior_run()
    np.testing.assert_array_equal(
        all_samples(run, 4, num_images=3, num_classes=2), all_samples(run, 4, num_images=3)[:6])


def test_given_labels_are_the_classes_of_the_images_in_turn(prior_run):
    run = prior_run()
    found = all_samples(run, 4, num_images=5, labels=[2, 0, 2])
    images = run[0].objective.images(run[1], drawn_tokens(run, np.array([2, 0, 2, 2, 0])), CONTEXT)
    np.testing.assert_array_equal(found, (images * 255).round().byte().permute(0, 2, 3, 1).numpy())
    said = [Samples([], 5, 4, labels=labels).about(run[0], None).protocol["labels"] for labels in ([2, 0], [0, 2])]
    assert said[0] != said[1] and said[0].startswith("given ones of 2 classes, sha256 ")


@pytest.mark.parametrize("num_classes, labels, message", [
    (3, [0, 3], "labels must be classes of the prior, from 0 to 2, got 0 to 3"),
    (0, [0], "labels need a prior that was trained with classes"),
])
def test_labels_that_the_prior_does_not_have_are_refused(prior_run, num_classes, labels, message):
    with pytest.raises(ValueError, match=message):
        all_samples(prior_run(num_classes=num_classes), 4, num_images=2, labels=labels)


def test_another_seed_draws_other_images(prior_run):
    run = prior_run()
    assert (all_samples(run, 4, num_images=3) != all_samples(run, 4, num_images=3, seed=1)).any((1, 2, 3)).all()


def test_images_are_drawn_by_the_runs_own_sampler_or_by_the_passs(prior_run):
    run = prior_run()
    plain, greedy = all_samples(run, 4, num_images=3), StepwiseSampler(temperature=0.0)
    by_pass = all_samples(run, 4, num_images=3, sampler=greedy)
    run[0].objective.sampler = greedy
    by_run = all_samples(run, 4, num_images=3)
    np.testing.assert_array_equal(by_run, by_pass)
    assert (by_run != plain).any() and (by_run[:3] == by_run[0]).all()  # the likeliest of a class is one


def test_several_processes_draw_the_images_that_one_draws(prior_run):
    run = prior_run()

    def drawn(runtime):
        return draw(Samples([ShownImages(100)], num_images=3, batch_size=4), run, runtime)

    _, results = together(2, drawn)
    for images in results:
        np.testing.assert_array_equal(images, drawn(RUNTIME))
