"""A model's TensorRT engines for this machine: which folder holds them, whether they still are of the model, their contexts."""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import AmsaError
from ...manifest import ModelFolder
from ...plugins.tensorrt import take_errors
from ...stages import Stage
from ..engine_cache import SUFFIX, Profile, load_engine, plugins_hash, read_sidecar
from ..engine_shapes import TILED, dimensions
from ..tensorrt_build import NATIVE, engines_folder
from ..tensorrt_module import RUNTIMES, process_logger

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Found:
    """A folder of engines for this machine: its runtime ("rtx" or "tensorrt") and target, as "sm75"."""

    path: Path
    runtime: str
    target: str


def find_engines(model: Path, precision: str, capability: str, folder: Path | None = None) -> Found:
    """The engines of a model that run on a GPU of this compute capability.

    Args:
        model: the model folder or `.amsa` file.
        precision: of the model.
        capability: of the GPU, as "sm75".
        folder: where `amsa build -o` put them; None: beside the model.

    Raises:
        AmsaError: there are none; what to build.
    """
    root = folder or engines_folder(model)
    found = []
    for path in sorted(root.iterdir()) if root.is_dir() else []:
        runtime, _, rest = path.name.partition("-")
        target, _, made = rest.rpartition("-")
        if runtime in RUNTIMES and made == precision and (capability in target.split("+") or target == NATIVE):
            found.append(Found(path, runtime, target))
    if not found:
        have = ", ".join(p.name for p in sorted(root.iterdir())) if root.is_dir() else "no such folder"
        into = f" -o {folder}" if folder else ""
        raise AmsaError(
            f"{root}: no {precision} engines for this GPU ({capability}; there: {have or 'nothing'}); "
            f"build them with: amsa build {model} --target {capability}{into}"
        )
    # Made for this very machine first, then for its capability alone; of two runtimes, the order of RUNTIMES.
    return min(found, key=lambda f: (f.target != NATIVE, "+" in f.target, list(RUNTIMES).index(f.runtime)))


class StageEngine:
    """One stage's engine. Contexts of several lanes share it.

    Args:
        trt: `tensorrt_rtx` or `tensorrt`.
        stage: the graph's declaration.
        engine: the ICudaEngine.
        profile: the sizes that it takes.
        cache: file of kernels that TensorRT-RTX compiled on this machine; None for classic TensorRT.
    """

    def __init__(self, trt: Any, stage: Stage, engine: Any, profile: Profile, cache: Path | None) -> None:
        self._trt, self.stage, self.engine, self.profile = trt, stage, engine, profile
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        if sorted(names) != sorted(t.name for t in (*stage.inputs, *stage.outputs)):
            raise AmsaError(f"{stage.name}.engine is of another graph (its tensors are {', '.join(names)}); build it again")
        self.dtypes = {name: trt.nptype(engine.get_tensor_dtype(name)) for name in names}
        self._cache_file = cache
        self._runtime_config: Any = None
        self._runtime_cache: Any = None
        self._saved = 0
        if cache is not None:
            self._runtime_config = engine.create_runtime_config()
            self._runtime_config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
            self._runtime_cache = self._runtime_config.create_runtime_cache()
            if cache.exists() and not self._runtime_cache.deserialize(cache.read_bytes()):
                warnings.warn(f"{cache}: not a cache of this driver and GPU; kernels are compiled again", stacklevel=2)
            self._runtime_config.set_runtime_cache(self._runtime_cache)

    def context(self, layer_by_layer: bool = False) -> Any:
        """A new execution context, which takes its scratch memory from us; `layer_by_layer`: one that makes no CUDA graphs."""
        if self._runtime_config is not None:
            strategies = self._trt.CudaGraphStrategy
            # TensorRT-RTX swaps kernels for faster ones while it runs; only its own capture knows when.
            strategy = strategies.DISABLED if layer_by_layer else strategies.WHOLE_GRAPH_CAPTURE
            self._runtime_config.cuda_graph_strategy = strategy
            context = self.engine.create_execution_context(self._runtime_config)
        else:
            context = self.engine.create_execution_context(self._trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if context is None:
            raise AmsaError(f"{self.stage.name}: TensorRT makes no execution context: {reasons(self._trt)}")
        return context

    def check_shapes(self, shapes: Sequence[Shape]) -> None:
        """AmsaError unless every input's shape lies within the profile."""
        for tensor, shape in zip(self.stage.inputs, shapes, strict=True):
            least, _, most = dimensions(tensor, self.profile)
            if len(shape) != len(least) or any(not a <= n <= b for a, n, b in zip(least, shape, most, strict=True)):
                size, low, high = ("x".join(map(str, s)) for s in (shape, least, most))
                sizes = "; ".join(f"{word} {a} to {b}" for word, (a, _, b) in self.profile.items())
                mend = (
                    "take a smaller tile"
                    if self.stage.name in TILED
                    else "build it for these: amsa build --shapes .. --ref-shapes .."
                )
                raise AmsaError(
                    f"{self.stage.name}: {tensor.name} is {size}, and the engine takes {low} to {high} ({sizes}); {mend}"
                )

    def save_cache(self) -> None:
        """Keep the kernels that TensorRT-RTX compiled, for the next process. What cannot be written is told, once."""
        if self._cache_file is None:
            return
        content = bytes(self._runtime_cache.serialize())
        if len(content) == self._saved:
            return
        self._saved = len(content)
        try:
            self._cache_file.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self._cache_file.parent) as scratch:
                beside = Path(scratch) / self._cache_file.name
                beside.write_bytes(content)
                beside.replace(self._cache_file)
        except OSError as e:
            warnings.warn(
                f"{self._cache_file}: cannot be written ({e.strerror}); kernels are compiled again every time", stacklevel=2
            )


