"""The ops through their launch plans and CUDA kernels, on the harness; tensors in and out as the ops declare them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import amsa.plugins
from amsa.plugins.deformable_sample.plan import deformable_sample_plan
from amsa.plugins.launch import Launch
from amsa.plugins.patch_match.plan import Addresses, patch_match_plan, patch_match_scratch

from .harness import Build, Device, Order

_PLUGINS = Path(amsa.plugins.__file__).parent
_DTYPES = {torch.float16: "float16", torch.float32: "float32"}


def device(op: str, build: Build = "fast", order: Order = "forward") -> Device:
    """The harness with an op's kernels."""
    return Device([_PLUGINS / op / "kernels.cu"], build, order)


def _channels_last(t: Tensor) -> np.ndarray[Any, Any]:
    return t.permute(0, 2, 3, 1).contiguous().numpy()


def _garbage(shape: tuple[int, ...], dtype: type) -> np.ndarray[Any, Any]:
    """What memory holds before it is written: here the largest integers, and floats that are not numbers."""
    return np.full(int(np.prod(shape)) * np.dtype(dtype).itemsize, 0xFF, np.uint8).view(dtype).reshape(shape)


def patch_match(on: Device, query: Tensor, ref: Tensor, valid: Tensor, init: Tensor, **attributes: Any) -> tuple[Tensor, Tensor]:
    """(match, relevance) of the kernels."""
    height, width = (n - 2 + 2 * attributes["pad"] for n in query.shape[2:])
    n = ref.shape[0]
    buffers = {
        "query": _channels_last(query),
        "ref": _channels_last(ref),
        "valid": valid.numpy(),
        "init": init.contiguous().numpy(),
        "match": _garbage((n, 2, height, width), np.int32),
        "relevance": _garbage((n, 1, height, width), np.float32),
        "scratch": _garbage((patch_match_scratch(query.shape, ref.shape, **attributes),), np.uint8),
    }

    def plan(at: dict[str, int]) -> list[Launch]:
        shapes = query.shape, ref.shape, valid.shape, init.shape
        return patch_match_plan(*shapes, Addresses(**at), dtype=_DTYPES[query.dtype], **attributes)

    out = on.run(buffers, plan)
    return torch.from_numpy(out["match"]), torch.from_numpy(out["relevance"])


def deformable_sample(on: Device, value: Tensor, match: Tensor, offset_mask: Tensor, **attributes: Any) -> Tensor:
    """The kernel's result."""
    n, (height, width) = match.shape[0], offset_mask.shape[2:]
    kind = np.float16 if value.dtype == torch.float16 else np.float32
    buffers = {
        "value": _channels_last(value),
        "match": match.contiguous().numpy(),
        "offset_mask": _channels_last(offset_mask),
        "out": _garbage((n, height, width, 9 * value.shape[1]), kind),
    }

    def plan(at: dict[str, int]) -> list[Launch]:
        addresses = at["value"], at["match"], at["offset_mask"], at["out"]
        shapes = value.shape, match.shape, offset_mask.shape
        return deformable_sample_plan(*shapes, addresses, dtype=_DTYPES[value.dtype], **attributes)

    return torch.from_numpy(on.run(buffers, plan)["out"]).permute(0, 3, 1, 2)
