"""DeformableSample and its gradients through the C++ kernel, on torch tensors."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from ..cpu_library import cpu_library, pointer


class Sizes(ctypes.Structure):
    """`Sizes` of cpu.cpp."""

    _fields_ = [
        (name, ctypes.c_int)
        for name in ("n", "value_n", "c", "rows", "cols", "height", "width", "scale", "groups", "with_offsets")
    ]


def _rows_of_channels(t: Tensor) -> Tensor:
    return t.float().contiguous(memory_format=torch.channels_last)


def _prepared(value: Tensor, match: Tensor, offset_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Float32, channels last where there are channels; one offset_mask for a whole batch repeated."""
    offset_mask = offset_mask.expand(match.shape[0], -1, -1, -1)
    return _rows_of_channels(value), match.contiguous(), _rows_of_channels(offset_mask)


def _sizes(value: Tensor, match: Tensor, offset_mask: Tensor, scale: int, groups: int) -> Sizes:
    height, width = offset_mask.shape[2:]
    with_offsets = int(offset_mask.shape[1] == 27 * groups)
    return Sizes(match.shape[0], value.shape[0], value.shape[1], *value.shape[2:], height, width, scale, groups, with_offsets)


def _empty(n: int, channels: int, height: int, width: int) -> Tensor:
    return torch.empty((n, channels, height, width), memory_format=torch.channels_last)


def deformable_sample(value: Tensor, match: Tensor, offset_mask: Tensor, *, scale: int, groups: int) -> Tensor:
    """DeformableSample as declared in `spec.py`; the result is channels-last."""
    library = cpu_library()
    assert library is not None, "ask `available` first"
    dtype, sizes = value.dtype, _sizes(value, match, offset_mask, scale, groups)
    value, match, offset_mask = _prepared(value, match, offset_mask)
    out = _empty(sizes.n, 9 * sizes.c, sizes.height, sizes.width)
    library.amsa_deformable_sample_forward(
        ctypes.byref(sizes),
        pointer(value),
        pointer(match),
        pointer(offset_mask),
        pointer(out),
        torch.get_num_threads(),
    )
    return out.to(dtype)


def deformable_sample_backward(
    value: Tensor, match: Tensor, offset_mask: Tensor, grad: Tensor, *, scale: int, groups: int
) -> tuple[Tensor, Tensor]:
    """Gradients of value and offset_mask, given that of the result."""
    library = cpu_library()
    assert library is not None, "ask `available` first"
    sizes = _sizes(value, match, offset_mask, scale, groups)
    dtype, batch = value.dtype, offset_mask.shape[0]
    value, match, offset_mask = _prepared(value, match, offset_mask)
    grad = _rows_of_channels(grad)
    grad_value = torch.zeros_like(value)
    grad_offset_mask = torch.empty_like(offset_mask)
    library.amsa_deformable_sample_backward(
        ctypes.byref(sizes),
        pointer(value),
        pointer(match),
        pointer(offset_mask),
        pointer(grad),
        pointer(grad_value),
        pointer(grad_offset_mask),
        torch.get_num_threads(),
    )
    if batch < match.shape[0]:
        grad_offset_mask = grad_offset_mask.sum(0, keepdim=True)
    return grad_value.to(dtype), grad_offset_mask.to(dtype)
