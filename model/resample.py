"""Resampling inside the network, each in the form that the ONNX export can express without antialias filters."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..stages import SCALE


def upscale_bicubic(x: Tensor, factor: int = SCALE) -> Tensor:
    """Enlarge with PIL's bicubic (a = -0.5, weights renormalised at the border): [N, C, h, w] -> [N, C, f*h, f*w].

    torch reaches that kernel through `antialias`, which changes nothing else when enlarging.
    """
    size = (factor * x.shape[2], factor * x.shape[3])
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


def lr_blur(x: Tensor) -> Tensor:
    """The blur that makes LR (PIL's bicubic, shrinking by 4), at half the size: [N, C, H, W] -> [N, C, H/2, W/2].

    An LR pixel lies in the middle of four of these: it is what LR enlarged x2 would be, had it lost nothing.
    """
    c, taps = x.shape[1], _SHRINK_BY_4.to(x)
    margin = len(_SHRINK_BY_4) // 2 - 1
    x = F.pad(x, (margin,) * 4, mode="replicate")
    x = F.conv2d(x, taps.view(1, 1, -1, 1).expand(c, -1, -1, -1), stride=(2, 1), groups=c)
    return F.conv2d(x, taps.view(1, 1, 1, -1).expand(c, -1, -1, -1), stride=(1, 2), groups=c)


def _bicubic_taps(factor: int) -> Tensor:
    """Weights of the 4 * factor pixels around a new pixel's centre that lies between two of them (a = -0.5)."""
    t = (torch.arange(4 * factor, dtype=torch.float64) - (4 * factor - 1) / 2).abs() / factor
    near, far = 1.5 * t**3 - 2.5 * t**2 + 1, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    taps = torch.where(t < 1, near, far)
    return (taps / taps.sum()).float()


_SHRINK_BY_4 = _bicubic_taps(SCALE)
