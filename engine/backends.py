"""What runs the five graphs: ONNX Runtime or TensorRT on an exported folder, or PyTorch (the reference) on a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..config import AMSAConfig
from ..errors import AmsaError
from ..manifest import ModelFolder
from ..plugins.cpu_library import cpu_library, kernels, library_path
from ..stages import VALUES, Stage

Arrays = dict[str, NDArray[Any]]

SHIPPED_MODEL = Path(__file__).resolve().parent.parent / "weights" / "small"
"""The model folder that comes with the package."""
SHIPPED_ENGINE_MODEL = SHIPPED_MODEL.with_name("small_fp16")
"""The same model in float16, which TensorRT engines are built from."""
BACKENDS = ("auto", "onnxruntime", "torch", "tensorrt")


class Execution(Protocol):
    """What a call runs on: stages, and the arrays between them. On a GPU the arrays are device memory and nothing waits but
    `to_host` and `synchronize`. Arrays of either kind have `shape` and `dtype`, and are cut by slices."""

    def run(self, stage: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Run a stage as `stages.py` declares it; inputs and outputs by name."""

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> Any:
        """An array with no particular content."""

    def zeros(self, shape: tuple[int, ...], dtype: DTypeLike) -> Any:
        """An array of zeros."""

    def copy(self, to: Any, source: Any) -> None:
        """Copy [1, C, H, W] into an array, or a part of one, of the same shape and type."""

    def to_device(self, array: Any) -> Any:
        """A numpy array, or one that another library made on this GPU, as an array of this kind."""

    def to_host(self, array: Any) -> NDArray[Any]:
        """An array as numpy's."""

    def synchronize(self) -> None:
        """Wait until all that was asked for is done."""


class Backend(Protocol):
    """Runs the stages of one model."""

    name: str
    device: str
    """What computes: "CPU", or the GPU's name."""
    kernels: str
    """What runs the custom ops, in words."""
    config: AMSAConfig
    precision: str
    trained: bool

    def call(self) -> AbstractContextManager[Execution]:
        """Begin a call. At its end all its work is done."""

    def close(self) -> None:
        """Give back the device memory that is kept between calls; the backend can be used again."""


