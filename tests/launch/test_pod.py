"""The scripts of launch/pod: the commands they would run, and what watch.sh does as a slice comes and goes.

No gcloud is needed: a script with that name comes first on PATH, and keeps what it is called with.
"""
import os
import pathlib
import re
import shlex
import subprocess

import pytest

POD = pathlib.Path(__file__).parents[2] / "launch/pod"
SLICE = "--zone=us-central2-b"

# Answers each question with the next line of a file, and with the last one for ever.
GCLOUD = """#!/usr/bin/env bash
echo "$*" >> calls
answer() { head -n 1 "$1"; [[ $(wc -l < "$1") -eq 1 ]] || sed -i 1d "$1"; }
case "$*" in
  *"queued-resources describe"*) answer slice ;;
  *"systemctl show"*SubState*) answer run ;;
  *"systemctl show"*Result*) answer how ;;
esac
"""


@pytest.fixture
def pod(tmp_path):
    """Runs a script of launch/pod in an empty folder."""
    (tmp_path / "bin").mkdir()
    for name, text in (("gcloud", GCLOUD), ("git", "#!/bin/sh\n")):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)

    def run(script, *arguments, returncode=0, **settings):
        path = f"{tmp_path}/bin:{os.environ['PATH']}"
        environment = {"PATH": path, "HOME": str(tmp_path), "TMPDIR": "/t", **settings}
        done = subprocess.run([POD / f"{script}.sh", *arguments], cwd=tmp_path, env=environment, capture_output=True,
                              text=True, timeout=60)
        assert done.returncode == returncode, done.stdout + done.stderr
        return done

    return run


@pytest.fixture
def dry(pod, tmp_path):
    """The words of each command that a script would run; none is run."""
    def run(script, *arguments, **settings):
        done = pod(script, "--dry_run", *arguments, **settings)
        assert not (tmp_path / "calls").exists() and done.stderr == ""
        return [shlex.split(line) for line in done.stdout.splitlines()]

    return run


def tpus(*words):
    return ["gcloud", "compute", "tpus", *words, SLICE]


def ssh(worker, command):
    return tpus("tpu-vm", "ssh", "vqim", f"--worker={worker}", f"--command={command}")


DESCRIBE = tpus("queued-resources", "describe", "vqim", "--format=value(state.state)")
CREATE = tpus("queued-resources", "create", "vqim", "--node-id=vqim", "--type=v4", "--topology=4x4x8",
              "--runtime-version=tpu-ubuntu2204-base")
DELETE = tpus("queued-resources", "delete", "vqim", "--force", "--quiet")
INSTALL = [
    ["git", "-C", f"{POD}/../..", "archive", "--format=tar.gz", "--output=/t/vqim-vqim.tar.gz", "HEAD"],
    tpus("tpu-vm", "scp", "/t/vqim-vqim.tar.gz", "vqim:vqim.tar.gz", "--worker=all"),
    ssh("all", "mkdir -p vqim && tar -xzf vqim.tar.gz -C vqim && bash vqim/launch/pod/setup_worker.sh bucket"),
]
STATE = ssh("0", "systemctl show vqim --property=SubState --value")


def test_a_slice_of_128_chips_is_asked_for_unless_another_is_named(dry):
    assert dry("create") == [CREATE, DESCRIBE]
    (create, _) = dry("create", POD_NAME="mine", POD_TYPE="v5p", POD_TOPOLOGY="2x2x1", POD_IMAGE="v2-alpha-tpuv5",
                      POD_ZONE="us-east5-a", POD_PROJECT="ours", POD_SPOT="1")
    assert shlex.join(create) == (
        "gcloud compute tpus queued-resources create mine --node-id=mine --type=v5p --topology=2x2x1 "
        "--runtime-version=v2-alpha-tpuv5 --spot --zone=us-east5-a --project=ours")


def test_all_machines_get_the_committed_state_and_install_it(dry):
    assert dry("install", POD_BUCKET="bucket") == INSTALL


