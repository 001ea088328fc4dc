"""run.json: facts about a run's data, written when the run starts, so that readers of the run do not need the data."""
import dataclasses
import json
import os
from pathlib import Path

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


def write_facts(workdir: str | os.PathLike[str], data: Dataset) -> None:
    """Writes run.json, completely or not at all."""
    facts = Facts(data.image_size, tuple(data.class_names),
                  {split: data.num_examples(split) for split in ("train", "validation")})
    path = Path(workdir) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(dataclasses.asdict(facts), indent=2) + "\n")
    temporary.replace(path)


def read_facts(workdir: str | os.PathLike[str]) -> Facts:
    """Reads run.json.

    Raises:
      ValueError: the file is missing or damaged.
    """
    path = Path(workdir) / FILE
    try:
        found = json.loads(path.read_text())
        return Facts(found["image_size"], tuple(found["class_names"]), found["num_examples"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} must say what the run's data are, as training writes it at its start; it cannot be "
                         f"read: {error!r}. Start the run's training command again to write it") from error
