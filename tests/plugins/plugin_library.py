"""Builds libamsa_plugins.so, and the shim that calls it as TensorRT does, once into the cache of the tests."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import amsa.plugins
from amsa.plugins import nvrtc

PLUGINS = Path(amsa.plugins.__file__).parent
SHIM = Path(__file__).parent / "plugin_shim.cpp"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "amsa" / "tests"
_SOURCES = ("CMakeLists.txt", "*.cmake", "*.map", "*.cpp", "*.hpp", "*.cuh", "nvrtc.py", "*/*.hpp", "*/*.h", "*/*.cu", "*/*.cuh")
_PLACES = ("/usr/include/x86_64-linux-gnu", "/usr/include")


def headers() -> Path | None:
    """The folder with TensorRT's headers: TENSORRT_INCLUDE_DIR, else where NVIDIA's packages put them."""
    places = (os.environ.get("TENSORRT_INCLUDE_DIR") or "", *_PLACES)
    return next((Path(p) for p in places if p and (Path(p) / "NvInferRuntime.h").exists()), None)


def missing() -> str | None:
    """Why the library cannot be built here, for a test to be skipped with; None where it can."""
    for tool in ("cmake", "g++"):
        if shutil.which(tool) is None:
            return f"no {tool}"
    if headers() is None:
        return "no TensorRT headers: let TENSORRT_INCLUDE_DIR name the folder with NvInferRuntime.h"
    try:
        nvrtc.wheel_versions()
    except nvrtc.KernelError as e:
        return str(e)
    return None


@cache
def library() -> Path:
    """libamsa_plugins.so, built with CMake as the README says; half a minute where the cache has none."""

    def build(into: Path) -> None:
        configure = ["cmake", "-S", PLUGINS, "-B", into / "build", f"-DTENSORRT_INCLUDE_DIR={headers()}"]
        _run(*configure, f"-DPython3_EXECUTABLE={sys.executable}", "-DCMAKE_CXX_FLAGS=-Werror")
        _run("cmake", "--build", into / "build", "--parallel", "2")
        (into / "build" / "libamsa_plugins.so").rename(into / "libamsa_plugins.so")
        shutil.rmtree(into / "build")

    files = [file for pattern in _SOURCES for file in sorted(PLUGINS.glob(pattern))]
    return _cached("plugins", files, nvrtc.wheel_versions(), build) / "libamsa_plugins.so"


def shim(name: str) -> Path:
    """The shim as `<name>.so`."""

    def build(into: Path) -> None:
        flags = ("-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC")
        _run("g++", *flags, f"-isystem{PLUGINS / 'cuda_types'}", f"-isystem{headers()}", SHIM, "-ldl", "-o", into / f"{name}.so")

    return _cached("shim", [SHIM], name, build) / f"{name}.so"


def _cached(what: str, files: list[Path], also: str, build: Callable[[Path], None]) -> Path:
    folder = headers()
    assert folder is not None
    digest = hashlib.sha256(also.encode())
    for file in (*files, *sorted(folder.glob("NvInfer*.h"))):
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    place = CACHE / f"{what}-{digest.hexdigest()[:16]}"
    if not place.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            made = Path(scratch) / "made"
            made.mkdir()
            build(made)
            try:
                made.rename(place)
            except OSError:  # another process was faster
                if not place.exists():
                    raise
    return place


def _run(*command: str | Path) -> None:
    done = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
