"""Folders of images that are not vqim's own, for the quickstart on other sets (docs/results.md).

    python -m tests.product.folders fashion_mnist /usr/share/datasets/fashion-mnist /tmp/fashion_mnist
    python -m tests.product.folders emoji emoji-datasource-twitter/package /tmp/twitter

The first reads Debian's `dataset-fashion-mnist` (MIT): 28x28, grey, with its own test images as validation split. The
second reads an unpacked `npm pack emoji-datasource-twitter` (Twemoji, CC-BY 4.0), `-apple`, `-facebook` or `-google`:
64x64 with transparency, without skin tones, a fifth of each class as validation split, in which all variants of a
person are on one side, as they look alike.
"""
import argparse
import hashlib
import json
import shutil
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image

from vqim.data.source import Idx

PERSONS = {"1F468", "1F469", "1F9D1"}
"""Man, woman, person: the first code point of many sequences that differ in nothing else."""

SIGNS = {"2640", "2642", "FE0F", "200D"}
"""Female, male, picture form, joiner."""


def write_fashion_mnist(source: Path, folder: Path) -> None:
    """Writes `folder/<train or val>/<class>/<number>.png`."""
    for split, name in (("train", "train"), ("validation", "val")):
        images = Idx(source, split)
        for number in range(len(images)):
            example = images[number]
            path = folder / name / images.class_names[example.label].replace("/", "-") / f"{number:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.asarray(example.image)[..., 0]).save(path)


def write_emoji(source: Path, folder: Path) -> None:
    """Copies a package's files of 64x64 to `folder/<train or val>/<class>/<short name>.png`."""
    style = json.loads((source / "package.json").read_text())["name"].rpartition("-")[2]
    groups: dict[tuple[str, str], list[dict[str, str]]] = defaultdict(list)
    for emoji in json.loads((source / "emoji.json").read_text()):
        if emoji[f"has_img_{style}"] and emoji["category"] != "Component":
            groups[emoji["category"], _without_person(emoji["unified"])].append(emoji)
    classes = sorted({name for name, _ in groups})
    for name in classes:
        keys = sorted((key for owner, key in groups if owner == name),
                      key=lambda key: hashlib.sha256(key.encode()).digest())
        for i, key in enumerate(keys):
            target = folder / ("val" if i < len(keys) / 5 else "train") / name
            target.mkdir(parents=True, exist_ok=True)
            for emoji in groups[name, key]:
                shutil.copy(source / "img" / style / "64" / emoji["image"], target / f"{emoji['short_name']}.png")


def _without_person(code_points: str) -> str:
    """What is left of a sequence if the person and the sign of its sex are taken away: what two variants share."""
    kept = [point for point in code_points.split("-") if point not in SIGNS]
    return "-".join([point for point in kept if point not in PERSONS] or ["person"])


def main() -> None:
    """Writes one set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("fashion_mnist", "emoji"))
    parser.add_argument("source", type=Path)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    {"fashion_mnist": write_fashion_mnist, "emoji": write_emoji}[given.kind](given.source, given.folder)


if __name__ == "__main__":
    main()
