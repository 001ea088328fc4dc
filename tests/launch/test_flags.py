"""The launch verbs' flags, messages and exit codes, each in a process of its own (absl's flags are global)."""
import re
import subprocess
import sys

import pytest

from tests.support.processes import ROOT

VERB = """
import gin
from absl import logging
from launch import flags

DRY_RUN = flags.define_dry_run()

def toy(*, num_steps: int = 1):
    logging.info("%d steps", num_steps)
    logging.warning("on %s in %s", flags.RUNTIME.value, flags.WORKDIR.value)
    logging.debug("dry: %s", DRY_RUN.value)

gin.register(toy, module="testing")
flags.run(lambda: flags.load_config().call("toy"))
"""


@pytest.fixture
def launch(tmp_path):
    """Runs the verb with flags, in an empty working directory."""
    (tmp_path / "verb.py").write_text(VERB)

    def run(*arguments):
        command = [sys.executable, str(tmp_path / "verb.py"), *arguments]
        return subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)

    return run


def test_messages_have_the_time_and_no_place_in_the_code(launch):
    done = launch("--gin_bindings=toy.num_steps = 3", "--workdir=/w")
    assert done.returncode == 0
    time = r"\d\d:\d\d:\d\d"
    assert re.fullmatch(rf"{time} 3 steps\n{time} WARNING on auto in /w\n", done.stderr)


def test_v_1_shows_debug_messages_and_the_lines_that_logged_them(launch):
    done = launch("-v", "1", "--dry_run", "--runtime=torch")
    assert re.search(r" 1 steps  \[verb.py:\d+\]\n", done.stderr)
    assert re.search(r" DEBUG dry: True  \[verb.py:\d+\]\n", done.stderr)


def test_v_minus_1_shows_warnings_only(launch):
    assert re.fullmatch(r"\d\d:\d\d:\d\d WARNING on auto in None\n", launch("-v", "-1").stderr)


def test_files_bindings_and_search_paths_come_from_the_flags(launch, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/a.gin").write_text("include 'b.gin'\n")
    (tmp_path / "folder/b.gin").write_text("toy.num_steps = 7\n")
    (tmp_path / "c.gin").write_text("N = 8\ntoy.num_steps = %N\n")
    files = ("--gin_search_path=/nowhere,folder", "--gin_file=a.gin")
    assert " 7 steps" in launch(*files).stderr
    assert " 8 steps" in launch(*files, "--gin_file=c.gin").stderr
    assert " 10 steps" in launch(*files, "--gin_file=c.gin", "--gin_bindings=N = 9", "--gin_bindings=N = 10").stderr


def test_a_flag_that_a_program_does_not_read_is_refused_and_not_in_its_help(launch, tmp_path):
    (tmp_path / "verb.py").write_text(VERB[:VERB.rindex("flags.run")] + "flags.run(print, without=('restore',))")
    done = launch("--restore=3")
    assert done.returncode == 1 and "--restore has no meaning here." in done.stderr + done.stdout
    shown = launch("--help").stdout
    assert "--workdir" in shown and "--restore" not in shown


def test_a_refused_configuration_exits_with_2_and_shows_no_traceback(launch):
    done = launch("--gin_bindings=toy.num_stpes = 3")
    assert done.returncode == 2
    assert done.stderr.startswith("The configuration was refused.\n--gin_bindings number 1: ")
    assert "Did you mean num_steps?" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_refused_configuration_shows_its_traceback_with_v_1(launch):
    done = launch("-v", "1", "--gin_bindings=toy.num_stpes = 3")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


@pytest.mark.parametrize("error", [
    "vqim.data.faults.TooManyCorruptError('2 of 9 images are corrupt')",
    "vqim.data.faults.WrongExampleError('2 of 9 images are corrupt.')",
    "OSError(5, '2 of 9 images are corrupt')",
])
def test_damaged_data_are_told_in_a_sentence_by_every_verb(launch, tmp_path, error):
    (tmp_path / "verb.py").write_text(
        f"import vqim.data.faults\nfrom launch import flags\ndef main():\n    raise {error}\nflags.run(main)\n")
    done = launch()
    assert (done.returncode, done.stderr) == (
        1, "Stopped: 2 of 9 images are corrupt (-v 1 shows where it happened).\n")


@pytest.mark.parametrize(("argument", "message"), [
    ("a.gin", "Expected only flags, got 'a.gin'"),
    ("--gin_fil=a.gin", "Unknown command line flag 'gin_fil'. Did you mean: gin_file"),
    ("--runtime=gpu", "value should be one of <auto|torch|xla>"),
])
def test_a_wrong_command_line_is_refused_with_what_was_expected(launch, argument, message):
    done = launch(argument)
    assert done.returncode == 1
    assert message in done.stderr + done.stdout
