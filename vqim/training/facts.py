"""run.json: facts about a run's data, written when the run starts, so that readers of the run do not need the data."""
import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

from vqim.checkpoint import seal
from vqim.checkpoint.errors import CheckpointError
from vqim.checkpoint.files import open_files
from vqim.contracts.data import Dataset

FILE = "run.json"


@dataclasses.dataclass(frozen=True)
class Facts:
    """About the data that a run was trained on.

    Attributes:
      image_size: height and width of the images, in pixels.
      class_names: names of the classes, in the order of the labels; empty without classes.
      num_examples: the number of examples by split.
    """

    image_size: int
    class_names: tuple[str, ...]
    num_examples: dict[str, int]

    def as_json(self) -> dict[str, Any]:
        """The facts as values that JSON can hold."""
        return dataclasses.asdict(self)


def write_facts(workdir: str | os.PathLike[str], data: Dataset) -> None:
    """Writes run.json, completely or not at all."""
    facts = Facts(data.image_size, tuple(data.class_names),
                  {split: data.num_examples(split) for split in ("train", "validation")})
    open_files(workdir).write(FILE, seal.seal(FILE, facts.as_json()))


def facts_from(fields: Mapping[str, Any]) -> Facts:
    """Facts from the fields of a JSON object."""
    return Facts(fields["image_size"], tuple(fields["class_names"]), dict(fields["num_examples"]))


def read_facts(workdir: str | os.PathLike[str]) -> Facts:
    """Reads run.json.

    Raises:
      ValueError: the file is missing or damaged.
    """
    path = f"{workdir}/{FILE}"
    try:
        data = open_files(workdir).read(FILE)
        if data is None:
            raise FileNotFoundError("it is missing")
        found = json.loads(data)
        # Files of the first versions have these fields alone, and no checksum.
        if found.keys() != {"image_size", "class_names", "num_examples"}:
            found = seal.unseal(data, path)
        return facts_from(found)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, CheckpointError) as error:
        reason = "its checksum does not match" if isinstance(error, CheckpointError) else repr(error)
        raise ValueError(f"{path} must say what the run's data are, as training writes it at its start; it cannot be "
                         f"read: {reason}. Start the run's training command again to write it") from error
