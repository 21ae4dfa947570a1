"""Prints nanoseconds of CPU time per instruction of a thread, in each build: `python tests/cuda/speed.py`."""

from __future__ import annotations

import ctypes
import resource
from pathlib import Path

import numpy as np
from harness import Build, Device

from amsa.plugins.launch import Launch

THREADS = 256
# Repetitions within a kernel.
COUNTS = {"fma32": 40000, "load": 20000, "half2_fma": 5000, "dp4a": 20000, "shuffle": 4000, "barrier": 4000}
BLOCKS = 800


class Speed(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("count", ctypes.c_int))


def seconds(build: Build, kernel: str, count: int, blocks: int) -> float:
    """The least of three."""
    device = Device([Path(__file__).with_name("speed.cu")], build)
    least = float("inf")
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        data = {"data": np.zeros(2 * THREADS, np.float32)}
        device.run(data, lambda at: [Launch(kernel, (blocks, 1, 1), (THREADS, 1, 1), Speed(at["data"], count))])
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        least = min(least, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    return least


def main() -> None:
    builds: tuple[Build, ...] = ("fast", "asan", "tsan")
    print(f"{'':14}" + "".join(f"{b:>8}" for b in builds))
    for build in builds:
        seconds(build, "barrier", 1, 1)  # compiles
    # Differences leave out what starting costs.
    for kernel, count in COUNTS.items():
        row = [(seconds(b, kernel, 2 * count, 1) - seconds(b, kernel, count, 1)) / (THREADS * count) for b in builds]
        print(f"{kernel:14}" + "".join(f"{1e9 * s:8.1f}" for s in row), flush=True)
    row = [(seconds(b, "begin_and_end", 0, BLOCKS + 1) - seconds(b, "begin_and_end", 0, 1)) / (THREADS * BLOCKS) for b in builds]
    print(f"{'begin_and_end':14}" + "".join(f"{1e9 * s:8.1f}" for s in row))


if __name__ == "__main__":
    main()
