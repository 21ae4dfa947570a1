"""The PyTorch network in the ways that people run it: eager, compiled, in float16; on the CPU, or whole on a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import AmsaError
from ...plugins.cpu_library import find_compiler
from ..backends import TorchBackend

MODES = {"torch": ("eager", "fp32"), "torch-compile": ("compile", "fp32"), "torch-fp16": ("eager", "fp16")}
"""By name on the command line, how PyTorch runs, and the precision."""


class TorchMode(TorchBackend):
    """The checkpoint's network with numpy arrays, on the CPU.

    Args:
        path: the checkpoint.
        threads: to compute with; None: one per core.
        mode: one of MODES.

    Raises:
        AmsaError: no torch, no checkpoint, or no compiler for torch.compile.
    """

    def __init__(self, path: Path, threads: int | None, mode: str) -> None:
        how, precision = MODES[mode]
        super().__init__(path, threads, precision)
        if how == "compile":
            if find_compiler() is None:
                raise AmsaError("torch.compile needs a C++ compiler, and there is none; install g++, or leave it out")
            self._stages = {name: (stage, self._torch.compile(module)) for name, (stage, module) in self._stages.items()}


class TorchOnGpu(TorchMode):
    """The same with torch's tensors, which stay on a device from the first stage to the last.

    Args:
        device: torch's name of it.

    Raises:
        AmsaError: this torch finds no GPU.
    """

    def __init__(self, path: Path, threads: int | None, mode: str, device: str = "cuda") -> None:
        super().__init__(path, threads, mode)
        if device == "cuda" and not self._torch.cuda.is_available():
            raise AmsaError(f"torch {self._torch.__version__} finds no GPU; install one that is built for CUDA")
        self._on = device
        for _, module in self._stages.values():
            module.to(device)
        self.device = self._torch.cuda.get_device_name() if device == "cuda" else "CPU"
        if device == "cuda":
            self.kernels = "PyTorch references"

    def run(self, stage: str, inputs: Any) -> dict[str, Any]:
        declared, module = self._stages[stage]
        with self._torch.inference_mode():
            outputs = module(*(inputs[t.name].contiguous() for t in declared.inputs))
        tensors = outputs if isinstance(outputs, tuple) else (outputs,)
        return {t.name: output for t, output in zip(declared.outputs, tensors, strict=True)}

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        return self._torch.empty(shape, dtype=self._dtype(dtype), device=self._on)

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Any:
        return self._torch.zeros(shape, dtype=self._dtype(dtype), device=self._on)

    def copy(self, to: Any, source: Any) -> None:
        to.copy_(source)

    def to_device(self, array: Any) -> Any:
        return self._torch.from_numpy(array).to(self._on)

    def to_host(self, array: Any) -> NDArray[Any]:
        on_host: NDArray[Any] = array.cpu().numpy()
        return on_host

    def synchronize(self) -> None:
        if self._on == "cuda":
            self._torch.cuda.synchronize()

    @property
    def memory(self) -> dict[str, int]:
        """Bytes that torch's allocator has held at most."""
        return {"peak": self._torch.cuda.max_memory_reserved() if self._on == "cuda" else 0}

    def _dtype(self, dtype: Any) -> Any:
        return dtype if isinstance(dtype, self._torch.dtype) else self._torch.from_numpy(np.empty(0, dtype)).dtype
