"""A checkpoint's networks as one file in the safetensors format, which other programs read too, with its configuration.

The format is eight bytes with the length of a JSON header, the header, and the arrays' bytes one after the other
(https://huggingface.co/docs/safetensors). It is written and read here array by array, so that no second copy of a
large model is in memory; nothing in it can run, as a pickle can. Of its own it has no checksums: `__metadata__` has
one for every array, and one for all the rest of the header.
"""
import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vqim.checkpoint import seal
from vqim.checkpoint.errors import CheckpointError
from vqim.checkpoint.reader import NamedArrays
from vqim.checkpoint.store import numpy_dtype
from vqim.state.init import Index

FORMAT = "vqim 1"

_DTYPES = {
    "bool": "BOOL", "int8": "I8", "int16": "I16", "int32": "I32", "int64": "I64", "uint8": "U8", "uint16": "U16",
    "uint32": "U32", "uint64": "U64", "bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
}
_NAMES = {code: name for name, code in _DTYPES.items()}
_LENGTH = struct.Struct("<Q")


def export(
    path: str | os.PathLike[str], source: NamedArrays, names: Mapping[str, str], about: Mapping[str, object],
) -> None:
    """Writes arrays of a checkpoint into one file, completely or not at all.

    Args:
      path: the file.
      source: the checkpoint.
      names: names in the file -> names in the checkpoint.
      about: what readers need to know besides: configuration, step ...; JSON.

    Raises:
      CheckpointError: an array is damaged.
      ValueError: an array has a dtype that the format has not.
      OSError: the file cannot be written.
    """
    header: dict[str, Any] = {}
    position = 0
    for name, there in names.items():
        shape, dtype = source.spec(there)
        if dtype.name not in _DTYPES:
            raise ValueError(f"{there} must have one of the dtypes {', '.join(_DTYPES)}, got {dtype.name}")
        end = position + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        header[name] = {"dtype": _DTYPES[dtype.name], "shape": list(shape), "data_offsets": [position, end]}
        position = end
    # All checksums have the same length, so the header's length is known before they are.
    blank = dict.fromkeys(names, seal.digest(b""))
    start = _LENGTH.size + len(_header(header, about, blank))
    temporary = Path(f"{os.fspath(path)}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.seek(start)
            digests = {}
            for name, there in names.items():
                data = np.ascontiguousarray(source.read(there)).tobytes()
                digests[name] = seal.digest(data)
                file.write(data)
            file.seek(0)
            encoded = _header(header, about, digests)
            file.write(_LENGTH.pack(len(encoded)) + encoded)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class Exported(NamedArrays):
    """A file from `export`, open for reading.

    Attributes:
      about: what was given to `export`.
      step: the step of the checkpoint that it was made from.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Opens a file.

        Raises:
          CheckpointError: it is not such a file, is damaged, or was not written by `export`.
          OSError: it cannot be read.
        """
        self._path = Path(path)
        with open(self._path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            prefix = file.read(_LENGTH.size)
            length = _LENGTH.unpack(prefix)[0] if len(prefix) == _LENGTH.size else size
            encoded = file.read(length) if length < size else b""
        try:
            header = json.loads(encoded)
            metadata = header.pop("__metadata__")
            self.about, self._digests = json.loads(metadata["about"]), json.loads(metadata["sha256"])
            is_whole = encoded == _header(header, self.about, self._digests) and metadata["format"] == FORMAT
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{self._path} is damaged, or not a file that launch.checkpoint has exported: "
                                  f"{error!r}") from error
        if not is_whole:
            raise CheckpointError(f"{self._path} is damaged: the checksum of its header does not match")
        self.step = self.about["step"]
        self._start = _LENGTH.size + length
        self._places = {name: entry["data_offsets"][0] for name, entry in header.items()}
        self._checked: set[str] = set()
        super().__init__(os.fspath(path), {
            "seed": self.about["seed"], "step": self.step,
            "arrays": {name: {"shape": entry["shape"], "dtype": _NAMES[entry["dtype"]]}
                       for name, entry in header.items()}})

    def read(self, name: str, index: Index | None = None) -> np.ndarray:
        """See `Checkpoint.read`."""
        shape, dtype = self.spec(name)
        try:
            array = np.memmap(self._path, np.uint8, "r", self._start + self._places[name],
                              int(np.prod(shape, dtype=np.int64)) * dtype.itemsize) if 0 not in shape else np.empty(
                                  0, np.uint8)
        except ValueError as error:  # the file is shorter
            raise CheckpointError(f"{self._path} is damaged: it is cut off before the end of {name}") from error
        if name not in self._checked:
            if seal.digest(array.tobytes()) != self._digests[name]:
                raise CheckpointError(f"{self._path} is damaged: the checksum of {name} does not match")
            self._checked.add(name)
        whole = array.view(numpy_dtype(dtype.name)).reshape(shape)
        return np.array(whole if index is None else whole[index])


def _header(arrays: Mapping[str, Any], about: Mapping[str, object], digests: Mapping[str, str]) -> bytes:
    """The header as bytes, of a length that keeps the arrays aligned to eight bytes."""
    metadata = {"format": FORMAT, "about": _json(about), "sha256": _json(digests)}
    metadata["header_sha256"] = seal.digest(_json({"arrays": arrays, **metadata}).encode())
    encoded = _json({"__metadata__": metadata, **arrays}).encode()
    return encoded + b" " * (-len(encoded) % 8)


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, allow_nan=False)
