"""Torch tensors for the C++ kernels."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from .cpu_library import cpu_library


def available(*tensors: Tensor) -> bool:
    """Whether the kernels can take these tensors: on the CPU, and the library is there. They compute in float32."""
    kinds = (torch.float32, torch.float16, torch.int32)
    return all(t.device.type == "cpu" and t.dtype in kinds for t in tensors) and cpu_library() is not None


def pointer(t: Tensor) -> int:
    """Address of a tensor's first element, for a C function."""
    return t.data_ptr()


def channels_last(t: Tensor) -> bool:
    """Whether features lie channels-last in memory, which the kernels read as it is."""
    return t.is_contiguous(memory_format=torch.channels_last)


def dense(t: Tensor) -> Tensor:
    """Features in a layout that the kernels read: NCHW or channels-last."""
    return t if channels_last(t) else t.contiguous()


def shape(t: Tensor) -> ctypes.Array[ctypes.c_int64]:
    """A tensor's shape as a C array."""
    return (ctypes.c_int64 * t.dim())(*t.shape)


def run(function: str, *arguments: object) -> None:
    """Call a function of the library; raise ValueError with its message where it reports an error."""
    library = cpu_library()
    assert library is not None, "ask `available` first"
    message = getattr(library, function)(*arguments)
    if message is not None:
        raise ValueError(message.decode())
