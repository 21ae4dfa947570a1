"""Device memory: arrays, and a pool per stream that hands out again what is no longer used.

All work of a lane goes to one stream, in order. So memory that is given back can be taken again at once: whoever writes to it
comes after whoever still reads it. A buffer goes back to its pool with the last array that refers to it.
"""

from __future__ import annotations

import heapq
import math
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .cuda import Cuda, CudaError, OutOfDeviceMemory

_SMALLEST = 512  # bytes; what one allocation takes at least


class Buffer:
    """Device memory. `give_back` is called when nobody refers to it any more."""

    def __init__(self, address: int, size: int, pool: Pool) -> None:
        self.address, self.size, self._pool = address, size, pool

    def __del__(self) -> None:
        with suppress(CudaError):  # after a fault nothing can be given back, and nobody is there to be told
            self._pool.give(self.address, self.size)


@dataclass(frozen=True)
class DeviceArray:
    """An array in device memory, or a part of one: what numpy's arrays are to the host.

    Attributes:
        owner: keeps the memory alive.
        address: of the first element.
        shape: as numpy's.
        strides: bytes from one element to the next along each axis.
        dtype: float32, float16 or int32.
    """

    owner: Any
    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Bytes of the elements, whatever lies between them."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def contiguous(self) -> bool:
        return self.strides == contiguous_strides(self.shape, self.dtype)

    def __getitem__(self, parts: tuple[slice, ...]) -> DeviceArray:
        """A view, by slices with step 1 of the leading axes."""
        address, shape = self.address, list(self.shape)
        for axis, part in enumerate(parts):
            start, stop, step = part.indices(self.shape[axis])
            if step != 1:
                raise ValueError(f"step {step}: parts of device arrays are whole ranges")
            address += start * self.strides[axis]
            shape[axis] = max(0, stop - start)
        return DeviceArray(self.owner, address, tuple(shape), self.strides, self.dtype)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """For torch, CuPy, Numba and pycuda. No stream: a call returns when its work is done."""
        return {
            "version": 3,
            "shape": self.shape,
            "strides": self.strides,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "stream": None,
        }


