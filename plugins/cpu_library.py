"""The ops' CPU kernels in C++: one shared library for torch (through ctypes) and ONNX Runtime (as custom ops).

It is compiled once with the machine's compiler: by `build` into the package folder when that is installed, or else when it is
first needed into the user's cache. Without a compiler everything works through the PyTorch references and the ONNX function
bodies, many times slower; a warning says so once. Importing this needs neither torch nor onnx.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

_FOLDER = Path(__file__).parent
_SOURCES = (_FOLDER / "features.cpp", _FOLDER / "onnxruntime_library.cpp", *sorted(_FOLDER.glob("*/*.cpp")))
_HEADERS = (_FOLDER / "cpu_common.hpp", *sorted(_FOLDER.glob("*/*.hpp")))
# No contraction: rounding would depend on whether the processor has FMA.
_FLAGS = ("-std=c++17", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-pthread")
_INSTEAD = "PyTorch references and ONNX function bodies run instead, many times slower"


def _name() -> str:
    """The library's file name: another one for other sources, so that an outdated library is never loaded."""
    digest = hashlib.sha256(" ".join((platform.machine(), *_FLAGS)).encode())
    for source in (*_SOURCES, *_HEADERS):
        digest.update(source.read_bytes())
    return f"cpu-{digest.hexdigest()[:16]}.so"


def find_compiler() -> str | None:
    """The C++ compiler that `build` calls: what CXX names, else the first that is installed; None where there is none."""
    return os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")


def build(into: Path) -> Path:
    """Compile the library into a folder, beside and renamed; returns its path.

    Raises:
        OSError: there is no compiler, or the folder cannot be written.
        subprocess.CalledProcessError: the compiler fails; `stderr` says why.
    """
    compiler = find_compiler()
    if compiler is None:
        raise FileNotFoundError("no C++ compiler")
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=into) as scratch:

        def run(*arguments: str | Path) -> None:
            subprocess.run([compiler, *_FLAGS, *arguments], check=True, capture_output=True, text=True)

        objects = [Path(scratch) / f"{i}.o" for i in range(len(_SOURCES))]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda source, made: run("-c", source, "-o", made), _SOURCES, objects))
        built = Path(scratch) / _name()
        run("-shared", "-o", built, *objects)
        return built.replace(into / built.name)


@cache
def library_path() -> Path | None:
    """The library's path, compiled first where there is none; None, and a warning, where it cannot be compiled."""
    cached = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "amsa"
    for folder in (_FOLDER, cached):
        if (folder / _name()).exists():
            return folder / _name()
    if find_compiler() is None:
        warnings.warn(f"no C++ compiler, so no CPU kernels: {_INSTEAD}", stacklevel=2)
        return None
    try:
        return build(cached)
    except OSError as e:
        reason = str(e)
    except subprocess.CalledProcessError as e:
        reason = (e.stderr.strip().splitlines() or [f"{e.cmd[0]} exits with {e.returncode}"])[0]
    warnings.warn(f"the CPU kernels cannot be built ({reason}): {_INSTEAD}", stacklevel=2)
    return None


@cache
def cpu_library() -> ctypes.CDLL | None:
    """The loaded library; None, and a warning, where there is none."""
    path = library_path()
    if path is None:
        return None
    try:
        library = ctypes.CDLL(str(path))
    except OSError as e:
        warnings.warn(f"the CPU kernels cannot be loaded ({e}): {_INSTEAD}", stacklevel=2)
        return None
    for function in ("amsa_patch_match", "amsa_deformable_sample", "amsa_deformable_sample_backward", "amsa_instruction_set"):
        getattr(library, function).restype = ctypes.c_char_p
    return library


def kernels(otherwise: str) -> str:
    """What runs the ops on the CPU, in words; `otherwise`: what does so without the library."""
    library = cpu_library()
    return f"C++ kernels, {library.amsa_instruction_set().decode()}" if library else otherwise
