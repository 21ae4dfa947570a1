"""A contender in a process of its own, so that its peak memory is its own: makes one picture each time it is told to.

    python -m amsa.engine.profiling.worker

reads a JSON object a line, {"do": METHOD OF Runner, ..}, and answers each with one: what the method returns, and "notes".
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import AmsaError
from ...manifest import ModelFolder
from ..backends import Backend, Execution
from ..images import Photo
from ..upscaler import Stats, Upscaler
from . import onnx_layers, peaks, tensorrt_layers, torch_layers
from .contenders import Contender
from .sensors import Sensors
from .watching import COPIES, WatchedBackend


class Runner:
    """One contender, from opening to its layers."""

    def __init__(self) -> None:
        self._contender = Contender(None)
        self._lr, self._refs = Photo(np.empty((0, 0, 3), np.float32)), [Photo(np.empty((0, 0, 3), np.float32))]
        self._upscaler: Upscaler = None  # type: ignore[assignment]  # until it is opened
        self._sensors: Sensors | None = None

    def open(self, contender: dict[str, Any], pictures: str) -> dict[str, Any]:
        """Open the model. `contender`: fields of a `Contender`; `pictures`: .npz file of `lr` and `ref0`, `ref1`, .."""
        self._contender = Contender(**contender)
        with np.load(pictures) as file:
            self._lr = Photo(file["lr"])
            self._refs = [Photo(file[f"ref{i}"]) for i in range(len(file.files) - 1)]
        begin = time.perf_counter()
        self._upscaler = self._contender.open()
        milliseconds = 1e3 * (time.perf_counter() - begin)
        upscaler = self._upscaler
        if self._on_gpu:
            self._sensors = Sensors()
            if self._sensors.missing:
                warnings.warn(self._sensors.missing, stacklevel=1)
        return {
            "open_ms": milliseconds,
            "backend": upscaler.backend,
            "device": upscaler.device,
            "kernels": upscaler.kernels,
            "precision": upscaler.backend_in_use.precision,
            "trained": upscaler.trained,
            "config": upscaler.config.to_dict(),
            "on_gpu": self._on_gpu,
        }

    @property
    def _on_gpu(self) -> bool:
        return self._upscaler.backend == "tensorrt" or self._contender.on_gpu

    def picture(self, stages: bool, keep: str | None = None) -> dict[str, Any]:
        """Make a picture.

        Args:
            stages: whether seconds per stage are taken; a GPU then waits after each.
            keep: .npy file to write it to, once its time is taken.
        """
        stats = Stats() if stages else None
        upscaler = self._upscaler
        if stats is not None and self._on_gpu:
            upscaler = self._on(WatchedBackend(upscaler.backend_in_use, _timing_copies(stats)))
        sensors = self._sensors.watch() if self._sensors is not None else nullcontext()
        with sensors:
            cpu, begin = time.process_time(), time.perf_counter()
            photo = upscaler.upscale_photo(self._lr, self._refs, seed=self._contender.seed, stats=stats)
            seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
        if keep is not None:
            np.save(keep, photo.rgb)
        memory = getattr(self._upscaler.backend_in_use, "memory", None) if self._on_gpu else None
        return {
            "ms": 1e3 * seconds,
            "cpu_ms": 1e3 * cpu,
            "stats": None if stats is None else asdict(stats),
            "peak_host_mb": _peak_resident_mb(),
            "peak_device_mb": None if memory is None else memory["peak"] / 1e6,
        }

    def sensors(self) -> dict[str, Any]:
        """Minimum, median and maximum of each sensor so far."""
        return {"sensors": {} if self._sensors is None else self._sensors.summary()}

    def layers(self, pictures: int) -> dict[str, Any]:
        """Times, arithmetic and bytes of every layer, in the median over so many pictures."""
        backend: Any = self._upscaler.backend_in_use
        if self._upscaler.backend == "torch":
            layers = torch_layers.time_layers(backend, self._run, pictures)
        elif self._upscaler.backend == "tensorrt":
            layers = tensorrt_layers.time_layers(backend, self._run, pictures)
        else:
            with tempfile.TemporaryDirectory() as scratch:
                folder = ModelFolder.open(self._contender.path)
                layers = onnx_layers.time_layers(folder, self._contender.threads, Path(scratch), self._run, pictures)
        return {"layers": [asdict(layer) for layer in layers]}

    def peaks(self) -> dict[str, Any]:
        """What the device reaches in float32 matrix products, where they can be measured, and in copies."""
        threads = self._contender.threads
        if not self._on_gpu:
            return {"gflops": peaks.matmul_gflops(threads), "gbs": peaks.copy_gbs(threads)}
        backend: Any = self._upscaler.backend_in_use
        return {"gflops": None, "gbs": None if self._contender.on_gpu else peaks.device_copy_gbs(backend)}

    def _on(self, backend: Backend) -> Upscaler:
        return Upscaler.on(backend, self._upscaler.tile, self._upscaler.matching, self._upscaler.skip)

    def _run(self, backend: Backend) -> None:
        self._on(backend).upscale_photo(self._lr, self._refs, seed=self._contender.seed)


def _timing_copies(stats: Stats) -> Any:
    @contextmanager
    def timed(on: Execution) -> Iterator[None]:
        on.synchronize()
        begin = time.perf_counter()
        yield
        on.synchronize()
        stats.add(COPIES, time.perf_counter() - begin)

    def around(stage: str, on: Execution) -> AbstractContextManager[None]:
        return timed(on) if stage == COPIES else nullcontext()

    return around


def _peak_resident_mb() -> float:
    """Not `ru_maxrss`: that begins with the size of the process that started this one."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")) / 1e6


def _reason(error: Exception) -> str:
    """In one line."""
    if isinstance(error, MemoryError):
        return "not enough memory for pictures of this size"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no reason given"]
    return lines[0] if isinstance(error, AmsaError) else f"{type(error).__name__}: {lines[0][:300]}"


def main() -> None:
    # Whatever libraries print must not get between the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    runner = Runner()
    for line in sys.stdin:
        request = json.loads(line)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            try:
                answer = getattr(runner, request.pop("do"))(**request)
            except Exception as e:  # of ONNX Runtime, torch, a compiler, ..: this contender is out, the others go on
                answer = {"error": _reason(e), "refused": isinstance(e, AmsaError)}
        ours = (w for w in caught if issubclass(w.category, UserWarning))
        answers.write(json.dumps({**answer, "notes": [" ".join(str(w.message).split()) for w in ours]}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
