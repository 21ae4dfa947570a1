"""CUDA through NVIDIA's cuda-bindings, on which cuda-core is built: the driver's functions as they are."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cuda import DEVICE, OUT_OF_MEMORY, CudaError, OutOfDeviceMemory


class CudaBindings:
    """See `Cuda`."""

    name = "cuda-bindings"
    captures = True

    def __init__(self) -> None:
        from cuda.bindings import driver

        self._driver = driver
        try:
            self._call("cuInit", 0)
        except RuntimeError as e:  # cuda-bindings' own, where it finds no library
            raise CudaError("there is no NVIDIA driver on this machine (libcuda.so.1 cannot be loaded)") from e
        device = self._call("cuDeviceGet", DEVICE)
        self._context = self._call("cuDevicePrimaryCtxRetain", device)
        attribute = driver.CUdevice_attribute
        self.device = self._call("cuDeviceGetName", 128, device).split(b"\0")[0].decode()
        major = self._call("cuDeviceGetAttribute", attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device)
        minor = self._call("cuDeviceGetAttribute", attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device)
        self.capability = f"sm{major}{minor}"

    def _call(self, function: str, *arguments: Any) -> Any:
        status, *results = getattr(self._driver, function)(*arguments)
        if status:
            _, name = self._driver.cuGetErrorName(status)
            kind = OutOfDeviceMemory if int(status) == OUT_OF_MEMORY else CudaError
            raise kind(f"CUDA: {function}: {name.decode() if name else int(status)}")
        return results[0] if len(results) == 1 else results

    @contextmanager
    def current(self) -> Iterator[None]:
        self._call("cuCtxPushCurrent", self._context)
        try:
            yield
        finally:
            self._call("cuCtxPopCurrent")

    def allocate(self, size: int) -> int:
        return int(self._call("cuMemAlloc", size))

    def free(self, address: int) -> None:
        self._call("cuMemFree", address)

    def memory(self) -> tuple[int, int]:
        free, total = self._call("cuMemGetInfo")
        return int(free), int(total)

    def pinned(self, size: int) -> NDArray[np.uint8]:
        address = int(self._call("cuMemHostAlloc", size, 0))
        memory = (ctypes.c_ubyte * size).from_address(address)
        # The driver's own function: at the interpreter's end there may be no context and nobody to tell.
        weakref.finalize(memory, self._driver.cuMemFreeHost, address)
        array: NDArray[np.uint8] = np.ctypeslib.as_array(memory)
        return array

    def stream(self) -> Any:
        return self._call("cuStreamCreate", self._driver.CUstream_flags.CU_STREAM_NON_BLOCKING)

    def handle(self, stream: Any) -> int:
        return int(stream)

    def synchronize(self, stream: Any) -> None:
        self._call("cuStreamSynchronize", stream)

    def destroy_stream(self, stream: Any) -> None:
        self._call("cuStreamDestroy", stream)

    def event(self, stream: Any) -> Any:
        event = _Event(self._driver, self._call("cuEventCreate", self._driver.CUevent_flags.CU_EVENT_DISABLE_TIMING))
        self._call("cuEventRecord", event.handle, stream)
        return event

    def wait_event(self, event: Any) -> None:
        self._call("cuEventSynchronize", event.handle)

    def wait_stream(self, stream: Any, other: int) -> None:
        event = self.event(self._driver.CUstream(other))
        self._call("cuStreamWaitEvent", stream, event.handle, 0)

    def to_device(self, address: int, array: NDArray[Any], stream: Any) -> None:
        self._call("cuMemcpyHtoDAsync", address, array.ctypes.data, array.nbytes, stream)

    def to_host(self, array: NDArray[Any], address: int, stream: Any) -> None:
        self._call("cuMemcpyDtoHAsync", array.ctypes.data, address, array.nbytes, stream)

    def copy(
        self, to: int, to_pitch: int, to_rows: int, source: int, pitch: int, rows: int, extent: tuple[int, int, int], stream: Any
    ) -> None:
        box = self._driver.CUDA_MEMCPY3D()
        box.srcMemoryType = box.dstMemoryType = self._driver.CUmemorytype.CU_MEMORYTYPE_DEVICE
        box.dstDevice, box.dstPitch, box.dstHeight = self._driver.CUdeviceptr(to), to_pitch, to_rows
        box.srcDevice, box.srcPitch, box.srcHeight = self._driver.CUdeviceptr(source), pitch, rows
        box.Depth, box.Height, box.WidthInBytes = extent
        self._call("cuMemcpy3DAsync", box, stream)

    def clear(self, address: int, size: int, stream: Any) -> None:
        self._call("cuMemsetD8Async", address, 0, size, stream)

    def begin_capture(self, stream: Any) -> None:
        mode = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._call("cuStreamBeginCapture", stream, mode)

    def end_capture(self, stream: Any) -> Any:
        graph = self._call("cuStreamEndCapture", stream)
        try:
            return self._call("cuGraphInstantiate", graph, 0)
        finally:
            self._call("cuGraphDestroy", graph)

    def launch(self, graph: Any, stream: Any) -> None:
        self._call("cuGraphLaunch", graph, stream)

    def destroy_graph(self, graph: Any) -> None:
        self._call("cuGraphExecDestroy", graph)


class _Event:
    """An event that goes when nobody refers to it any more; the driver keeps it until it is reached."""

    def __init__(self, driver: Any, handle: Any) -> None:
        self.handle = handle
        weakref.finalize(self, driver.cuEventDestroy, handle)
