"""What runs the five graphs: ONNX Runtime on an exported folder, or PyTorch (the reference) on a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..config import AMSAConfig
from ..errors import AmsaError
from ..manifest import ModelFolder
from ..plugins.cpu_library import cpu_library, kernels, library_path
from ..stages import Stage

Arrays = dict[str, NDArray[Any]]

SHIPPED_MODEL = Path(__file__).resolve().parent.parent / "weights" / "small"
"""The model folder that comes with the package."""
BACKENDS = ("auto", "onnxruntime", "torch")


class Backend(Protocol):
    """Runs one stage at a time on named arrays, as `stages.py` declares them."""

    name: str
    kernels: str
    """What runs the custom ops, in words."""
    config: AMSAConfig
    precision: str
    trained: bool

    def run(self, stage: str, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """Run a stage; inputs and outputs by name."""


class OnnxRuntimeBackend:
    """ONNX Runtime on the CPU. Sessions are made when first needed: opening a model costs nothing that is not used."""

    name = "onnxruntime"

    def __init__(self, folder: ModelFolder, threads: int | None) -> None:
        self.config = folder.manifest.config
        self.precision = folder.manifest.precision
        self.trained = folder.manifest.trained
        self.kernels = kernels("function bodies")
        self._folder = folder
        self._threads = threads
        self._sessions: dict[str, Any] = {}

    def _session(self, stage: str) -> Any:
        if stage not in self._sessions:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = self._threads or 0
            # Shapes differ from call to call; a pattern per shape would only keep memory.
            options.enable_mem_pattern = False
            library = cpu_library()
            try:
                # With the library our ops run as its kernels; without, ONNX Runtime takes the file's function bodies.
                if library is not None:
                    library.amsa_set_threads(self._threads or 0)
                    options.register_custom_ops_library(str(library_path()))
                session = onnxruntime.InferenceSession(self._folder.graphs[stage], options, providers=["CPUExecutionProvider"])
            except Exception as e:  # onnxruntime's exceptions share no base class but Exception
                reason = " ".join(str(e).split())[:200]
                raise AmsaError(
                    f"{self._folder.path}: ONNX Runtime {onnxruntime.__version__} cannot load {stage}.onnx ({reason})"
                ) from e
            declared = next(s for s in self.config.stages(self.precision) if s.name == stage)
            for what, tensors, found in (
                ("inputs", declared.inputs, session.get_inputs()),
                ("outputs", declared.outputs, session.get_outputs()),
            ):
                if [t.name for t in tensors] != [t.name for t in found]:
                    raise AmsaError(
                        f"{self._folder.path}: {stage}.onnx is another graph (its {what} differ); export the model again"
                    )
            self._sessions[stage] = session
        return self._sessions[stage]

    def run(self, stage: str, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        session = self._session(stage)
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, dict(inputs)), strict=True))


class TorchBackend:
    """The PyTorch network, the reference that everything else is compared with."""

    name = "torch"

    def __init__(self, path: Path, threads: int | None) -> None:
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
        self.kernels = kernels("PyTorch references")
        self.config = model.config
        self.precision = model.precision
        self.trained = bool(metadata.get("trained", False))
        self._torch = torch
        self._stages: dict[str, tuple[Stage, Any]] = {stage.name: (stage, module) for stage, module in stage_modules(model)}

    def run(self, stage: str, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        declared, module = self._stages[stage]
        with self._torch.inference_mode():
            outputs = module(*(self._torch.from_numpy(np.ascontiguousarray(inputs[t.name])) for t in declared.inputs))
        tensors = outputs if isinstance(outputs, tuple) else (outputs,)
        return {t.name: output.numpy() for t, output in zip(declared.outputs, tensors, strict=True)}


def open_backend(path: str | Path | None = None, backend: str = "auto", threads: int | None = None) -> Backend:
    """Open a model for running.

    Args:
        path: an exported folder or `.amsa` file (ONNX Runtime), a `.safetensors` checkpoint (torch), or None: the
            shipped model.
        backend: "auto" takes the one that runs this kind of file. Another than that is an error, never a fallback.
        threads: threads within an operator; None: one per core.
    """
    path = SHIPPED_MODEL if path is None else Path(path)
    if backend not in BACKENDS:
        raise AmsaError(f"unknown backend {backend!r}; choose one of {', '.join(BACKENDS)}")
    if not path.exists():
        raise AmsaError(f"{path}: no such model; give a folder made by `amsa export` or a .safetensors checkpoint")
    natural = "torch" if path.suffix == ".safetensors" else "onnxruntime"
    if backend not in ("auto", natural):
        what = "a checkpoint" if natural == "torch" else "an exported model"
        mend = "export it first: amsa export" if natural == "torch" else "give it the .safetensors checkpoint"
        raise AmsaError(f"{path} is {what}, which the {backend} backend cannot run; {mend}")
    return TorchBackend(path, threads) if natural == "torch" else OnnxRuntimeBackend(ModelFolder.open(path), threads)
