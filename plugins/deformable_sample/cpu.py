"""DeformableSample and its gradients through the C++ kernel, on torch tensors."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from ..cpu_library import Sizes, cpu_library


def available(*tensors: Tensor) -> bool:
    """Whether the kernel can take these tensors: float32 features on the CPU, and the library is there."""
    kinds = (torch.float32, torch.int32)
    return all(t.device.type == "cpu" and t.dtype in kinds for t in tensors) and cpu_library() is not None


def _pointer(t: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(t.data_ptr())


def _rows_of_channels(t: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last)


def _sizes(value: Tensor, match: Tensor, offset_mask: Tensor, scale: int, groups: int) -> Sizes:
    height, width = offset_mask.shape[2:]
    with_offsets = int(offset_mask.shape[1] == 27 * groups)
    return Sizes(
        match.shape[0], value.shape[0], value.shape[1], *value.shape[2:], height, width, scale, groups, with_offsets
    )


def _empty(n: int, channels: int, height: int, width: int) -> Tensor:
    return torch.empty((n, channels, height, width), memory_format=torch.channels_last)


def deformable_sample(value: Tensor, match: Tensor, offset_mask: Tensor, *, scale: int, groups: int) -> Tensor:
    """DeformableSample as declared in `spec.py`; the result is channels-last."""
    library = cpu_library()
    assert library is not None, "ask `available` first"
    sizes = _sizes(value, match, offset_mask, scale, groups)
    value, match, offset_mask = _rows_of_channels(value), match.contiguous(), _rows_of_channels(offset_mask)
    out = _empty(sizes.n, 9 * sizes.c, sizes.height, sizes.width)
    library.amsa_deformable_sample_forward(
        ctypes.byref(sizes),
        _pointer(value),
        _pointer(match),
        _pointer(offset_mask),
        _pointer(out),
        torch.get_num_threads(),
    )
    return out


def deformable_sample_backward(
    value: Tensor, match: Tensor, offset_mask: Tensor, grad: Tensor, *, scale: int, groups: int
) -> tuple[Tensor, Tensor]:
    """Gradients of value and offset_mask, given that of the result."""
    library = cpu_library()
    assert library is not None, "ask `available` first"
    sizes = _sizes(value, match, offset_mask, scale, groups)
    value, match, offset_mask = _rows_of_channels(value), match.contiguous(), _rows_of_channels(offset_mask)
    grad = _rows_of_channels(grad)
    grad_value = torch.zeros_like(value)
    grad_offset_mask = torch.empty_like(offset_mask)
    library.amsa_deformable_sample_backward(
        ctypes.byref(sizes),
        _pointer(value),
        _pointer(match),
        _pointer(offset_mask),
        _pointer(grad),
        _pointer(grad_value),
        _pointer(grad_offset_mask),
        torch.get_num_threads(),
    )
    return grad_value, grad_offset_mask
