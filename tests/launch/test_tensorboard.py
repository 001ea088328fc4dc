"""What TensorBoard shows of finished runs, read with TensorBoard's own reader."""
import io

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vqim.training.summaries import read_metrics

NOTHING_LEFT_OUT = {"scalars": 0, "images": 0, "histograms": 0, "tensors": 0}
STEPS = [10, 20, 30, 40]
EVALUATIONS = [20, 40]
SPEEDS = ("speed/images_per_second", "speed/step_seconds", "speed/model_tflops_per_second")


@pytest.fixture
def shown(finished):
    """The events of a finished run."""
    def load(name):
        return EventAccumulator(str(finished / "runs/debug" / name), NOTHING_LEFT_OUT).Reload()

    return load


def steps(events):
    return [event.step for event in events]


def pixels(event):
    return np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))


@pytest.mark.parametrize("name, every_reading, every_evaluation", [
    ("tokenizer",
     ("loss", "loss/l2", "loss/logit_laplace", "loss/codebook", "loss/commitment", "learning_rate", "gradient_norm",
      "update_norm", "codebook/batch_usage", "data/num_skipped", *SPEEDS),
     ("evaluation/psnr", "evaluation/ssim", "codebook/usage", "codebook/perplexity")),
    ("prior",
     ("loss", "loss/bits_per_token", "learning_rate", "gradient_norm", "update_norm", *SPEEDS),
     ("evaluation/bits_per_token", "evaluation/unigram_bits_per_token", "evaluation/token_accuracy")),
    ("probe", ("loss", "learning_rate", "gradient_norm", "update_norm", *SPEEDS), ("evaluation/top1",)),
])
def test_numbers_are_there_at_every_reading_and_equal_metrics_jsonl(
        finished, shown, name, every_reading, every_evaluation):
    events, rows = shown(name), read_metrics(finished / "runs/debug" / name)
    for tags, expected in ((every_reading, STEPS), (every_evaluation, EVALUATIONS)):
        for tag in tags:
            assert steps(events.Scalars(tag)) == expected, tag
            values = [row[tag] for row in rows if tag in row]
            np.testing.assert_allclose([event.value for event in events.Scalars(tag)], values, rtol=1e-6)


def test_the_learning_rate_is_that_of_the_last_update(shown):
    # Warm-up by tenths of the peak: update number 9, the tenth, has all of it.
    assert shown("tokenizer").Scalars("learning_rate")[0].value == pytest.approx(2e-3)


def test_the_codes_histogram_counts_every_token_of_the_validation_set(shown):
    histograms = shown("tokenizer").Histograms("codebook/histogram")
    assert steps(histograms) == EVALUATIONS
    value = histograms[-1].histogram_value
    assert value.num % 16 == 0 and value.num > 300 * 16  # 16 tokens an image, about 378 images
    assert 0 <= value.min <= value.max < 64


@pytest.mark.parametrize("name, tag, size", [
    # Cells of 16 + 2 pixels, rows of eight: 16 originals and reconstructions, the same of predictions; 9 classes x 4.
    ("tokenizer", "images/reconstructions", (4 * 18, 8 * 18)),
    ("prior", "images/predictions", (4 * 18, 8 * 18)),
    ("prior", "images/samples", (5 * 18, 8 * 18)),
])
def test_images_are_shown_at_every_evaluation(shown, name, tag, size):
    images = shown(name).Images(tag)
    assert steps(images) == EVALUATIONS
    assert pixels(images[-1]).shape == (*size, 3)
    assert pixels(images[-1]).std() > 1


def test_the_probes_accuracy_by_layer_is_a_plot_and_a_row_of_numbers(finished, shown):
    assert steps(shown("probe").Images("evaluation/top1_by_layer")) == EVALUATIONS
    rows = [row for row in read_metrics(finished / "runs/debug/probe") if "evaluation/top1_by_layer" in row]
    assert [len(row["evaluation/top1_by_layer"]) for row in rows] == [2, 2]
    assert rows[-1]["evaluation/top1"] == max(rows[-1]["evaluation/top1_by_layer"])


@pytest.mark.parametrize("name", ["tokenizer", "prior", "probe"])
def test_the_configuration_in_force_is_shown_as_text(finished, shown, name):
    (event,) = shown(name).Tensors("config/text_summary")
    text = event.tensor_proto.string_val[0].decode()
    assert all(line.startswith("    ") for line in text.splitlines() if line)
    operative = (finished / "runs/debug" / name / "operative_config.gin").read_text()
    assert [line.strip() for line in text.splitlines()] == [line.strip() for line in operative.splitlines()]
