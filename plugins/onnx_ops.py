"""The ops in ONNX: schemas for the checker, function bodies for runtimes that have no kernel of ours."""

from __future__ import annotations

from functools import cache

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
    return {f.name: f.to_function_proto() for f in (PatchMatch, DeformableSample)}


def attach_function_bodies(model: onnx.ModelProto) -> None:
    """Add to `model`, in place, the body of every op of ours that it uses, and the import of our domain."""
    used = {node.op_type for node in model.graph.node if node.domain == DOMAIN}
    bodies = function_bodies()
    model.functions.extend(bodies[name] for name in sorted(used))
    if used and not any(o.domain == DOMAIN for o in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, VERSION))
