"""Small real data sets on disk: emoji images as files."""
import numpy as np
import pytest
from PIL import Image

from vqim.third_party.noto_emoji import find_dataset


@pytest.fixture(scope="session")
def emoji():
    """The arrays of the embedded set."""
    with np.load(find_dataset()) as arrays:
        return {name: arrays[name] for name in arrays.files}


@pytest.fixture
def make_folder(tmp_path, emoji):
    """Writes emoji as PNG files: `make_folder({"train/cats": 3, ...})` returns the root."""
    def make(counts, root=tmp_path / "images"):
        images = iter(emoji["images"])
        for folder, count in counts.items():
            (root / folder).mkdir(parents=True)
            for number in range(count):
                Image.fromarray(next(images)).save(root / folder / f"{number:03}.png")
        return root
    return make