def test_the_same_command_starts_on_all_machines_word_for_word(dry):
    flags = ["--gin_file=gin/exp/a.gin", "--gin_bindings=data.ImageFolder.path = '/mnt/a b'", "--workdir=/mnt/b/run"]
    (command,) = dry("run", "train", *flags)
    assert command[:-2] == ssh("all", "")[:-2] and command[-1] == SLICE
    # The shell of the machine splits what follows --command= once more.
    *before, start = command[-2].removeprefix("--command=").split("; ")
    assert [text.split(" 2>")[0] for text in before] == [
        "sudo systemctl stop vqim", "sudo systemctl reset-failed vqim"]
    words = shlex.split(start)
    assert words[:3] == ["sudo", "systemd-run", "--unit=vqim"] and "--setenv=PJRT_DEVICE=TPU" in words
    assert words[words.index("--") + 1:] == ["$HOME/vqim/.venv/bin/python", "-m", "launch.train", *flags]


@pytest.mark.parametrize("given", [None, "--xla_tpu_a=b --xla_tpu_c=d", ""])
def test_options_of_the_tpu_compiler_are_those_of_the_estimates_unless_given(dry, given):
    text = re.sub(r"\\\n\s*", "", (POD.parents[1] / "docs/tpu_estimates.md").read_text())
    documented = re.search(r'export LIBTPU_INIT_ARGS="([^"]*)"', text)[1]
    (command,) = dry("run", "train", **({} if given is None else {"POD_LIBTPU_ARGS": given}))
    words = shlex.split(command[-2].removeprefix("--command=").split("; ")[-1])
    (value,) = (word.removeprefix("--setenv=LIBTPU_INIT_ARGS=") for word in words if "LIBTPU_INIT_ARGS" in word)
    assert value == (documented if given is None else given)


@pytest.mark.parametrize(("given", "expected"), [
    ({}, ["/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4"]), ({"POD_PRELOAD": "/a.so"}, ["/a.so"]),
    ({"POD_PRELOAD": ""}, [])])
def test_runs_have_tcmalloc_unless_another_library_or_none_is_given(dry, given, expected):
    (command,) = dry("run", "train", **given)
    words = shlex.split(command[-2].removeprefix("--command=").split("; ")[-1])
    assert [word.partition("--setenv=LD_PRELOAD=")[2] for word in words if "LD_PRELOAD" in word] == expected


def test_the_options_that_launch_compile_reads_are_those_of_runs():
    text = re.sub(r"\\\n\s*", "", (POD.parents[1] / "docs/tpu_estimates.md").read_text())
    documented = re.search(r'export LIBTPU_INIT_ARGS="([^"]*)"', text)[1]
    assert " ".join((POD / "libtpu_args.txt").read_text().split()) == documented


def test_logs_are_the_first_machines_or_those_of_a_named_one(dry):
    command = "sudo journalctl --unit=vqim --lines=200 --follow --output=cat"
    assert dry("logs") == [ssh("0", command)]
    assert dry("logs", "3") == [ssh("3", command)]


def test_stopping_and_deleting(dry):
    assert dry("stop") == [ssh("all", "sudo systemctl stop vqim")]
    assert dry("delete") == [DELETE]


def test_watching_dry_shows_a_round_from_taking_away_to_running(dry):
    run, = dry("run", "train", "--end_if_hanging", "--workdir=/mnt/bucket/run")
    assert dry("watch", "train", "--workdir=/mnt/bucket/run", POD_BUCKET="bucket") == [
        DESCRIBE, DELETE, CREATE, DESCRIBE, *INSTALL, run, STATE]


