"""Layers in int8 by QuantizeLinear and DequantizeLinear, layers of a float16 model kept in float32, and the file that says which.

A layer is a convolution, called by the name of its weight without ".weight", which torch's export keeps: the same in graphs
of any precision. `set_precision` follows TensorRT's rules for Q/DQ ("Q/DQ Layer-Placement Recommendations"): inputs and
weights are quantized and outputs are not, activations and biases stay as they are, and what a sum is added to can be quantized
too, so that convolution, sum and the next quantization become one kernel.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ..errors import AmsaError

FORMAT = 1
LEVELS = 127
"""int8 from -127 to 127: symmetric, as TensorRT wants it."""
_WEIGHT = ".weight"
# The smallest normal float16. Below it a scale would lose digits; channels with weights that small add next to nothing.
_LEAST_SCALE = 2.0**-14
# What a tensor that float16 cannot hold may pass through on its way from one float32 layer to the next.
_FOLLOW = {"Relu", "LeakyRelu", "DepthToSpace"}
_JOIN = {"Add", "Concat"}


@dataclass(frozen=True)
class LayerPrecision:
    """What differs from a model's own precision.

    Attributes:
        model: `identity` of the model that this was found for.
        int8: layers in int8, each with the largest absolute value of its input that is represented; layers that read one tensor
            have one range.
        float32: layers that a float16 model keeps in float32.
        int8_sums: whether residual sums add the int8 layers' quantized inputs instead of the tensors themselves.
        method: how the ranges were found.
        figures: what was measured, for people.
    """

    model: str
    int8: Mapping[str, float]
    float32: tuple[str, ...] = ()
    int8_sums: bool = False
    method: str = "max"
    figures: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        values = {
            "format": FORMAT,
            "model": self.model,
            "method": self.method,
            "int8_sums": self.int8_sums,
            "int8": dict(self.int8),
            "float32": list(self.float32),
            "figures": self.figures,
        }
        # A line for every layer or block, no deeper.
        lines = [f"  {json.dumps(key)}: {_lines(value)}" for key, value in values.items()]
        return "{\n" + ",\n".join(lines) + "\n}\n"


def _lines(value: Any) -> str:
    """JSON; of a table that holds some, a line for each entry."""
    if isinstance(value, Mapping) and value:
        return "{\n" + ",\n".join(f"    {json.dumps(key)}: {json.dumps(item)}" for key, item in value.items()) + "\n  }"
    return json.dumps(value)


def read_precision(path: str | Path) -> LayerPrecision:
    """Read a precision file. AmsaError where there is none, or it is damaged."""
    again = "make it again with `amsa calibrate`"
    try:
        values = json.loads(Path(path).read_bytes())
        if values["format"] != FORMAT:
            raise AmsaError(f"{path}: a precision file of format {values['format']}, this version reads {FORMAT}; {again}")
        ranges = {str(layer): float(value) for layer, value in values["int8"].items()}
        kept = values["float32"]
        if not isinstance(kept, list) or not all(isinstance(layer, str) for layer in kept):
            raise ValueError("float32 is no list of layers")
        if bad := [layer for layer, value in ranges.items() if not (math.isfinite(value) and value > 0)]:
            raise ValueError(f"the range of {bad[0]} is {ranges[bad[0]]}")
        if both := sorted(ranges.keys() & set(kept)):
            raise ValueError(f"{both[0]} is both in int8 and in float32")
        method, sums, figures = str(values["method"]), bool(values["int8_sums"]), dict(values["figures"])
        return LayerPrecision(str(values["model"]), ranges, tuple(kept), sums, method, figures)
    except OSError as e:
        raise AmsaError(f"{path}: cannot be read ({e.strerror}); {again}") from e
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as e:
        raise AmsaError(f"{path}: not a precision file, or a damaged one ({type(e).__name__}: {e}); {again}") from e


def conv_layers(model: ModelProto) -> dict[str, NodeProto]:
    """A graph's layers by name, in order: convolutions with trained weights (fixed filters are none)."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return {
        node.input[1].removesuffix(_WEIGHT): node
        for node in model.graph.node
        if node.op_type == "Conv" and node.input[1] in weights and node.input[1].endswith(_WEIGHT)
    }


