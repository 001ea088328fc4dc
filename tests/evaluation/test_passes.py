"""Passes: any metric on any of them, several at once, of any task in turn; what is drawn, and what is refused."""
import dataclasses
import functools
import json

import numpy as np
import pytest
import torch

import vqim.registry.components  # noqa: F401  gin knows the components
from vqim.contracts.context import Context
from vqim.contracts.learning import Learner
from vqim.evaluation.accuracy import Accuracy
from vqim.evaluation.distances import Averages
from vqim.evaluation.image_metrics import Distances, Lpips, ShownImages
from vqim.evaluation.passes import Classifications, Predictions, Reconstructions, evaluate
from vqim.evaluation.protocol import differences
from vqim.evaluation.samples import Samples
from vqim.evaluation.token_metrics import CodebookUse, Likelihood
from vqim.frozen.vgg16 import VGG16
from vqim.nn.module import apply
from vqim.optim.adamw import AdamW
from vqim.optim.schedules import Constant
from vqim.prior.sampler import StepwiseSampler
from vqim.probe.features import PixelFeatures
from vqim.probe.objective import ProbeObjective
from vqim.runtime.torch import TorchRuntime
from vqim.state.leaf import select
from vqim.tokenizer.model import images_to_float
from vqim.tokenizer.objective import TokenizerObjective
from vqim.tokenizer.terms import L2, Perceptual
from vqim.training.gradient_task import GradientTask
from vqim.training.state import start

RUNTIME = TorchRuntime()
CONTEXT = Context(RUNTIME.kernels)


def measure(evaluator, run, data, runtime=RUNTIME):
    task, state = run
    return evaluate(evaluator.begin(task, data, state, runtime))


class Brightness:
    """A metric of somebody else: the mean value of images and their smallest token."""

    needs = ("images_BCHW", "tokens_BNK")
    frozen = {}

    def observe(self, items, frozen, context):
        return {"brightness": items.images_BCHW.mean((1, 2, 3)), "smallest": items.tokens_BNK.amin((1, 2)).float()}

    def tally(self, about):
        return Averages()


def tokens_of(run, data):
    """Those of all images, from the prior's frozen tokenizer."""
    task, state = run
    images_BCHW = images_to_float(torch.from_numpy(data.images))
    return apply(task.objective.tokenizer.tokens, select(state, "frozen/tokenizer/"), images_BCHW, CONTEXT)


def drawn_tokens(run, labels, seed=0, sampler=None):
    """All in one batch."""
    draw = (sampler or StepwiseSampler()).bind(run[0].objective.prior, RUNTIME, len(labels), torch.float32)
    return draw(select(run[1], "params/prior/"), labels, np.arange(len(labels)), seed)


@pytest.mark.parametrize("make", [Reconstructions, Predictions, functools.partial(Samples, num_images=30)],
                         ids=["reconstructions", "predictions", "samples"])
