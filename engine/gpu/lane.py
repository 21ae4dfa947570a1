"""A lane: one stream with its memory and execution contexts, which serves one call at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ...errors import AmsaError
from .arrays import borrow
from .cuda import Cuda
from .engines import Engines, Shape, StageEngine, reasons
from .graphs import Graphs
from .memory import Budget, DeviceArray, Pool, Staging, copy_on_device, whole


class _Context:
    """An execution context, and what is known of it for the shapes it is set to. `profiler`: an IProfiler for its layers."""

    def __init__(self, engine: StageEngine, profiler: Any = None) -> None:
        self.context = engine.context(layer_by_layer=profiler is not None)
        if profiler is not None:
            self.context.profiler = self.profiler = profiler  # TensorRT keeps no reference
        self.shapes: tuple[Shape, ...] = ()
        self.outputs: dict[str, Shape] = {}
        self.scratch = 0


class Lane:
    """What a call of the `Upscaler` runs on (see `backends.Execution`): nothing here waits but `to_host` and `synchronize`.

    Args:
        trt: `tensorrt_rtx` or `tensorrt`.
        cuda: the GPU.
        engines: the model's.
        budget: of device memory, shared with the other lanes.
        graphs: CUDA graphs, or None where TensorRT makes its own.
        profiler: makes a stage's IProfiler; None: layers are not timed.
    """

    def __init__(
        self,
        trt: Any,
        cuda: Cuda,
        engines: Engines,
        budget: Budget,
        graphs: Graphs | None,
        profiler: Callable[[str], Any] | None = None,
    ) -> None:
        self._trt, self._cuda, self._engines, self._graphs, self._profiler = trt, cuda, engines, graphs, profiler
        self.stream = cuda.stream()
        self.pool = Pool(cuda, self.stream, budget)
        self._staging = Staging(cuda)
        self._contexts: dict[str, _Context] = {}
        self.new_shapes = False
        """Whether shapes were run that this lane had not run before; whoever reads it resets it."""

    def empty(self, shape: Shape, dtype: DTypeLike) -> DeviceArray:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        buffer = self.pool.take(size)
        return whole(buffer, buffer.address, shape, dtype)

    def zeros(self, shape: Shape, dtype: DTypeLike) -> DeviceArray:
        array = self.empty(shape, dtype)
        self._cuda.clear(array.address, array.nbytes, self.stream)
        return array

    def to_device(self, array: Any) -> DeviceArray:
        """A host array, copied; or an array of torch, CuPy or pycuda on this GPU, as it is."""
        if not isinstance(array, np.ndarray):
            return borrow(array, self._cuda, self.stream)
        target = self.empty(array.shape, array.dtype)
        if array.size:
            self._staging.upload(array, target.address, self.stream)
        return target

    def to_host(self, array: DeviceArray) -> NDArray[Any]:
        return self._staging.download(self._contiguous(array), self.stream)

    def copy(self, to: DeviceArray, source: DeviceArray) -> None:
        copy_on_device(self._cuda, to, source, self.stream)

    def synchronize(self) -> None:
        self._cuda.synchronize(self.stream)

    def run(self, stage: str, inputs: Mapping[str, DeviceArray]) -> dict[str, DeviceArray]:
        """Put a stage on the stream. Its outputs can be used at once by what comes next on this lane."""
        engine = self._engines[stage]
        given = {t.name: self._contiguous(inputs[t.name]) for t in engine.stage.inputs}
        for name, array in given.items():
            if array.dtype != engine.dtypes[name]:
                raise AmsaError(f"{stage}: {name} is {array.dtype}, and the engine takes {np.dtype(engine.dtypes[name])}")
        shapes = tuple(array.shape for array in given.values())
        state = self._contexts.get(stage)
        if state is None:
            state = self._contexts[stage] = _Context(engine, self._profiler(stage) if self._profiler else None)
        self._set_shapes(state, engine, shapes)
        outputs = {name: self.empty(shape, engine.dtypes[name]) for name, shape in state.outputs.items()}
        scratch = self.pool.take(state.scratch) if state.scratch else None
        addresses = {name: array.address for name, array in (*given.items(), *outputs.items())}
        memory = (scratch.address, scratch.size) if scratch else (0, 0)
        if self._graphs is None:
            self._enqueue(engine, state.context, addresses, memory)
        else:
            key = (stage, shapes, *addresses.values(), *memory)
            self._graphs.run(
                key,
                self.stream,
                lambda: self._enqueue(engine, state.context, addresses, memory),
                lambda: self._own(engine, shapes, addresses, memory),
            )
        return outputs

    def _own(self, engine: StageEngine, shapes: tuple[Shape, ...], addresses: Mapping[str, int], memory: tuple[int, int]) -> Any:
        """Enqueues with a context that is used for nothing else: a graph is valid as long as its context stays as it is."""
        state = _Context(engine)
        self._set_shapes(state, engine, shapes)
        return lambda: self._enqueue(engine, state.context, addresses, memory)

    def _set_shapes(self, state: _Context, engine: StageEngine, shapes: tuple[Shape, ...]) -> None:
        if state.shapes == shapes:
            return
        engine.check_shapes(shapes)
        state.shapes = ()  # until all are set
        for tensor, shape in zip(engine.stage.inputs, shapes, strict=True):
            if not state.context.set_input_shape(tensor.name, shape):
                raise AmsaError(f"{engine.stage.name}: TensorRT refuses {tensor.name} {shape}: {reasons(self._trt)}")
        if missing := state.context.infer_shapes():
            raise AmsaError(f"{engine.stage.name}: the shape of {', '.join(missing)} does not follow from the others'")
        state.outputs = {t.name: tuple(state.context.get_tensor_shape(t.name)) for t in engine.stage.outputs}
        state.scratch = state.context.update_device_memory_size_for_shapes()
        state.shapes = shapes
        self.new_shapes = True

    def _enqueue(self, engine: StageEngine, context: Any, addresses: Mapping[str, int], memory: tuple[int, int]) -> None:
        context.set_device_memory(*memory)
        for name, address in addresses.items():
            if not context.set_tensor_address(name, address):
                raise AmsaError(f"{engine.stage.name}: TensorRT refuses the address of {name}: {reasons(self._trt)}")
        if not context.execute_async_v3(self._cuda.handle(self.stream)):
            raise AmsaError(f"{engine.stage.name} failed on the GPU: {reasons(self._trt)}")

    def _contiguous(self, array: DeviceArray) -> DeviceArray:
        if array.contiguous:
            return array
        packed = self.empty(array.shape, array.dtype)
        self.copy(packed, array)
        return packed

    def close(self) -> None:
        """Give everything back; the stream's work must be done."""
        if self._graphs is not None:
            self._graphs.clear()
        self._contexts.clear()
        self.pool.close()
        self._cuda.destroy_stream(self.stream)
