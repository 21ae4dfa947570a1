"""Layer by layer under ONNX Runtime: the times of every node that it ran, custom ops included, from its own profiler."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from statistics import median
from typing import Any

from ...config import AMSAConfig
from ...manifest import ModelFolder
from ..backends import OnnxRuntimeBackend
from .costs import CONVOLUTIONS, VIEWS, Shape, element_size, match_macs, node_macs
from .results import LayerTime

_SUFFIX = "_kernel_time"
# What ONNX Runtime puts around the name of a node, or of the value it makes, when it replaces the node.
_MADE_OF = (("InsertedPrecisionFreeCast_", ""), ("", "_nchwc"))
_AFTER = {"Relu", "LeakyRelu", "Clip", "Sigmoid", "Tanh", "Add", "Cast", "QuantizeLinear", "DequantizeLinear"}


def time_layers(
    folder: ModelFolder, threads: int | None, scratch: Path, run: Callable[[OnnxRuntimeBackend], None], pictures: int
) -> list[LayerTime]:
    """Time the nodes of a model, in sessions of its own.

    Args:
        folder: the model.
        threads: as the backend's.
        scratch: an empty folder.
        run: makes one picture.
        pictures: that count; one more is made before them.

    Returns:
        A layer per node, in the order in which they first ran; their times are medians over the pictures.
    """
    backend = OnnxRuntimeBackend(folder, threads, profiles=scratch)
    for _ in range(1 + pictures):
        run(backend)
    layers = []
    for stage, path in backend.end_profiling().items():
        events = json.loads(path.read_bytes())
        weights = conv_weights(folder.graphs[stage])
        layers += read_profile(stage, events, 1 + pictures, backend.config, weights)
    return layers


def read_profile(
    stage: str, events: Sequence[Mapping[str, Any]], pictures: int, config: AMSAConfig, weights: Mapping[str, Shape]
) -> list[LayerTime]:
    """A stage's layers.

    Args:
        stage: its name.
        events: what ONNX Runtime wrote.
        pictures: that were made, each with as many runs; the first does not count.
        config: the network's.
        weights: shapes of the convolutions' weights, by `conv_weights`: those that ran may be padded to blocks of 8 or 16.
    """
    starts = sorted(event["ts"] for event in events if event["name"] == "model_run")
    each = len(starts) // pictures
    nodes: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for event in events:
        counts = event.get("cat") == "Node" and event["name"].endswith(_SUFFIX)
        if counts and bisect_right(starts, event["ts"]) > each:  # not of the first picture
            nodes[event["name"].removesuffix(_SUFFIX)].append(event)
    searches = [_shapes(event, "input")[0] for found in nodes.values() for event in found if _op(event) == "PatchMatch"]
    finest = max(((shape[2], shape[3]) for shape in searches), default=(0, 0))
    layers = []
    for name, found in nodes.items():
        op, macs, moved = _op(found[0]), 0.0, 0.0
        times = [0.0] * (pictures - 1)
        for event in found:
            inputs, outputs = _shapes(event, "input"), _shapes(event, "output")
            if op == "PatchMatch":
                macs += match_macs(config, stage == "match_exact", inputs[0], inputs[1], finest)
            else:
                macs += node_macs(op, inputs, outputs, weights.get(_origin(name))) or 0
            moved += 0 if op in VIEWS else _bytes(event)
            times[(bisect_right(starts, event["ts"]) - 1) // each - 1] += event["dur"] / 1e3
        share = 1 / (pictures - 1)
        layers.append(LayerTime(stage, name, op, len(found) * share, median(times), macs * share or None, moved * share))
    return layers


def conv_weights(graph: bytes) -> dict[str, Shape]:
    """Shapes of a graph's convolution weights, by the names that the node may have once ONNX Runtime has fused and replaced it:
    its own, and those of the values that it and its activation make."""
    import onnx

    nodes = onnx.load_from_string(graph).graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in nodes.initializer}
    users: dict[str, list[Any]] = defaultdict(list)
    for node in nodes.node:
        for value in node.input:
            users[value].append(node)
        if node.op_type == "DequantizeLinear" and node.input[0] in shapes:
            shapes[node.output[0]] = shapes[node.input[0]]
    found = {}
    for node in nodes.node:
        if node.op_type in CONVOLUTIONS and node.input[1] in shapes:
            for name in (node.name, *_values(node, users)):
                found[name] = shapes[node.input[1]]
    return found


def _values(node: Any, users: Mapping[str, Sequence[Any]]) -> Iterator[str]:
    """The value that a node makes, and what elementwise nodes make of it one after the other."""
    while True:
        yield node.output[0]
        (node, *others) = users[node.output[0]] or [None]
        if others or node is None or node.op_type not in _AFTER:
            return


def _origin(name: str) -> str:
    for before, after in _MADE_OF:
        name = name.removeprefix(before).removesuffix(after)
    return name


def _op(event: Mapping[str, Any]) -> str:
    return str(event["args"]["op_name"])


def _tensors(event: Mapping[str, Any], side: str) -> Iterator[tuple[str, Shape]]:
    for tensor in event["args"][f"{side}_type_shape"]:
        yield from ((dtype, tuple(shape)) for dtype, shape in tensor.items())


def _shapes(event: Mapping[str, Any], side: str) -> list[Shape]:
    return [shape for _, shape in _tensors(event, side)]


def _bytes(event: Mapping[str, Any]) -> int:
    return sum(element_size(dtype) * prod(shape) for side in ("input", "output") for dtype, shape in _tensors(event, side))
