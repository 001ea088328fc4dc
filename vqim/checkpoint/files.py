"""The small files beside the arrays, on a disk or in a bucket. `write` and `rename` survive a power cut."""
import contextlib
import fcntl
import os
import re
import shutil
import weakref
from collections.abc import Iterator
from typing import Any, Protocol

import tensorstore as ts

# One context for the process: two openings of `memory://` are the same store only within one context.
CONTEXT = ts.Context()

_URL = re.compile(r"[a-z0-9+]+://")
_OS_ERROR = re.compile(r"os_error_code='(\d+)'")
_DETAIL = re.compile(r" \[[\w -]+=")
_REFUSED = re.compile(r"PERMISSION_DENIED|UNAUTHENTICATED|Unauthorized|Forbidden|AccessDenied|ExpiredToken|credential",
                      re.IGNORECASE)


class Files(Protocol):
    """A directory; paths are relative to it, with slashes."""

    location: str
    can_rename: bool

    def kvstore(self, path: str) -> dict[str, Any]:
        """The directory `path` as a tensorstore key-value store."""
        ...

    def children(self) -> list[str]:
        """The names directly in the directory; none if it does not exist."""
        ...

    def paths(self, path: str) -> list[str]:
        """All files in the directory `path` and those below it, by their paths from there."""
        ...

    def read(self, path: str) -> bytes | None:
        """The contents of a file; None if there is no file."""
        ...

    def write(self, path: str, data: bytes) -> None:
        """Writes a file, and the directories above it; readers see all of it or nothing."""
        ...

    def sync(self, path: str) -> None:
        """Returns when all names in the directory `path` are durable; the files' contents already are."""
        ...

    def rename(self, old: str, new: str) -> None:
        """Renames a directory in one step."""
        ...

    def remove(self, path: str) -> None:
        """Removes a file, or a directory with all in it, if it exists."""
        ...

    def free_bytes(self) -> int | None:
        """The free space; None where it is unlimited or unknown."""
        ...

    def hold(self, path: str, *, shared: bool) -> "Hold | None":
        """Holds a directory against others who want to hold it too, of whom several may share it; '' is this one.

        Returns:
          The hold, which ends with this object; None if another process, or another part of this one, has it.
        """
        ...


class Hold:
    """Holds a directory until it is released or forgotten, or its process ends."""

    def __init__(self, descriptor: int | None) -> None:
        self.release = weakref.finalize(self, os.close, descriptor) if descriptor is not None else lambda: None


