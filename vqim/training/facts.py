"""What a run directory says of its data from the start, so that whoever reads the run needs no data: run.json."""
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
      class_names: of the labels; empty without classes.
      num_examples: by split.
    """

    image_size: int
    class_names: tuple[str, ...]
    num_examples: dict[str, int]


def write_facts(workdir: str | os.PathLike[str], data: Dataset) -> None:
    """Writes them, whole or not at all."""
    facts = Facts(data.image_size, tuple(data.class_names),
                  {split: data.num_examples(split) for split in ("train", "validation")})
    path = Path(workdir) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(dataclasses.asdict(facts), indent=2) + "\n")
    temporary.replace(path)


def read_facts(workdir: str | os.PathLike[str]) -> Facts:
    """What was written.

    Raises:
      ValueError: the file is missing or damaged.
    """
    path = Path(workdir) / FILE
    try:
        found = json.loads(path.read_text())
        return Facts(found["image_size"], tuple(found["class_names"]), found["num_examples"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} must say what the run's data are, as training writes it at its start; it cannot be "
                         f"read: {error!r}. Start the run's training command again to write it anew") from error
