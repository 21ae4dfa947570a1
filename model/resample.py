"""Resampling inside the network, each in the form that the ONNX export can express without antialias filters."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..stages import SCALE


def upscale_bicubic(x: Tensor) -> Tensor:
    """x4 with PIL's bicubic (a = -0.5, weights renormalised at the border): [N, C, h, w] -> [N, C, 4h, 4w].

    torch reaches that kernel through `antialias`, which changes nothing else when enlarging.
    """
    size = (SCALE * x.shape[2], SCALE * x.shape[3])
    return F.interpolate(x, size=size, mode="bicubic", antialias=True)


def upscale_bilinear(x: Tensor) -> Tensor:
    """x4 bilinear: [N, C, h, w] -> [N, C, 4h, 4w]."""
    return F.interpolate(x, size=(SCALE * x.shape[2], SCALE * x.shape[3]), mode="bilinear")


def upscale_nearest(x: Tensor) -> Tensor:
    """x4 nearest: [N, C, h, w] -> [N, C, 4h, 4w]."""
    return F.interpolate(x, size=(SCALE * x.shape[2], SCALE * x.shape[3]), mode="nearest")


def halve(x: Tensor) -> Tensor:
    """Half the size with torch's bicubic (a = -0.75, no antialias), as the published code does: sides are even."""
    return F.interpolate(x, size=(x.shape[2] // 2, x.shape[3] // 2), mode="bicubic")