class LocalFiles:
    """A directory on a POSIX file system."""

    can_rename = True

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.location = os.path.abspath(directory)

    def kvstore(self, path: str) -> dict[str, Any]:
        return {"driver": "file", "path": self._absolute(path) + "/"}

    def children(self) -> list[str]:
        try:
            return sorted(os.listdir(self.location))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def paths(self, path: str) -> list[str]:
        top = self._absolute(path)
        return sorted(os.path.relpath(os.path.join(folder, name), top)
                      for folder, _, names in os.walk(top) for name in names)

    def read(self, path: str) -> bytes | None:
        try:
            with open(self._absolute(path), "rb") as file:
                return file.read()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, path: str, data: bytes) -> None:
        final = self._absolute(path)
        os.makedirs(os.path.dirname(final), exist_ok=True)
        with open(final + ".tmp", "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(final + ".tmp", final)
        _sync_directory(os.path.dirname(final))

    def sync(self, path: str) -> None:
        for directory, _, _ in os.walk(self._absolute(path)):
            _sync_directory(directory)

    def rename(self, old: str, new: str) -> None:
        os.rename(self._absolute(old), self._absolute(new))
        _sync_directory(self.location)

    def remove(self, path: str) -> None:
        if os.path.isdir(self._absolute(path)):
            shutil.rmtree(self._absolute(path))
        elif os.path.exists(self._absolute(path)):
            os.remove(self._absolute(path))
            _sync_directory(os.path.dirname(self._absolute(path)))

    def free_bytes(self) -> int | None:
        try:
            return shutil.disk_usage(self.location).free
        except OSError:
            return None

    def hold(self, path: str, *, shared: bool) -> Hold | None:
        """See `Files`. Where the file system has no locks on directories (some network mounts), nothing is held."""
        if not path:
            os.makedirs(self.location, exist_ok=True)
        descriptor = os.open(self._absolute(path), os.O_RDONLY)
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError:
            os.close(descriptor)
            return Hold(None)
        return Hold(descriptor)

    def _absolute(self, path: str) -> str:
        return os.path.join(self.location, path)


class BucketFiles:
    """A prefix in an object store. An object is durable and visible to all when its write returns.

    What fails because the network or the store does is tried again, by tensorstore: up to 32 times, after 1 s and then
    twice as long each time, up to 32 s.
    """

    can_rename = False

    def __init__(self, url: str) -> None:
        self.location = url.rstrip("/")
        with os_errors():
            self._spec = ts.KvStore.Spec(self.location + "/").to_json()
            if self._spec["driver"] == "s3":
                self._spec |= _s3_options()
            self._store = ts.KvStore.open(self._spec, context=CONTEXT).result()

    def kvstore(self, path: str) -> dict[str, Any]:
        return {**self._spec, "path": f"{self._spec['path']}{path}/"}

    def children(self) -> list[str]:
        with os_errors():
            return sorted({key.decode().split("/")[0] for key in self._store.list().result()})

    def paths(self, path: str) -> list[str]:
        below = ts.KvStore.KeyRange(f"{path}/", f"{path}0")  # '0' follows '/'
        with os_errors():
            return sorted(key.decode() for key in self._store.list(below, strip_prefix_length=len(path) + 1).result())

    def read(self, path: str) -> bytes | None:
        return self.read_generation(path)[0]

    def read_generation(self, path: str) -> tuple[bytes | None, bytes]:
        """The contents of an object, or None, and what `write_if` calls this state of it."""
        with os_errors():
            found = self._store.read(path).result()
        return found.value if found.state == "value" else None, found.stamp.generation

    def write(self, path: str, data: bytes) -> None:
        with os_errors():
            self._store.write(path, data).result()

    def write_if(self, path: str, data: bytes | None, generation: bytes) -> bytes | None:
        """Writes an object, or removes it, if nobody has changed it since `read_generation` or `write_if`.

        Returns:
          The object's new generation; None if somebody has changed it.
        """
        with os_errors():
            written = self._store.write(path, data, if_equal=generation).result()
        return written.generation or None

    def sync(self, path: str) -> None:
        """Returns at once: objects are already durable."""

    def rename(self, old: str, new: str) -> None:
        raise OSError(f"{self.location}: an object store cannot rename {old} to {new} in one step")

    def remove(self, path: str) -> None:
        with os_errors():
            self._store.delete_range(ts.KvStore.KeyRange(f"{path}/", f"{path}0")).result()  # '0' follows '/'
            self._store.write(path, None).result()

    def free_bytes(self) -> int | None:
        return None

    def hold(self, path: str, *, shared: bool) -> Hold | None:
        """See `Files`. An object store has no locks: nothing is held."""
        return Hold(None)


def _s3_options() -> dict[str, Any]:
    """What tensorstore needs to know of an S3 store, from the environment variables that other S3 programs read."""
    # Unless told, tensorstore takes Amazon alone to know conditional writes; other stores it would ask and then write.
    options: dict[str, Any] = {"use_conditional_write": True}
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        options |= {"endpoint": endpoint, "aws_region": region}
    return options


def open_files(directory: str | os.PathLike[str]) -> Files:
    """The directory at a path, or at a URL such as gs://bucket/run/checkpoints."""
    return BucketFiles(str(directory)) if is_url(directory) else LocalFiles(directory)


def is_url(directory: str | os.PathLike[str]) -> bool:
    """Whether this names a place in an object store, and no path."""
    return isinstance(directory, str) and _URL.match(directory) is not None


@contextlib.contextmanager
def os_errors() -> Iterator[None]:
    """A context that turns tensorstore's errors, all ValueErrors, into the OSErrors that they report."""
    try:
        yield
    except ValueError as error:
        code = _OS_ERROR.search(str(error))
        message = _first_sentence(str(error))
        if not code and _REFUSED.search(str(error)):
            message = (message.rstrip(".") + ". The store refuses this process: look at its credentials "
                       "(docs/reliability.md#object-stores)")
        raise (OSError(int(code[1]), message) if code else OSError(message)) from error


def _first_sentence(message: str) -> str:
    """A tensorstore message without the details in brackets that follow it."""
    return _DETAIL.split(message)[0]


def _sync_directory(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
