"""glibc's memory allocator, for programs whose steps take and give back the same large blocks."""
import contextlib
import ctypes
from collections.abc import Iterator

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
"""Parameters of `mallopt`, from <malloc.h>."""
_NEVER = 2**31 - 1
_LARGE = 32 * 2**20  # the highest threshold that glibc comes to by itself
_MOST_MAPPED = 65_536  # its default


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Freed memory stays with the process, for the next step; afterwards the system gets it back.

    glibc maps each block of more than 32 MiB anew, and gives it back when it is freed. The system then has to clear and
    map its pages at their first use, a fault for every 4 KiB: a tenth of a training step of 85 million parameters on a
    CPU (docs/performance.md). Kept, a block is found again after some rounds: of the few bytes before it that alignment
    leaves over, the first seven pieces of a size stay in the thread's own cache, and the block's place is too short
    without them. Without glibc nothing changes.
    """
    libc = ctypes.CDLL(None)
    if not (hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim")):
        yield
        return
    libc.mallopt(_MMAP_MAX, 0)
    libc.mallopt(_TRIM_THRESHOLD, _NEVER)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_MAX, _MOST_MAPPED)
        libc.mallopt(_MMAP_THRESHOLD, _LARGE)
        libc.mallopt(_TRIM_THRESHOLD, 2 * _LARGE)
        libc.malloc_trim(0)
