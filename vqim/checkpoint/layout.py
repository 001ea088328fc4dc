"""Names and formats of a checkpoint's files. This file does not access a disk.

    <directory>/00001000/            one committed step; 00001000.tmp while it is being written
      commit.json                    written last: without it the step does not exist; has checksums of all small files
      metadata.json                  schema version, step, shape and dtype of every array, the run's own fields
      config.gin
      state/manifest.ocdbt, d/       the merged index over all processes' arrays
      state/process_<k>/             the arrays that process k wrote, an OCDBT database of its own
      shards/<k>.json                which shards process k held
      data/<k>.json                  position of process k in the data; its presence means that k wrote everything
      measured.json                  results of evaluations of this step, written when they are there
    <directory>/00001000.aside/      a step that is no longer the run's: the run was taken up again from an earlier one
"""
import json
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from vqim.checkpoint.errors import CheckpointError

SCHEMA_VERSION = 2
"""Version 1 had no checksums of small files; it is still read."""

COMMIT_FILE = "commit.json"
METADATA_FILE = "metadata.json"
CONFIG_FILE = "config.gin"
MEASURED_FILE = "measured.json"
STATE = "state"
TEMPORARY_SUFFIX = ".tmp"
ASIDE_SUFFIX = ".aside"

REMEDY = "open an earlier step; --restore=latest_valid takes the newest that is whole"
"""What to do about a damaged checkpoint."""

_STEP = re.compile(r"\d{8,}")
_RESERVED = ("schema_version", "step", "process_count", "arrays")


class ArraySpec(NamedTuple):
    """An array on disk: its shape, the name of its dtype, and the shape of one chunk."""

    shape: tuple[int, ...]
    dtype: str
    chunks: tuple[int, ...]


def step_name(step: int) -> str:
    """The name of a committed step's directory."""
    return f"{step:08d}"


def temporary_name(step: int) -> str:
    """The name of a step's directory before it is committed by renaming."""
    return step_name(step) + TEMPORARY_SUFFIX


def parse_step(name: str) -> int | None:
    """The step whose directory has this name; None for temporary directories and all other names."""
    if _STEP.fullmatch(name) and step_name(int(name)) == name:
        return int(name)
    return None


def parse_temporary(name: str) -> int | None:
    """The step whose temporary directory has this name; None for all other names."""
    return parse_step(name.removesuffix(TEMPORARY_SUFFIX)) if name.endswith(TEMPORARY_SUFFIX) else None


def process_state(process_index: int) -> str:
    """The directory in which a process writes its arrays."""
    return f"{STATE}/process_{process_index}"


def shards_file(process_index: int) -> str:
    """The file in which a process lists the shards that it holds."""
    return f"shards/{process_index}.json"


def data_file(process_index: int) -> str:
    """The file in which a process writes its position in the data."""
    return f"data/{process_index}.json"


def to_json(what: str, value: object) -> bytes:
    """Writes strict JSON: a NaN, or an object that JSON does not know, is a ValueError here and not when reading."""
    try:
        return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} must be JSON (dicts, lists, strings, finite numbers, None): {error}") from error


def from_json(data: bytes | None, where: str) -> dict[str, Any]:
    """Parses one of a checkpoint's files; a missing or truncated file is a damaged checkpoint."""
    if data is None:
        raise CheckpointError(f"{where} is missing: the checkpoint is damaged, {REMEDY}")
    try:
        value = json.loads(data)
    except ValueError as error:
        raise CheckpointError(f"{where} is damaged ({error}): {REMEDY}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{where} is damaged (expected a JSON object): {REMEDY}")
    return value


def check_extra_metadata(extra: Mapping[str, object]) -> None:
    """Raises ValueError if a run's own metadata would hide one of our fields, or are not JSON."""
    hidden = sorted(set(extra) & set(_RESERVED))
    if hidden:
        raise ValueError(f"metadata must not have the keys {hidden}: a checkpoint has its own fields of these names")
    to_json("metadata", extra)


def encode_metadata(
    step: int, process_count: int, arrays: Mapping[str, ArraySpec], extra: Mapping[str, object],
) -> bytes:
    """The contents of metadata.json."""
    return to_json(METADATA_FILE, {
        **extra, "schema_version": SCHEMA_VERSION, "step": step, "process_count": process_count,
        "arrays": {name: {"shape": spec.shape, "dtype": spec.dtype, "chunks": spec.chunks}
                   for name, spec in arrays.items()},
    })


def decode_metadata(data: bytes | None, where: str) -> dict[str, Any]:
    """Parses metadata.json.

    Raises:
      CheckpointError: the file is missing or damaged, or its schema is newer than this program knows.
    """
    metadata = from_json(data, where)
    version = metadata.get("schema_version")
    refuse_newer(version, where)
    if version not in range(1, SCHEMA_VERSION + 1) or not set(_RESERVED) <= set(metadata):
        raise CheckpointError(f"{where} is damaged (fields {sorted(metadata)}): {REMEDY}")
    return metadata


def refuse_newer(version: object, where: str) -> None:
    """Raises CheckpointError if a file has a schema that is newer than this program knows."""
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise CheckpointError(
            f"{where} has schema version {version}, this program reads up to {SCHEMA_VERSION}: update vqim")


def aside_name(step: int, number: int = 1) -> str:
    """The name of a step's directory when it has been set aside for the `number`-th time."""
    return step_name(step) + (f".{number}" if number > 1 else "") + ASIDE_SUFFIX


def finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics that are finite; others are never the best, and JSON has no words for them."""
    return {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
