"""Whether another allocator of memory makes what a TPU's host does faster: reading images, and saving a state.

    python -m tests.faults.allocators --library=/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4 [--repeats=7]

Processes with and without LD_PRELOAD, in turn; each reads batches of JPEG files of 500x375 pixels, decoded, scaled
and cropped to 256x256 by as many threads as a run has, and saves 512 MiB, of which it measures how long training stands
still, and the whole. Printed are medians, and the ratio to the C library's allocator.
"""
import argparse
import functools
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
import torch
from PIL import Image

from tests.faults.stall import Ours
from vqim.data.folder import ImageFolder
from vqim.data.images import Images
from vqim.data.transforms import RandomCrop
from vqim.third_party.noto_emoji.dataset import find_dataset

NUM_FILES, NUM_BATCHES, BATCH_SIZE = 256, 12, 32
NAMES = ("reading images", "standing still while 512 MiB are saved", "until 512 MiB are saved")


def write_files(folder: pathlib.Path) -> None:
    """Emoji in the size of ImageNet's photographs, with noise, so that JPEG has work."""
    random = np.random.default_rng(0)
    for number, image in enumerate(np.load(find_dataset())["images"][:NUM_FILES]):
        large = np.asarray(Image.fromarray(image).resize((500, 375), Image.BICUBIC), np.float32)
        noisy = (large + random.normal(0, 12, large.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{number}.jpg", quality=90)


def measure(folder: pathlib.Path) -> list[float]:
    """Seconds of each of NAMES in this process."""
    data = Images(functools.partial(ImageFolder, folder / "images"), 256, training_transform=RandomCrop(0.8))
    loader = data.training(BATCH_SIZE, seed=0)
    next(loader)
    begin = time.perf_counter()
    for _ in range(NUM_BATCHES):
        next(loader)
    reading = time.perf_counter() - begin
    loader.close()
    save = Ours({f"params/net/weight_{number}": torch.randn(1024, 4096) for number in range(32)})
    save(folder / "warm", fsync=True)
    return [reading, *save(folder / "saved", fsync=True)]


def main() -> None:
    """Measures what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--library", required=True)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--measure", type=pathlib.Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(*measure(arguments.measure))
        return
    if not pathlib.Path(arguments.library).is_file():
        sys.exit(f"--library: there is no {arguments.library}; on Debian and Ubuntu, libtcmalloc-minimal4 has it")
    seconds = {"the C library's": [], arguments.library: []}
    with tempfile.TemporaryDirectory() as images:
        (pathlib.Path(images) / "images/all").mkdir(parents=True)
        write_files(pathlib.Path(images) / "images/all")
        for _ in range(arguments.repeats):
            for name, found in seconds.items():
                preload = {"LD_PRELOAD": name} if name == arguments.library else {}
                with tempfile.TemporaryDirectory(dir=images) as folder:
                    (pathlib.Path(folder) / "images").symlink_to(f"{images}/images")
                    done = subprocess.run(
                        [sys.executable, "-m", __spec__.name, "--library=-", f"--measure={folder}"],
                        env=os.environ | preload, stdout=subprocess.PIPE, text=True, check=True)
                found.append([float(word) for word in done.stdout.split()])
    for number, name in enumerate(NAMES):
        plain, other = ([row[number] for row in rows] for rows in seconds.values())
        ratios = [b / a for a, b in zip(plain, other, strict=True)]
        print(f"{name}: {statistics.median(plain):.2f} s, with it {statistics.median(other):.2f} s; ratio "
              f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main()
