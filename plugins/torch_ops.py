"""Registers the custom ops with torch: `torch.ops.amsa.patch_match` and `torch.ops.amsa.deformable_sample`.

Schemas and shapes come from the ops' declarations, arithmetic from their references. Importing this module registers.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import DEFORMABLE_SAMPLE, OPS, PATCH_MATCH
from .cpu_tensors import available
from .deformable_sample import cpu as sample_cpu
from .deformable_sample.gradient import differentiable_sample
from .deformable_sample.reference import deformable_sample
from .patch_match import cpu as match_cpu
from .patch_match.reference import patch_match, relevance_of
from .spec import OpSpec

_DTYPES = {"float32": torch.float32, "int32": torch.int32}


def _check_types(op: OpSpec, tensors: tuple[Tensor, ...]) -> None:
    features = {t.dtype for t, spec in zip(tensors, op.inputs, strict=True) if spec.dtype == "T"}
    if len(features) != 1 or not features <= {torch.float32, torch.float16}:
        raise ValueError(f"{op.name}: features are {sorted(map(str, features))}; they must all be float32 or all float16")
    for tensor, spec in zip(tensors, op.inputs, strict=True):
        if spec.dtype in _DTYPES and tensor.dtype != _DTYPES[spec.dtype]:
            raise ValueError(f"{op.name}: {spec.name} is {tensor.dtype}; it must be {_DTYPES[spec.dtype]}")


def _empty_outputs(op: OpSpec, *tensors: Tensor, **attributes: Any) -> tuple[Tensor, ...]:
    op.check_attributes(**attributes)
    _check_types(op, tensors)
    shapes = op.infer_shapes(*(t.shape for t in tensors), **attributes)
    types = (_DTYPES.get(spec.dtype, tensors[0].dtype) for spec in op.outputs)
    return tuple(tensors[0].new_empty(tuple(s), dtype=t) for s, t in zip(shapes, types, strict=True))


def _patch_match(*tensors: Tensor, **attributes: Any) -> tuple[Tensor, ...]:
    _empty_outputs(PATCH_MATCH, *(t.to("meta") for t in tensors), **attributes)
    if available(*tensors):
        return match_cpu.patch_match(*tensors, **attributes)
    with torch.no_grad():
        return patch_match(*tensors, **attributes)


def _patch_match_setup(
    ctx: Any, inputs: tuple[Tensor, ...], keyword_only_inputs: dict[str, Any], output: tuple[Tensor, ...]
) -> None:
    query, ref, valid, _ = inputs
    ctx.save_for_backward(query, ref, valid, output[0])
    ctx.attributes = keyword_only_inputs
    ctx.mark_non_differentiable(output[0])


def _patch_match_backward(ctx: Any, _: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The matches are fixed; the relevance is differentiated through the score at each match."""
    query, ref, valid, match = ctx.saved_tensors
    with torch.enable_grad():
        query, ref = query.detach().requires_grad_(), ref.detach().requires_grad_()
        relevance = relevance_of(query, ref, valid, match, level=ctx.attributes["level"], pad=ctx.attributes["pad"])
    return *torch.autograd.grad(relevance, (query, ref), grad), None, None


def _deformable_sample(*tensors: Tensor, **attributes: Any) -> Tensor:
    _empty_outputs(DEFORMABLE_SAMPLE, *(t.to("meta") for t in tensors), **attributes)
    if available(*tensors):
        return sample_cpu.deformable_sample(*tensors, **attributes)
    with torch.no_grad():
        return deformable_sample(*tensors, **attributes).contiguous(memory_format=torch.channels_last)


def _deformable_sample_setup(ctx: Any, inputs: tuple[Tensor, ...], keyword_only_inputs: dict[str, Any], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)
    ctx.attributes = keyword_only_inputs


def _deformable_sample_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    value, match, offset_mask = ctx.saved_tensors
    grads = torch.ops.amsa.deformable_sample_backward(value, match, offset_mask, grad, **ctx.attributes)
    return grads[0], None, grads[1]


def _deformable_sample_gradients(
    value: Tensor, match: Tensor, offset_mask: Tensor, grad: Tensor, *, scale: int, groups: int
) -> tuple[Tensor, Tensor]:
    """An op of its own, so that tracing sees shapes and not the kernel."""
    if available(value, match, offset_mask, grad):
        return sample_cpu.deformable_sample_backward(value, match, offset_mask, grad, scale=scale, groups=groups)
    with torch.enable_grad():
        value, offset_mask = value.detach().requires_grad_(), offset_mask.detach().requires_grad_()
        samples = differentiable_sample(value, match, offset_mask, scale=scale, groups=groups)
    grad_value, grad_offset_mask = torch.autograd.grad(samples, (value, offset_mask), grad)
    last = torch.channels_last
    return grad_value.contiguous(memory_format=last), grad_offset_mask.contiguous(memory_format=last)


def _fake_gradients(
    value: Tensor, match: Tensor, offset_mask: Tensor, grad: Tensor, *, scale: int, groups: int
) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(t, memory_format=torch.channels_last) for t in (value, offset_mask))


def _in_float32(op: OpSpec, device: str, *tensors: Tensor, **attributes: Any) -> Any:
    """Under autocast: positions need more than 16 bits have (`torch.library.register_autocast` takes no keywords)."""
    with torch.autocast(device, enabled=False):
        floats = (t.float() if t.is_floating_point() else t for t in tensors)
        return getattr(torch.ops.amsa, op.torch_name)(*floats, **attributes)


def _register(op: OpSpec, implementation: Any, setup_context: Any, backward: Any) -> None:
    name = f"amsa::{op.torch_name}"

    def fake(*tensors: Tensor, **attributes: Any) -> Any:
        outputs = _empty_outputs(op, *tensors, **attributes)
        # DeformableSample's result, and it alone, is channels last, as the convolution behind it likes it.
        return outputs[0].contiguous(memory_format=torch.channels_last) if len(outputs) == 1 else outputs

    torch.library.define(name, op.torch_schema().removeprefix(op.torch_name))
    torch.library.impl(name, "default", implementation)
    torch.library.register_fake(name, fake)
    torch.library.register_autograd(name, backward, setup_context=setup_context)
    for device in ("cpu", "cuda"):
        torch.library.impl(name, f"Autocast{device.upper()}", partial(_in_float32, op, device))


torch.library.define(
    "amsa::deformable_sample_backward",
    "(Tensor value, Tensor match, Tensor offset_mask, Tensor grad, *, int scale, int groups) -> (Tensor, Tensor)",
)
torch.library.impl("amsa::deformable_sample_backward", "default", _deformable_sample_gradients)
torch.library.register_fake("amsa::deformable_sample_backward", _fake_gradients)
_register(PATCH_MATCH, _patch_match, _patch_match_setup, _patch_match_backward)
_register(DEFORMABLE_SAMPLE, _deformable_sample, _deformable_sample_setup, _deformable_sample_backward)
assert len(OPS) == 2, "an op was declared but not registered with torch"