@pytest.fixture
def watch(pod, tmp_path):
    """Watches a slice that goes through some states, its run through others; returns the verbs called, and the end."""
    def run(slices, runs, returncode, how="Result=exit-code ExecMainStatus=1", flags=()):
        (tmp_path / "slice").write_text("\n".join(slices) + "\n")
        (tmp_path / "how").write_text(how + "\n")
        (tmp_path / "run").write_text("\n".join(runs) + "\n")
        done = pod("watch", "train", "--workdir=/mnt/b/r", *flags, returncode=returncode, POD_SECONDS="0",
                   TMPDIR=str(tmp_path))
        calls = (tmp_path / "calls").read_text().splitlines()
        words = {"resources create": "create", "resources delete": "delete", "setup_worker": "install",
                 "systemd-run": "run"}
        return [name for call in calls for word, name in words.items() if word in call], done

    return run


def test_a_slice_is_made_and_the_command_started_and_watched_to_its_end(watch):
    verbs, done = watch(["MISSING", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"],
                        ["dead", "running", "running", "exited"], returncode=0)
    assert verbs == ["create", "install", "run"]
    assert done.stdout.endswith("vqim: the run has ended well.\n")


def test_a_slice_that_was_taken_away_is_made_anew_and_the_command_goes_on(watch):
    slices = ["ACTIVE"] * 3 + ["SUSPENDING", "SUSPENDED", "WAITING_FOR_RESOURCES", "ACTIVE"]
    verbs, _ = watch(slices, ["running", "failed", "unreachable", "dead", "running", "exited"], returncode=0)
    assert verbs == ["delete", "create", "install", "run"]


def test_a_run_that_fails_on_machines_that_are_well_ends_the_watch(watch):
    verbs, done = watch(["ACTIVE"], ["dead", "running", "failed"], returncode=1)
    assert verbs == ["install", "run"]
    assert "the run has failed; launch/pod/logs.sh shows why" in done.stderr


@pytest.mark.parametrize("how", ["Result=exit-code ExecMainStatus=70", "Result=signal ExecMainStatus=9"])
def test_a_run_that_hung_or_was_killed_is_started_again_on_the_same_machines(watch, how):
    verbs, _ = watch(["ACTIVE"], ["running", *["failed"] * 5, "running", "exited"], returncode=0, how=how)
    assert verbs == ["install", "run"]


@pytest.mark.parametrize("flags", [["--restore=8"], ["--restore", "8"]])
def test_a_step_to_restore_is_for_the_first_start_alone(watch, tmp_path, flags):
    watch(["ACTIVE"], ["dead", *["failed"] * 5, "running", "exited"], returncode=0,
          how="Result=signal ExecMainStatus=9", flags=flags)
    starts = [call for call in (tmp_path / "calls").read_text().splitlines() if "systemd-run" in call]
    assert [("--restore" in call, "--workdir=/mnt/b/r" in call) for call in starts] == [(True, True), (False, True)]


def test_a_run_that_hangs_again_and_again_ends_the_watch(watch):
    verbs, done = watch(["ACTIVE"], ["failed"], returncode=1, how="Result=exit-code ExecMainStatus=70")
    assert verbs == ["install", "run"] * 3
    assert "the run has failed; launch/pod/logs.sh shows why" in done.stderr


def test_a_slice_that_is_refused_is_no_slice(pod, tmp_path):
    (tmp_path / "slice").write_text("WAITING_FOR_RESOURCES\nFAILED\n")
    done = pod("create", returncode=1, POD_SECONDS="0")
    assert "vqim is FAILED, not ACTIVE" in done.stderr


@pytest.mark.parametrize("script", ["run", "watch"])
def test_a_command_without_a_program_is_refused(pod, script, tmp_path):
    assert "a program of launch/ and its flags" in pod(script, returncode=2).stderr
    assert not (tmp_path / "calls").exists()


@pytest.mark.parametrize("script", sorted(path.stem for path in POD.glob("*.sh") if path.stem not in (
    "settings", "setup_worker")))
def test_help_says_what_it_does_and_how(pod, script):
    text = pod(script, "--help").stdout
    assert f"launch/pod/{script}.sh" in text and "Settings: settings.sh." in text and "set -euo" not in text


def test_the_program_of_the_machines_is_a_shell_program():
    subprocess.run(["bash", "-n", POD / "setup_worker.sh"], check=True)
