"""Launches plans on a GPU through the CUDA driver's own interface (libcuda): no binding, no toolkit.

Needs a driver for CUDA 12.4 or later. Nothing here can be executed without a card; the plans and the kernels are what the tests
prove on a CPU.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from .launch import Launch
from .nvrtc import ARCHITECTURES, KernelError, compile_cubin

_FOLDER = Path(__file__).parent
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR


@cache
def _driver() -> ctypes.CDLL:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as e:
        raise KernelError("no NVIDIA driver on this machine (libcuda.so.1); kernels can be compiled, not launched") from e


def _check(status: int, what: str) -> None:
    if status:
        name = ctypes.c_char_p()
        _driver().cuGetErrorName(status, ctypes.byref(name))
        raise KernelError(f"{what}: {name.value.decode() if name.value else status}")


def _architecture(device: ctypes.c_int) -> str:
    """The newest architecture that kernels are compiled for and this device runs: the same major version, no higher minor."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    for value, attribute in ((major, _MAJOR), (minor, _MINOR)):
        _check(_driver().cuDeviceGetAttribute(ctypes.byref(value), attribute, device), "cuDeviceGetAttribute")
    numbers = [int(a.removeprefix("sm_")) for a in ARCHITECTURES]
    fitting = [n for n in numbers if n // 10 == major.value and n % 10 <= minor.value]
    if not fitting:
        raise KernelError(f"no kernels for compute capability {major.value}.{minor.value}; there are {', '.join(ARCHITECTURES)}")
    return f"sm_{max(fitting)}"


@cache
def _functions(op: str, context: int) -> dict[str, ctypes.c_void_p]:
    """An op's kernels by name, loaded into a context. Each is loaded now, not at its first launch as the driver would: that
    could be while a CUDA graph is captured, where loading is forbidden."""
    device, module, count = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint()
    _check(_driver().cuCtxGetDevice(ctypes.byref(device)), "cuCtxGetDevice")
    cubin = compile_cubin(_FOLDER / op / "kernels.cu", _architecture(device))
    _check(_driver().cuModuleLoadData(ctypes.byref(module), cubin), f"kernels of {op}")
    _check(_driver().cuModuleGetFunctionCount(ctypes.byref(count), module), "cuModuleGetFunctionCount")
    handles = (ctypes.c_void_p * count.value)()
    _check(_driver().cuModuleEnumerateFunctions(handles, count, module), "cuModuleEnumerateFunctions")
    functions = {}
    for handle in handles:
        name, function = ctypes.c_char_p(), ctypes.c_void_p(handle)
        _check(_driver().cuFuncGetName(ctypes.byref(name), function), "cuFuncGetName")
        _check(_driver().cuFuncLoad(function), f"kernel {name.value!r} of {op}")
        functions[(name.value or b"").decode()] = function
    return functions


def load_kernels(op: str) -> dict[str, ctypes.c_void_p]:
    """Compile and load an op's kernels into the current context, so that launching them loads nothing any more.

    Args:
        op: folder of the op, as "patch_match".

    Returns:
        CUfunctions by kernel name.

    Raises:
        KernelError: no driver, no current context, a device without kernels, or sources that do not compile.
    """
    context = ctypes.c_void_p()
    _check(_driver().cuCtxGetCurrent(ctypes.byref(context)), "cuCtxGetCurrent")
    if not context.value:
        raise KernelError("no current CUDA context; make the device's primary context current first")
    return _functions(op, context.value)


def launch_all(op: str, launches: Sequence[Launch], stream: ctypes.c_void_p) -> None:
    """Launch a plan on a stream of the current context, and return at once.

    Args:
        op: folder of the op, as "patch_match".
        launches: its plan, with addresses of that context.
        stream: a CUstream.

    Raises:
        KernelError: no driver, no current context, a device without kernels, or a refused launch.
    """
    functions = load_kernels(op)
    for launch in launches:
        if launch.kernel not in functions:
            raise KernelError(f"{op} has no kernel {launch.kernel}")
        arguments = (ctypes.c_void_p * 1)(ctypes.addressof(launch.params))
        status = _driver().cuLaunchKernel(
            functions[launch.kernel], *launch.grid, *launch.block, launch.shared, stream, arguments, None
        )
        _check(status, f"launch of {launch.kernel}")
