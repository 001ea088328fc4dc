"""docs/use.ipynb does what it says: its cells are executed in their order, in an empty directory."""
import json
import os
import re
import subprocess

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest

from tests.support.processes import ROOT

NOTEBOOK = json.loads((ROOT / "docs/use.ipynb").read_text())
COMMAND = re.compile(r"^!((?:.*\\\n)*.*)$", re.MULTILINE)  # IPython's: a line of the shell, or several that go on


def run_command(command, names):
    """A line of the shell with Python's expressions in braces, as IPython runs it; it has to end well."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    filled = re.sub(r"\{(.+?)\}", lambda match: str(eval(match[1], names)), command)
    done = subprocess.run(filled, shell=True, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """The notebook's variables after its last cell, and how many `figures` its cells drew."""
    names = {"run_command": run_command, "figures": 0}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("notebook"))
        matplotlib.use("Agg")
        for cell in NOTEBOOK["cells"]:
            if cell["cell_type"] == "code":
                text = COMMAND.sub(lambda match: f"run_command({match[1]!r}, globals())", "".join(cell["source"]))
                exec(compile(text, f"docs/use.ipynb, cell {cell['id']}", "exec"), names)
                names["figures"] += len(plt.get_fignums())
                plt.close("all")
    return names


def test_the_notebook_is_kept_without_what_its_cells_print():
    assert [cell["id"] for cell in NOTEBOOK["cells"] if cell.get("outputs") or cell.get("execution_count")] == []


def test_the_notebook_reconstructs_images_by_their_tokens(names):
    assert names["originals"].shape == names["reconstructions"].shape == (8, 16, 16, 3)
    assert names["reconstructions"].dtype == np.uint8
    assert names["tokens"].shape == (8, 16, 1)
    np.testing.assert_array_equal(names["decoded"], names["reconstructions"])


def test_the_notebooks_reconstructions_are_nearer_to_their_own_originals(names):
    originals, reconstructions = (names[name].reshape(8, -1) / 255 for name in ("originals", "reconstructions"))
    distances = np.square(reconstructions[:, None] - originals[None]).mean(-1)
    assert np.diag(distances).mean() < distances.mean()


def test_the_notebooks_samples_depend_on_seed_and_temperature(names):
    for name in ("samples", "others", "cold"):
        assert names[name].shape == (8, 16, 16, 3)
    assert (names["samples"] != names["others"]).any()
    assert (names["samples"] != names["cold"]).any()


def test_the_notebooks_given_tokens_stay_and_the_others_are_drawn(names):
    tokens, completed = names["tokens"], names["completed"]
    np.testing.assert_array_equal(completed[:, :8], tokens[:, :8])
    assert (completed[:, 8:] >= 0).all()
    assert (completed[:, 8:] != tokens[:, 8:]).any()


def test_the_notebook_has_features_of_each_layer_and_finds_other_images_by_them(names):
    assert names["features"].shape == (len(names["images"]), 2, 32)
    assert np.isfinite(names["features"]).all()
    assert (names["nearest"] != names["chosen"]).all()


def test_the_notebook_draws_a_figure_for_each_of_its_subjects(names):
    assert names["figures"] == 4