def contiguous_strides(shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[int, ...]:
    """Strides in bytes of an array without gaps, the last axis the fastest."""
    strides, step = [], dtype.itemsize
    for side in reversed(shape):
        strides.append(step)
        step *= side
    return tuple(reversed(strides))


def whole(owner: Any, address: int, shape: tuple[int, ...], dtype: DTypeLike) -> DeviceArray:
    """An array without gaps at an address."""
    kind = np.dtype(dtype)
    return DeviceArray(owner, address, shape, contiguous_strides(shape, kind), kind)


def copy_on_device(cuda: Cuda, to: DeviceArray, source: DeviceArray, stream: Any) -> None:
    """Copy between arrays [1, C, H, W] of one shape and type, or parts of such arrays."""
    if (to.shape, to.dtype) != (source.shape, source.dtype) or len(to.shape) != 4 or to.shape[0] != 1:
        raise ValueError(f"{source.dtype} {source.shape} cannot be copied to {to.dtype} {to.shape}")
    _, planes, rows, cols = to.shape
    if 0 in to.shape:
        return
    boxes = [(array.address, array.strides[2], array.strides[1] // array.strides[2]) for array in (to, source)]
    for array in (to, source):
        if array.strides[3] != array.dtype.itemsize or array.strides[1] % array.strides[2]:
            raise ValueError(f"strides {array.strides} are not those of a part of an array")
    cuda.copy(*boxes[0], *boxes[1], (planes, rows, cols * to.dtype.itemsize), stream)


class Budget:
    """How much device memory the lanes of one upscaler hold together, and at most may.

    Args:
        limit: bytes; None: as much as the GPU has.
        reclaim: gives back what idle lanes hold.
    """

    def __init__(self, limit: int | None, reclaim: Callable[[], None]) -> None:
        self.limit = limit
        self.reclaim = reclaim
        self.held = 0
        self.peak = 0
        self._lock = threading.Lock()

    def reserve(self, size: int) -> bool:
        """Count an allocation; False where the cap has no room for it."""
        with self._lock:
            if self.limit is not None and self.held + size > self.limit:
                return False
            self.held += size
            self.peak = max(self.peak, self.held)
            return True

    def release(self, size: int) -> None:
        with self._lock:
            self.held -= size


class Pool:
    """Device memory for the work of one stream.

    Args:
        cuda: where.
        stream: in whose order memory is used.
        budget: what it counts against.
    """

    def __init__(self, cuda: Cuda, stream: Any, budget: Budget) -> None:
        self._cuda, self._stream, self._budget = cuda, stream, budget
        self._free: dict[int, list[int]] = {}
        self._lock = threading.Lock()  # a reference may be dropped by another thread than the lane's
        self._closed = False

    def take(self, size: int) -> Buffer:
        """At least so many bytes, with whatever they hold.

        Raises:
            OutOfDeviceMemory: the cap or the GPU has no room, even after all that is unused was given back.
        """
        size = _rounded(size)
        with self._lock:
            if unused := self._free.get(size):
                # The lowest: equal calls then get equal addresses, which lets CUDA graphs be replayed.
                return Buffer(heapq.heappop(unused), size, self)
        for attempt in (1, 2):
            if self._budget.reserve(size):
                try:
                    return Buffer(self._cuda.allocate(size), size, self)
                except OutOfDeviceMemory:
                    self._budget.release(size)
                    if attempt == 2:
                        raise OutOfDeviceMemory(self._full(size, "the GPU has no room for")) from None
            elif attempt == 2:
                raise OutOfDeviceMemory(self._full(size, f"the cap of {self._budget.limit or 0:,} bytes has no room for"))
            self.trim()
            self._budget.reclaim()
        raise AssertionError

    def _full(self, size: int, who: str) -> str:
        return (
            f"not enough device memory: {who} {size:,} bytes more than the {self._budget.held:,} in use; "
            "take smaller pictures or fewer references"
        )

    def give(self, address: int, size: int) -> None:
        with self._lock:
            if not self._closed:
                heapq.heappush(self._free.setdefault(size, []), address)
                return
        self._release([(address, size)])  # it outlived the pool

    def trim(self) -> None:
        """Give memory that nobody uses back to the GPU. Waits for the stream: what is on it may still use it."""
        with self._lock:
            unused = [(address, size) for size, addresses in self._free.items() for address in addresses]
            self._free.clear()
        if unused:
            self._cuda.synchronize(self._stream)
            self._release(unused)

    def close(self) -> None:
        """Give back what is unused now, and later the rest as it comes back."""
        with self._lock:
            self._closed = True
        self.trim()

    def _release(self, memory: list[tuple[int, int]]) -> None:
        with self._cuda.current():  # whichever thread dropped the last reference
            for address, size in memory:
                self._cuda.free(address)
                self._budget.release(size)


def _rounded(size: int) -> int:
    """Up to the next of eight steps between powers of two: sizes that hardly differ share memory, at most an eighth is lost."""
    size = max(size, _SMALLEST)
    step = max(_SMALLEST, 1 << max(0, size.bit_length() - 4))
    return -(-size // step) * step


class Staging:
    """Pinned host memory for a stream's copies: each piece is used again only when its copy is done."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._pieces: dict[int, list[tuple[NDArray[np.uint8], Any]]] = {}

    def upload(self, array: NDArray[Any], address: int, stream: Any) -> None:
        """Copy a host array to a device address; the array may change as soon as this returns."""
        memory, pieces = self._take(array.nbytes)
        part = memory[: array.nbytes]
        part.view(array.dtype).reshape(array.shape)[...] = array
        self._cuda.to_device(address, part, stream)
        pieces.append((memory, self._cuda.event(stream)))

    def download(self, array: DeviceArray, stream: Any) -> NDArray[Any]:
        """Copy a contiguous device array to a new host array; waits for the stream."""
        memory, pieces = self._take(array.nbytes)
        part = memory[: array.nbytes]
        self._cuda.to_host(part, array.address, stream)
        self._cuda.synchronize(stream)
        pieces.append((memory, self._cuda.event(stream)))
        return part.view(array.dtype).reshape(array.shape).copy()

    def _take(self, size: int) -> tuple[NDArray[np.uint8], list[tuple[NDArray[np.uint8], Any]]]:
        """Memory that no copy uses, and where it goes back to."""
        size = _rounded(size)
        pieces = self._pieces.setdefault(size, [])
        if len(pieces) < 2:  # one is filled while the other is copied
            return self._cuda.pinned(size), pieces
        memory, event = pieces.pop(0)
        self._cuda.wait_event(event)
        return memory, pieces
