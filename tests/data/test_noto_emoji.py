"""The embedded set belongs to others: its licence is beside it, and it is the file that README.md describes."""
import hashlib
import importlib.util
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from vqim.third_party.noto_emoji import find_dataset

FOLDER = find_dataset().parent


def load_adapter(folder):
    """The adapter module of a copy of the folder."""
    spec = importlib.util.spec_from_file_location("copied_dataset", folder / "dataset.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_licence_and_notice_are_beside_the_images():
    licence = (FOLDER / "LICENSE").read_text()
    assert "Apache License" in licence and "END OF TERMS AND CONDITIONS" in licence
    assert "Google" in (FOLDER / "NOTICE").read_text() and "Changes:" in (FOLDER / "NOTICE").read_text()


def test_metadata_names_version_source_and_licence():
    metadata = (FOLDER / "METADATA").read_text()
    for word in ("Noto Emoji v2.048", "https://github.com/googlefonts/noto-emoji", "Apache-2.0"):
        assert word in metadata


def test_the_file_is_the_one_that_the_readme_describes():
    digest = re.search(r"`([0-9a-f]{64})`", (FOLDER / "README.md").read_text())[1]
    assert hashlib.sha256(find_dataset().read_bytes()).hexdigest() == digest


def test_no_two_images_are_the_same(emoji):
    assert len(np.unique(emoji["images"].reshape(1892, -1), axis=0)) == 1892


def test_the_images_are_found_wherever_the_folder_is_installed(tmp_path):
    installed = Path(shutil.copytree(FOLDER, tmp_path / "site" / "vqim" / "third_party" / "noto_emoji"))
    assert load_adapter(installed).find_dataset() == installed / "noto_emoji_64.npz"


def test_an_incomplete_installation_is_named(tmp_path):
    shutil.copy(FOLDER / "dataset.py", tmp_path)
    with pytest.raises(FileNotFoundError, match="embedded emoji set is missing"):
        load_adapter(tmp_path).find_dataset()
