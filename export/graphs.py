"""PyTorch stages to ONNX graphs: tracing, the custom ops' nodes and bodies, names and dimensions, the checker."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import onnx
import torch
from onnxscript import opset20 as op
from onnxscript.values import Opset
from torch import nn

from .._version import __version__
from ..plugins import DOMAIN, OPSET, VERSION
from ..plugins.onnx_ops import attach_function_bodies, register_schemas
from ..stages import TensorIO

_amsa = Opset(DOMAIN, VERSION)

# Sizes to trace with, by dimension word. All differ, so that no two are taken for one, and none is a small special case.
_EXAMPLE_SIZES = {"h": 24, "w": 40, "Hk": 32, "Wk": 56, "H": 96, "W": 160}


_DIMENSION = re.compile(r"(?:(\d+)\*)?([A-Za-z]+)(\d+)?(?:([+/])(\d+))?")


def _patch_match(query: Any, ref: Any, valid: Any, init: Any, **attributes: Any) -> Any:
    return _amsa.PatchMatch(query, ref, valid, init, **attributes)


def _deformable_sample(value: Any, match: Any, offset_mask: Any, **attributes: Any) -> Any:
    return _amsa.DeformableSample(value, match, offset_mask, **attributes)


def _enlarge_bicubic(x: Any, output_size: Any, align_corners: bool, scales_h: Any = None, scales_w: Any = None) -> Any:
    """torch's antialiased bicubic, which the network uses for enlarging only (`model/resample.py`).

    Then the filter is PIL's plain bicubic, which Resize expresses without antialias; TensorRT has no antialias.
    """
    size = op.Concat(op.Shape(x, start=0, end=2), op.Cast(output_size, to=7), axis=0)
    return op.Resize(x, None, None, size, mode="cubic", cubic_coeff_a=-0.5, exclude_outside=1)


def _translations() -> dict[Any, Callable[..., Any]]:
    return {
        torch.ops.amsa.patch_match.default: _patch_match,
        torch.ops.amsa.deformable_sample.default: _deformable_sample,
        torch.ops.aten._upsample_bicubic2d_aa.default: _enlarge_bicubic,
    }


def example_size(dim: int | str) -> int:
    """A dimension of `stages.py` in numbers: "4*Hk", "h+2", "w/8", "H0" .. for the sizes that are traced with."""
    if isinstance(dim, int):
        return dim
    times, word, number, operator, operand = _DIMENSION.fullmatch(dim).groups()  # type: ignore[union-attr]
    size = _EXAMPLE_SIZES[word] + 64 * int(number or 0)
    if operator:
        size = size + int(operand) if operator == "+" else size // int(operand)
    return size * int(times or 1)


def export_graph(
    module: nn.Module, name: str, inputs: Sequence[TensorIO], outputs: Sequence[TensorIO], function_bodies: bool = True
) -> onnx.ModelProto:
    """Trace a module over flat tensors into a checked ONNX model with named, dynamic dimensions; with the ops' bodies or not."""
    register_schemas()
    args = tuple(torch.zeros([example_size(d) for d in t.dims], dtype=getattr(torch, t.dtype)) for t in inputs)
    dynamic: list[Any] = [{i: torch.export.Dim.DYNAMIC for i, d in enumerate(t.dims) if isinstance(d, str)} for t in inputs]
    parameters = inspect.signature(module.forward).parameters.values()
    fixed = sum(p.kind is not p.VAR_POSITIONAL for p in parameters)
    shapes = tuple(dynamic[:fixed]) + ((tuple(dynamic[fixed:]),) if len(parameters) > fixed else ())
    with _quiet():
        program = torch.onnx.export(
            module,
            args,
            dynamo=True,
            dynamic_shapes=shapes,
            opset_version=OPSET,
            input_names=[t.name for t in inputs],
            output_names=[t.name for t in outputs],
            custom_translation_table=_translations(),
        )
    assert program is not None
    model = program.model_proto
    _clean(model, name)
    for value, declared in zip((*model.graph.input, *model.graph.output), (*inputs, *outputs), strict=True):
        _declare(value, declared)
    attach_function_bodies(model)
    onnx.checker.check_model(model, full_check=True)  # with the bodies, through which types and ranks are inferred
    if not function_bodies:
        drop_function_bodies(model)
    return model


def drop_function_bodies(model: onnx.ModelProto) -> None:
    """Take the ops' bodies out of a model, in place; the nodes stay."""
    del model.functions[:]
    onnx.checker.check_model(model)


def _declare(value: onnx.ValueInfoProto, declared: TensorIO) -> None:
    """Give a graph input or output the dimensions that `stages.py` declares; a traced constant there is a bug."""
    dims = value.type.tensor_type.shape.dim
    for dim, word in zip(dims, declared.dims, strict=True):
        if isinstance(word, str):
            if dim.HasField("dim_value"):
                raise RuntimeError(f"{declared.name}: dimension {word} was traced as the constant {dim.dim_value}")
            dim.dim_param = word
        elif dim.HasField("dim_value") and dim.dim_value != word:
            raise RuntimeError(f"{declared.name}: a dimension is {dim.dim_value}, declared {word}")
        else:
            dim.dim_value = word


def _clean(model: onnx.ModelProto, name: str) -> None:
    """Drop what tells of the exporting machine (stack traces with paths) and the names of inner shapes."""
    model.producer_name, model.producer_version = "amsa", __version__
    model.graph.name = name
    del model.graph.value_info[:]
    for node in model.graph.node:
        del node.metadata_props[:]
        node.ClearField("doc_string")
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
    del model.metadata_props[:]
    del model.graph.metadata_props[:]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch's exporter prints progress and deprecations of its own making; failures are raised all the same."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
