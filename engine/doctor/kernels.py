"""Checks of the CUDA kernels: NVRTC, which compiles them, and that it does."""

from __future__ import annotations

import ctypes
import time

from ...plugins import nvrtc
from ...plugins.launcher import check, load_kernels
from . import packages
from .findings import ABSENT, BROKEN, Problem
from .gpu import gpu_architecture, has_gpu, open_device


def check_nvrtc() -> str:
    """NVRTC loads."""
    text = packages.check_wheel("nvidia-cuda-nvrtc")
    packages.check_wheel("nvidia-cuda-runtime")  # for the headers; a check of its own says what is wrong with it
    library = nvrtc.load_nvrtc()
    major, minor = ctypes.c_int(), ctypes.c_int()
    if status := library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)):
        raise Problem(BROKEN, f"nvrtcVersion: error {status}")
    return f"{text}, compiler {major.value}.{minor.value}"


def check_kernels() -> str:
    """Compiles the kernels of one op for the GPU, or else for the oldest card; on a GPU it loads them, too."""
    for package in ("nvidia-cuda-nvrtc", "nvidia-cuda-runtime"):
        if packages.version(package) is None:
            raise Problem(ABSENT, f"{package} is not installed", "pip install 'amsa[cuda]'")
    on_gpu = has_gpu()
    architecture = gpu_architecture() if on_gpu else nvrtc.ARCHITECTURES[0]
    source = nvrtc.kernel_sources()[0]
    cached = nvrtc.cached_cubin(source, architecture) is not None
    begin = time.perf_counter()
    cubin = nvrtc.compile_cubin(source, architecture)
    how = "from the cache" if cached else f"compiled in {time.perf_counter() - begin:.1f} s"
    text = f"{source.parent.name} for {architecture}: {len(cubin):,} bytes, {how}"
    if not on_gpu:
        return text
    library, device = open_device()
    context = ctypes.c_void_p()
    check(library.cuDevicePrimaryCtxRetain(ctypes.byref(context), device), "cuDevicePrimaryCtxRetain")
    check(library.cuCtxSetCurrent(context), "cuCtxSetCurrent")
    return f"{text}; {len(load_kernels(source.parent.name))} loaded on the GPU"
