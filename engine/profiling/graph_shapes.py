"""Every tensor of an exported graph at given sizes: shapes and types, node by node; nothing but shape arithmetic is executed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import AmsaError
from ...plugins import DOMAIN, OPS
from ...stages import Stage, TensorIO
from ..engine_shapes import dimensions

_VALUES = 1024
"""Elements up to which a tensor's values are computed: shapes, axes and pads have a dozen at most; feature maps have more."""
_GROWING = ("Expand", "Tile")
"""What makes maps of numbers: only their shapes are wanted."""


@dataclass(frozen=True)
class Tensor:
    """A tensor's shape and the bytes of an element; `values` where they follow from sizes and constants alone."""

    shape: tuple[int, ...]
    item: int
    values: NDArray[Any] | None = None

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.size * self.item


@dataclass(frozen=True)
class Graph:
    """An ONNX graph, loaded once and looked at with many sizes.

    Attributes:
        stage: that it is, with its inputs and outputs.
        nodes: in the order in which they run.
        constants: its weights, by name: as tensors, and their ONNX types.
        opset: of the standard operators.
    """

    stage: Stage
    nodes: tuple[Any, ...]
    constants: Mapping[str, tuple[Tensor, Any]]
    opset: int

    @classmethod
    def load(cls, stage: Stage, content: bytes) -> Graph:
        """Read an ONNX file."""
        import onnx

        model = onnx.load_from_string(content)
        opset = next(entry.version for entry in model.opset_import if entry.domain == "")
        constants = {}
        for weight in model.graph.initializer:
            values = onnx.numpy_helper.to_array(weight) if prod(weight.dims) <= _VALUES else None
            constants[weight.name] = _tensor(onnx, weight.data_type, tuple(weight.dims), values)
        return cls(stage, tuple(model.graph.node), constants, opset)

    def tensors(self, sizes: Mapping[str, int]) -> dict[str, Tensor]:
        """All its tensors by name.

        Args:
            sizes: the value of every size word of its inputs, as {"h": 80, "w": 120}.
        """
        return _Walk(self, sizes).tensors


class _Walk:
    """One pass over a graph at one set of sizes."""

    def __init__(self, graph: Graph, sizes: Mapping[str, int]) -> None:
        import onnx

        self._onnx, self._graph = onnx, graph
        self.tensors: dict[str, Tensor] = {}
        self._types: dict[str, Any] = {}
        profile = {word: (size, size, size) for word, size in sizes.items()}
        for declared in graph.stage.inputs:
            self._add(declared.name, _element(onnx, declared), dimensions(declared, profile)[0])
        for name, (tensor, kind) in graph.constants.items():
            self.tensors[name], self._types[name] = tensor, kind
        for node in graph.nodes:
            if node.domain == DOMAIN:
                self._custom(node)
            elif not self._evaluate(node):
                self._infer(node)

    def _add(self, name: str, element: int, shape: tuple[int, ...], values: NDArray[Any] | None = None) -> None:
        self.tensors[name], self._types[name] = _tensor(self._onnx, element, shape, values)

    def _custom(self, node: Any) -> None:
        op = next(op for op in OPS if op.name == node.op_type)
        shapes = op.infer_shapes(*(self.tensors[name].shape for name in node.input), **attributes(node))
        features = self._types[node.input[0]].tensor_type.elem_type
        for name, declared, shape in zip(node.output, op.outputs, shapes, strict=True):
            self._add(name, features if declared.dtype == "T" else self._number(declared.dtype), tuple(shape))

    def _number(self, dtype: str) -> int:
        return int(self._onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def _evaluate(self, node: Any) -> bool:
        """Compute a node whose inputs' values are known: the arithmetic of shapes. False where it is none."""
        given = [self.tensors[name] for name in node.input if name]
        if node.op_type == "Shape":
            at = attributes(node)
            shape = given[0].shape[at.get("start", 0) : at.get("end")]
            results: Any = [np.array(shape, np.int64)]
        elif node.op_type not in _GROWING and all(tensor.values is not None for tensor in given):
            from onnx.reference import ReferenceEvaluator

            feeds = {name: self.tensors[name].values for name in node.input if name}
            results = ReferenceEvaluator(node, opsets={"": self._graph.opset}).run(None, feeds)
            if any(result.size > _VALUES for result in results):
                return False
        else:
            return False
        for name, result in zip(node.output, results, strict=True):
            self._add(name, self._number(str(result.dtype)), tuple(result.shape), result)
        return True

    def _infer(self, node: Any) -> None:
        onnx = self._onnx
        schema = onnx.defs.get_schema(node.op_type, self._graph.opset, "")
        types = {name: self._types[name] for name in node.input if name}
        values = {name: self.tensors[name].values for name in types}
        data = {name: onnx.numpy_helper.from_array(v) for name, v in values.items() if v is not None}
        opsets = [onnx.helper.make_opsetid("", self._graph.opset)]
        inferred = onnx.shape_inference.infer_node_outputs(schema, node, types, data, opset_imports=opsets)
        for name in node.output:
            tensor = inferred[name].tensor_type
            dims = [dim.dim_value if dim.HasField("dim_value") else 0 for dim in tensor.shape.dim]
            if not tensor.HasField("shape") or 0 in dims:
                graph = f"{self._graph.stage.name}.onnx"
                raise AmsaError(f"{graph}: the shape of {name} ({node.op_type}) is unknown; export the model again")
            self._add(name, tensor.elem_type, tuple(dims))


def _tensor(onnx: Any, element: int, shape: tuple[int, ...], values: NDArray[Any] | None) -> tuple[Tensor, Any]:
    item = onnx.helper.tensor_dtype_to_np_dtype(element).itemsize
    return Tensor(shape, item, values), onnx.helper.make_tensor_type_proto(element, shape)


def _element(onnx: Any, declared: TensorIO) -> int:
    return int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(declared.dtype)))


def attributes(node: Any) -> dict[str, Any]:
    """A node's attributes as Python's values: numbers, strings, lists of numbers."""
    from onnx.helper import get_attribute_value

    found = {}
    for attribute in node.attribute:
        value = get_attribute_value(attribute)
        found[attribute.name] = value.decode() if isinstance(value, bytes) else value
    return found
