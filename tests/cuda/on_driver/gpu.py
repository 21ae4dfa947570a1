"""What the checks in this folder share: `cuda.bindings.driver` with errors raised, and device memory as NumPy arrays."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from cuda.bindings import driver as cuda

from ..cpu_driver import Control

Array = np.ndarray[Any, Any]
ILLEGAL = cuda.CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
INVALID = cuda.CUresult.CUDA_ERROR_INVALID_VALUE
NOT_READY = cuda.CUresult.CUDA_ERROR_NOT_READY
SUCCESS = cuda.CUresult.CUDA_SUCCESS
UNSUPPORTED = cuda.CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
GLOBAL = cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_GLOBAL
THREAD_LOCAL = cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL


def do(result: tuple[Any, ...]) -> Any:
    """The value that a call returns, if it succeeds."""
    assert result[0] == SUCCESS, result[0]
    return result[1] if len(result) == 2 else result[1:]


@contextmanager
def context() -> Iterator[Control]:
    """The primary context, current; afterwards all is as if nothing had been done."""
    do(cuda.cuInit(0))
    do(cuda.cuCtxSetCurrent(do(cuda.cuDevicePrimaryCtxRetain(0))))
    control = Control()
    control.reset()
    yield control
    control.reset()
    do(cuda.cuCtxSetCurrent(cuda.CUcontext(0)))
    do(cuda.cuDevicePrimaryCtxRelease(0))


def stream() -> Any:
    return do(cuda.cuStreamCreate(cuda.CUstream_flags.CU_STREAM_NON_BLOCKING))


def event() -> Any:
    return do(cuda.cuEventCreate(0))


def upload(to: Any, array: Array, on: Any) -> None:
    do(cuda.cuMemcpyHtoDAsync(to, array.ctypes.data, array.nbytes, on))


def download(array: Array, address: Any, on: Any) -> None:
    do(cuda.cuMemcpyDtoHAsync(array.ctypes.data, address, array.nbytes, on))


def new(array: Array, on: Any) -> Any:
    """Memory that a stream fills with an array; which must live until then."""
    address = do(cuda.cuMemAlloc(max(array.nbytes, 1)))
    upload(address, array, on)
    return address


def now(address: Any, like: Array) -> Array:
    """What is in memory at this moment, whatever streams have left to do."""
    found = np.zeros_like(like)
    do(cuda.cuMemcpyDtoH(found.ctypes.data, address, found.nbytes))
    return found
