"""The ops as TensorRT plugins (IPluginV3), for `tensorrt` and `tensorrt_rtx` alike, derived from their declarations.

A plugin's `enqueue` makes the op's launch plan and launches it on TensorRT's stream: no allocation, no synchronisation, nothing
copied, so that CUDA graphs can capture it; kernels are loaded when a plugin is attached to a context. Features are
channels-last (HWC), so that convolutions before and after need no conversion; everything else is linear.

TensorRT swallows what a plugin raises. It is logged, and kept for `take_errors`: ask there when TensorRT fails without a reason.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, wraps
from typing import Any

from . import DEFORMABLE_SAMPLE, OPS, PATCH_MATCH
from .deformable_sample.plan import deformable_sample_plan
from .launch import Launch
from .launcher import launch_all, load_kernels
from .patch_match.plan import Addresses, patch_match_plan, patch_match_scratch
from .spec import DOMAIN, VERSION, AttributeSpec, OpSpec

Shape = tuple[int, ...]


@dataclass(frozen=True)
class _Kernels:
    """How an op runs: (input shapes, addresses of inputs, outputs and scratch memory, dtype, attributes) -> launches."""

    plan: Callable[[Sequence[Shape], Sequence[int], str, dict[str, Any]], list[Launch]]
    scratch: Callable[[Sequence[Shape], dict[str, Any]], int]


def _patch_match(shapes: Sequence[Shape], addresses: Sequence[int], dtype: str, attributes: dict[str, Any]) -> list[Launch]:
    query, ref, valid, init = shapes
    return patch_match_plan(query, ref, valid, init, Addresses(*addresses), dtype=dtype, **attributes)


def _deformable_sample(shapes: Sequence[Shape], addresses: Sequence[int], dtype: str, attributes: dict[str, Any]) -> list[Launch]:
    value, match, offset_mask = shapes
    return deformable_sample_plan(value, match, offset_mask, (*addresses[:4],), dtype=dtype, **attributes)  # type: ignore[arg-type]


_KERNELS = {
    PATCH_MATCH.name: _Kernels(_patch_match, lambda shapes, a: patch_match_scratch(shapes[0], shapes[1], **a)),
    DEFORMABLE_SAMPLE.name: _Kernels(_deformable_sample, lambda shapes, a: 0),
}

_errors: list[str] = []
_loggers: list[Any] = []  # at most one: the last that was handed to load_plugins


def take_errors() -> list[str]:
    """What plugins raised since the last call, oldest first, each one line that names the op. TensorRT itself only says that
    something failed."""
    taken = list(dict.fromkeys(_errors))  # TensorRT asks again and again
    _errors.clear()
    return taken


def _telling(trt: Any, op: OpSpec, raises: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Makes a callback tell what it raises. Then it returns None, which TensorRT takes for a failure with one line on stderr
    and not with a traceback; or with `raises` it raises, where None means success."""

    def decorate(callback: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(callback)
        def told(*arguments: Any) -> Any:
            try:
                return callback(*arguments)
            except Exception as e:
                text = " ".join(str(e).split()) or type(e).__name__
                _errors.append(text if op.name in text else f"{op.name}: {text}")
                for logger in _loggers:
                    logger.log(trt.Logger.ERROR, _errors[-1])
                if raises:
                    raise
                return None

        return told

    return decorate


class _Dim:
    """A dimension of TensorRT's, for `infer_shapes` to compute with. What is not known yet counts as fitting."""

    def __init__(self, trt: Any, builder: Any, expr: Any) -> None:
        self.trt, self.builder, self.expr = trt, builder, expr

    def _make(self, operation: str, a: Any, b: Any) -> _Dim:
        operands = (x.expr if isinstance(x, _Dim) else self.builder.constant(x) for x in (a, b))
        return _Dim(self.trt, self.builder, self.builder.operation(getattr(self.trt.DimensionOperation, operation), *operands))

    def __add__(self, other: Any) -> _Dim:
        return self._make("SUM", self, other)

    __radd__ = __add__

    def __sub__(self, other: Any) -> _Dim:
        return self._make("SUB", self, other)

    def __mul__(self, other: Any) -> _Dim:
        return self._make("PROD", self, other)

    __rmul__ = __mul__

    def __floordiv__(self, other: Any) -> _Dim:
        return self._make("FLOOR_DIV", self, other)

    def _constant(self) -> int | None:
        return int(self.expr.get_constant_value()) if self.expr.is_constant() else None

    def __mod__(self, other: int) -> int:
        value = self._constant()
        return 0 if value is None else value % other

    def __lt__(self, other: int) -> bool:
        value = self._constant()
        return value is not None and value < other

    def __gt__(self, other: int) -> bool:
        value = self._constant()
        return value is not None and value > other

    def __ne__(self, other: object) -> bool:
        value, theirs = self._constant(), other._constant() if isinstance(other, _Dim) else other
        return value is not None and theirs is not None and value != theirs

    def __eq__(self, other: object) -> bool:
        return not self != other

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        value = self._constant()
        return "?" if value is None else str(value)


def load_plugins(trt: Any, logger: Any = None) -> None:
    """Register both ops with TensorRT, once per process; before a network is parsed and before an engine is deserialized.

    Args:
        trt: the module `tensorrt` or `tensorrt_rtx`.
        logger: a `trt.ILogger` that is told, too, what a plugin raises; it replaces the one of an earlier call.
    """
    if logger is not None:
        _loggers[:] = [logger]
    registry = trt.get_plugin_registry()
    # Not asked for by name: TensorRT logs an error for what it does not find.
    known = {(c.name, c.plugin_version, c.plugin_namespace) for c in registry.all_creators}
    for op in OPS:
        if (op.name, str(VERSION), DOMAIN) not in known:
            registry.register_creator(_creator_class(trt, op)(), DOMAIN)


@cache
def _array(is_number: bool, value: int | str | None) -> Any:
    """An attribute's value as an array, never freed: TensorRT's fields only point to it."""
    import numpy as np

    if is_number:
        return np.array([] if value is None else [value], np.int32)
    return np.frombuffer(str(value or "").encode(), np.int8)


def _field(trt: Any, attribute: AttributeSpec, value: int | str | None = None) -> Any:
    """An attribute as a field; without a value, the declaration of one."""
    kind = trt.PluginFieldType.INT32 if attribute.type is int else trt.PluginFieldType.CHAR
    return trt.PluginField(attribute.name, _array(attribute.type is int, value), kind)


def _parsed(op: OpSpec, fields: Any) -> dict[str, Any]:
    """The op's attributes from fields: as the ONNX parser makes them, or as `get_fields_to_serialize` did."""
    import numpy as np

    given = {field.name: field.data for field in fields}
    attributes: dict[str, Any] = {}
    for a in op.attributes:
        if a.name not in given:
            if a.default is None:
                raise ValueError(f"{op.name}: attribute {a.name} is missing")
            attributes[a.name] = a.default
        elif a.type is int:
            attributes[a.name] = int(np.asarray(given[a.name]).reshape(-1)[0])
        else:
            data = given[a.name]
            raw = (
                data.encode() if isinstance(data, str) else bytes(data if isinstance(data, bytes) else np.asarray(data, np.int8))
            )
            attributes[a.name] = raw.decode().rstrip("\0")
    op.check_attributes(**attributes)
    return attributes


def _creator_class(trt: Any, op: OpSpec) -> Any:
    plugin_class = _plugin_class(trt, op)
    telling = _telling(trt, op)

    class Creator(trt.IPluginCreatorV3One):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.name, self.plugin_version, self.plugin_namespace = op.name, str(VERSION), DOMAIN
            # Only the op's own: the parser warns of every other attribute.
            self.field_names = trt.PluginFieldCollection([_field(trt, a) for a in op.attributes])

        @telling
        def create_plugin(self, name: str, fields: Any, phase: Any) -> Any:
            return plugin_class(_parsed(op, fields))

    return Creator


def _plugin_class(trt: Any, op: OpSpec) -> Any:
    kernels = _KERNELS[op.name]
    tensors = (*op.inputs, *op.outputs)
    linear = trt.TensorFormat.LINEAR
    dtypes = {"float32": trt.DataType.FLOAT, "int32": trt.DataType.INT32}
    is_rtx = trt.__name__ == "tensorrt_rtx"
    telling, raising = _telling(trt, op), _telling(trt, op, raises=True)

    def is_channels_last(desc: Any) -> bool:
        if is_rtx or desc.type == trt.DataType.FLOAT:
            return bool(desc.format == trt.TensorFormat.HWC)
        # Classic TensorRT knows plain HWC for 32 bits only. HWC8 is the same as long as there is nothing to pad.
        return bool(desc.format == trt.TensorFormat.HWC8 and desc.dims[1] % 8 == 0)

    class Plugin(trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime):  # type: ignore[misc]
        def __init__(self, attributes: dict[str, Any]) -> None:
            trt.IPluginV3.__init__(self)
            trt.IPluginV3OneCore.__init__(self)
            trt.IPluginV3OneBuild.__init__(self)
            trt.IPluginV3OneRuntime.__init__(self)
            self.attributes = attributes
            self.num_outputs = len(op.outputs)
            self.plugin_name, self.plugin_version, self.plugin_namespace = op.name, str(VERSION), DOMAIN

        def get_capability_interface(self, kind: Any) -> Any:
            return self

        def clone(self) -> Any:
            return Plugin(self.attributes)

        @telling
        def get_output_data_types(self, input_types: Any) -> Any:
            return [dtypes.get(t.dtype, input_types[0]) for t in op.outputs]

        @telling
        def get_output_shapes(self, inputs: Any, shape_inputs: Any, builder: Any) -> Any:
            shapes = [[_Dim(trt, builder, dims[i]) for i in range(len(dims))] for dims in inputs]
            outputs = []
            for shape in op.infer_shapes(*shapes, **self.attributes):
                dims = trt.DimsExprs(len(shape))
                for i, d in enumerate(shape):
                    dims[i] = d.expr if isinstance(d, _Dim) else builder.constant(d)
                outputs.append(dims)
            return outputs

        @telling
        def supports_format_combination(self, pos: int, in_out: Any, num_inputs: int) -> bool:
            declared, desc = tensors[pos], in_out[pos].desc
            if declared.dtype != "T":
                return bool(desc.type == dtypes[declared.dtype] and desc.format == linear)
            # The first feature tensor may be either type; the others are what it is.
            type_fits = desc.type in (trt.DataType.HALF, trt.DataType.FLOAT) if pos == 0 else desc.type == in_out[0].desc.type
            return bool(type_fits and is_channels_last(desc))

        def configure_plugin(self, inputs: Any, outputs: Any) -> None:
            pass

        def get_valid_tactics(self) -> list[int]:
            return []

        @telling
        def get_workspace_size(self, inputs: Any, outputs: Any) -> int:
            return kernels.scratch([tuple(d.max) for d in inputs], self.attributes)

        def on_shape_change(self, inputs: Any, outputs: Any) -> None:
            pass

        def set_tactic(self, tactic: int) -> None:
            pass

        @raising
        def attach_to_context(self, context: Any) -> Any:
            load_kernels(op.torch_name)  # now: enqueue may run while a CUDA graph is captured
            return self.clone()

        @telling
        def get_fields_to_serialize(self) -> Any:
            return trt.PluginFieldCollection([_field(trt, a, self.attributes[a.name]) for a in op.attributes])

        @raising
        def enqueue(self, input_desc: Any, output_desc: Any, inputs: Any, outputs: Any, workspace: Any, stream: Any) -> None:
            dtype = "float16" if input_desc[0].type == trt.DataType.HALF else "float32"
            addresses = [int(a or 0) for a in (*inputs, *outputs, workspace)]
            launches = kernels.plan([tuple(d.dims) for d in input_desc], addresses, dtype, self.attributes)
            launch_all(op.torch_name, launches, ctypes.c_void_p(int(stream)))

    return Plugin
