"""What every peer script shares: timing, peak memory, and the one JSON object at the end.

In: nothing. Out: medians in seconds, bytes, and one line on standard output that compare.py reads.
"""

import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path


def threads(asked: int) -> int:
    """The threads to use: as many as asked, or as the process may have where that is 0."""
    return asked or len(os.sched_getaffinity(0))


def seconds(call: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def median_seconds(call: Callable[[], object], runs: int) -> float:
    """Median wall time of `runs` calls, after one that is not counted."""
    call()
    return statistics.median(seconds(call) for _ in range(runs))


def peak_bytes() -> int:
    """The most memory this process has held (VmHWM of Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError("/proc/self/status has no VmHWM: this needs Linux")


def prompt_figure(prompt: int) -> str:
    """Name of the rate at which a prompt of so many tokens is fed."""
    return f"prompt of {prompt}, tokens/sec"


def generation_figure(n: int, prompt: int) -> str:
    """Name of the rate at which n rows go on from a prompt, all rows together."""
    return f"generation, {n} {'row' if n == 1 else 'rows'} after {prompt}, tokens/sec"


def report(figures: dict[str, float], versions: dict[str, str]) -> None:
    """Ends standard output: `figures` by name (rates, bytes) and the `versions` that made them."""
    print(json.dumps({"figures": figures, "versions": versions}))
