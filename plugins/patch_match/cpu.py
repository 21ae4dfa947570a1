"""PatchMatch through the C++ kernel, on torch tensors."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from ..cpu_tensors import channels_last, dense, pointer, run, shape


class _Call(ctypes.Structure):
    """`AmsaPatchMatch` of cpu.hpp."""

    _fields_ = [
        *((name, ctypes.c_int64 * rank) for name, rank in (("query_shape", 4), ("ref_shape", 4), ("valid_shape", 2))),
        ("init_shape", ctypes.c_int64 * 4),
        *((name, ctypes.c_int64) for name in ("iterations", "level", "pad", "init_scale")),
        *((name, ctypes.c_char_p) for name in ("schedule", "arithmetic")),
        *((name, ctypes.c_int32) for name in ("half", "query_channels_last", "ref_channels_last", "threads")),
        *((name, ctypes.c_void_p) for name in ("query", "ref", "valid", "init", "match", "relevance", "evaluations")),
    ]


def patch_match(
    query: Tensor,
    ref: Tensor,
    valid: Tensor,
    init: Tensor,
    *,
    iterations: int,
    schedule: str,
    level: int,
    pad: int,
    init_scale: int,
    arithmetic: str = "float",
    evaluations: list[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """PatchMatch as declared in `spec.py`. The number of scores that were computed is appended to `evaluations`."""
    query, ref, valid, init = dense(query), dense(ref), valid.contiguous(), init.contiguous()
    size = ref.shape[0], query.shape[2] - 2 + 2 * pad, query.shape[3] - 2 + 2 * pad
    match = torch.empty((size[0], 2, *size[1:]), dtype=torch.int32)
    relevance = torch.empty((size[0], 1, *size[1:]))
    count = ctypes.c_int64()
    call = _Call(
        *map(shape, (query, ref, valid, init)),
        *(iterations, level, pad, init_scale),
        *(schedule.encode(), arithmetic.encode()),
        *(query.dtype == torch.float16, channels_last(query), channels_last(ref), torch.get_num_threads()),
        *map(pointer, (query, ref, valid, init, match, relevance)),
        ctypes.addressof(count),
    )
    run("amsa_patch_match", ctypes.byref(call))
    if evaluations is not None:
        evaluations.append(count.value)
    return match, relevance
