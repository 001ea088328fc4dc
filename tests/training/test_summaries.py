"""Rows of metrics.jsonl and what of them a resumed run keeps; grids of images."""
import json

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vqim.contracts.evaluation import Curve, Histogram
from vqim.training.summaries import Summaries, evaluators_done, image_grid, read_metrics


def write(workdir, first_step, steps, value, num_steps=None):
    """A run's rows, as from `first_step` on."""
    summaries = Summaries(workdir, first_step, num_steps=num_steps)
    for step in steps:
        summaries.write(step, {"loss": value})
    summaries.close()


def test_a_resumed_run_keeps_what_it_will_not_make_again_and_drops_the_rest(tmp_path):
    write(tmp_path, 0, [10, 20, 30], 1.0)
    write(tmp_path, 20, [30, 40], 2.0)
    assert [(row["step"], row["loss"]) for row in read_metrics(tmp_path)] == [(10, 1), (20, 1), (30, 2), (40, 2)]
    events = EventAccumulator(str(tmp_path)).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in events] == [(10, 1), (20, 1), (30, 2), (40, 2)]


def test_steps_that_are_measured_again_replace_their_rows_alone(tmp_path):
    write(tmp_path, 0, [10, 20, 30], 1.0)
    write(tmp_path, 19, [20], 2.0, num_steps=1)
    assert [(row["step"], row["loss"]) for row in read_metrics(tmp_path)] == [(10, 1), (30, 1), (20, 2)]
    assert {(event.step, event.value) for event in EventAccumulator(str(tmp_path)).Reload().Scalars("loss")} >= {
        (10, 1), (20, 2), (30, 1)}


def test_a_row_that_was_cut_short_is_dropped(tmp_path):
    write(tmp_path, 0, [10], 1.0)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 10, "lo')
    write(tmp_path, 10, [20], 1.0)
    assert [row["step"] for row in read_metrics(tmp_path)] == [10, 20]


@pytest.mark.parametrize("broken", ["", "{", "[1]", '{"loss": 1.0}', '{"step": 20, \ufffd}'])
def test_a_broken_line_in_the_middle_is_left_out_with_a_warning_that_names_it(tmp_path, broken, caplog):
    write(tmp_path, 0, [10, 20, 30], 1.0)
    path = tmp_path / "metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], broken, lines[2], ""]))
    assert [row["step"] for row in read_metrics(tmp_path)] == [10, 30]
    write(tmp_path, 30, [40], 1.0)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [10, 30, 40]
    assert "metrics.jsonl:2 is broken and is left out" in caplog.text


def test_rows_are_json_also_where_a_number_is_not_finite(tmp_path):
    write(tmp_path, 0, [10], float("nan"))
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=pytest.fail)["loss"] is None


def test_what_has_no_numbers_makes_no_row(tmp_path):
    summaries = Summaries(tmp_path, 0)
    summaries.write(5, {"config": "text", "codes": Histogram(np.arange(3)), "grid": np.zeros([1, 4, 4, 3], np.uint8)})
    summaries.close()
    assert read_metrics(tmp_path) == []


def test_a_curve_is_a_row_of_its_values_and_a_figure(tmp_path):
    summaries = Summaries(tmp_path, 0)
    summaries.write(5, {"top1_by_layer": Curve((0.25, 0.5), "layer")})
    summaries.close()
    (row,) = read_metrics(tmp_path)
    assert row["top1_by_layer"] == [0.25, 0.5]
    assert EventAccumulator(str(tmp_path)).Reload().Tags()["images"] == ["top1_by_layer"]


def test_an_evaluator_has_a_row_for_each_step_also_without_numbers(tmp_path):
    summaries = Summaries(tmp_path, 0)
    summaries.write(5, {"loss": 1.0})
    summaries.write(5, {"score": 0.5}, evaluator=0)
    summaries.write(5, {"grid": np.zeros([1, 4, 4, 3], np.uint8)}, evaluator=2)
    summaries.write(6, {"score": 0.5}, evaluator=1)
    summaries.close()
    assert [evaluators_done(tmp_path, step) for step in (4, 5, 6)] == [set(), {0, 2}, {1}]


def test_only_one_process_writes(tmp_path):
    summaries = Summaries(tmp_path / "run", 0, enabled=False)
    summaries.write(5, {"loss": 1.0})
    summaries.close()
    assert list(tmp_path.iterdir()) == []


def test_a_grid_has_rows_of_eight_and_light_grey_where_images_run_out():
    images = np.stack([np.full([4, 6, 3], number, np.uint8) for number in range(10)])
    grid = image_grid(images, padding=1)
    assert grid.shape == (2 * 5, 8 * 7, 3)
    assert (grid[5:9, 7:13] == 9).all()
    assert (grid[5:9, 14:20] == 230).all()
    assert (grid[4] == 230).all() and (grid[:, 6] == 230).all()


def test_a_grid_of_few_images_is_as_narrow_as_they_are():
    assert image_grid(np.zeros([3, 4, 4, 3], np.uint8), padding=2).shape == (6, 18, 3)
