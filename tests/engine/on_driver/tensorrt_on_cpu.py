"""Stands for TensorRT where there is no GPU: engines whose work ONNX Runtime does, on the stream and the memory they were given.

It is as strict as the real one and less forgiving: what is enqueued runs when the stream gets there, no sooner, and reads and
writes the addresses it was given; scratch memory is filled with garbage; a context that is changed spoils the graphs recorded
from it; and the first enqueue after new shapes cannot be recorded.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
from types import SimpleNamespace
from typing import Any

import numpy as np

from amsa.engine.backends import OnnxRuntimeBackend
from amsa.engine.engine_cache import EngineKey, Sidecar, plugins_hash, store_engine
from amsa.engine.engine_shapes import GRID_MIN, dimensions, make_profile, parse_sizes
from amsa.engine.gpu import backend as gpu_backend
from amsa.engine.tensorrt_build import engines_folder
from amsa.manifest import ModelFolder
from amsa.stages import LR_MIN, Stage

_HOST_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_driver = ctypes.CDLL("libcuda.so.1")
_kept: list[Any] = []  # callbacks that the driver may still call

ran: list[str] = []
"""Stages in the order in which they ran."""
failing: dict[str, str] = {}
"""Stages whose enqueue fails, and what is logged then."""
problems: list[str] = []
"""What a program must not do with TensorRT, and did."""
not_recordable: set[str] = set()
"""Stages whose enqueue fails in a capture."""


def _view(address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_ubyte * size).from_address(address), dtype).reshape(shape)


def _capturing(stream: int) -> bool:
    status = ctypes.c_int()
    assert _driver.cuStreamIsCapturing(ctypes.c_void_p(stream), ctypes.byref(status)) == 0
    return status.value != 0


class Context:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.scratch = (0, 0)
        self.state = 0  # changes with whatever is set
        self.prepared = False
        self.profiler: Any = None

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = dimensions(self.engine.input(name), self.engine.profile)
        if not all(a <= n <= b for a, n, b in zip(least, shape, most, strict=True)):
            return False
        self.state, self.prepared = self.state + 1, False
        self.shapes[name] = shape
        return True

    def infer_shapes(self) -> list[str]:
        return [t.name for t in self.engine.stage.inputs if t.name not in self.shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """By the sizes of the words in the inputs' dimensions."""
        words = {}
        for tensor in self.engine.stage.inputs:
            for dim, size in zip(tensor.dims, self.shapes[tensor.name], strict=True):
                if isinstance(dim, str) and dim.isalpha():
                    words[dim] = size
                elif isinstance(dim, str) and "*" in dim and dim.split("*")[1] not in words:
                    factor, word = dim.split("*")
                    words[word] = size // int(factor)
        (tensor,) = (t for t in self.engine.stage.outputs if t.name == name)
        known = {word: SimpleNamespace(size=size) for word, size in words.items()}
        profile = {word: (k.size, k.size, k.size) for word, k in known.items()}
        return dimensions(tensor, profile)[0]

    def update_device_memory_size_for_shapes(self) -> int:
        return sum(int(np.prod(shape)) for shape in self.shapes.values())

    def set_device_memory(self, address: int, size: int) -> None:
        self.state += self.scratch != (address, size)
        self.scratch = (address, size)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.state += self.addresses.get(name) != address
        self.addresses[name] = address
        return address != 0

    def execute_async_v3(self, stream: int) -> bool:
        name = self.engine.stage.name
        capturing = _capturing(stream)
        if name in failing or (capturing and (not self.prepared or name in not_recordable)):
            text = failing.get(name, "the first enqueue after new shapes cannot be captured")
            self.engine.trt.logger.log(self.engine.trt.Logger.Severity.ERROR, text)
            return False
        if self.scratch[1] < self.update_device_memory_size_for_shapes() or self.scratch[0] % 256:
            problems.append(f"{name}: scratch memory {self.scratch}")
        self.prepared = True
        work = self._work(stream if capturing else None)
        callback = _HOST_FUNCTION(work)
        _kept.append(callback)
        launched = _driver.cuLaunchHostFunc(ctypes.c_void_p(stream), callback, None) == 0
        if self.profiler is not None:  # as the real one, it waits for the stream and then tells every layer
            if capturing or not isinstance(self.profiler, self.engine.trt.IProfiler):
                problems.append(f"{name}: a profiler in a capture, or one of another kind")
            _driver.cuStreamSynchronize(ctypes.c_void_p(stream))
            for layer in ("node_conv2d + relu", f"node_{name}"):
                self.profiler.report_layer_time(layer, 0.5)
        return bool(launched)

    def _work(self, captured: int | None) -> Any:
        engine, shapes, addresses, scratch, state = self.engine, dict(self.shapes), dict(self.addresses), self.scratch, self.state
        outputs = {t.name: self.get_tensor_shape(t.name) for t in engine.stage.outputs}

        def work(_: Any) -> None:
            try:
                if captured is not None and self.state != state:
                    problems.append(f"{engine.stage.name}: a graph was replayed whose context has changed")
                _view(scratch[0], (scratch[1],), np.uint8)[:] = 0xFF
                inputs = {n: _view(addresses[n], s, engine.dtypes[n]).copy() for n, s in shapes.items()}
                for n, s in outputs.items():
                    _view(addresses[n], s, engine.dtypes[n]).view(np.uint8)[:] = 0xFF
                made = engine.runner.run(engine.stage.name, inputs)
                for n, s in outputs.items():
                    _view(addresses[n], s, engine.dtypes[n])[...] = made[n]
                ran.append(engine.stage.name)
            except Exception as e:  # nobody above could tell
                problems.append(f"{engine.stage.name}: {type(e).__name__}: {e}")

        return work


