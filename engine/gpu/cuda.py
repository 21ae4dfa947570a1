"""What the runtime needs of CUDA: one small interface, and two bindings behind it, NVIDIA's cuda-bindings and pycuda.

Both use the device's primary context, so what torch, CuPy or TensorRT allocate in the same process can be handed over as it is.
Addresses are plain integers; streams, events and graphs belong to the binding that made them.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...errors import AmsaError

DEVICE = 0
"""The device in use; CUDA_VISIBLE_DEVICES chooses another card."""
OUT_OF_MEMORY = 2
"""CUDA_ERROR_OUT_OF_MEMORY"""
LEGACY_STREAM, PER_THREAD_STREAM = 1, 2
"""Handles of the default streams, as CUDA's headers and the array interfaces number them."""


class CudaError(AmsaError):
    """A call of the CUDA driver failed, or there is no driver, device or binding."""


class OutOfDeviceMemory(CudaError):
    """The GPU, or the cap on its memory, has no room for an allocation."""


class Cuda(Protocol):
    """The device's primary context through one binding. Every method raises CudaError when the driver reports an error."""

    name: str
    """Of the binding, as pip knows it."""
    device: str
    """The GPU's name."""
    capability: str
    """Its compute capability, as "sm75"."""
    captures: bool
    """Whether the binding can capture CUDA graphs."""

    def current(self) -> AbstractContextManager[None]:
        """Make the context current in this thread for a while; all other methods need that."""

    def allocate(self, size: int) -> int:
        """Device memory, aligned to 256 bytes; OutOfDeviceMemory where there is none."""

    def free(self, address: int) -> None:
        """Give device memory back."""

    def memory(self) -> tuple[int, int]:
        """Bytes of device memory that are free, and all of them."""

    def pinned(self, size: int) -> NDArray[np.uint8]:
        """Page-locked host memory, which copies need to be asynchronous; it lives as long as the array."""

    def stream(self) -> Any:
        """A stream of its own, which does not wait for the default one."""

    def handle(self, stream: Any) -> int:
        """The CUstream of a stream, for TensorRT."""

    def synchronize(self, stream: Any) -> None:
        """Wait until all work on a stream is done."""

    def destroy_stream(self, stream: Any) -> None:
        """Give a stream back; its work must be done."""

    def event(self, stream: Any) -> Any:
        """An event that is reached when what is on the stream now is done."""

    def wait_event(self, event: Any) -> None:
        """Block until an event is reached."""

    def wait_stream(self, stream: Any, other: int) -> None:
        """Let what comes next on `stream` wait for what is now on another library's stream (a CUstream; see LEGACY_STREAM)."""

    def to_device(self, address: int, array: NDArray[Any], stream: Any) -> None:
        """Copy contiguous host memory, which must be pinned and stay as it is until the stream gets there."""

    def to_host(self, array: NDArray[Any], address: int, stream: Any) -> None:
        """Copy into contiguous, pinned host memory."""

    def copy(
        self, to: int, to_pitch: int, to_rows: int, source: int, pitch: int, rows: int, extent: tuple[int, int, int], stream: Any
    ) -> None:
        """Copy a box on the device.

        Args:
            to, source: addresses of the first byte.
            to_pitch, pitch: bytes from one row to the next.
            to_rows, rows: rows from one plane to the next.
            extent: planes, rows, and bytes of a row.
            stream: where.
        """

    def clear(self, address: int, size: int, stream: Any) -> None:
        """Fill with zero bytes."""

    def begin_capture(self, stream: Any) -> None:
        """From here on, record what is put on the stream instead of running it. Other threads are not affected."""

    def end_capture(self, stream: Any) -> Any:
        """The recorded graph, ready to be launched."""

    def launch(self, graph: Any, stream: Any) -> None:
        """Run a graph."""

    def destroy_graph(self, graph: Any) -> None:
        """Give a graph back; it must have run."""


def open_cuda(binding: str | None = None) -> Cuda:
    """Open the GPU.

    Args:
        binding: "cuda-bindings" or "pycuda"; None: the first of them that is installed.

    Raises:
        CudaError: no binding, no driver or no GPU.
    """
    if binding is None:
        binding = installed_binding()
    if binding is None:
        raise CudaError("neither cuda-bindings nor pycuda is installed; install the first with: pip install 'amsa[cuda]'")
    if binding not in BINDINGS:
        raise CudaError(f"unknown CUDA binding {binding!r}; choose one of {', '.join(BINDINGS)}")
    if not _installed(BINDINGS[binding]):
        raise CudaError(f"{binding} is not installed; install it with: pip install {binding}")
    if binding == "pycuda":
        from .cuda_pycuda import PyCuda

        return PyCuda()
    from .cuda_bindings import CudaBindings

    return CudaBindings()


BINDINGS = {"cuda-bindings": "cuda.bindings", "pycuda": "pycuda"}
"""Bindings by their names on PyPI, the preferred one first, and their modules."""


def installed_binding() -> str | None:
    """Name of the binding that `open_cuda` takes by itself, a key of BINDINGS; None where none is installed."""
    return next((name for name, module in BINDINGS.items() if _installed(module)), None)


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the package around it
        return False