class Engines:
    """The engines of a folder, each checked, loaded and deserialized when first needed.

    Args:
        trt: the module that built them, with our plugins registered.
        found: where they are.
        model: the model that they must be of.
    """

    def __init__(self, trt: Any, found: Found, model: ModelFolder) -> None:
        self._trt, self._found, self._model = trt, found, model
        self._runtime = trt.Runtime(process_logger(trt))
        self._loaded: dict[str, StageEngine] = {}
        self._lock = threading.Lock()

    def __getitem__(self, stage: str) -> StageEngine:
        with self._lock:
            if stage not in self._loaded:
                self._loaded[stage] = self._load(stage)
            return self._loaded[stage]

    def save_caches(self) -> None:
        for engine in list(self._loaded.values()):
            engine.save_cache()

    def _load(self, name: str) -> StageEngine:
        manifest = self._model.manifest
        stage = next(s for s in manifest.config.stages(manifest.precision) if s.name == name)
        path = self._found.path / f"{name}{SUFFIX}"
        content = load_engine(path)
        key = read_sidecar(path).key
        running = f"{self._trt.__name__} {self._trt.__version__}"
        again = f"build it again: amsa build {self._model.path} --target {self._found.target} -o {path.parent.parent}"
        if key.onnx != manifest.graphs[name].sha256:
            raise AmsaError(f"{path}: built from another {name}.onnx than that of {self._model.path}; {again}")
        if key.plugins != plugins_hash():
            raise AmsaError(f"{path}: its plugins are of another version of amsa; {again}")
        if key.runtime != running:
            raise AmsaError(f"{path}: built by {key.runtime}, and this is {running}; {again}")
        engine = self._runtime.deserialize_cuda_engine(content)
        if engine is None:
            raise AmsaError(f"{path}: TensorRT cannot load it: {reasons(self._trt)}; {again}")
        cache = _cache_file(content) if self._found.runtime == "rtx" else None
        return StageEngine(self._trt, stage, engine, key.profile, cache)


def _cache_file(engine: bytes) -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "amsa"
    return folder / f"rtx-kernels-{hashlib.sha256(engine).hexdigest()[:16]}"


def reasons(trt: Any) -> str:
    """Why TensorRT failed: what our plugins raised, else what it logged."""
    logged = process_logger(trt).take_errors()
    return "; ".join(" ".join(text.split()) for text in dict.fromkeys(take_errors() or logged or ["it does not say why"]))
