"""CUDA through pycuda. It has no CUDA graphs; all else is the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from .cuda import DEVICE, CudaError, OutOfDeviceMemory


class PyCuda:
    """See `Cuda`."""

    name = "pycuda"
    captures = False

    def __init__(self) -> None:
        try:
            import pycuda.driver as driver
        except ImportError as e:  # it links the driver's library
            raise CudaError(f"pycuda cannot be loaded; is there an NVIDIA driver on this machine? ({e})") from e
        self._driver = driver
        self._allocations: dict[int, Any] = {}
        try:
            driver.init()
            device = driver.Device(DEVICE)
            self._context = device.retain_primary_context()
        except driver.Error as e:
            raise CudaError(f"CUDA: {e}") from e
        self.device = device.name()
        self.capability = "sm{}{}".format(*device.compute_capability())

    def _call(self, function: Any, *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except self._driver.MemoryError as e:
            raise OutOfDeviceMemory(f"CUDA: {e}") from e
        except self._driver.Error as e:
            raise CudaError(f"CUDA: {e}") from e

    @contextmanager
    def current(self) -> Iterator[None]:
        self._call(self._context.push)
        try:
            yield
        finally:
            self._driver.Context.pop()  # pycuda ends the process where a thread ends with a context on its stack

    def allocate(self, size: int) -> int:
        allocation = self._call(self._driver.mem_alloc, size)
        self._allocations[int(allocation)] = allocation
        return int(allocation)

    def free(self, address: int) -> None:
        self._call(self._allocations.pop(address).free)

    def memory(self) -> tuple[int, int]:
        free, total = self._call(self._driver.mem_get_info)
        return int(free), int(total)

    def pinned(self, size: int) -> NDArray[np.uint8]:
        array: NDArray[np.uint8] = self._call(self._driver.pagelocked_empty, size, np.uint8)
        return array

    def stream(self) -> Any:
        return self._call(self._driver.Stream, _NON_BLOCKING)

    def handle(self, stream: Any) -> int:
        return int(stream.handle)

    def synchronize(self, stream: Any) -> None:
        self._call(stream.synchronize)

    def destroy_stream(self, stream: Any) -> None:
        """Streams go with their objects."""

    def event(self, stream: Any) -> Any:
        event = self._call(self._driver.Event, self._driver.event_flags.DISABLE_TIMING)
        return self._call(event.record, stream)

    def wait_event(self, event: Any) -> None:
        self._call(event.synchronize)

    def wait_stream(self, stream: Any, other: int) -> None:
        self._call(self._driver.Context.synchronize)  # pycuda cannot refer to a stream that it did not make

    def to_device(self, address: int, array: NDArray[Any], stream: Any) -> None:
        self._call(self._driver.memcpy_htod_async, address, array, stream)

    def to_host(self, array: NDArray[Any], address: int, stream: Any) -> None:
        self._call(self._driver.memcpy_dtoh_async, array, address, stream)

    def copy(
        self, to: int, to_pitch: int, to_rows: int, source: int, pitch: int, rows: int, extent: tuple[int, int, int], stream: Any
    ) -> None:
        box = self._driver.Memcpy3D()
        box.set_src_device(source)
        box.set_dst_device(to)
        box.src_pitch, box.src_height, box.dst_pitch, box.dst_height = pitch, rows, to_pitch, to_rows
        box.depth, box.height, box.width_in_bytes = extent
        self._call(box, stream)

    def clear(self, address: int, size: int, stream: Any) -> None:
        self._call(self._driver.memset_d8_async, address, 0, size, stream)

    def begin_capture(self, stream: Any) -> None:
        self._no_graphs()

    def end_capture(self, stream: Any) -> Any:
        self._no_graphs()

    def launch(self, graph: Any, stream: Any) -> None:
        self._no_graphs()

    def destroy_graph(self, graph: Any) -> None:
        self._no_graphs()

    def _no_graphs(self) -> NoReturn:
        raise CudaError("pycuda has no CUDA graphs; install cuda-bindings: pip install 'amsa[cuda]'")


_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING
