"""Facts about the machine that times depend on."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("numpy", "onnxruntime", "torch", "tensorrt_rtx", "tensorrt")


def machine(threads: int | None) -> dict[str, str]:
    """By name, in words. `threads`: that were asked for; None: one per core."""
    cores = len(os.sched_getaffinity(0))
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    facts = {
        "processor": processor(Path("/proc/cpuinfo").read_text().splitlines()),
        "cores": f"{cores}",
        "threads": f"{threads or cores}",
        "memory": f"{pages / 1e9:.1f} GB",
        "load average": f"{os.getloadavg()[0]:.2f}",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "Python": platform.python_version(),
    }
    for package in PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            continue
    return facts


def processor(cpuinfo: Sequence[str]) -> str:
    """The processor's name from the lines of /proc/cpuinfo, which has none on some ARM machines."""
    names = (line.partition(":")[2].strip() for line in cpuinfo if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def load_note() -> str | None:
    """A sentence where more waits for the processor than it has cores."""
    load, cores = os.getloadavg()[0], len(os.sched_getaffinity(0))
    if load <= cores:
        return None
    return f"Other work was running (load average {load:.1f} on {cores} cores): times are too long, ratios less certain."
