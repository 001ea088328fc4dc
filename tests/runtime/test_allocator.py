"""Freed memory that stays for the next step."""
import ctypes
import resource
from pathlib import Path

import pytest
import torch

from vqim.runtime.allocator import freed_memory_kept

NUM_BYTES, PAGE = 2**27, 2**12
pytestmark = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="not glibc")


def fill():
    torch.ones(NUM_BYTES, dtype=torch.uint8)


def resident():
    return PAGE * int(Path("/proc/self/statm").read_text().split()[1])


def test_a_block_freed_and_taken_again_has_no_page_faults():
    with freed_memory_kept():
        fill()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        fill()
        assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < NUM_BYTES / PAGE / 100


def test_afterwards_the_system_has_it_back():
    with freed_memory_kept():
        before = resident()
        fill()
        assert resident() - before > 0.9 * NUM_BYTES
    assert resident() - before < 0.1 * NUM_BYTES
