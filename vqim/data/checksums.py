"""Checksums of a token cache: a CRC-32 of every row, so that a batch checks what it reads, and SHA-256 of the rest."""
import hashlib
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

_FIELD = "sha256"


def row_checksums(rows: np.ndarray) -> np.ndarray:
    """The CRC-32 of each row's bytes, uint32 [rows]; rows are [rows, ...] of any dtype."""
    return np.array([zlib.crc32(row.tobytes()) for row in rows], np.uint32)


def damaged_rows(rows: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """The places of rows that have another checksum than expected, int64 [damaged]."""
    return np.flatnonzero(row_checksums(rows) != expected)


def sealed(folder: Path, fields: Mapping[str, Any], files: tuple[str, ...]) -> str:
    """JSON with the fields, the SHA-256 of some files in a folder, and one of all this."""
    return _text({**fields, "files": {name: _file_digest(folder / name) for name in files}})


def unsealed(path: Path) -> dict[str, Any]:
    """The fields that `sealed` was given, when neither they nor the files have changed since.

    Raises:
      ValueError: something has changed, or this was not written by `sealed`; the message has the file's name.
    """
    text = path.read_text(errors="replace")
    fields = json.loads(text)
    fields.pop(_FIELD)
    if text != _text(fields):
        raise ValueError(f"the checksum of {path.name} does not match")
    for name, expected in fields.pop("files").items():
        if not (path.parent / name).is_file() or _file_digest(path.parent / name) != expected:
            raise ValueError(f"the checksum of {name} does not match, or it is missing")
    return dict(fields)


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _text(fields: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
    return json.dumps({**fields, _FIELD: digest}, indent=2, sort_keys=True) + "\n"
