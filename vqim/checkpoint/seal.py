"""Checksums of a checkpoint's small files. Arrays have their own: a CRC-32C in every chunk and every node of the index.

A sealed file is JSON that holds the SHA-256 of all its other fields. A step's commit file is sealed, and has the
SHA-256 of each of the step's other small files; so one changed byte in any of them is found.
"""
import hashlib
from collections.abc import Mapping
from typing import Any

from vqim.checkpoint import layout
from vqim.checkpoint.errors import CheckpointError

_FIELD = "sha256"


def digest(data: bytes) -> str:
    """The SHA-256 of a file's contents, as hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def seal(what: str, fields: Mapping[str, object]) -> bytes:
    """JSON with a checksum of itself."""
    return layout.to_json(what, {**fields, _FIELD: digest(layout.to_json(what, fields))})


def unseal(data: bytes | None, where: str) -> dict[str, Any]:
    """The fields of a sealed file, without the checksum.

    Raises:
      CheckpointError: the file is missing, is not JSON, or is not byte for byte what was written.
    """
    fields = layout.from_json(data, where)
    fields.pop(_FIELD, None)
    if data != seal(where, fields):
        raise CheckpointError(f"{where} is damaged (its checksum does not match): {layout.REMEDY}")
    return fields


def check(data: bytes | None, expected: str | None, where: str) -> bytes:
    """A file's contents, checked against its checksum; None is the checksum of a file that was saved without one.

    Raises:
      CheckpointError: the file is missing or changed.
    """
    if data is None:
        raise CheckpointError(f"{where} is missing: the checkpoint is damaged, {layout.REMEDY}")
    if expected is not None and digest(data) != expected:
        raise CheckpointError(f"{where} is damaged (its checksum does not match): {layout.REMEDY}")
    return data
