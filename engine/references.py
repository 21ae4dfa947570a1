"""From a reference photo to what the graphs take: its scales, padded, and how much of each is picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..config import AMSAConfig
from ..errors import AmsaError
from ..stages import LR_MIN, LR_MULTIPLE, REF_MIN, REF_MULTIPLE, SCALE
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
        photo: [rows, columns, 3] in [0, 1], where memory is too short for its features: `scales` is empty then, and they are
            made again for every picture.
    """

    scales: Sequence[EncodedScale]
    canvas: tuple[int, int] | None
    config: AMSAConfig
    precision: str
    backend: str
    photo: Array | None = None


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


def file_key(path: str | Path) -> tuple[str, int, int]:
    """A file as it is now: path, bytes, time of modification. One that is not there is left for the reader to refuse."""
    try:
        found = Path(path).stat()
    except OSError:
        return str(path), 0, 0
    return str(path), found.st_size, found.st_mtime_ns


def common_canvas(lr_size: tuple[int, int], ref_sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The published protocol's common size: the largest of x4 LR (rounded up) and references (cropped) on each side."""
    heights = [round_up(SCALE * lr_size[0], REF_MULTIPLE), *(h // REF_MULTIPLE * REF_MULTIPLE for h, _ in ref_sizes)]
    widths = [round_up(SCALE * lr_size[1], REF_MULTIPLE), *(w // REF_MULTIPLE * REF_MULTIPLE for _, w in ref_sizes)]
    return max(heights), max(widths)


@dataclass(frozen=True)
class ScalePicture:
    """A reference at one scale, to be padded part by part.

    Attributes:
        rgb: float32 [rows, columns, 3] in [0, 1].
        size: padded height and width.
        mode: how it is padded, see `to_nchw`.
        valid: int32 [1, 2], rows and columns of the finest keys that are picture.
    """

    rgb: Array
    size: tuple[int, int]
    mode: str
    valid: Array

    def part(self, rows: slice, cols: slice) -> Array:
        """float32 [1, 3, H, W]: these rows and columns of the padded picture."""
        return to_nchw(self.rgb[rows, cols], rows.stop - rows.start, cols.stop - cols.start, self.mode)


def prepare_scale(rgb: Array, config: AMSAConfig, canvas: tuple[int, int] | None, index: int) -> ScalePicture:
    """A reference in [0, 1], HWC -> what `encode_ref` gets of it at scale ref_factor^index.

    Each scale is resized from the photo (bicubic with antialias) and padded by repeating its edge; the padding is never
    matched. With a canvas it is the published protocol instead.
    """
    if canvas is not None:
        return _published_scale(rgb, config, canvas, index)
    height, width = (int(side * config.ref_factor**index) for side in rgb.shape[:2])
    picture = rgb if index == 0 else resize_bicubic(rgb, height, width)
    valid = np.array([[height // SCALE, width // SCALE]], np.int32)
    return ScalePicture(picture, (round_up(height, REF_MULTIPLE), round_up(width, REF_MULTIPLE)), "edge", valid)


def prepare_scales(rgb: Array, config: AMSAConfig, canvas: tuple[int, int] | None) -> list[tuple[Array, Array]]:
    """A reference in [0, 1], HWC -> for every scale ([1, 3, H, W] float32, valid int32 [1, 2]), see `prepare_scale`."""
    scales = (prepare_scale(rgb, config, canvas, i) for i in range(config.ref_scales))
    return [(scale.part(slice(0, scale.size[0]), slice(0, scale.size[1])), scale.valid) for scale in scales]


def _published_scale(rgb: Array, config: AMSAConfig, canvas: tuple[int, int], index: int) -> ScalePicture:
    """The published protocol: 8 bits, cropped to multiples, each scale from the one before, zero-padded, all of it matchable."""
    crop = [side // REF_MULTIPLE * REF_MULTIPLE for side in rgb.shape[:2]]
    photo = Image.fromarray((rgb[: crop[0], : crop[1]] * 255 + 0.5).astype(np.uint8))
    height, width = float(photo.height), float(photo.width)
    for _ in range(index):
        height, width = height * config.ref_factor, width * config.ref_factor
        photo = photo.resize((int(width), int(height)), Image.Resampling.BICUBIC)
    picture = np.asarray(photo, np.float32)[: photo.height // SCALE * SCALE, : photo.width // SCALE * SCALE] / 255
    return ScalePicture(picture, canvas, "constant", np.array([[canvas[0] // SCALE, canvas[1] // SCALE]], np.int32))


class RefScale(NamedTuple):
    """A reference at one scale: the picture that `encode_ref` gets, and how much of its matching grid is picture."""

    picture: tuple[int, int]
    valid: tuple[int, int]


def lr_and_scales(
    config: AMSAConfig, lr_hw: tuple[int, int], *ref_hws: tuple[int, int]
) -> tuple[tuple[int, int], list[RefScale]]:
    """What the functions above make of pictures, from their (rows, columns) alone: LR's size, padded, and every reference at
    every scale. AmsaError where a side is too small."""
    for name, hw, least in (("LR", lr_hw, LR_MIN), *(("the reference", hw, REF_MIN) for hw in ref_hws)):
        if min(hw) < least:
            raise AmsaError(f"{name} is {hw[1]}x{hw[0]}; both sides must be at least {least}")
    if config.published_protocol:
        height, width = common_canvas(lr_hw, ref_hws)
        grid = (height // SCALE, width // SCALE)
        return grid, [RefScale((height, width), grid)] * (config.ref_scales * len(ref_hws))
    scales = []
    for hw in ref_hws:
        for i in range(config.ref_scales):
            height, width = (int(side * config.ref_factor**i) for side in hw)
            picture = (round_up(height, REF_MULTIPLE), round_up(width, REF_MULTIPLE))
            scales.append(RefScale(picture, (height // SCALE, width // SCALE)))
    return (round_up(lr_hw[0], LR_MULTIPLE), round_up(lr_hw[1], LR_MULTIPLE)), scales
