"""Checks of NVIDIA's driver, the first GPU, and the Python binding that the runtime calls CUDA through."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from pathlib import Path

from ...plugins import launcher
from ...plugins.nvrtc import KernelError
from . import packages
from .findings import ABSENT, BROKEN, Problem

NO_DEVICE = 100
"""CUDA_ERROR_NO_DEVICE"""
_DRIVER_MEND = "install NVIDIA's driver for CUDA {} or later (Ubuntu: sudo ubuntu-drivers install; in a container: --gpus all)"


def _cuda_library() -> ctypes.CDLL:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as e:
        mend = _DRIVER_MEND.format(_needed_cuda()[0])
        if "libcuda.so.1: cannot open shared object file: No such file" not in str(e):
            raise Problem(BROKEN, f"libcuda.so.1 cannot be loaded: {e}", mend) from e
        card = "though there is an NVIDIA card" if _has_card() else "and no NVIDIA card is to be seen"
        raise Problem(ABSENT, f"no NVIDIA driver (libcuda.so.1), {card}", mend) from e


def _has_card() -> bool:
    """Whether a graphics card of NVIDIA's is on the PCI bus."""
    for device in Path("/sys/bus/pci/devices").glob("*"):
        try:
            if (device / "vendor").read_text().strip() == "0x10de" and (device / "class").read_text().startswith("0x03"):
                return True
        except OSError:
            continue
    return False


def _needed_cuda() -> tuple[str, tuple[int, int], str]:
    """The CUDA version that the driver must be for, in words and as numbers, and what needs it."""
    nvrtc = packages.version("nvidia-cuda-nvrtc")
    # A driver runs what any compiler of its major version made.
    compiled = ((int(nvrtc.split(".")[0]), 0) if nvrtc else (0, 0), f"NVRTC {nvrtc}")
    needed, why = max((launcher.LEAST_CUDA, "amsa's launcher"), compiled)
    return f"{needed[0]}.{needed[1]}", needed, why


def check_driver() -> str:
    """There is a driver, and it is new enough."""
    library = _cuda_library()
    version = ctypes.c_int()
    if status := library.cuDriverGetVersion(ctypes.byref(version)):
        raise Problem(BROKEN, f"cuDriverGetVersion: error {status}")
    found = version.value // 1000, version.value % 1000 // 10
    words, needed, why = _needed_cuda()
    text = f"for CUDA {found[0]}.{found[1]}"
    with suppress(OSError):  # WSL has no kernel module of this name
        text = f"{Path('/sys/module/nvidia/version').read_text().strip()}, {text}"
    if found < needed:
        raise Problem(BROKEN, f"{text}; {why} needs {words}", _DRIVER_MEND.format(words))
    return text


def open_device() -> tuple[ctypes.CDLL, ctypes.c_int]:
    """The driver, initialized, and the first GPU (a CUdevice). Absent without a driver or GPU."""
    try:
        library = _cuda_library()
    except Problem as e:
        raise Problem(e.state, "no driver, so no GPU", "as for the driver") from e
    if (status := library.cuInit(0)) == NO_DEVICE:
        raise Problem(ABSENT, "the driver finds no GPU", "unset CUDA_VISIBLE_DEVICES if it is set; in a container: --gpus all")
    launcher.check(status, "cuInit")
    device = ctypes.c_int()
    launcher.check(library.cuDeviceGet(ctypes.byref(device), 0), "cuDeviceGet")
    return library, device


def has_gpu() -> bool:
    """Whether there are a driver and a GPU. Broken where the driver is."""
    try:
        open_device()
    except Problem as e:
        if e.state == BROKEN:
            raise
        return False
    return True


def gpu_architecture() -> str:
    """What the GPU's kernels are compiled for, as "sm_75". Absent without a GPU; broken where there are no kernels for it."""
    _, device = open_device()
    try:
        return launcher.architecture(device)
    except KernelError as e:
        mend = "update amsa (pip install --upgrade amsa) if the card is newer than these; the CPU works all the same"
        raise Problem(BROKEN, str(e), mend) from e


def check_gpu() -> str:
    """There is a GPU, and there are kernels for it."""
    library, device = open_device()
    name, memory, count = ctypes.create_string_buffer(256), ctypes.c_size_t(), ctypes.c_int()
    launcher.check(library.cuDeviceGetName(name, len(name), device), "cuDeviceGetName")
    launcher.check(library.cuDeviceTotalMem_v2(ctypes.byref(memory), device), "cuDeviceTotalMem")
    launcher.check(library.cuDeviceGetCount(ctypes.byref(count)), "cuDeviceGetCount")
    major, minor = launcher.compute_capability(device)
    text = f"{name.value.decode()}, {memory.value / 1e9:.1f} GB, compute capability {major}.{minor}"
    others = f"; the first of {count.value}, CUDA_VISIBLE_DEVICES chooses another" if count.value > 1 else ""
    try:
        return f"{text} (kernels for {gpu_architecture()}){others}"
    except Problem as e:
        raise Problem(e.state, f"{text}: {e.text}{others}", e.mend) from e


def check_binding() -> str:
    """A binding is installed, and opens the GPU where there is one."""
    from ..gpu.cuda import BINDINGS, installed_binding, open_cuda

    name = installed_binding()
    if name is None:
        raise Problem(ABSENT, f"neither of {' and '.join(BINDINGS)} is installed", "pip install 'amsa[cuda]'")
    text = f"{name} {packages.in_range(name, 'cuda', packages.version(name) or '0')}"
    if not has_gpu():
        return text
    cuda = open_cuda(name)
    with cuda.current():
        free, _ = cuda.memory()
    return f"{text} opens {cuda.device}, {free / 1e9:.1f} GB free{'' if cuda.captures else ', has no CUDA graphs'}"
