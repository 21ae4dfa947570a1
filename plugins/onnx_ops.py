"""The ops in ONNX: schemas for the checker, function bodies for runtimes that have no kernel of ours."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from typing import Any

import onnx

from . import OPS
from .deformable_sample.function import DeformableSample
from .patch_match.function import PatchMatch
from .spec import DOMAIN, VERSION


@cache
def register_schemas() -> None:
    """Make the ops known to `onnx.checker` and to torch's exporter, once per process."""
    for op in OPS:
        onnx.defs.register_schema(op.onnx_schema())


def function_bodies() -> dict[str, onnx.FunctionProto]:
    """The executable definition of each op by its ONNX name."""
    bodies = {f.name: f.to_function_proto() for f in (PatchMatch, DeformableSample)}
    for body in bodies.values():
        _order_loop_variables(body.node)
        _rename(body.node, {name: name for name in body.input}, Counter(), frozenset(body.output))
    return bodies


def _base(name: str) -> str:
    return re.sub(r"_\d+$", "", name)


def _bodies(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [a.g for a in node.attribute if a.HasField("g")]


def _order_loop_variables(nodes: Any) -> None:
    """Sort what loops carry by name. onnxscript takes it from a set, so that Python's hash seed would show in the file."""
    for node in nodes:
        for body in _bodies(node):
            _order_loop_variables(body.node)
        if node.op_type == "Loop":
            (body,) = _bodies(node)
            order = sorted(range(len(node.output)), key=lambda i: _base(node.output[i]))
            for values, skip in ((node.input, 2), (node.output, 0), (body.input, 2), (body.output, 1)):
                carried = [values[skip + i] for i in order]
                del values[skip:]
                values.extend(carried)


def _rename(nodes: Any, known: dict[str, str], used: Counter[str], fixed: frozenset[str]) -> None:
    """Number the names anew, in the order in which they are defined: onnxscript's numbers follow that set too."""

    def define(name: str) -> str:
        if name and name not in known:
            base = _base(name)
            used[base] += 1
            known[name] = name if name in fixed else f"{base}_{used[base]}"
        return known.get(name, "")

    for node in nodes:
        node.input[:] = [known.get(name, name) for name in node.input]
        for body in _bodies(node):
            inner = dict(known)
            for value in body.input:
                inner.pop(value.name, None)
            for value in body.input:
                base = _base(value.name)
                used[base] += 1
                inner[value.name] = f"{base}_{used[base]}"
                value.name = inner[value.name]
            _rename(body.node, inner, used, frozenset())
            for value in body.output:
                value.name = inner[value.name]
        node.output[:] = [define(name) for name in node.output]


def attach_function_bodies(model: onnx.ModelProto) -> None:
    """Add to `model`, in place, the body of every op of ours that it uses, and the import of our domain."""
    used = {node.op_type for node in model.graph.node if node.domain == DOMAIN}
    bodies = function_bodies()
    model.functions.extend(bodies[name] for name in sorted(used))
    if used and not any(o.domain == DOMAIN for o in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, VERSION))
