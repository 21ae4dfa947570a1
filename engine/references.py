"""From a reference photo to what the graphs take: its scales, padded, and how much of each is picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..config import AMSAConfig
from ..stages import LR_MULTIPLE, REF_MULTIPLE, SCALE
from .backends import Execution
from .images import resize_bicubic

Array = NDArray[Any]


@dataclass(frozen=True)
class EncodedScale:
    """Features of a reference at one scale, as `encode_ref` gives them.

    Attributes:
        tensors: keys, values and, for the published variant, warp masks, by name, on the backend's device.
        valid: int32 [1, 2], rows and columns of the finest keys that are picture.
    """

    tensors: Mapping[str, Any]
    valid: Array


@dataclass(frozen=True)
class EncodedReference:
    """A reference photo, encoded once and usable for any number of LR pictures.

    Attributes:
        scales: features at scales 1, k, k^2, ..
        canvas: published variant only: the common size (height, width) that LR and references were padded to.
        config: of the network that encoded it.
        precision: of the model, "fp32" or "fp16".
        backend: that holds the features.
    """

    scales: Sequence[EncodedScale]
    canvas: tuple[int, int] | None
    config: AMSAConfig
    precision: str
    backend: str


def to_nchw(rgb: Array, height: int, width: int, mode: str) -> Array:
    """HWC picture -> float32 [1, 3, height, width], padded at the bottom and right; mode "edge" or "constant" (zeros)."""
    rows, cols = height - rgb.shape[0], width - rgb.shape[1]
    padded = np.pad(rgb, ((0, rows), (0, cols), (0, 0)), mode=mode)  # type: ignore[call-overload]
    return np.ascontiguousarray(padded.transpose(2, 0, 1)[None], dtype=np.float32)


def round_up(size: int, multiple: int) -> int:
    """The least multiple that is at least `size`."""
    return -(-size // multiple) * multiple


def prepare_lr(rgb: Array, canvas: tuple[int, int] | None) -> Array:
    """LR in [0, 1], HWC -> float32 [1, 3, h, w], sides multiples of 8 by repeating the edge (published: zeros to the canvas)."""
    if canvas is None:
        return to_nchw(rgb, round_up(rgb.shape[0], LR_MULTIPLE), round_up(rgb.shape[1], LR_MULTIPLE), "edge")
    return to_nchw(rgb, canvas[0] // SCALE, canvas[1] // SCALE, "constant")


def pad_edges(on: Execution, lr: Any) -> Any:
    """LR float32 [1, 3, h, w] on a backend's device -> the same with sides multiples of 8, as `prepare_lr` pads."""
    height, width = lr.shape[2:]
    rows, cols = round_up(height, LR_MULTIPLE), round_up(width, LR_MULTIPLE)
    if (rows, cols) == (height, width):
        return lr
    every = slice(None)
    padded = on.empty((1, 3, rows, cols), np.float32)
    on.copy(padded[every, every, :height, :width], lr)
    for col in range(width, cols):
        on.copy(padded[every, every, :height, col : col + 1], lr[every, every, :, width - 1 : width])
    for row in range(height, rows):
        on.copy(padded[every, every, row : row + 1, every], padded[every, every, height - 1 : height, every])
    return padded


def common_canvas(lr_size: tuple[int, int], ref_sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The published protocol's common size: the largest of x4 LR (rounded up) and references (cropped) on each side."""
    heights = [round_up(SCALE * lr_size[0], REF_MULTIPLE), *(h // REF_MULTIPLE * REF_MULTIPLE for h, _ in ref_sizes)]
    widths = [round_up(SCALE * lr_size[1], REF_MULTIPLE), *(w // REF_MULTIPLE * REF_MULTIPLE for _, w in ref_sizes)]
    return max(heights), max(widths)


def prepare_scales(rgb: Array, config: AMSAConfig, canvas: tuple[int, int] | None) -> list[tuple[Array, Array]]:
    """A reference in [0, 1], HWC -> for every scale ([1, 3, H, W] float32, valid int32 [1, 2]).

    Each scale is resized from the photo (bicubic with antialias) and padded by repeating its edge; the padding is never
    matched. With a canvas it is the published protocol instead.
    """
    if canvas is not None:
        return _published_scales(rgb, config, canvas)
    scales = []
    for i in range(config.ref_scales):
        height, width = (int(side * config.ref_factor**i) for side in rgb.shape[:2])
        picture = rgb if i == 0 else resize_bicubic(rgb, height, width)
        padded = to_nchw(picture, round_up(height, REF_MULTIPLE), round_up(width, REF_MULTIPLE), "edge")
        scales.append((padded, np.array([[height // SCALE, width // SCALE]], np.int32)))
    return scales


def _published_scales(rgb: Array, config: AMSAConfig, canvas: tuple[int, int]) -> list[tuple[Array, Array]]:
    """The published protocol: 8 bits, cropped to multiples, each scale from the one before, zero-padded, all of it matchable."""
    crop = [side // REF_MULTIPLE * REF_MULTIPLE for side in rgb.shape[:2]]
    photo = Image.fromarray((rgb[: crop[0], : crop[1]] * 255 + 0.5).astype(np.uint8))
    height, width = float(photo.height), float(photo.width)
    valid = np.array([[canvas[0] // SCALE, canvas[1] // SCALE]], np.int32)
    scales = []
    for i in range(config.ref_scales):
        if i > 0:
            height, width = height * config.ref_factor, width * config.ref_factor
            photo = photo.resize((int(width), int(height)), Image.Resampling.BICUBIC)
        picture = np.asarray(photo, np.float32)[: photo.height // SCALE * SCALE, : photo.width // SCALE * SCALE] / 255
        scales.append((to_nchw(picture, *canvas, "constant"), valid))
    return scales