def identity(graphs: Iterable[ModelProto]) -> str:
    """A hash of a model's layers: names, weights and biases, rounded to float16, so that it is one for a model's float32 and
    float16 graphs."""
    digests: dict[str, bytes] = {}
    for model in graphs:
        tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        for node in conv_layers(model).values():
            for name in node.input[1:]:
                if name in tensors:
                    half = _clipped(numpy_helper.to_array(tensors[name]))
                    digests[name] = hashlib.sha256(f"{half.shape}".encode() + half.tobytes()).digest()
    return hashlib.sha256(b"".join(name.encode() + digests[name] for name in sorted(digests))).hexdigest()


def _clipped(array: NDArray[Any]) -> NDArray[np.float16]:
    largest = float(np.finfo(np.float16).max)
    return array.astype(np.float32).clip(-largest, largest).astype(np.float16)


def check_precision(graphs: Mapping[str, ModelProto], precision: LayerPrecision, source: str | Path) -> None:
    """AmsaError where a precision is another model's, or names layers that the model lacks."""
    known = {layer for model in graphs.values() for layer in conv_layers(model)}
    if unknown := sorted({*precision.int8, *precision.float32} - known):
        raise AmsaError(f"{source}: the model has no layer {unknown[0]}; make the file with `amsa calibrate` for this model")
    if precision.model != identity(graphs.values()):
        raise AmsaError(f"{source}: made for another model (its weights differ); run `amsa calibrate` on this one")


def set_precision(
    model: ModelProto, precision: LayerPrecision, weights: Mapping[str, NDArray[np.float32]] | None = None
) -> ModelProto:
    """A graph with the layers' precision set; layers of other graphs are passed over. `model` stays as it is.

    An int8 layer reads DequantizeLinear(QuantizeLinear(input)), one pair for all layers that read a tensor, and
    DequantizeLinear of an int8 weight with a scale per output channel. Scales are of the graph's type; so is all else.

    Args:
        model: a graph in float32 or float16, with function bodies or not.
        precision: what to set.
        weights: float32 weights and biases by name, for layers kept in float32; None: those of the graph, rounded or not.

    Raises:
        AmsaError: two layers read one tensor and have different ranges.
    """
    changed = ModelProto()
    changed.CopyFrom(model)
    _keep_float32(changed, precision.float32, weights or {})
    _quantize(changed, precision)
    onnx.checker.check_model(changed, full_check=bool(changed.functions))
    return changed


def _quantize(model: ModelProto, precision: LayerPrecision) -> None:
    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    chosen = {node.output[0]: layer for layer, node in conv_layers(model).items() if layer in precision.int8}
    ranges: dict[str, float] = {}
    nodes: list[NodeProto] = []
    for node in graph.node:
        layer = chosen.get(node.output[0])
        if layer is not None:
            tensor, value = node.input[0], precision.int8[layer]
            dtype = tensors[f"{layer}{_WEIGHT}"].data_type
            if tensor not in ranges:
                ranges[tensor] = value
                scale = _typed(_scale(np.float64(value), dtype), f"{tensor}_scale", dtype)
                zero = numpy_helper.from_array(np.zeros((), np.int8), f"{tensor}_zero")
                graph.initializer.extend((scale, zero))
                nodes += [
                    helper.make_node("QuantizeLinear", [tensor, scale.name, zero.name], [f"{tensor}_int8"], f"{tensor}_int8"),
                    helper.make_node(
                        "DequantizeLinear", [f"{tensor}_int8", scale.name, zero.name], [f"{tensor}_dq"], f"{tensor}_dq"
                    ),
                ]
            elif ranges[tensor] != value:
                raise AmsaError(
                    f"{layer} has the range {value:g}, and another layer that reads the same tensor {ranges[tensor]:g}; "
                    "they must have one: make the precision file again with `amsa calibrate`"
                )
            nodes.append(_quantize_weight(graph, tensors[f"{layer}{_WEIGHT}"], layer))
            node.input[0], node.input[1] = f"{tensor}_dq", nodes[-1].output[0]
            node.name = layer  # so that a plan of TensorRT tells which layer a convolution is
        elif precision.int8_sums and node.op_type == "Add" and any(name in chosen for name in node.input):
            for i, name in enumerate(node.input):
                if name in ranges:
                    node.input[i] = f"{name}_dq"
        nodes.append(node)
    kept = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)


