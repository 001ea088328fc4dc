"""What launch.sweep measures of a run: reconstruction, the prior's loss, and its samples.

    N images
"""
import hashlib
from typing import Any, cast

import numpy as np

from vqim.classifier.model import Classifier, TrainedClassifier
from vqim.classifier.objective import ClassifierObjective
from vqim.contracts.evaluation import Metric
from vqim.evaluation.extractors import proxy_if_installed
from vqim.evaluation.image_metrics import Distances, Lpips
from vqim.evaluation.measuring import Measured, compare_sets, images_and_labels, measure_array
from vqim.evaluation.passes import Predictions, Reconstructions, evaluate
from vqim.evaluation.token_metrics import CodebookUse, Likelihood
from vqim.frozen.alexnet import MIN_SIZE
from vqim.registry.config import load
from vqim.registry.runtimes import make_runtime
from vqim.trained import Trained, open_run

from . import flags

_BATCH_SIZE = 64
_real_sets: dict[str, Measured] = {}


def measure(workdir: str, stage: str, seed: int, judge: str | None, num_samples: int | None) -> dict[str, float]:
    """A run's figures on its validation images; which evaluators its configuration has does not matter.

    Args:
      workdir: the run.
      stage: 'tokenizer', or 'prior', whose tokenizer is measured too.
      seed: for the samples.
      judge: a classifier's run; None for none.
      num_samples: the number of samples; None for as many as there are validation images.
    """
    run = _open(workdir)

    def measured(view: Any) -> dict[str, Any]:
        experiment = run.experiment
        found = evaluate(view.begin(experiment.task, experiment.data, run.arrays, run.runtime))
        return {name.removeprefix("evaluation/"): value for name, value in found.items() if isinstance(value, float)}

    # LPIPS's AlexNet takes no smaller images.
    lpips: list[Metric] = [Lpips()] if run.tokenizer.image_size >= MIN_SIZE else []
    reconstructed = measured(Reconstructions([Distances(), *lpips, CodebookUse()], _BATCH_SIZE))
    names = ("psnr", "ssim", "lpips_alexnet")
    figures = {str(name): reconstructed[name] for name in names if name in reconstructed}
    figures |= {name: value for name, value in reconstructed.items() if name.endswith("/usage")}
    if stage == "tokenizer":
        return figures
    grid = run.prior.tokenizer.grid
    predicted = measured(Predictions([Likelihood()], _BATCH_SIZE))
    for name, in_bits in (("bits_per_token", "bits_per_image"), ("unigram_bits_per_token", "unigram_bits_per_image")):
        if name in predicted:  # in bits per image, so that codebooks and grids compare
            figures[in_bits] = predicted[name] * grid.num_positions * grid.num_channels
    if "token_accuracy" in predicted:
        figures["token_accuracy"] = predicted["token_accuracy"]
    return figures | _of_samples(run, seed, judge, num_samples)


def _of_samples(run: Trained, seed: int, judge: str | None, num_samples: int | None) -> dict[str, float]:
    """Distances of samples to the validation images, and a classifier's verdict on both.

    Samples have the classes of evenly spaced validation images, so that both sets have the same shares of them.
    """
    real_NHWC, labels_N = images_and_labels(run.experiment.data)
    count = num_samples or len(real_NHWC)
    wanted_N = evenly(labels_N, count) if run.prior.num_classes else np.full(count, -1, np.int32)
    samples_NHWC = run.sample(wanted_N, seed=seed)
    extractors = proxy_if_installed(run.tokenizer.image_size)
    key = hashlib.sha256(real_NHWC.tobytes()).hexdigest()
    if key not in _real_sets:  # the same for all runs, most often
        _real_sets[key] = measure_array("validation images", real_NHWC, extractors, run.runtime)
    samples = measure_array("samples", samples_NHWC, extractors, run.runtime)
    found, _ = compare_sets(samples, _real_sets[key], extractors)
    figures = {name: found[name] for name in ("fwd", "proxy_fid") if name in found} | {"num_samples": float(count)}
    if judge is not None and run.prior.num_classes:
        verdicts = run.judge(_classifier(judge))
        figures |= {"judged_top1": float(verdicts(samples_NHWC, wanted_N)[1].mean()),
                    "real_images_top1": float(verdicts(real_NHWC, labels_N)[1].mean())}
    return figures


def evenly(labels_N: np.ndarray, count: int) -> np.ndarray:
    """`count` labels with the shares that they have in a set, which may come sorted."""
    return labels_N[np.arange(count) * len(labels_N) // count]


def _classifier(workdir: str) -> Classifier:
    objective = cast(ClassifierObjective, _open(workdir).experiment.task.objective)
    return cast(Classifier, TrainedClassifier(objective.network, workdir))


def _open(workdir: str) -> Trained:
    """A run with its data."""
    config = load([f"{workdir}/config.gin"], [], flags.GIN_SEARCH_PATH.value)
    return open_run(config, workdir, make_runtime(config, flags.RUNTIME.value), needs_data=True,
                    batch_size=_BATCH_SIZE)
