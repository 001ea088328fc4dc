"""launch.sample and launch.evaluate with a classifier, on finished runs of gin/debug."""
import json

import numpy as np
import pytest
import torch
from PIL import Image

from vqim.classifier.model import ImageClassifier
from vqim.contracts.context import Context
from vqim.nn.module import apply
from vqim.runtime.torch import TorchKernels
from vqim.tokenizer.model import images_to_float
from vqim.tokenizer.vit import ViTEncoder

PRIOR = "--workdir=runs/debug/prior"
CLASSIFIER = ["--gin_file=gin/debug/classifier_model.gin", "--gin_file=gin/run/reject_samples.gin",
              "--gin_bindings=CLASSIFIER_RUN = 'runs/debug/classifier'"]


def images(folder):
    """The PNGs of a folder by name, without the grid."""
    return {path.name: np.asarray(Image.open(path)) for path in sorted(folder.glob("0*.png"))}


@pytest.fixture
def classifier(verbs, runs):
    """A finished run of the classifier, beside those of tokenizer, prior and probe."""
    verbs.train("classifier_tiny", workdir="runs/debug/classifier")
    return runs / "classifier"


def test_the_images_that_are_written_are_those_the_classifier_is_surest_of(verbs, classifier, arrays):
    seed = ["--seed=5", "--batch_size=6"]
    done = verbs("sample", PRIOR, *CLASSIFIER, "--num_images=4", "--labels=3,0", "--out=accepted", *seed)
    assert done.code == 0, done.err
    # At the rate 0.25 of the file, of eight candidates of each class, drawn class by class, two are accepted.
    done = verbs("sample", PRIOR, "--num_images=16", f"--labels={'0,' * 8}{','.join('3' * 8)}", "--out=all", *seed)
    assert done.code == 0, done.err
    drawn = np.stack(list(images(verbs.directory / "all").values()))
    network = ImageClassifier(ViTEncoder(16, 4, 32, 2, 2, 64), 16, 9)
    params = {name.removeprefix("params/classifier/"): torch.from_numpy(array)
              for name, array in arrays(classifier)[0].items() if name.startswith("params/classifier/")}
    scores = apply(network.forward, params, images_to_float(torch.from_numpy(drawn)), Context(TorchKernels()))
    best = {0: np.sort(scores[:8].softmax(-1)[:, 0].argsort()[-2:]),
            3: 8 + np.sort(scores[8:].softmax(-1)[:, 3].argsort()[-2:])}
    found = list(images(verbs.directory / "accepted").values())
    expected = [drawn[best[3][0]], drawn[best[0][0]], drawn[best[3][1]], drawn[best[0][1]]]
    assert len(found) == 4 and all((a == b).all() for a, b in zip(found, expected, strict=True))
    assert done.out == "16 images in all\n"


def test_a_prior_is_judged_at_several_rates(verbs, classifier):
    bindings = ["train.evaluators = [@evaluation.Samples()]", "evaluation.Samples.metrics = [@evaluation.Rejection()]",
                "evaluation.Samples.num_images = 10", "evaluation.Samples.batch_size = 45",
                "evaluation.Rejection.classifier = @classifier.TrainedClassifier()",
                "evaluation.Rejection.rates = (1.0, 0.1)",
                "classifier.TrainedClassifier.network = %CLASSIFIER",
                "classifier.TrainedClassifier.run = 'runs/debug/classifier'"]
    done = verbs("evaluate", PRIOR, CLASSIFIER[0], *(f"--gin_bindings={binding}" for binding in bindings))
    assert done.code == 0, done.err
    found = json.loads((classifier.parent / "prior/evaluation.json").read_text())
    measured = {name.removeprefix("samples/rejection/classifier_"): value for name, value in found.items()}
    assert measured["probability_at_0.1"] > measured["probability_at_1"] > 0
    assert 0 <= measured["top1_at_1"] <= measured["top1_at_0.1"] <= 1


@pytest.mark.parametrize("flags, message", [
    (["--gin_bindings=sample.acceptance_rate = 0.5"], "acceptance_rate 0.5 needs a classifier"),
    ([*CLASSIFIER, "--gin_bindings=sample.acceptance_rate = 0.0"], "acceptance_rate must be above 0 and at most 1"),
    ([*CLASSIFIER, "--labels=-1"], "sample.acceptance_rate 0.25 needs a class for every image"),
    ([*CLASSIFIER, "--gin_bindings=classifier.ImageClassifier.num_classes = 8"],
     "sample.classifier: classifier must have the prior's num_classes, 9, got 8"),
    (CLASSIFIER, "sample.classifier: "),  # whose run is not there
])
def test_samples_that_cannot_be_rejected_are_refused(verbs, runs, flags, message):
    done = verbs("sample", PRIOR, "--num_images=2", *flags)
    assert done.code == 2 and message in done.err, done.err
