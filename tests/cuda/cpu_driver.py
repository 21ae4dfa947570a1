"""A CUDA driver that needs no GPU: libcuda.so.1 on host memory, with the ops' kernels as the harness compiles them.

    run_on_driver(Path(__file__).parent / "on_driver" / "check_memory.py")

runs such a file's tests in a child process that finds this driver; in the process of the other tests there is none. The README
says what the driver checks.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest

import amsa.plugins

from . import harness

_SOURCES = sorted((Path(__file__).parent / "libcuda").glob("*.cpp"))
_ROOT = Path(__file__).parents[2]


def driver_folder() -> Path:
    """The folder with libcuda.so.1, for LD_LIBRARY_PATH; compiled where the cache has none, which takes half a minute."""
    kernels = sorted(Path(amsa.plugins.__file__).parent.glob("*/kernels.cu"))
    flags = ("-Wl,-soname,libcuda.so.1", "-Wl,-Bsymbolic", "-Wl,-z,defs", "-pthread", "-ldl")
    library = harness.shared_library("libcuda", kernels, _SOURCES, flags)
    folder = library.with_name(library.name + "-folder")
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
            beside = Path(scratch) / "folder"
            beside.mkdir()
            (beside / "libcuda.so.1").symlink_to(library)
            sizes = harness.static_shared(library)
            (beside / "static_shared").write_text("".join(f"{kernel} {size}\n" for kernel, size in sizes.items()))
            try:
                beside.rename(folder)
            except OSError:  # another process was faster
                if not folder.exists():
                    raise
    return folder


def driver_environment(variables: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a process that finds this driver: os.environ with more variables.

    Those that the driver reads: AMSA_TEST_ORDER ("forward", "reversed" or "shuffled") and AMSA_TEST_COMPUTE_CAPABILITY ("7.5").
    """
    path = os.pathsep.join(filter(None, (str(driver_folder()), os.environ.get("LD_LIBRARY_PATH"))))
    return {**os.environ, **(variables or {}), "LD_LIBRARY_PATH": path, "AMSA_ON_CPU_DRIVER": "1"}


class Control:
    """What tests ask the driver beyond CUDA, and tell it. For a child process of `run_on_driver` only."""

    def __init__(self) -> None:
        assert "AMSA_ON_CPU_DRIVER" in os.environ, "there is no CPU driver in this process: see run_on_driver"
        self._library = ctypes.CDLL("libcuda.so.1")

    def _number(self, function: str, *arguments: object) -> int:
        call = self._library[f"amsa_test_{function}"]
        call.restype = ctypes.c_uint64
        return int(call(*arguments))

    def live(self, what: str) -> int:
        """How many of a kind the program has made and not destroyed: allocations (and their bytes), host_allocations, streams,
        events, graphs (with their executables) or modules. Memory counts too that went with its context."""
        return self._number(f"live_{what}")

    def calls(self, function: str) -> int:
        """How often a function was called, by its name without a version: "cuMemAlloc"."""
        return self._number("calls", function.encode())

    def queued(self) -> int:
        """Operations that wait in streams."""
        return self._number("queued")

    def fail_next(self, function: str, status: int, after: int = 0) -> None:
        """After so many further calls of the function, the next one does nothing and returns the status."""
        self._number("fail_next", function.encode(), int(status), after)

    def set_memory(self, size: int) -> None:
        """Makes the device's memory so many bytes; 4 GiB otherwise."""
        self._number("set_memory", ctypes.c_uint64(size))

    def reset(self) -> None:
        """As after the start, but for contexts and modules: what else there was is gone, also the error that sticks."""
        self._number("reset")


def run_on_driver(test_file: Path, *pytest_arguments: str, timeout: float = 300.0, **variables: str) -> None:
    """Runs a file of tests in a child process that finds this driver, and fails with its output if it fails.

    Such files are named so that pytest collects them only when it is told their path (`check_*.py`). Skips where the harness
    cannot compile kernels.

    Args:
        test_file: the file.
        pytest_arguments: more arguments for pytest.
        timeout: seconds after which the child is ended; a program that waits for itself hangs, as it does on a GPU.
        variables: of the child's environment.
    """
    if why := harness.missing():
        pytest.skip(why)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(test_file), *pytest_arguments]
    environment = driver_environment(variables)
    try:
        done = subprocess.run(
            command, cwd=_ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout
        )
    except subprocess.TimeoutExpired as e:
        output = e.stdout.decode(errors="replace") if isinstance(e.stdout, bytes) else e.stdout or ""
        pytest.fail(f"{test_file.name} on the CPU driver: still running after {timeout:.0f} s\n{output}", pytrace=False)
    if done.returncode:
        pytest.fail(f"{test_file.name} on the CPU driver: ended with {done.returncode}\n{done.stdout}", pytrace=False)
