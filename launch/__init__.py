"""The commands. Each is `python -m launch.<name>`; this runs before any of them, and before torch is loaded."""
import os

# torch's threads on a CPU spin while they wait for each other, by default for many milliseconds, which takes cores from
# working threads whenever something else runs; not at all, with OMP_WAIT_POLICY=PASSIVE, wakes them thousands of times
# a step. A short while does well on idle and on busy cores (docs/runtimes.md). libgomp, torch's OpenMP on Linux, reads
# it once.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
