"""Launches plans on a GPU through the CUDA driver's own interface (libcuda): no binding, no toolkit.

The driver must be for LEAST_CUDA or later. The tests run it on a driver of their own, which needs no card (`tests/cuda/libcuda`).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from .launch import Launch
from .nvrtc import ARCHITECTURES, KernelError, compile_cubin

LEAST_CUDA = (12, 4)
"""The CUDA version that the driver must be for at least: the first one that has cuFuncLoad."""

_FOLDER = Path(__file__).parent
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
_NOT_INITIALIZED = 3


@cache
def _driver() -> ctypes.CDLL:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as e:
        raise KernelError("no NVIDIA driver on this machine (libcuda.so.1); kernels can be compiled, not launched") from e


def check(status: int, what: str) -> None:
    """KernelError, with the error's name, unless a call of the driver returned 0; `what`: the call."""
    if status:
        name = ctypes.c_char_p()
        _driver().cuGetErrorName(status, ctypes.byref(name))
        raise KernelError(f"{what}: {name.value.decode() if name.value else status}")


def compute_capability(device: ctypes.c_int) -> tuple[int, int]:
    """Major and minor number of a CUdevice's compute capability. KernelError where the driver does not tell."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    for value, attribute in ((major, _MAJOR), (minor, _MINOR)):
        check(_driver().cuDeviceGetAttribute(ctypes.byref(value), attribute, device), "cuDeviceGetAttribute")
    return major.value, minor.value


def architecture(device: ctypes.c_int) -> str:
    """The newest architecture that kernels are compiled for and a CUdevice runs: the same major version, no higher minor.

    Returns:
        One of ARCHITECTURES, as "sm_75".

    Raises:
        KernelError: the device runs none of them.
    """
    major, minor = compute_capability(device)
    numbers = [int(a.removeprefix("sm_")) for a in ARCHITECTURES]
    fitting = [n for n in numbers if n // 10 == major and n % 10 <= minor]
    if not fitting:
        raise KernelError(f"no kernels for compute capability {major}.{minor}; there are {', '.join(ARCHITECTURES)}")
    return f"sm_{max(fitting)}"


def _require_version() -> None:
    version = ctypes.c_int()
    check(_driver().cuDriverGetVersion(ctypes.byref(version)), "cuDriverGetVersion")
    found = version.value // 1000, version.value % 1000 // 10
    if found < LEAST_CUDA:
        names = (f"{major}.{minor}" for major, minor in (found, LEAST_CUDA))
        raise KernelError("the NVIDIA driver is for CUDA {}, and launching needs {} or later; update the driver".format(*names))


@cache
def _functions(op: str, context: int) -> dict[str, ctypes.c_void_p]:
    """An op's kernels by name, loaded into the current context, whose identifier this is. Each is loaded now, not at its first
    launch as the driver would: that could be while a CUDA graph is captured, where loading is forbidden."""
    _require_version()
    device, module = ctypes.c_int(), ctypes.c_void_p()
    check(_driver().cuCtxGetDevice(ctypes.byref(device)), "cuCtxGetDevice")
    cubin = compile_cubin(_FOLDER / op / "kernels.cu", architecture(device))
    check(_driver().cuModuleLoadData(ctypes.byref(module), cubin), f"kernels of {op}")
    try:
        return _named_functions(op, module)
    except KernelError:
        _driver().cuModuleUnload(module)
        raise


def _named_functions(op: str, module: ctypes.c_void_p) -> dict[str, ctypes.c_void_p]:
    count = ctypes.c_uint()
    check(_driver().cuModuleGetFunctionCount(ctypes.byref(count), module), "cuModuleGetFunctionCount")
    handles = (ctypes.c_void_p * count.value)()
    check(_driver().cuModuleEnumerateFunctions(handles, count, module), "cuModuleEnumerateFunctions")
    functions = {}
    for handle in handles:
        name, function = ctypes.c_char_p(), ctypes.c_void_p(handle)
        check(_driver().cuFuncGetName(ctypes.byref(name), function), "cuFuncGetName")
        check(_driver().cuFuncLoad(function), f"kernel {(name.value or b'').decode()} of {op}")
        functions[(name.value or b"").decode()] = function
    return functions


def load_kernels(op: str) -> dict[str, ctypes.c_void_p]:
    """Compile and load an op's kernels into the current context, so that launching them loads nothing any more.

    Args:
        op: folder of the op, as "patch_match".

    Returns:
        CUfunctions by kernel name.

    Raises:
        KernelError: no driver or one for an older CUDA, no current context, a device without kernels, or sources that do not
            compile.
    """
    context, identifier = ctypes.c_void_p(), ctypes.c_ulonglong()
    status = _driver().cuCtxGetCurrent(ctypes.byref(context))
    if status == _NOT_INITIALIZED or (status == 0 and not context.value):
        raise KernelError("no current CUDA context; make the device's primary context current first")
    check(status, "cuCtxGetCurrent")
    # Not by its address: that of a context which is gone may be another's.
    check(_driver().cuCtxGetId(context, ctypes.byref(identifier)), "cuCtxGetId")
    return _functions(op, identifier.value)


def launch_all(op: str, launches: Sequence[Launch], stream: ctypes.c_void_p) -> None:
    """Launch a plan on a stream of the current context, and return at once.

    Args:
        op: folder of the op, as "patch_match".
        launches: its plan, with addresses of that context.
        stream: a CUstream.

    Raises:
        KernelError: as `load_kernels`, or a refused launch.
    """
    if not launches:
        return
    functions = load_kernels(op)
    for launch in launches:
        if launch.kernel not in functions:
            raise KernelError(f"{op} has no kernel {launch.kernel}")
        arguments = (ctypes.c_void_p * 1)(ctypes.addressof(launch.params))
        status = _driver().cuLaunchKernel(
            functions[launch.kernel], *launch.grid, *launch.block, launch.shared, stream, arguments, None
        )
        check(status, f"launch of {launch.kernel}")
