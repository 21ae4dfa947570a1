"""PatchMatch's steps through the C++ kernel, on torch tensors."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from ..cpu_library import cpu_library, pointer
from .reference import Patches
from .schedule import Step


class _Grid(ctypes.Structure):
    """`Grid` of cpu.cpp."""

    _fields_ = [
        (name, ctypes.c_int) for name in ("height", "width", "channels", "query_pitch", "ref_pitch", "count_y", "count_x", "wrap")
    ]


class _Step(ctypes.Structure):
    """`Step` of cpu.cpp."""

    _fields_ = [(name, ctypes.c_int) for name in ("lr", "dilation", "jitter", "shifted")]


def search(patches: Patches, y: Tensor, x: Tensor, path: Sequence[Step], wrap: bool) -> tuple[Tensor, Tensor, Tensor]:
    """As `reference.search`, for a batch of one."""
    library = cpu_library()
    assert library is not None, "ask `available` first"
    query = patches.query[0].contiguous()
    match = torch.stack((y[0], x[0]), -1).int().contiguous()
    score = torch.empty(y.shape, dtype=torch.float32)
    count_y, count_x = patches.count[0].tolist()
    grid = _Grid(*y.shape[1:], query.shape[2], query.shape[1], patches.pitch, count_y, count_x, wrap)
    steps = (_Step * len(path))(*(_Step(s.lr, s.dilation, s.jitter, s.shifted) for s in path))
    library.amsa_patch_match(
        ctypes.byref(grid),
        steps,
        len(path),
        pointer(query),
        pointer(patches.table),
        pointer(patches.inverse_norm),
        pointer(match),
        pointer(score),
        torch.get_num_threads(),
    )
    return match[None, ..., 0].long(), match[None, ..., 1].long(), score