class RuntimeCache:
    """Holds how often contexts met new shapes, where the real one holds kernels."""

    refuse = False

    def __init__(self) -> None:
        self.content = b""

    def deserialize(self, content: bytes) -> bool:
        self.content = content
        return not RuntimeCache.refuse

    def serialize(self) -> bytes:
        self.content += b"k"
        return self.content[:3]


class RuntimeConfig:
    def __init__(self) -> None:
        self.cuda_graph_strategy: Any = None
        self.cache: Any = None
        self.strategy: Any = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache()

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        self.cache = cache
        return True


class Engine:
    def __init__(self, trt: Module, stage: Stage, profile: Any, runner: Any) -> None:
        self.trt, self.stage, self.profile, self.runner = trt, stage, profile, runner
        self.tensors = [*stage.inputs, *stage.outputs]
        self.num_io_tensors = len(self.tensors)
        self.dtypes = {t.name: np.dtype(t.dtype) for t in self.tensors}
        self.contexts = 0

    def input(self, name: str) -> Any:
        return next(t for t in self.stage.inputs if t.name == name)

    def get_tensor_name(self, i: int) -> str:
        return self.tensors[i].name

    def get_tensor_dtype(self, name: str) -> Any:
        return self.dtypes[name]

    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig()

    def create_execution_context(self, settings: Any) -> Context:
        if self.trt.__name__ == "tensorrt_rtx":
            assert settings.strategy == "user managed", "scratch memory is ours"
            assert settings.cuda_graph_strategy in ("whole graph capture", "disabled")
            assert settings.cache is not None
        else:
            assert settings == "user managed"
        self.contexts += 1
        self.graph_strategy = getattr(settings, "cuda_graph_strategy", None)
        return Context(self)


class Module:
    """`tensorrt_rtx` or `tensorrt`, as far as the runtime uses it."""

    __version__ = "1.7.1.116"
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user managed")
    CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole graph capture", DISABLED="disabled")
    Logger = SimpleNamespace(Severity=SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2))

    class ILogger:
        pass

    class IProfiler:
        pass

    def __init__(self, name: str) -> None:
        self.__name__ = name
        self.engines: list[Engine] = []
        self.logger: Any = None

    def nptype(self, dtype: Any) -> Any:
        return dtype

    def Runtime(self, logger: Any) -> Any:
        self.logger = logger
        return SimpleNamespace(deserialize_cuda_engine=self._deserialize)

    def _deserialize(self, content: bytes) -> Engine | None:
        try:
            values = json.loads(content)
        except ValueError:
            self.logger.log(self.Logger.Severity.ERROR, "not a plan")
            return None
        folder = ModelFolder.open(values["model"])
        stage = next(s for s in folder.manifest.config.stages(folder.manifest.precision) if s.name == values["stage"])
        self.engines.append(Engine(self, stage, {w: tuple(n) for w, n in values["profile"].items()}, _runner(values["model"])))
        return self.engines[-1]


_runners: dict[str, OnnxRuntimeBackend] = {}


def _runner(model: str) -> OnnxRuntimeBackend:
    if model not in _runners:
        _runners[model] = OnnxRuntimeBackend(ModelFolder.open(model), 1)
    return _runners[model]


def install(monkeypatch: Any, runtime: str = "rtx") -> Module:
    """Let the backend import this instead of TensorRT."""
    trt = Module("tensorrt_rtx" if runtime == "rtx" else "tensorrt")
    monkeypatch.setattr(gpu_backend, "import_tensorrt", lambda wanted: trt if wanted == runtime else None)
    monkeypatch.setattr("amsa.engine.tensorrt_module._LOGGERS", {})
    for record in (ran, problems):
        record.clear()
    failing.clear()
    not_recordable.clear()
    return trt


def build(
    model: Any, trt: Module, kind: str = "rtx", target: str = "sm75", lr: str = "16x16/32x32/64x64", **changed: Any
) -> None:
    """Engines of a model, beside it; `changed`: fields of the key that are not what they should be."""
    folder = ModelFolder.open(model)
    config, precision = folder.manifest.config, folder.manifest.precision
    for stage in config.stages(precision):
        if stage.name == "match_exact":
            continue
        sizes = parse_sizes(lr, "", LR_MIN), parse_sizes("8x8/32x32/64x64", "", GRID_MIN)
        profile = make_profile(stage.name, stage.inputs, *sizes, config.halo)
        content = json.dumps({"model": str(model), "stage": stage.name, "profile": profile}).encode()
        values: dict[str, Any] = {
            "stage": stage.name,
            "onnx": folder.manifest.graphs[stage.name].sha256,
            "plugins": plugins_hash(),
            "runtime": f"{trt.__name__} {trt.__version__}",
            "target": target,
            "precision": precision,
            "profile": profile,
        }
        key = EngineKey(**{**values, **changed})
        sidecar = Sidecar(key, len(content), hashlib.sha256(content).hexdigest(), 1, 0, 0, 0.0)
        store_engine(engines_folder(folder.path) / f"{kind}-{target}-{precision}" / f"{stage.name}.engine", content, sidecar)