def _quantize_weight(graph: onnx.GraphProto, tensor: TensorProto, layer: str) -> NodeProto:
    """Replace a weight by its int8 values and a scale per output channel; returns the node that gives the weight back."""
    weight = numpy_helper.to_array(tensor).astype(np.float64)
    dtype = tensor.data_type
    scale = _scale(np.abs(weight).max(axis=tuple(range(1, weight.ndim))), dtype)
    values = np.round(weight / scale.astype(np.float64).reshape(-1, *[1] * (weight.ndim - 1))).clip(-LEVELS, LEVELS)
    names = f"{layer}.weight_int8", f"{layer}.weight_scale", f"{layer}.weight_zero"
    graph.initializer.remove(tensor)
    graph.initializer.append(numpy_helper.from_array(values.astype(np.int8), names[0]))
    graph.initializer.append(_typed(scale, names[1], dtype))
    graph.initializer.append(numpy_helper.from_array(np.zeros(len(scale), np.int8), names[2]))
    return helper.make_node("DequantizeLinear", [*names], [f"{layer}.weight_dq"], f"{layer}.weight_dq", axis=0)


def _scale(largest: Any, dtype: int) -> NDArray[np.float32]:
    """The step of int8 that represents values up to `largest`, rounded to the graph's type."""
    scale = np.maximum(np.asarray(largest, np.float64) / LEVELS, _LEAST_SCALE)
    return np.asarray(scale.astype(helper.tensor_dtype_to_np_dtype(dtype)).astype(np.float32))


def _typed(array: NDArray[np.float32], name: str, dtype: int) -> TensorProto:
    return numpy_helper.from_array(array.astype(helper.tensor_dtype_to_np_dtype(dtype)), name)


# -------------------------------------------------------------------------------------------------- float32 in float16


def _keep_float32(model: ModelProto, layers: Iterable[str], weights: Mapping[str, NDArray[np.float32]]) -> None:
    """Cast before and after the layers, in place. Between two of them activations and sums are float32, too: what one layer
    gives and float16 cannot hold would not reach the next otherwise."""
    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    kept = {
        node.output[0]
        for layer, node in conv_layers(model).items()
        if layer in set(layers) and tensors[node.input[1]].data_type == TensorProto.FLOAT16
    }
    if not kept:
        return
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)

    def reaches(tensor: str) -> bool:
        """Whether a kept layer reads a tensor, or what activations and sums make of it."""
        return any(
            (node.op_type == "Conv" and node.output[0] in kept) or (node.op_type in _FOLLOW | _JOIN and reaches(node.output[0]))
            for node in readers.get(tensor, ())
        )

    full: set[str] = set()  # tensors that are float32 now
    ends = {value.name for value in graph.output}
    nodes: list[NodeProto] = []
    cast: dict[tuple[str, int], str] = {}

    def as_type(tensor: str, dtype: int) -> str:
        key = tensor, dtype
        if key not in cast:
            cast[key] = f"{tensor}_{'full' if dtype == TensorProto.FLOAT else 'half'}"
            nodes.append(helper.make_node("Cast", [tensor], [cast[key]], cast[key], to=dtype))
        return cast[key]

    for old in graph.node:
        node = NodeProto()
        node.CopyFrom(old)
        output = node.output[0] if node.output else ""
        follows = any(name in full for name in node.input) and (
            node.op_type in _FOLLOW or (node.op_type in _JOIN and reaches(output))
        )
        if (output in kept or follows) and output not in ends:
            for i, name in enumerate(node.input):
                if name in tensors:
                    if name in weights:
                        array = weights[name].astype(np.float32)
                    else:
                        array = numpy_helper.to_array(tensors[name]).astype(np.float32)
                    tensors[name].CopyFrom(numpy_helper.from_array(array, name))
                elif name and name not in full:
                    node.input[i] = as_type(name, TensorProto.FLOAT)
            full.add(output)
            if output in kept:
                node.name = node.input[1].removesuffix(_WEIGHT)
        else:
            for i, name in enumerate(node.input):
                if name in full:
                    node.input[i] = as_type(name, TensorProto.FLOAT16)
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
