"""The TensorRT backend of the `Upscaler`: pictures go to the GPU once and come back once; features never leave it."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from ...manifest import ModelFolder
from ..tensorrt_module import import_tensorrt
from .cuda import Cuda, CudaError, open_cuda
from .engines import Engines, find_engines
from .graphs import Graphs
from .lane import Lane
from .layers import Report, layer_profiler
from .memory import Budget


class TensorRTBackend:
    """Runs a model's engines (see `backends.Backend`). Several threads may use it: each call has a lane of its own.

    Args:
        folder: the model.
        engines: where `amsa build -o` put its engines; None: beside it.
        max_memory: bytes of device memory that features, pictures and scratch may take; weights and kernels come on top.
            None: as much as there is.
        cuda: the GPU; None: opened with the binding that is installed.

    Raises:
        AmsaError: no binding, driver or GPU; TensorRT missing; no engines for this GPU, or not of this model.
    """

    name = "tensorrt"

    def __init__(
        self, folder: ModelFolder, engines: Path | None = None, max_memory: int | None = None, cuda: Cuda | None = None
    ) -> None:
        self._cuda = cuda or open_cuda()
        self.config = folder.manifest.config
        self.precision = folder.manifest.precision
        self.trained = folder.manifest.trained
        found = find_engines(folder.path, self.precision, self._cuda.capability, engines)
        self._trt = import_tensorrt(found.runtime)
        self.device = self._cuda.device
        self.kernels = f"CUDA kernels, engines {found.path.name}, {self._trt.__name__} {self._trt.__version__}, {self._cuda.name}"
        self._own_graphs = found.runtime != "rtx" and self._cuda.captures
        if found.runtime != "rtx" and not self._cuda.captures:
            self.kernels += ", which has no CUDA graphs"
        self._engines = Engines(self._trt, found, folder)
        self.budget = Budget(max_memory, self._close_idle)
        self._idle: list[Lane] = []
        self._profiler: Callable[[str], Any] | None = None
        self._lock = threading.Lock()
        weakref.finalize(self, _end, self._cuda, self._idle, self._engines)

    @contextmanager
    def call(self) -> Iterator[Lane]:
        """A lane for one call. When the call ends all its work is done, so what it made can be used on any stream."""
        with self._cuda.current():
            with self._lock:
                lane = self._idle.pop() if self._idle else None
            lane = lane or self._new_lane()
            try:
                yield lane
                lane.synchronize()
            except BaseException:
                with suppress(CudaError):  # a GPU that failed fails again; the first error is the one to tell
                    lane.synchronize()
                    lane.close()
                raise
            with self._lock:
                self._idle.append(lane)
        if lane.new_shapes:
            lane.new_shapes = False
            self._engines.save_caches()

    def _new_lane(self) -> Lane:
        graphs = Graphs(self._cuda) if self._own_graphs and self._profiler is None else None
        return Lane(self._trt, self._cuda, self._engines, self.budget, graphs, self._profiler)

    def tell_layers(self, report: Report) -> None:
        """From the next call on, `report` is told every layer that ran. No CUDA graphs are made then, and each stage is waited
        for: that is for looking inside, not for speed."""
        self.close()
        self._profiler = partial(layer_profiler, self._trt, report)

    def close(self) -> None:
        """Give device memory back, but for what references still hold. The backend can be used again."""
        with self._cuda.current():
            self._close_idle()
        self._engines.save_caches()

    def _close_idle(self) -> None:
        with self._lock:
            idle = self._idle[:]
            self._idle.clear()
        for lane in idle:
            lane.close()

    @property
    def memory(self) -> dict[str, Any]:
        """Bytes of device memory held now and at most so far, by pictures, features and scratch."""
        return {"held": self.budget.held, "peak": self.budget.peak, "limit": self.budget.limit}


def _end(cuda: Cuda, lanes: list[Lane], engines: Engines) -> None:
    """When nobody refers to a backend any more, or the process ends."""
    with suppress(CudaError), cuda.current():
        for lane in lanes:
            lane.close()
    engines.save_caches()  # TensorRT-RTX compiles in the background, too
