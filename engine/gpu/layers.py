"""TensorRT's profiler: what every layer of the engines takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Report = Callable[[str, str, float], None]
"""Called with a stage, a layer's name and its milliseconds."""


def layer_profiler(trt: Any, report: Report, stage: str) -> Any:
    """An IProfiler that tells every layer of a stage, after each run of it."""

    class LayerProfiler(trt.IProfiler):  # type: ignore[misc]  # its base is known only once TensorRT is imported
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            report(stage, layer_name, ms)

    return LayerProfiler()
