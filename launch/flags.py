"""The flags of the launch verbs, the format of their messages, and how a wrong configuration ends the program.

    from . import flags     # relative: the wheel holds this folder as vqim._launch

    def main() -> None:
        config = flags.load_config()
        ...

    def run() -> None:      # also the console script's entry
        flags.run(main)

    if __name__ == "__main__":
        run()
"""
import errno
import logging as python_logging
import os
import re
import sys
from collections.abc import Callable
from typing import Literal

from absl import app, flags, logging

from vqim.checkpoint.errors import CheckpointError
from vqim.data.faults import TooManyCorruptError, WrongExampleError
from vqim.registry.config import Config, ConfigError, load

GIN_FILE = flags.DEFINE_multi_string(
    "gin_file", [],
    "A gin file, such as gin/exp/foo.gin: looked for in the working directory, in --gin_search_path, in the "
    "checkout and in the installed package. May be given several times; later files win.",
)
GIN_BINDINGS = flags.DEFINE_multi_string(
    "gin_bindings", [],
    "One binding that wins over the files, such as --gin_bindings='train.num_steps = 100'; text needs quotes of its "
    "own, --gin_bindings='data.ImageFolder.path = \"/x\"'. May be given several times.",
)
GIN_SEARCH_PATH = flags.DEFINE_list(
    "gin_search_path", [], "Folders, separated by commas, in which gin files and what they include are looked for.",
)
WORKDIR = flags.DEFINE_string(
    "workdir", None,
    "The run's directory: its configuration, checkpoints and metrics. A path, or s3://bucket/run, gs://bucket/run.",
)
RESTORE = flags.DEFINE_string(
    "restore", "latest",
    "The checkpoint to read, or to go on from: latest, latest_valid (the newest that is whole), or a step's number. "
    "Training sets newer ones aside.",
)
RUNTIME = flags.DEFINE_enum(
    "runtime", "auto", ["auto", "torch", "xla"],
    "What computes. torch: CPU or CUDA. xla: TPU, or CPU as a test bed. auto: a TPU if there is one, else torch.",
)


def define_dry_run() -> flags.FlagHolder[bool]:
    """Defines --dry_run, for the verbs that build a task."""
    return flags.DEFINE_bool(
        "dry_run", False,
        "Build everything, print the configuration, parameters, FLOPs and memory, and stop before any work.",
    )


def workdir() -> str | None:
    """--workdir, where ~ is the user's own folder."""
    return path(WORKDIR)


def restore() -> int | Literal["latest_valid"] | None:
    """--restore: a step, 'latest_valid', or None for the newest."""
    text = RESTORE.value
    if text == "latest_valid":
        return "latest_valid"
    if text != "latest" and not re.fullmatch(r"\d+", text):
        raise ConfigError(f"--restore must be latest, latest_valid or the number of a step, got {text}")
    return None if text == "latest" else int(text)


def gin_files() -> list[str]:
    """--gin_file, where ~ is the user's own folder."""
    return paths(GIN_FILE)


def path(flag: flags.FlagHolder[str | None]) -> str | None:
    """A flag's path, where ~ is the user's own folder."""
    return os.path.expanduser(flag.value) if flag.value else None


def paths(flag: flags.FlagHolder[list[str]]) -> list[str]:
    """The paths of a flag that may be given several times, where ~ is the user's own folder."""
    return [os.path.expanduser(name) for name in flag.value]


def load_config() -> Config:
    """The configuration that the flags give; raises ConfigError like `vqim.registry.config.load`."""
    return load(gin_files(), GIN_BINDINGS.value, GIN_SEARCH_PATH.value)


def run(main: Callable[..., None], words: tuple[str, ...] = (), without: tuple[str, ...] = ()) -> None:
    """Parses the flags and calls `main`; a ConfigError is printed without its traceback and exits with code 2.

    What the file system refuses, and damaged checkpoints and data, are told in a sentence too, and exit with code 1.
    Where there are `words`, one of them has to stand among the flags, and `main` gets it. `without` has the names of
    those of the flags above that `main` does not read: --help leaves them out, and they are refused.

    With -v 1 (absl's --verbosity), messages show where they were logged, and errors show their traceback.
    """
    def guarded(arguments: list[str]) -> None:
        given = arguments[1:]
        if words and (len(given) != 1 or given[0] not in words):
            raise app.UsageError(f"Expected one of {', '.join(words)}; got {' '.join(given)!r}. See --help.")
        if given and not words:
            raise app.UsageError(f"Expected only flags, got {' '.join(given)!r}. See --help.")
        for name in without:
            if flags.FLAGS[name].present:
                raise app.UsageError(f"--{name} has no meaning here. See --help.")
        set_up_logging()
        try:
            main(*given)
        except ConfigError as error:
            if logging.level_debug():
                raise
            print(f"The configuration was refused.\n{error}", file=sys.stderr)
            sys.exit(2)
        except (OSError, CheckpointError, TooManyCorruptError, WrongExampleError) as error:
            if logging.level_debug():
                raise
            sys.exit(f"Stopped: {sentence(error).rstrip('.')} (-v 1 shows where it happened).")

    # absl's --help shows only the flags of the main module, but these belong to every verb.
    for flag in flags.FLAGS.flags_by_module_dict()[__name__]:
        if flag.name not in without:
            flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    app.run(guarded)


def sentence(error: Exception) -> str:
    """An error in words: of the operating system's errors what failed, with which file."""
    if isinstance(error, OSError) and error.strerror:
        files = [str(name) for name in (error.filename, error.filename2) if name]
        # Writing to an open file fails without its name.
        unnamed = error.errno in (errno.ENOSPC, errno.EDQUOT) and not files
        return ": ".join([*files, error.strerror]) + " where this command writes its files" * unnamed
    return str(error) or type(error).__name__


def set_up_logging() -> None:
    """Shows INFO and above as `12:34:56 message`; absl by itself shows warnings and above."""
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.INFO)
    logging.get_absl_handler().setFormatter(_Formatter())


class _Formatter(python_logging.Formatter):
    """Time, the level where it is not INFO, and the message; with -v 1 also the line that logged it."""

    def format(self, record: python_logging.LogRecord) -> str:
        level = "" if record.levelno == python_logging.INFO else f"{record.levelname} "
        place = f"  [{record.filename}:{record.lineno}]" if logging.level_debug() else ""
        text = f"{self.formatTime(record, '%H:%M:%S')} {level}{record.getMessage()}{place}"
        return text if record.exc_info is None else f"{text}\n{self.formatException(record.exc_info)}"