def test_any_metric_looks_at_the_images_of_any_pass(make, prior_run, data):
    run = prior_run()
    task, state = run
    evaluator = make([Brightness(), CodebookUse(), ShownImages(4)], batch_size=64)
    results = measure(evaluator, run, data)
    if isinstance(evaluator, Samples):
        tokens = shown = drawn_tokens(run, np.repeat([0, 1, 2], 30))
    else:
        tokens = shown = tokens_of(run, data)
    if isinstance(evaluator, Predictions):
        labels = torch.from_numpy(data.labels)
        shown = apply(task.objective.prior.expected, select(state, "params/prior/"), tokens, labels, CONTEXT)
    images = task.objective.images(state, shown, CONTEXT)
    section, codebook = ("samples", "samples/codebook") if isinstance(evaluator, Samples) else (
        "evaluation", "codebook")
    assert results[f"{section}/brightness"] == pytest.approx(images.mean().item(), rel=1e-5)
    assert results[f"{section}/smallest"] == pytest.approx(tokens.amin((1, 2)).float().mean().item())
    assert results[f"{codebook}/usage"] == len(tokens.unique()) / 20
    pictures = results[f"images/{type(evaluator).__name__.lower()}"]
    chosen = (images[::len(images) // 4][:4] * 255).round().byte().permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(pictures[-4:], chosen)


class Dtypes(Brightness):
    """Notes the dtype in which it is to compute, and the images."""

    def observe(self, items, frozen, context):
        self.dtype, self.images = context.dtype, items.images_BCHW
        return super().observe(items, frozen, context)


def test_a_pass_decodes_in_the_evaluation_dtype_and_metrics_stay_in_float32(tokenizer_run, data):
    task, state = tokenizer_run()
    rough = GradientTask(task.objective, evaluation_dtype="bfloat16")
    metric = Dtypes()
    measure(Reconstructions([metric], batch_size=300), (rough, state), data)
    assert metric.dtype == torch.float32
    context = Context(RUNTIME.kernels, torch.bfloat16)
    images_BCHW = images_to_float(torch.from_numpy(data.images))
    _, expected = apply(task.objective.tokenizer.forward, select(state, "params/tokenizer/"), images_BCHW, context)
    assert torch.equal(metric.images, (expected.mean_BCHW.clamp(0, 1) * 255).round() / 255)


def test_the_protocol_of_a_pass_names_its_dtypes(tokenizer_run, prior_run, data):
    tokenizer, prior = tokenizer_run()[0].objective, prior_run()[0].objective
    about = Reconstructions([], 64).about(GradientTask(tokenizer, evaluation_dtype="bfloat16"), data)
    assert about.protocol["dtype"] == "bfloat16" and "prior dtype" not in about.protocol
    about = Samples([], 2, 64).about(GradientTask(prior, dtype="bfloat16"), data)
    assert (about.protocol["dtype"], about.protocol["prior dtype"]) == ("float32", "bfloat16")
    assert differences({"dtype": "float32"}, {"dtype": "bfloat16"}) == ["dtype: 'float32' against 'bfloat16'"]


def test_one_pass_finds_what_a_pass_for_each_metric_finds(tokenizer_run, data):
    run, metrics = tokenizer_run(), [Distances(), CodebookUse(), ShownImages(20), Brightness()]
    at_once = measure(Reconstructions(metrics, batch_size=128), run, data)
    alone = {}
    for metric in metrics:
        alone |= measure(Reconstructions([metric], batch_size=128), run, data)
    assert list(at_once) == list(alone)
    for name, value in at_once.items():
        for array, expected in zip(arrays_of(value), arrays_of(alone[name]), strict=True):
            np.testing.assert_array_equal(array, expected, err_msg=name)


class Counting(TokenizerObjective):
    """Counts how often it is looked at."""

    calls = decoded = 0

    def reconstruct(self, state, batch, context, pictures=True):
        self.calls += 1
        self.decoded += pictures
        return super().reconstruct(state, batch, context, pictures)


def test_the_network_runs_once_a_batch_for_all_metrics(make_tokenizer, tokenizer_run, data):
    learner = functools.partial(Learner, optimizer=AdamW(), learning_rate=Constant(1e-3))
    task = GradientTask(Counting(make_tokenizer(), learner, [L2()]))
    _, state = tokenizer_run()
    measure(Reconstructions([Distances(), CodebookUse(), ShownImages(2)], batch_size=128), (task, state), data)
    assert task.objective.calls == 3


def test_images_are_decoded_where_a_metric_looks_at_them_and_nowhere_else(make_tokenizer, tokenizer_run, data):
    def measured(metrics):
        learner = functools.partial(Learner, optimizer=AdamW(), learning_rate=Constant(1e-3))
        task = GradientTask(Counting(make_tokenizer(), learner, [L2()]))
        results = measure(Reconstructions(metrics, batch_size=20), (task, tokenizer_run()[1]), data)
        return task.objective, results

    # Of 15 batches the first, the sixth and the eleventh have one of three images, 100 apart.
    objective, some = measured([CodebookUse(), ShownImages(3)])
    assert (objective.calls, objective.decoded) == (15, 3)
    objective, every = measured([CodebookUse(), ShownImages(3), Distances()])
    assert (objective.calls, objective.decoded) == (15, 15)
    assert some["images/reconstructions"].shape == (6, 16, 16, 3)
    np.testing.assert_array_equal(some["images/reconstructions"], every["images/reconstructions"])
    for name in ("usage", "latent_distance", "unused_distance"):
        assert some[f"codebook/{name}"] == every[f"codebook/{name}"]
    assert measured([CodebookUse()])[0].decoded == 0


def test_a_pass_stops_after_every_batch_and_asks_for_none_ahead(tokenizer_run, data):
    task, state = tokenizer_run()
    evaluation = Reconstructions([Distances()], batch_size=64).begin(task, data, state, RUNTIME)
    assert data.num_batches == 0
    assert [data.num_batches for _ in evaluation] == [1, 2, 3, 4, 5]
    assert evaluation.result().keys() >= {"evaluation/psnr"}


def test_images_are_drawn_a_batch_at_a_time(prior_run, data):
    sizes = []

    class Recorder(StepwiseSampler):
        def bind(self, prior, runtime, batch_size, dtype):
            draw = super().bind(prior, runtime, batch_size, dtype)

            def recorded(arrays, labels_B, numbers_B, seed, given_BNK=None):
                sizes.append(numbers_B.tolist())
                return draw(arrays, labels_B, numbers_B, seed, given_BNK)
            return recorded

    task, state = prior_run()
    evaluation = Samples([ShownImages(2)], 2, batch_size=4, sampler=Recorder()).begin(task, data, state, RUNTIME)
    assert [len(sizes) for _ in evaluation] == [1, 2]
    assert sizes == [[0, 1, 2, 3], [4, 5, 6, 7]]  # of three classes, two each


@pytest.mark.parametrize("make", [Reconstructions, functools.partial(Samples, num_images=4)],
                         ids=["reconstructions", "samples"])
def test_a_second_task_is_measured_with_a_program_of_its_own(make, prior_run, data):
    def metrics():
        return [Brightness(), ShownImages(4)]

    # With other vocabularies, so that one's program does not fit the other's arrays.
    runs = [prior_run(sizes=(20,)), prior_run(seed=5, sizes=(20,)), prior_run(seed=9, sizes=(12, 20), num_classes=2)]
    fresh = [measure(make(metrics(), batch_size=100), run, data) for run in runs]
    evaluator = make(metrics(), batch_size=100)
    for number in (0, 1, 2, 0):
        results = measure(evaluator, runs[number], data)
        for name, value in results.items():
            np.testing.assert_array_equal(value, fresh[number][name])
        name, = (name for name in fresh[0] if name.endswith("brightness") and "protocol" not in name)
    assert len({results[name] for results in fresh}) == 3


class Placing(TorchRuntime):
    """Notes what is placed on its device."""

    def __init__(self):
        super().__init__()
        self.placed = []

    def place(self, name, leaf, fill):
        self.placed.append(name)
        return super().place(name, leaf, fill)


def test_networks_that_objective_and_metric_have_alike_are_on_the_device_once(tokenizer_run, data):
    task, state = tokenizer_run(terms=[L2(), Perceptual()])
    runtime = Placing()
    frozen = start({name: leaf for name, leaf in task.init_spec().items() if name.startswith("frozen/")}, 0, runtime)
    in_state = {**state, **frozen.arrays}
    assert runtime.placed and all(name.startswith("frozen/lpips/") for name in runtime.placed)
    runtime.placed.clear()
    found = measure(Reconstructions([Lpips("vgg16")], batch_size=50, split="train"), (task, in_state), data, runtime)
    assert runtime.placed == []
    # The objective has none, and so the metric brings its own.
    alone = measure(Reconstructions([Lpips("vgg16")], batch_size=50, split="train"), tokenizer_run(), data, runtime)
    assert len(runtime.placed) == len(frozen.arrays)
    assert found == alone and found["evaluation/lpips"] > 0


def test_constants_are_placed_once_for_all_measurements_of_a_task(tokenizer_run, data):
    runtime, run = Placing(), tokenizer_run()
    evaluator = Reconstructions([Lpips("vgg16")], batch_size=50, split="train")
    first = measure(evaluator, run, data, runtime)
    count = len(runtime.placed)
    assert measure(evaluator, run, data, runtime) == first and len(runtime.placed) == count > 0


class OtherNetwork:
    """A metric that looks through a network of a name that LPIPS has taken."""

    needs = ()
    frozen = {"lpips": VGG16()}


def test_metrics_that_mean_different_networks_by_one_name_are_refused(tokenizer_run, data):
    with pytest.raises(ValueError, match=r"metric 1 \(OtherNetwork\): the name 'lpips' is taken by another frozen"):
        measure(Reconstructions([Lpips("vgg16"), OtherNetwork()], batch_size=8), tokenizer_run(), data)


def test_metrics_that_measure_something_of_one_name_are_refused(tokenizer_run, data):
    with pytest.raises(ValueError, match="two of them measure evaluation/brightness, one is Brightness"):
        measure(Reconstructions([Brightness(), Brightness()], batch_size=300), tokenizer_run(), data)


def classifier_run():
    """A linear probe on pixels, untrained."""
    learner = functools.partial(Learner, optimizer=AdamW(), learning_rate=Constant(1e-3))
    task = GradientTask(ProbeObjective(PixelFeatures(16), 3, learner))
    return task, start(task.init_spec(), 0, RUNTIME).arrays


@pytest.mark.parametrize(("metric", "evaluator", "message"), [
    (Distances(), Samples, "metrics: Distances needs originals_BCHW, which Samples does not have here"),
    (Accuracy(), Samples, "metrics: Accuracy needs logits_LBY, which Samples does not have here"),
    (Accuracy(), Reconstructions, "metrics: Accuracy needs logits_LBY, which Reconstructions does not have here"),
    (Likelihood(), Samples, "metrics: Likelihood needs measures, which Samples does not have here"),
    (Likelihood(), Reconstructions, "metrics: Likelihood needs measures, which Reconstructions does not have here")])
def test_a_metric_whose_needs_are_missing_is_refused_by_name(metric, evaluator, message, prior_run, data):
    arguments = {"num_images": 2} if evaluator is Samples else {}
    with pytest.raises(ValueError, match=message):
        measure(evaluator([ShownImages(2), metric], batch_size=4, **arguments), prior_run(), data)


@pytest.mark.parametrize(("metric", "message"), [
    (ShownImages(), "metrics: ShownImages needs images_BCHW, which Classifications does not have here"),
    (Distances(), "metrics: Distances needs originals_BCHW, images_BCHW, which Classifications does not have here"),
    (CodebookUse(), "metrics: CodebookUse needs tokens_BNK, which classifications do not have here"),
    (Likelihood(), "metrics: Likelihood needs tokens_BNK, which classifications do not have here")])
def test_a_pass_over_class_logits_has_neither_images_nor_tokens(metric, message, data):
    with pytest.raises(ValueError, match=message):
        measure(Classifications([metric], batch_size=4), classifier_run(), data)


@pytest.mark.parametrize(("evaluator", "message"), [
    (Predictions([Likelihood()], batch_size=4),
     "evaluators: Predictions needs an objective with `predict`, which TokenizerObjective has not"),
    (Classifications([Accuracy()], batch_size=4),
     "evaluators: Classifications needs an objective with `classify`, which TokenizerObjective has not"),
    (Samples([ShownImages()], num_images=2, batch_size=4), "samples need a prior, this run trains a tokenizer")])
def test_a_pass_that_does_not_fit_the_objective_is_refused_by_name(evaluator, message, tokenizer_run, data):
    with pytest.raises(ValueError, match=message):
        measure(evaluator, tokenizer_run(), data)


@pytest.mark.parametrize("make", [
    Reconstructions, Predictions, Classifications, functools.partial(Samples, num_images=1)])
def test_impossible_settings_of_a_pass_are_refused(make):
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        make([], batch_size=0)
    with pytest.raises(ValueError, match="every must be at least 0, got -1"):
        make([], batch_size=4, every=-1)


def test_a_pass_goes_over_the_split_that_it_is_for(tokenizer_run, data):
    run = tokenizer_run()
    of_train = measure(Reconstructions([Distances()], batch_size=64, split="train"), run, data)
    assert data.num_batches == 1
    data.images = data.images[:50]
    data.labels = data.labels[:50]
    found = measure(Reconstructions([Distances()], batch_size=7), run, data)
    assert {name: value for name, value in found.items() if isinstance(value, float)} == pytest.approx(
        {name: value for name, value in of_train.items() if isinstance(value, float)})


def test_numbers_of_any_metric_have_a_protocol_beside_them(tokenizer_run, data):
    metrics = [Distances(), CodebookUse(), Brightness()]
    results = measure(Reconstructions(metrics, batch_size=64, num_images=20), tokenizer_run(), data)
    said = {name: json.loads(results[f"protocol/{name}"]) for name in ("psnr", "codebook/usage", "brightness")}
    assert said["psnr"]["measure"].startswith("psnr, ssim, l1, l2") and "SSIM with" in said["psnr"]["definition"]
    assert said["codebook/usage"]["measure"].startswith("codebook/usage, codebook/usage_per_batch")
    # What a metric of one's own does not say, the pass does.
    assert said["brightness"] == {"measure": "brightness, smallest", "count": "20", "split": "validation",
                                  "image size": "16x16", "dtype": "float32",
                                  "subset": "20 of 300 images, evenly spaced"}


def arrays_of(value):
    """The arrays of a result: images, or a histogram's values."""
    return dataclasses.astuple(value) if dataclasses.is_dataclass(value) else [value]


def test_a_subset_is_evenly_spaced_and_the_same_every_time(tokenizer_run, data):
    run = tokenizer_run()
    task, state = run
    running = Reconstructions([Distances()], batch_size=8, num_images=20).begin(task, data, state, RUNTIME)
    evaluate(running)
    whole = Reconstructions([Distances()], batch_size=300).begin(task, data, state, RUNTIME)
    evaluate(whole)
    psnr = whole.values()["evaluation/psnr"][np.arange(0, 300, 15)]
    np.testing.assert_allclose(running.values()["evaluation/psnr"], psnr, rtol=1e-5)
    assert running.about.protocol["subset"] == "20 of 300 images, evenly spaced"


def test_a_pass_without_ema_measures_the_parameters_themselves(tokenizer_run, data):
    task, state = tokenizer_run()
    average = {name.replace("params/", "ema/"): 0.5 * array for name, array in state.items()}
    both = state | average

    def psnr(arrays, **kwargs):
        evaluator = Reconstructions([Distances()], batch_size=300, **kwargs)
        return measure(evaluator, (task, arrays), data)["evaluation/psnr"]

    halved = {name.replace("ema/", "params/"): array for name, array in average.items()}
    assert psnr(both, ema=False) == psnr(state) != psnr(both) == psnr(halved)


@pytest.mark.parametrize("num_images", [0, -3])
def test_a_subset_of_nothing_is_refused(num_images):
    with pytest.raises(ValueError, match="num_images must be at least 1"):
        Reconstructions([Distances()], batch_size=8, num_images=num_images)
