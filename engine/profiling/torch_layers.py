"""Layer by layer under PyTorch: every operator that a stage calls, with all that it calls itself, from torch.profiler."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import prod
from statistics import median
from typing import Any

from ...config import AMSAConfig
from ..backends import Backend, Execution
from .costs import Shape, conv_macs, match_macs, sample_macs
from .results import LayerTime
from .watching import COPIES, WatchedBackend

_STAGE = "amsa stage "
# What torch.compile puts around its code: the operators are inside.
_WRAPPERS = ("Torch-Compiled Region", "CompiledFunction", "AOTDispatcher", "CompiledFxGraph", "## Call")
_CONVOLUTIONS = ("aten::conv2d", "aten::convolution")  # compiled code calls the second
_PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")
BETWEEN = "between the operators"
"""What a stage takes beyond its operators: Python, and compiled code that torch.profiler does not see into."""


@dataclass
class _Operator:
    stage: str
    op: str
    shapes: tuple[Shape, ...]
    element: int
    times: list[float]
    calls: int = 0
    macs: float = 0.0


def time_layers(backend: Backend, run: Callable[[Backend], None], pictures: int) -> list[LayerTime]:
    """Time the operators of a network.

    Args:
        backend: a `TorchMode` that has made a picture of the size already.
        run: makes one picture.
        pictures: that count.

    Returns:
        A layer per stage, operator and shapes of its inputs; their times are medians over the pictures.
    """
    import torch

    on_gpu = backend.device != "CPU"
    activities = [torch.profiler.ProfilerActivity.CPU]
    if on_gpu:
        activities.append(torch.profiler.ProfilerActivity.CUDA)

    def around(stage: str, _: Execution) -> AbstractContextManager[None]:
        return torch.profiler.record_function(f"{_STAGE}{stage}")

    watched = WatchedBackend(backend, around)
    found: dict[tuple[Any, ...], _Operator] = {}
    for picture in range(pictures):
        with torch.profiler.profile(activities=activities, record_shapes=True, with_flops=True) as profiler:
            run(watched)
        for event in profiler.events():
            if event.name.startswith(_STAGE) and event.cpu_parent is None:
                _add(found, event, picture, pictures, on_gpu)
    return _layers(found, backend.config, pictures)


def _add(found: dict[tuple[Any, ...], _Operator], stage_event: Any, picture: int, pictures: int, on_gpu: bool) -> None:
    """One call of a stage."""
    stage = stage_event.name.removeprefix(_STAGE)

    def operator(op: str, shapes: tuple[Shape, ...], element: int = 0) -> _Operator:
        return found.setdefault((stage, op, shapes), _Operator(stage, op, shapes, element, [0.0] * pictures))

    rest = _milliseconds(stage_event, on_gpu)
    for event in _operators(stage_event):
        # Empty: no tensor. Nested: a list of tensors, as cat takes.
        shapes = tuple(tuple(shape) for shape in event.input_shapes or () if shape and isinstance(shape[0], int))
        entry = operator(event.name, shapes, 2 if "Half" in str(event.input_dtypes[:1]) else 4)
        took = _milliseconds(event, on_gpu)
        entry.times[picture] += took
        entry.calls += 1
        entry.macs += event_macs(event)
        rest -= took
    if stage != COPIES and rest > 0:
        entry = operator(BETWEEN, ())
        entry.times[picture] += rest
        entry.calls += 1


def _operators(event: Any) -> Iterator[Any]:
    """The outermost operators below an event."""
    for child in event.cpu_children:
        if child.name.startswith(_WRAPPERS):
            yield from _operators(child)
        else:
            yield child


def event_macs(event: Any) -> float:
    """Of the convolutions and matrix products of an event of torch.profiler, recorded with shapes and FLOPs."""
    if event.name in _CONVOLUTIONS:
        x, weight = event.input_shapes[:2]
        steps = zip(x[2:], weight[2:], *event.concrete_inputs[3:6], strict=True)  # stride, padding, dilation
        made = ((side + 2 * pad - dilation * (taps - 1) - 1) // stride + 1 for side, taps, stride, pad, dilation in steps)
        return conv_macs(tuple(weight), (x[0], weight[0], *made))
    if event.name in _PRODUCTS:
        return float(event.flops or 0) / 2
    return sum(event_macs(child) for child in event.cpu_children)


def _milliseconds(event: Any, on_gpu: bool) -> float:
    return float(event.device_time_total if on_gpu else event.cpu_time_total) / 1e3


def _layers(found: dict[tuple[Any, ...], _Operator], config: AMSAConfig, pictures: int) -> list[LayerTime]:
    finest: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for entry in found.values():
        if entry.op == "amsa::patch_match":
            finest[entry.stage] = max(finest[entry.stage], (entry.shapes[0][2], entry.shapes[0][3]))
    layers = []
    for entry in found.values():
        name = " ".join((entry.op, *("x".join(map(str, shape)) for shape in entry.shapes[:2])))
        macs, moved = entry.macs, 0.0
        if entry.op == "amsa::patch_match":
            exact = entry.stage == "match_exact"
            macs = entry.calls * match_macs(config, exact, entry.shapes[0], entry.shapes[1], finest[entry.stage])
        elif entry.op == "amsa::deformable_sample":
            macs = entry.calls * sample_macs(entry.shapes[0], entry.shapes[2])
        elif entry.op in _CONVOLUTIONS:
            made = macs / prod(entry.shapes[1][1:])  # elements of the output
            moved = entry.element * (entry.calls * sum(prod(shape) for shape in entry.shapes) + made)
        share = 1 / pictures
        counts = entry.calls * share, median(entry.times), macs * share or None, moved * share or None
        layers.append(LayerTime(entry.stage, name, entry.op, *counts))
    return layers
