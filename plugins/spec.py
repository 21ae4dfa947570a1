"""How a custom op is declared: once, as plain data, from which every framework's declaration is derived.

This module needs nothing but Python, so the runtime can read a declaration without torch or onnx.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

DOMAIN = "amsa"
VERSION = 1
# One opset for graphs and function bodies: ONNX Runtime inlines a body only into a graph of the same opset.
# The bodies need 19 (Equal on strings); 20 is what torch's exporter is tested with and TensorRT 10 and later read.
OPSET = 20

Shape = Sequence[Any]  # ints, or torch's symbolic ints while a graph is being traced


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: `dtype` is "T" (float32 or float16, the same for all T), "float32" or "int32"."""

    name: str
    dtype: str
    dims: str
    doc: str


@dataclass(frozen=True)
class AttributeSpec:
    """One attribute of an op. `choices` lists the values it may take; None means any of its type. Without `default` it must
    be given."""

    name: str
    type: type[int] | type[str]
    doc: str
    choices: tuple[Any, ...] | None = None
    default: Any = None


@dataclass(frozen=True)
class OpSpec:
    """A custom op of domain `amsa`: names, types, shapes and attributes, each declared here and nowhere else."""

    name: str
    doc: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    attributes: tuple[AttributeSpec, ...]
    infer_shapes: Callable[..., tuple[Shape, ...]]
    """(input shapes in order, **attributes) -> output shapes. Raises ValueError naming the tensor that does not fit."""

    @property
    def torch_name(self) -> str:
        """The op's name in torch, e.g. `patch_match` for `torch.ops.amsa.patch_match`."""
        return "".join("_" + c.lower() if c.isupper() else c for c in self.name).lstrip("_")

    def torch_schema(self) -> str:
        """The op in torch's schema language, attributes keyword-only, e.g. `f(Tensor x, *, int scale) -> Tensor`."""
        tensors = ", ".join(f"Tensor {t.name}" for t in self.inputs)
        kinds = {int: "int", str: "str"}
        defaults = {a.name: "" if a.default is None else f"={json.dumps(a.default)}" for a in self.attributes}
        attributes = ", ".join(f"{kinds[a.type]} {a.name}{defaults[a.name]}" for a in self.attributes)
        outputs = ", ".join("Tensor" for _ in self.outputs)
        return f"{self.torch_name}({tensors}, *, {attributes}) -> {outputs if len(self.outputs) == 1 else f'({outputs})'}"

    def onnx_schema(self) -> onnx.defs.OpSchema:
        """The op as an `onnx.defs.OpSchema`, to be registered before a graph that holds it is checked."""
        import onnx

        types = {"T": "T", "float32": "tensor(float)", "int32": "tensor(int32)"}
        schema = onnx.defs.OpSchema
        attribute_types = {int: schema.AttrType.INT, str: schema.AttrType.STRING}
        return schema(
            self.name,
            DOMAIN,
            VERSION,
            doc=self.doc,
            inputs=[schema.FormalParameter(t.name, types[t.dtype], f"{t.dims}: {t.doc}") for t in self.inputs],
            outputs=[schema.FormalParameter(t.name, types[t.dtype], f"{t.dims}: {t.doc}") for t in self.outputs],
            type_constraints=[("T", ["tensor(float)", "tensor(float16)"], "features")],
            attributes=[
                schema.Attribute(a.name, attribute_types[a.type], a.doc, required=True)
                if a.default is None
                else schema.Attribute(a.name, default_value=onnx.helper.make_attribute(a.name, a.default), description=a.doc)
                for a in self.attributes
            ],
        )

    def check_attributes(self, **attributes: Any) -> None:
        """Raise ValueError that names the attribute and lists the values it may take."""
        for a in self.attributes:
            value = attributes.get(a.name, a.default)
            if a.choices is not None and value not in a.choices:
                raise ValueError(f"{self.name}: {a.name} is {value!r}; it must be one of {', '.join(map(repr, a.choices))}")
            if a.choices is None and a.type is int and value < 1:
                raise ValueError(f"{self.name}: {a.name} is {value}; it must be at least 1")


def check_shape(op: str, name: str, shape: Shape, rank: int, batch: Any, channels: Any = None) -> None:
    """Raise ValueError that names the tensor unless it has this rank, a batch of 1 or `batch`, and so many channels."""
    if len(shape) != rank:
        raise ValueError(f"{op}: {name} has {len(shape)} dimension{'s' * (len(shape) != 1)}; it must have {rank}")
    if shape[0] != 1 and shape[0] != batch:
        raise ValueError(f"{op}: {name} has batch {shape[0]}; it must be 1 or {batch}")
    if channels is not None and shape[1] != channels:
        raise ValueError(f"{op}: {name} has {shape[1]} channel{'s' * (shape[1] != 1)}; it must have {channels}")
