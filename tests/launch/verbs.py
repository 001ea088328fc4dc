"""Runs the launch verbs as `python -m launch.<verb>` does, without importing torch again for every command.

Importing takes some seconds, a command on a tiny model a fraction of one: a server process that has imported the
libraries, and nothing else, is forked for each command (multiprocessing's fork server).
"""
import dataclasses
import multiprocessing
import os
import re
import runpy
import signal
import sys
import time

PRELOADED = ("launch.session", "vqim.evaluation.passes", "vqim.training.loop")
SECONDS = 120


@dataclasses.dataclass(frozen=True)
class Done:
    """A command that has ended: its exit code, what it printed, and what it logged."""

    code: int
    out: str
    err: str


class Verbs:
    """Runs commands in a working directory, in which gin files and relative paths are looked for.

    Args:
      directory: the working directory.
      logs: a folder for what they print.
      seconds: the time after which a command that has not ended is an error.
    """

    def __init__(self, directory, logs, seconds=SECONDS):
        self.directory, self._logs, self._seconds = directory, logs, seconds
        # On a machine that others use too, a second thread waits more than it computes.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(PRELOADED))

    def __call__(self, verb, *flags, **options):
        """Runs a command to its end, on the torch runtime."""
        return self.start(verb, *flags, **options).end()

    def start(self, verb, *flags, runtime="torch", file_size=None):
        """Starts a command; `file_size` limits the size of every file that it writes, in bytes."""
        output = [self._logs / f"{time.monotonic_ns()}.{name}" for name in ("out", "err")]
        process = self._context.Process(
            target=_run, args=(f"launch.{verb}", [*([f"--runtime={runtime}"] if verb != "compare" else []), *flags],
                               str(self.directory), output, file_size, dict(os.environ)))
        process.start()
        return Running(process, *output, self._seconds)

    def train(self, name, *bindings, workdir, **options):
        """`launch.train` with a file of gin/debug and some bindings; it has to end well."""
        done = self("train", *train_flags(f"gin/debug/{name}.gin", workdir, *bindings), **options)
        assert done.code == 0, done.err
        return done


def train_flags(file, workdir, *bindings):
    """The flags of `launch.train`."""
    return [f"--gin_file={file}", f"--workdir={workdir}", *(f"--gin_bindings={binding}" for binding in bindings)]


class Running:
    """A command that runs."""

    def __init__(self, process, out, err, seconds):
        self._process, self._out, self._err, self._seconds = process, out, err, seconds

    def end(self):
        """Waits for its end."""
        self._process.join(self._seconds)
        assert self._process.exitcode is not None, f"still running after {self._seconds} s:\n{self._err.read_text()}"
        return Done(self._process.exitcode, self._out.read_text(), self._err.read_text())

    def wait_for(self, text):
        """Waits until it has logged a line with this regular expression in it."""
        deadline = time.monotonic() + self._seconds
        while not self.has_logged(text):
            assert self._process.is_alive() and time.monotonic() < deadline, self.end().err
            time.sleep(0.005)

    def has_logged(self, text):
        """Whether it has logged a line with this regular expression in it."""
        return re.search(text, self._err.read_text() if self._err.exists() else "") is not None

    def is_alive(self):
        """Whether it has not ended yet."""
        return self._process.is_alive()

    def signal(self, number):
        """Sends it a signal."""
        os.kill(self._process.pid, number)


def _run(module, flags, directory, output, file_size, environment):
    """In the forked process: what `cd directory; python -m module flags > out 2> err` does."""
    os.environ |= environment  # the fork server's is that of the first command
    os.chdir(directory)
    for path, descriptor in zip(output, (1, 2), strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    if file_size is not None:
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, resource.RLIM_INFINITY))
    # The fork server ignores Ctrl-C, and its children inherit that; a shell's commands do not.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.path.insert(0, directory)  # where a plugin may be, as below the working directory of `python -m`
    sys.argv = [module, *flags]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
