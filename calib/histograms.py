"""What passes through a model's layers: histograms of their inputs and the largest values of inputs and outputs."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from ..engine.backends import Arrays, HostExecution, open_session
from ..engine.upscaler import Upscaler
from ..errors import AmsaError
from ..export.layer_precision import conv_layers, identity
from ..manifest import ModelFolder
from .samples import Sample, samples_hash

BINS = 4096
"""Of a histogram; after its range was doubled, half of them are in use at least: 16 for every step of int8."""
_TAKEN = 1 << 16  # values of a tensor and call that are counted; the largest is looked for among all

Say = Callable[[str], None]


@dataclass
class Histogram:
    """Absolute values of a tensor over many calls, in bounded memory: the range doubles when a value is beyond it.

    Attributes:
        limit: the upper edge of the last bin.
        largest: the largest absolute value of all.
        counts: int64 [BINS].
    """

    limit: float = 0.0
    largest: float = 0.0
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))

    def add(self, values: NDArray[Any]) -> bool:
        """Count a tensor's values. False, and nothing counted, where some are no finite numbers."""
        if values.size == 0:
            return True
        largest = float(np.maximum(values.max(), -values.min()))
        if not np.isfinite(largest):
            return False
        flat = values.reshape(-1)[:: -(-values.size // _TAKEN)]
        self.largest = max(self.largest, largest)
        if self.limit == 0.0:
            self.limit = self.largest
        if self.limit == 0.0:  # nothing but zeros so far
            self.counts[0] += flat.size
            return True
        while largest > self.limit:
            self.counts[: BINS // 2] = self.counts.reshape(-1, 2).sum(1)
            self.counts[BINS // 2 :] = 0
            self.limit *= 2
        places = (np.abs(flat, dtype=np.float32) * np.float32(BINS / self.limit)).astype(np.int32)
        self.counts += np.bincount(np.minimum(places, BINS - 1), minlength=BINS)
        return True


@dataclass(frozen=True)
class Activations:
    """Of every layer the histogram of its input, and the largest absolute value of its output and its weights."""

    inputs: Mapping[str, Histogram]
    outputs: Mapping[str, float]
    weights: Mapping[str, float]

    def largest(self) -> dict[str, tuple[float, float, float]]:
        """Layer -> largest absolute value of its input, output and weights."""
        return {layer: (h.largest, self.outputs[layer], self.weights[layer]) for layer, h in self.inputs.items()}


class Collector(HostExecution):
    """A backend that runs a model with ONNX Runtime and counts what its layers read."""

    name = "calibration"
    kernels = "amsa's"

    def __init__(self, folder: ModelFolder, threads: int | None) -> None:
        manifest = folder.manifest
        self.config, self.precision, self.trained = manifest.config, manifest.precision, manifest.trained
        self.sample = ""
        self._layers: dict[str, dict[str, str]] = {}  # by stage: layer -> its input tensor
        self._sessions: dict[str, Any] = {}
        self._inputs: dict[tuple[str, str], Histogram] = {}
        self._outputs: dict[str, float] = {}
        self._weights: dict[str, float] = {}
        for stage, content in folder.graphs.items():
            graph = onnx.load_from_string(content)
            tensors = {tensor.name: tensor for tensor in graph.graph.initializer}
            layers = conv_layers(graph)
            for layer, node in layers.items():
                self._weights[layer] = max(float(np.abs(numpy_helper.to_array(tensors[n])).max()) for n in node.input[1:])
            self._layers[stage] = {layer: node.input[0] for layer, node in layers.items()}
            instrumented = _instrumented(graph, layers)
            self._sessions[stage] = partial(open_session, folder.path, stage, instrumented, threads)
        self._declared = {stage.name: [t.name for t in stage.outputs] for stage in self.config.stages(self.precision)}

    def run(self, stage: str, inputs: Mapping[str, Any]) -> Arrays:
        if callable(self._sessions[stage]):
            self._sessions[stage] = self._sessions[stage]()
        session = self._sessions[stage]
        names = [output.name for output in session.get_outputs()]
        found = dict(zip(names, session.run(names, dict(inputs)), strict=True))
        for layer, tensor in self._layers[stage].items():
            value = found[tensor] if tensor in found else inputs[tensor]
            largest = float(found[_largest(layer)])
            if (stage, tensor) not in self._inputs:
                self._inputs[stage, tensor] = Histogram()
            # Once per tensor: layers that read one share its range.
            first = next(other for other, t in self._layers[stage].items() if t == tensor) == layer
            if (first and not self._inputs[stage, tensor].add(value)) or not np.isfinite(largest):
                raise AmsaError(f"{layer} has values that are no numbers, on {self.sample}; check the model's weights")
            self._outputs[layer] = max(self._outputs.get(layer, 0.0), largest)
        return {name: found[name] for name in self._declared[stage]}

    def activations(self) -> Activations:
        """What was counted so far."""
        inputs = {
            layer: self._inputs[stage, tensor]
            for stage, layers in self._layers.items()
            for layer, tensor in layers.items()
            if (stage, tensor) in self._inputs
        }
        return Activations(inputs, self._outputs, self._weights)


def _largest(layer: str) -> str:
    return f"{layer}.largest"


def _instrumented(graph: ModelProto, layers: Mapping[str, onnx.NodeProto]) -> bytes:
    """The graph with more outputs: what the layers read, and the largest absolute values of what they give."""
    changed = ModelProto()
    changed.CopyFrom(graph)
    known = {value.name for value in (*graph.graph.input, *graph.graph.output)}
    for layer, node in layers.items():
        if node.input[0] not in known:
            known.add(node.input[0])
            changed.graph.output.append(helper.make_tensor_value_info(node.input[0], TensorProto.FLOAT, None))
        absolute = f"{layer}.absolute"
        changed.graph.node.append(helper.make_node("Abs", [node.output[0]], [absolute]))
        changed.graph.node.append(helper.make_node("ReduceMax", [absolute], [_largest(layer)], keepdims=0))
        changed.graph.output.append(helper.make_tensor_value_info(_largest(layer), TensorProto.FLOAT, ()))
    return bytes(changed.SerializeToString())


def collect(folder: ModelFolder, samples: Sequence[Sample], threads: int | None = None, say: Say = lambda _: None) -> Activations:
    """Run the samples through a float32 model's graphs; what was collected before is taken from the user's cache.

    Raises:
        AmsaError: a float16 model, or one whose layers give values that are no numbers.
    """
    if folder.manifest.precision != "fp32":
        raise AmsaError(f"{folder.path} is {folder.manifest.precision}; calibrate the float32 export, its file serves both")
    key = hashlib.sha256()
    graphs = [onnx.load_from_string(content) for content in folder.graphs.values()]
    settings = json.dumps([1, BINS, _TAKEN, folder.manifest.config.to_dict()])
    for part in (identity(graphs), samples_hash(samples), settings):
        key.update(part.encode())
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "amsa"
    cached = base / "calibration" / f"{key.hexdigest()[:32]}.npz"
    if (activations := _load(cached)) is not None:
        say(f"activations of {len(samples)} crops: from {cached}")
        return activations
    collector = Collector(folder, threads)
    upscaler = Upscaler.on(collector)
    for i, sample in enumerate(samples):
        say(f"activations: crop {i + 1} of {len(samples)}")
        collector.sample = sample.name
        upscaler.upscale_photo(sample.lr, [sample.ref])
    activations = collector.activations()
    _store(cached, activations)
    return activations


def _load(path: Path) -> Activations | None:
    try:
        with np.load(path) as file:
            names = [str(name) for name in file["layers"]]
            figures, counts = file["figures"], file["counts"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    inputs = {n: Histogram(float(f[0]), float(f[1]), c) for n, f, c in zip(names, figures, counts, strict=True)}
    outputs, weights = ({n: float(f[i]) for n, f in zip(names, figures, strict=True)} for i in (2, 3))
    return Activations(inputs, outputs, weights)


def _store(path: Path, activations: Activations) -> None:
    """Into the cache; where that cannot be written, the next run collects again."""
    names = list(activations.inputs)
    figures = [(activations.inputs[n].limit, *activations.largest()[n]) for n in names]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".npz", delete=False) as file:
            counts = np.stack([activations.inputs[n].counts for n in names])
            np.savez(file, layers=names, figures=np.array(figures), counts=counts)
        os.replace(file.name, path)  # noqa: PTH105
    except OSError:
        return