class HostExecution:
    """A backend whose arrays are numpy's: it is itself what calls run on."""

    device = "CPU"

    def call(self) -> AbstractContextManager[Execution]:
        return nullcontext(self)

    def run(self, stage: str, inputs: Mapping[str, Any]) -> Arrays:
        raise NotImplementedError

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        return np.empty(shape, dtype)

    def zeros(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        return np.zeros(shape, dtype)

    def copy(self, to: NDArray[Any], source: NDArray[Any]) -> None:
        to[...] = source

    def to_device(self, array: Any) -> NDArray[Any]:
        if not isinstance(array, np.ndarray):
            raise AmsaError(f"{type(array).__name__} is no numpy array, and this backend computes on the CPU")
        return array

    def to_host(self, array: NDArray[Any]) -> NDArray[Any]:
        return array

    def synchronize(self) -> None:
        pass

    def close(self) -> None:
        pass


def open_session(model: Path, stage: str, graph: bytes, threads: int | None, profiles: Path | None = None) -> Any:
    """An ONNX Runtime session on the CPU. With our library our ops run as its kernels; without, ONNX Runtime takes the graph's
    function bodies.

    Args:
        model, stage: what to call it in an error.
        graph: an ONNX file's content.
        threads: within an operator; None: one per core.
        profiles: folder for the times of every node, which the session's `end_profiling` writes; None: they are not taken.

    Raises:
        AmsaError: ONNX Runtime cannot load the graph.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    # Shapes differ from call to call; a pattern per shape would only keep memory.
    options.enable_mem_pattern = False
    # Its threads would spin on the cores that our kernels' threads need: without, these are 1.5 times as fast.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors: of a quantized float16 graph it warns 16 times that it cannot fold a constant
    if profiles is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profiles / stage)
    library = cpu_library()
    try:
        if library is not None:
            library.amsa_set_threads(threads or 0)
            options.register_custom_ops_library(str(library_path()))
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as e:  # onnxruntime's exceptions share no base class but Exception
        reason = " ".join(str(e).split())[:200]
        raise AmsaError(f"{model}: ONNX Runtime {onnxruntime.__version__} cannot load {stage}.onnx ({reason})") from e


@cache
def _give_back() -> Any:
    """Options for a stage that runs over a whole picture: what it needed is given back. Kept, it was 0.4 of 2.4 GB at LR 480x270
    with a reference of 1920x1080. Tiles come in dozens, and keep it: to take it anew costs a fifth of a stage's time."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


class OnnxRuntimeBackend(HostExecution):
    """ONNX Runtime on the CPU. Sessions are made when first needed: opening a model costs nothing that is not used.

    `profiles`: see `open_session`.
    """

    name = "onnxruntime"

    def __init__(self, folder: ModelFolder, threads: int | None, profiles: Path | None = None) -> None:
        if not folder.manifest.function_bodies and cpu_library() is None:
            raise AmsaError(
                f"{folder.path}: exported with --no-bodies, so ONNX Runtime needs amsa's CPU kernels, and there are none; "
                "install a C++ compiler, or export it again without --no-bodies"
            )
        self.config = folder.manifest.config
        self.precision = folder.manifest.precision
        self.trained = folder.manifest.trained
        self.kernels = kernels("function bodies")
        self._folder = folder
        self._threads = threads
        self._profiles = profiles
        self._rewritten = cpu_library() is not None
        self._sessions: dict[str, Any] = {}

    def _session(self, stage: str) -> Any:
        if stage not in self._sessions:
            graph = self._folder.graphs[stage]
            if self._rewritten:
                from .cpu_graphs import for_cpu

                graph = for_cpu(stage, graph)
            session = open_session(self._folder.path, stage, graph, self._threads, self._profiles)
            declared = next(s for s in self.config.stages(self.precision) if s.name == stage)
            for what, tensors, found in (
                ("inputs", declared.inputs, session.get_inputs()),
                ("outputs", declared.outputs, session.get_outputs()),
            ):
                types = {"float32": "tensor(float)", "float16": "tensor(float16)", "int32": "tensor(int32)"}
                if [(t.name, types[t.dtype]) for t in tensors] != [(t.name, t.type) for t in found]:
                    raise AmsaError(
                        f"{self._folder.path}: {stage}.onnx is another graph (its {what} differ); export the model again"
                    )
            self._sessions[stage] = session
        return self._sessions[stage]

    def run(self, stage: str, inputs: Mapping[str, Any]) -> Arrays:
        session = self._session(stage)
        names = [output.name for output in session.get_outputs()]
        given = dict(inputs)
        if self._rewritten and stage == "restore":
            given |= {k: _channels_last(v) for k, v in given.items() if k in VALUES}
        options = None if stage in ("restore", "finish") else _give_back()
        made = dict(zip(names, session.run(names, given, options), strict=True))
        if self._rewritten and stage == "encode_ref":
            made |= {k: v.transpose(0, 3, 1, 2) for k, v in made.items() if k in VALUES}
        return made

    def close(self) -> None:
        if self._profiles is None:  # sessions have the times
            self._sessions = {}

    def end_profiling(self) -> dict[str, Path]:
        """With `profiles`: the files with the nodes' times, by stage. Nothing that is run later is in them."""
        return {stage: Path(session.end_profiling()) for stage, session in self._sessions.items()}


def _channels_last(value: NDArray[Any]) -> NDArray[Any]:
    """[N, C, H, W] -> contiguous [N, H, W, C]; of what `encode_ref` made here that is no copy."""
    return np.ascontiguousarray(value.transpose(0, 2, 3, 1))


class TorchBackend(HostExecution):
    """The PyTorch network, the reference that everything else is compared with. `precision`: "fp32", or "fp16"."""

    name = "torch"

    def __init__(self, path: Path, threads: int | None, precision: str = "fp32") -> None:
        try:
            import safetensors  # noqa: F401  (imported where it is used, once a file is read)
            import torch

            from ..model.checkpoints import load_checkpoint
            from ..model.stage_modules import stage_modules
        except ModuleNotFoundError as e:
            raise AmsaError(f"the torch backend needs {e.name}; install it with: pip install 'amsa[export]'") from e

        if threads:
            torch.set_num_threads(threads)
        model, metadata = load_checkpoint(path)
        if precision == "fp16":
            model.to_fp16()
        self.kernels = kernels("PyTorch references")
        self.config = model.config
        self.precision = model.precision
        self.trained = bool(metadata.get("trained", False))
        self._torch = torch
        self._stages: dict[str, tuple[Stage, Any]] = {stage.name: (stage, module) for stage, module in stage_modules(model)}

    def run(self, stage: str, inputs: Mapping[str, Any]) -> Arrays:
        declared, module = self._stages[stage]
        with self._torch.inference_mode():
            outputs = module(*(self._torch.from_numpy(np.ascontiguousarray(inputs[t.name])) for t in declared.inputs))
        tensors = outputs if isinstance(outputs, tuple) else (outputs,)
        return {t.name: output.numpy() for t, output in zip(declared.outputs, tensors, strict=True)}


def open_backend(
    path: str | Path | None = None,
    backend: str = "auto",
    threads: int | None = None,
    engines: str | Path | None = None,
    max_memory: int | None = None,
) -> Backend:
    """Open a model for running.

    Args:
        path: an exported folder or `.amsa` file (ONNX Runtime, TensorRT), a `.safetensors` checkpoint (torch), or None: the
            shipped model.
        backend: "auto" takes the one that runs this kind of file on any machine, ONNX Runtime or torch. One that cannot run
            is an error, never a fallback.
        threads: threads within an operator, on the CPU; None: one per core.
        engines: TensorRT only: where `amsa build -o` put them; None: beside the model.
        max_memory: bytes that features, pictures and scratch may take on the GPU; of TensorRT, the others leave it to the caller.
    """
    if backend not in BACKENDS:
        raise AmsaError(f"unknown backend {backend!r}; choose one of {', '.join(BACKENDS)}")
    if backend != "tensorrt" and engines is not None:
        raise AmsaError("a folder of engines is for the tensorrt backend; add --backend tensorrt")
    if path is None:
        path = SHIPPED_ENGINE_MODEL if backend == "tensorrt" else SHIPPED_MODEL
    path = Path(path)
    if not path.exists():
        raise AmsaError(f"{path}: no such model; give a folder made by `amsa export` or a .safetensors checkpoint")
    checkpoint = path.suffix == ".safetensors"
    if backend not in ("auto", *(("torch",) if checkpoint else ("onnxruntime", "tensorrt"))):
        what = "a checkpoint" if checkpoint else "an exported model"
        mend = "export it first: amsa export" if checkpoint else "give it the .safetensors checkpoint"
        raise AmsaError(f"{path} is {what}, which the {backend} backend cannot run; {mend}")
    if checkpoint:
        return TorchBackend(path, threads)
    folder = ModelFolder.open(path)
    if backend == "tensorrt":
        from .gpu.backend import TensorRTBackend

        return TensorRTBackend(folder, None if engines is None else Path(engines), max_memory)
    return OnnxRuntimeBackend(folder, threads)
