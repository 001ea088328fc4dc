"""The configuration of a run, from its directory."""
import tempfile
from collections.abc import Sequence
from pathlib import Path

from absl import logging

from vqim.checkpoint.errors import CheckpointError
from vqim.checkpoint.files import is_url, open_files
from vqim.checkpoint.manager import CheckpointManager
from vqim.registry.config import Config, ConfigError, load
from vqim.registry.stamp import CHANGED, was_changed


def read_config(workdir: str, gin_files: Sequence[str] = (), bindings: Sequence[str] = (),
                search_paths: Sequence[str] = ()) -> Config:
    """The configuration of a run; further files and bindings override it.

    Raises:
      ConfigError: there is no run.
    """
    data = open_files(workdir).read("config.gin")
    if data is None:
        raise ConfigError(f"expected the directory of a run, with config.gin in it; got {workdir}")
    text = data.decode(errors="replace")
    if was_changed(text):
        text = _sealed_config(workdir, text)
    elif not is_url(workdir):
        return load([f"{workdir}/config.gin", *gin_files], list(bindings), list(search_paths))
    return config_from(text, gin_files, bindings, search_paths)


def _sealed_config(workdir: str, edited: str) -> str:
    """The configuration that the newest readable checkpoint has, under its checksum; `edited` if there is none."""
    try:
        checkpoint = CheckpointManager(f"{workdir}/checkpoints").open()
    except CheckpointError:
        logging.warning("%s/%s. There is no checkpoint whose configuration could be read instead.", workdir, CHANGED)
        return edited
    logging.warning("%s/%s. The configuration in checkpoint %d is read instead; without the file's first line it is "
                    "read as it is.", workdir, CHANGED, checkpoint.step)
    return checkpoint.config


def config_from(text: str, gin_files: Sequence[str] = (), bindings: Sequence[str] = (),
                search_paths: Sequence[str] = ()) -> Config:
    """A configuration of which the first part is in no file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.gin"
        path.write_text(text)
        return load([str(path), *gin_files], list(bindings), list(search_paths))
