"""DeformableSample and its gradients through the C++ kernels, on torch tensors."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from ..cpu_tensors import channels_last, dense, pointer, run, shape


class _Call(ctypes.Structure):
    """`AmsaDeformableSample` of cpu.hpp."""

    _fields_ = [
        *((name, ctypes.c_int64 * 4) for name in ("value_shape", "match_shape", "offset_mask_shape")),
        *((name, ctypes.c_int64) for name in ("scale", "groups")),
        ("half", ctypes.c_int32),
        *((f"{name}_channels_last", ctypes.c_int32) for name in ("value", "offset_mask", "samples")),
        ("threads", ctypes.c_int32),
        *((name, ctypes.c_void_p) for name in ("value", "match", "offset_mask", "samples")),
    ]


def _call(value: Tensor, match: Tensor, offset_mask: Tensor, samples: Tensor | None, scale: int, groups: int) -> _Call:
    return _Call(
        *map(shape, (value, match, offset_mask)),
        *(scale, groups, value.dtype == torch.float16),
        *(channels_last(value), channels_last(offset_mask), samples is not None and channels_last(samples)),
        torch.get_num_threads(),
        *map(pointer, (value, match, offset_mask)),
        None if samples is None else pointer(samples),
    )


def deformable_sample(value: Tensor, match: Tensor, offset_mask: Tensor, *, scale: int, groups: int) -> Tensor:
    """DeformableSample as declared in `spec.py`; the result is channels-last."""
    value, match, offset_mask = dense(value), match.contiguous(), dense(offset_mask)
    size = match.shape[0], 9 * value.shape[1], *offset_mask.shape[2:]
    samples = torch.empty(size, dtype=value.dtype, memory_format=torch.channels_last)
    run("amsa_deformable_sample", ctypes.byref(_call(value, match, offset_mask, samples, scale, groups)))
    return samples


def _rows_of_channels(t: Tensor) -> Tensor:
    return t.float().contiguous(memory_format=torch.channels_last)


def deformable_sample_backward(
    value: Tensor, match: Tensor, offset_mask: Tensor, grad: Tensor, *, scale: int, groups: int
) -> tuple[Tensor, Tensor]:
    """Gradients of value and offset_mask, given that of the result."""
    dtype, batch = value.dtype, offset_mask.shape[0]
    offset_mask = _rows_of_channels(offset_mask.expand(match.shape[0], -1, -1, -1))
    value, match, grad = _rows_of_channels(value), match.contiguous(), _rows_of_channels(grad)
    grad_value, grad_offset_mask = torch.zeros_like(value), torch.empty_like(offset_mask)
    call = _call(value, match, offset_mask, None, scale, groups)
    gradients = (ctypes.c_void_p(pointer(t)) for t in (grad, grad_value, grad_offset_mask))
    run("amsa_deformable_sample_backward", ctypes.byref(call), *gradients)
    if batch < match.shape[0]:
        grad_offset_mask = grad_offset_mask.sum(0, keepdim=True)
    return grad_value.to(dtype), grad_offset_mask.to(dtype)
