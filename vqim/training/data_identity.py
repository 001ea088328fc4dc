"""Which data a run has been trained on, and whether they are still the same.

Every checkpoint holds the classes, the numbers of examples, and a fingerprint of the list of examples. Other classes
are never accepted: labels would mean other things. Other examples are accepted on purpose, or with a warning where
their number is the same.
"""
from typing import Any

from absl import logging

from vqim.contracts.data import Dataset

SPLITS = ("train", "validation")


class DataChangedError(ValueError):
    """The data are not those with which the run began."""


def identity(data: Dataset) -> dict[str, Any]:
    """What is known of a data set, as values that JSON can hold; takes the fingerprints if the data set has them."""
    fingerprint = getattr(data, "fingerprint_of", None)
    return {
        "classes": list(data.class_names),
        "num_examples": {split: data.num_examples(split) for split in SPLITS},
        "fingerprints": {split: fingerprint(split) for split in SPLITS} if fingerprint is not None else {},
    }


def check_classes(before: list[str], now: list[str], what: str) -> None:
    """Raises DataChangedError unless classes are the same, in the same order."""
    if before == now:
        return
    gone, new = [name for name in before if name not in now], [name for name in now if name not in before]
    parts = [f"gone: {', '.join(gone[:5])}" if gone else "", f"new: {', '.join(new[:5])}" if new else ""]
    raise DataChangedError(
        f"the classes of the data differ from those of {what}, so that labels would mean other classes: "
        f"{'; '.join(filter(None, parts)) or 'their order'}. Give the data the same classes again, or start a new run")


def check_same(before: dict[str, Any] | None, now: dict[str, Any], accept: bool) -> bool:
    """Compares the data of a checkpoint with those at hand.

    Args:
      before: the `identity` in the checkpoint; None in checkpoints of old versions.
      now: the `identity` of the data.
      accept: whether other numbers of examples are accepted.

    Returns:
      Whether the order of the examples has to begin anew, since there is another number of them.

    Raises:
      DataChangedError: the classes differ, or the number of training examples and that is not accepted.
    """
    if before is None:
        return False
    check_classes(before["classes"], now["classes"], "the checkpoint")
    counts = before["num_examples"]["train"], now["num_examples"]["train"]
    if counts[0] != counts[1]:
        change = f"there are {counts[1]} training examples, and were {counts[0]} when the checkpoint was saved"
        if not accept:
            raise DataChangedError(
                f"{change}. Give the data the same examples again; or go on with these by the binding "
                "train.accept_changed_data = True, and the examples come in a new order from the next epoch on")
        logging.warning("%s: going on with a new order, from the next epoch on.", change)
        return True
    for split, fingerprint in before["fingerprints"].items():
        if now["fingerprints"].get(split, fingerprint) != fingerprint:
            logging.warning("The %s examples are not the same as when the checkpoint was saved: names or sizes of some "
                            "of the %d differ. Going on with those that are there.", split,
                            now["num_examples"][split])
    return False


def moved(position: dict[str, Any], num_examples: int) -> dict[str, Any]:
    """A loader's position at the beginning of the next epoch, in a data set with another number of examples."""
    epochs = -(-position["next_example"] // position["num_examples"])
    return {**position, "next_example": epochs * num_examples, "num_examples": num_examples}
