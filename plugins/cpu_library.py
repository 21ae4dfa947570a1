"""The ops' CPU kernels in C++: compiled once with the machine's compiler, cached, loaded with ctypes.

Without a compiler everything works through the PyTorch references, several times slower; a warning says so once.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
import warnings
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

_FOLDER = Path(__file__).parent
_SOURCES = (_FOLDER / "deformable_sample" / "cpu.cpp", _FOLDER / "patch_match" / "cpu.cpp")
_HEADERS = (_FOLDER / "cpu_common.hpp",)
# No contraction: rounding would depend on whether the processor has FMA.
_FLAGS = ("-std=c++17", "-O3", "-ffp-contract=off", "-fPIC", "-shared", "-pthread")


def pointer(t: Tensor) -> ctypes.c_void_p:
    """Address of a tensor's first element, for a C function."""
    return ctypes.c_void_p(t.data_ptr())


def available(*tensors: Tensor) -> bool:
    """Whether the kernels can take these tensors: on the CPU, and the library is there. They compute in float32."""
    kinds = (torch.float32, torch.float16, torch.int32)
    return all(t.device.type == "cpu" and t.dtype in kinds for t in tensors) and cpu_library() is not None


@cache
def cpu_library() -> ctypes.CDLL | None:
    """The loaded library, compiled first where the cache has none; None, and a warning, where it cannot be compiled."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        warnings.warn("no C++ compiler: the CPU kernels run as PyTorch references, several times slower", stacklevel=2)
        return None
    digest = hashlib.sha256(" ".join((compiler, *_FLAGS)).encode())
    for source in (*_SOURCES, *_HEADERS):
        digest.update(source.read_bytes())
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "amsa"
    library = folder / f"cpu-{digest.hexdigest()[:16]}.so"
    try:
        if not library.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                built = Path(scratch) / library.name
                subprocess.run([compiler, *_FLAGS, "-o", built, *_SOURCES], check=True, capture_output=True, text=True)
                built.replace(library)
        return ctypes.CDLL(str(library))
    except (OSError, subprocess.CalledProcessError) as e:
        reason = e.stderr.strip().splitlines()[0] if isinstance(e, subprocess.CalledProcessError) and e.stderr else e
        warnings.warn(f"the CPU kernels cannot be built ({reason}); they run as PyTorch references, slower", stacklevel=2)
        return None
