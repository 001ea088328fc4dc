"""The Inception score beside its definition, image by image, and sets whose score is plain."""
import numpy as np
import pytest

from vqim.evaluation.inception_score import InceptionScore


def draw(count=57, num_classes=7):
    return (2 * np.random.default_rng(0).standard_normal((count, num_classes))).astype(np.float32)


def score(logits, batch_size=10, **kwargs):
    found = InceptionScore(len(logits), logits.shape[1], **kwargs)
    for start in range(0, len(logits), batch_size):
        found.add(logits[start:start + batch_size])
    return found.result()


def slow(logits, num_splits):
    """exp(mean of KL(p(y|x) || p(y))) of each split, as the paper defines it."""
    p = np.exp(logits.astype(np.float64))
    p /= p.sum(1, keepdims=True)
    scores = []
    for i in range(num_splits):
        part = p[i * len(p) // num_splits:(i + 1) * len(p) // num_splits]
        q = part.mean(0)
        scores.append(np.exp(np.mean([np.sum(row * np.log(row / q)) for row in part])))
    return np.mean(scores), np.std(scores)


@pytest.mark.parametrize("num_splits", [1, 4, 10])
def test_splits_in_order_have_the_papers_score(num_splits):
    logits = draw()
    assert score(logits, num_splits=num_splits) == pytest.approx(slow(logits, num_splits), rel=1e-12)


def test_shuffled_splits_are_those_of_torch_fidelitys_permutation():
    logits = draw()
    expected = slow(logits[np.random.RandomState(2020).permutation(len(logits))], 10)
    assert score(logits, shuffled=True) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("batch_size", [1, 8, 57])
@pytest.mark.parametrize("shuffled", [False, True])
def test_the_score_does_not_depend_on_the_batch_size(batch_size, shuffled):
    logits = draw()
    assert score(logits, batch_size, shuffled=shuffled) == pytest.approx(score(logits, shuffled=shuffled), rel=1e-12)


def test_certain_images_of_all_classes_in_turn_score_the_number_of_classes():
    logits = np.tile(1e3 * np.eye(5, dtype=np.float32), (20, 1))
    assert score(logits) == pytest.approx((5, 0), abs=1e-9)


def test_samples_that_are_sorted_by_class_score_1_in_order_and_more_shuffled():
    logits = np.repeat(1e3 * np.eye(10, dtype=np.float32), 10, axis=0)
    assert score(logits)[0] == pytest.approx(1)
    assert score(logits, shuffled=True)[0] > 4


def test_identical_images_score_1():
    assert score(np.tile(draw(1), (30, 1))) == pytest.approx((1, 0), abs=1e-12)


def test_fewer_images_than_splits_are_refused():
    with pytest.raises(ValueError, match="at least 10 images, got 9"):
        InceptionScore(9, 7)


def test_another_number_of_images_than_said_is_refused():
    found = InceptionScore(20, 7)
    found.add(draw(19))
    with pytest.raises(ValueError, match="expected 20 images, got 19"):
        found.result()
    with pytest.raises(ValueError, match="expected 20 images, got 21 or more"):
        found.add(draw(2))


def test_logits_that_are_not_finite_are_refused():
    logits = draw(20)
    logits[3, 1] = np.inf
    with pytest.raises(ValueError, match="logits must be finite"):
        score(logits)
