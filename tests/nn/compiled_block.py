"""What torch.compile brings for a plain transformer block on a CPU; a script, not a test.

    python -m tests.nn.compiled_block

The block is the benchmark's plain one (launch/benchmark_peers.py). Printed are the seconds of its compilation, and of
alternating calls on one thread the medians, and how many times as fast the compiled block is.

    B batch, T positions, D width
"""
import statistics
import time
from collections.abc import Callable

import torch

from launch.benchmark_peers import PlainPrior

NUM_ROUNDS = 9


def compare(calls: dict[str, Callable[[], object]]) -> str:
    """Medians of alternating calls in milliseconds, and the first one's time divided by the second's."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(NUM_ROUNDS):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - begin)
    eager, compiled = seconds.values()
    times = ", ".join(f"{name} {1e3 * statistics.median(of_name):.1f} ms" for name, of_name in seconds.items())
    return f"{times}, {statistics.median(a / b for a, b in zip(eager, compiled, strict=True)):.2f} times as fast"


def measure(width: int, num_heads: int, batch_size: int, length: int) -> None:
    """Prints what compilation brings at one size."""
    block = PlainPrior(width, 1, num_heads, 1024, length, causal=True).blocks[0]
    blocks = {"eager": block, "compiled": torch.compile(block)}
    x_BTD = torch.randn(batch_size, length, width, requires_grad=True)
    begin = time.perf_counter()
    blocks["compiled"](x_BTD, True).square().mean().backward()
    print(f"width {width}: compiled in {time.perf_counter() - begin:.0f} s", flush=True)
    print("  forward and backward:", compare({
        name: lambda one=one: one(x_BTD, True).square().mean().backward() for name, one in blocks.items()}))
    with torch.no_grad():
        blocks["compiled"](x_BTD, True)  # compiles once more, without gradients
        print("  forward:", compare({name: lambda one=one: one(x_BTD, True) for name, one in blocks.items()}))


def main() -> None:
    """Measures the quickstart's width and that of `--size=base`."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    measure(256, 4, 32, 64)
    measure(768, 12, 8, 256)


if __name__ == "__main__":
    main()
