"""Memory on the CPU: how much there is, what a stage needs, and what to do where it is short.

Linux only: elsewhere nothing tells what this process holds, so nothing is planned, and a cap is refused.
"""

from __future__ import annotations

import ctypes
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import AmsaError

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_LEFT_FREE = 0.1
"""Share of the free memory that is never planned with: other programs go on working."""
_SPARE = 48_000_000, 0.04
"""Bytes, and share, of a cap that are not planned with: what Python and its libraries take beside the arrays that are counted,
and pieces of memory too small for what is asked for: of a cap of 3 GB, 0.12 GB more were held than planned (LR 2000x1500)."""
_MMAP_THRESHOLD, _LARGE = -3, 1 << 20  # of mallopt: blocks from so many bytes are mapped one by one
_SAMPLING = 0.001  # seconds between two looks at what is held


PROCESS, MACHINE, GROUPS = Path("/proc/self/statm"), Path("/proc/meminfo"), Path("/proc/self/cgroup")
# Where control groups are, and of each: the limit, what is used, and in memory.stat what is used for files alone.
VERSION_2 = ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file")
VERSION_1 = ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


class OutOfMemory(AmsaError):
    """There is not enough main memory for a step."""


def parse_bytes(value: int | str) -> int:
    """Bytes from a number, or from text such as "2GB", "1500 MB" or "1.5GiB" (KB, MB, GB: powers of 1000; KiB, ..: of 1024).

    Raises:
        AmsaError: another form, or less than one byte.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", str(value).strip(), re.ASCII)
    unit = _UNITS.get(found[2].upper()) if found else None
    if found is None or unit is None or float(found[1]) * unit < 1:
        raise AmsaError(f"memory {value!r}: give bytes, or a number with KB, MB, GB, KiB, MiB or GiB, as in 2GB")
    return int(float(found[1]) * unit)


def show_bytes(size: float) -> str:
    """As `parse_bytes` reads it: "2.48GB", "640MB"."""
    return f"{size / 1e9:.3g}GB" if size >= 1e9 else f"{size / 1e6:.0f}MB"


def resident() -> int:
    """Bytes of main memory that this process holds."""
    return int(PROCESS.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def available() -> int:
    """Bytes that can be taken without others losing theirs: of the machine, and of the control groups (containers) we are in."""
    line = next(line for line in MACHINE.read_text().splitlines() if line.startswith("MemAvailable:"))
    found = [int(line.split()[1]) * 1024]
    for group, (_, limit, used, cache) in _groups():
        try:
            most, now = (int((group / name).read_text()) for name in (limit, used))
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # no such group from where we are, or "max": no limit
            continue
        found.append(most - now + int(stat.get(cache, 0)))  # what only keeps files is given back when asked for
    return min(found)


def _groups() -> Iterator[tuple[Path, tuple[str, str, str, str]]]:
    """The folders of our control group and of those around it, with the names of what they hold."""
    try:
        lines = GROUPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        version = VERSION_2 if not controllers else VERSION_1 if "memory" in controllers.split(",") else None
        if version is not None:
            inside = Path(path.lstrip("/"))
            for group in (inside, *inside.parents):
                yield Path(version[0]) / group, version


class Memory:
    """What this process may hold.

    Args:
        cap: bytes; None: what it holds and nine tenths of what is free, whenever asked.

    Raises:
        AmsaError: a cap, on a system that does not tell what a process holds.
    """

    def __init__(self, cap: int | None) -> None:
        self.cap = cap
        self.known = PROCESS.exists() and MACHINE.exists()
        if cap is not None and not self.known:
            raise AmsaError("a cap on memory needs Linux, which tells what a process holds; leave it out")

    def room(self) -> int:
        """Bytes that may be taken now; negative where the cap is exceeded already."""
        free = available()
        free -= int(_LEFT_FREE * free)
        return free if self.cap is None else min(free, int((1 - _SPARE[1]) * self.cap) - _SPARE[0] - resident())

    def __str__(self) -> str:
        return f"the {show_bytes(available())} that are free" if self.cap is None else f"the cap of {show_bytes(self.cap)}"


def release() -> None:
    """Give back to the system what this process has freed, and from now on every large block as soon as it is freed.

    The C library would learn from the first large blocks to keep them, in pieces that no other block fits into: 0.2 GB in 10
    minutes of restoring LR 2000x1500 within 3 GB.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc
        libc.mallopt(_MMAP_THRESHOLD, _LARGE)
        libc.malloc_trim(0)


def measure(work: Callable[[], object]) -> int:
    """Bytes that a call needs at most, beside what is held before it."""
    before = most = resident()
    done = threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(_SAMPLING):
            most = max(most, resident())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        result = work()
        most = max(most, resident())
    finally:
        done.set()
        thread.join()
    del result
    return most - before


@contextmanager
def telling(what: str) -> Iterator[None]:
    """Raise OutOfMemory where what is done meanwhile, in words, gets no memory."""
    try:
        yield
    except Exception as e:  # onnxruntime's exceptions share no base class but Exception
        if isinstance(e, AmsaError) or not is_out_of_memory(e):
            raise
        raise OutOfMemory(f"not enough memory to {what}; scale the pictures down, or close other programs") from e


def is_out_of_memory(error: Exception) -> bool:
    """Whether numpy, ONNX Runtime, torch or one of our kernels says that memory cannot be had."""
    said = ("failed to allocate memory", "bad_alloc", "bad allocation", "not enough memory", "can't allocate memory")
    return isinstance(error, MemoryError) or any(part in str(error).lower() for part in said)
