"""Freed memory that stays for the next step, in a process of its own: an older one has free blocks of all sizes."""
import ctypes
import subprocess
import sys

import pytest

from tests.support.processes import ROOT, printed

NUM_BYTES, PAGE = 2**27, 2**12
PROGRAM = f"""
import json, resource
from pathlib import Path
import torch
from vqim.runtime.allocator import freed_memory_kept

def fill():
    torch.ones({NUM_BYTES}, dtype=torch.uint8)

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def resident():
    return {PAGE} * int(Path("/proc/self/statm").read_text().split()[1])

with freed_memory_kept():
    start, before = resident(), faults()
    fill()
    kept, first = resident(), faults()
    for _ in range(40):
        fill()
    warm = faults()
    for _ in range(10):
        fill()
    again = faults()
print(json.dumps(dict(first=first - before, again=again - warm, kept=kept - start, left=resident() - start)))
"""
pytestmark = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="not glibc")


@pytest.fixture(scope="module")
def counted():
    return printed(subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, check=True, capture_output=True, text=True, timeout=120))


def test_a_block_that_is_freed_and_taken_in_turn_comes_to_have_no_page_faults(counted):
    assert counted["first"] > 0.9 * NUM_BYTES / PAGE
    assert counted["again"] < NUM_BYTES / PAGE / 100


def test_afterwards_the_system_has_it_back(counted):
    assert counted["kept"] > 0.9 * NUM_BYTES
    assert counted["left"] < 0.1 * NUM_BYTES
