"""Pictures to check with, and what is expected of those that come out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .findings import BROKEN, Problem

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LEAST_PSNR = 45.0  # dB, between a GPU's picture and the CPU's of one float16 model
_PLAUSIBLE_PSNR = 20.0  # dB, between a picture and what bicubic makes of the same LR: garbage has 10


def photos() -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """A reference of waves, 64x64, the LR picture of the same, 16x16, and what bicubic makes of that; uint8, [H, W, 3]."""
    import numpy as np
    from PIL import Image

    y, x = np.mgrid[:64, :64]
    ref = (128 + 100 * np.sin(np.stack((x / 5, y / 7, (x + y) / 9), axis=-1))).astype(np.uint8)
    small = Image.fromarray(ref).resize((16, 16), Image.Resampling.BICUBIC)
    return ref, np.asarray(small), np.asarray(small.resize((64, 64), Image.Resampling.BICUBIC))


def is_plausible(sr: NDArray[Any], bicubic: NDArray[Any]) -> bool:
    """Whether a picture can be of what bicubic made the other one of (uint8, [H, W, 3])."""
    from ..metrics import psnr

    return sr.shape == bicubic.shape and psnr(sr, bicubic) >= _PLAUSIBLE_PSNR


def compare(gpu: Any, cpu: Any) -> str:
    """How near two pictures (uint8, [H, W, 3]) are, in words. Broken where they are not."""
    import numpy as np

    from ..metrics import psnr

    decibels = psnr(gpu, cpu)
    equal = np.mean((gpu == cpu).all(axis=-1))
    text = f"against ONNX Runtime on the CPU: PSNR {decibels:.1f} dB, {equal:.1%} of the pixels are equal"
    if decibels < _LEAST_PSNR:
        raise Problem(BROKEN, f"{text}; at least {_LEAST_PSNR:.0f} dB are expected")
    return text
