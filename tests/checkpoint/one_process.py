"""Saves by one process, and damage to what it saved."""
import os

import numpy as np

from vqim.checkpoint.store import HostArray

WEIGHT = np.arange(24, dtype=np.float32).reshape(4, 6)


def save(manager, step, values=None, **metrics):
    arrays = {"params/net/weight": WEIGHT + step} if values is None else values
    manager.save(step, {name: HostArray.whole(array) for name, array in arrays.items()}, {"seed": 7},
                 metrics=metrics, config=f"train.steps = {step}", data_position={"epoch": step})
    manager.wait()


def largest_file(directory):
    return max((path for path in directory.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def cut_off(path):
    os.truncate(path, path.stat().st_size // 2)


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
