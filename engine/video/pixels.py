"""Frames to photos and back: YCbCr and RGB, 8 to 16 bits, at the range and matrix that the clip's tags name.

FFmpeg's scaler only resamples chroma and changes the layout, at the source's own depth, so luma stays exact. The matrix is
applied here, in float32: the scaler's RGB is up to 0.98 of 255 off (white in rgb48le is 65280).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorRange, Interpolation
from numpy.typing import NDArray

from ...errors import AmsaError
from ..images import Photo

Array = NDArray[np.float32]
Turn = tuple[bool, bool, bool]
"""Transpose, then reverse rows, then reverse columns: from the stored picture to the upright one."""

_RGB, _UNSPECIFIED, _BT709, _SMPTE170M = 0, 2, 1, 6
# AVColorSpace (ISO/IEC 23091-2 MatrixCoefficients) -> what red and blue weigh in luma
_LUMA = {_BT709: (0.2126, 0.0722), 4: (0.3, 0.11), 5: (0.299, 0.114), _SMPTE170M: (0.299, 0.114), 7: (0.212, 0.087)}
_LUMA |= {9: (0.2627, 0.0593)}
_NAMES = {8: "YCgCo", 10: "BT.2020 with constant luminance", 14: "ICtCp"}
_HD = 720
"""Rows from which players take clips without a matrix tag for BT.709; below, for BT.601."""
_SCALER = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP


@dataclass(frozen=True)
class Pixels:
    """How a clip stores colours.

    Attributes:
        format: FFmpeg's name of the pixel format.
        bits: of a sample.
        matrix: AVColorSpace, known or assumed from the height; of RGB clips, what the result is written with.
        full: whether samples use the full range.
        primaries, transfer: AVColorPrimaries and AVColorTransferCharacteristic, as tagged.
        gray, rgb, alpha: what the samples are.
        chroma: "420", "422" or "444", the least that keeps the clip's chroma.
    """

    format: str
    bits: int
    matrix: int
    full: bool
    primaries: int
    transfer: int
    gray: bool
    rgb: bool
    alpha: bool
    chroma: str

    @property
    def range(self) -> int:
        """AVColorRange."""
        return int(ColorRange.JPEG if self.full else ColorRange.MPEG)

    @classmethod
    def of(cls, frame: av.VideoFrame, name: str) -> Pixels:
        """Raises AmsaError, with `name` in it, for colours with no matrix."""
        layout = frame.format
        colour = [c for c in layout.components if not c.is_alpha]
        gray = len(colour) == 1 and not layout.has_palette
        rgb = (layout.is_rgb or layout.has_palette) and not gray
        matrix = int(frame.colorspace)
        if matrix in (_RGB, _UNSPECIFIED):
            matrix = _BT709 if frame.height >= _HD or rgb else _SMPTE170M
        elif matrix not in _LUMA:
            kind = _NAMES.get(matrix, f"matrix {matrix}")
            raise AmsaError(f"{name} stores colours as {kind}, which is not read; convert it to BT.709 or BT.2020 first")
        full = frame.color_range == ColorRange.JPEG or layout.name.startswith("yuvj")
        full = full or (gray and frame.color_range != ColorRange.MPEG)
        chroma = "444" if rgb else "420"
        if not rgb and not gray:
            halved = layout.chroma_width(16) < 16, layout.chroma_height(16) < 16
            chroma = {(True, True): "420", (True, False): "422"}.get(halved, "444")
        return cls(
            format=layout.name,
            bits=max(c.bits for c in colour) if not layout.has_palette else 8,
            matrix=matrix,
            full=full and not rgb,
            primaries=int(frame.color_primaries),
            transfer=int(frame.color_trc),
            gray=gray,
            rgb=rgb,
            alpha=any(c.is_alpha for c in layout.components),
            chroma=chroma,
        )


def to_photo(frame: av.VideoFrame, pixels: Pixels, turn: Turn) -> Photo:
    """A decoded frame, upright, in RGB; 16 bits deep where its samples have more than 8. Alpha is not read."""
    rgb: NDArray[Any]
    if pixels.rgb:
        format_, most = ("rgb24", 255) if pixels.bits == 8 else ("rgb48le", 65535)
        rgb = frame.reformat(format=format_).to_ndarray() / np.float32(most)
    else:
        bits = next(b for b in (8, 10, 12, 16) if b >= pixels.bits)
        format_ = "yuv444p" if bits == 8 else f"yuv444p{bits}le"
        range_ = ColorRange.JPEG if pixels.full or pixels.gray else ColorRange.MPEG  # the scaler takes gray for full anyway
        matched = frame.reformat(format=format_, src_color_range=range_, dst_color_range=range_, interpolation=_SCALER)
        planes: list[NDArray[Any]] = [_read_plane(plane, bits) for plane in matched.planes]
        black, luma, chroma = _levels(bits, pixels.full)
        middle = 2 ** (bits - 1)
        y, cb, cr = (planes[0] - black) / luma, (planes[1] - middle) / chroma, (planes[2] - middle) / chroma
        if pixels.gray:
            rgb = np.repeat(y[..., None], 3, 2)
        else:
            red, blue = _LUMA[pixels.matrix]
            r, b = y + 2 * (1 - red) * cr, y + 2 * (1 - blue) * cb
            rgb = np.stack((r, (y - red * r - blue * b) / (1 - red - blue), b), 2)
    transpose, rows, cols = turn
    rgb = (rgb.swapaxes(0, 1) if transpose else rgb)[:: -1 if rows else 1, :: -1 if cols else 1]
    rgb = np.ascontiguousarray(np.clip(rgb, 0, 1), np.float32)
    return Photo(rgb, gray=pixels.gray, bits=8 if pixels.bits == 8 else 16)


def to_frame(rgb: Array, pixels: Pixels, format_: str) -> av.VideoFrame:
    """An upright RGB picture [h, w, 3] in [0, 1] as a frame of a planar YCbCr format of 8 or 10 bits, rounded once."""
    bits = 10 if format_.endswith("10le") else 8
    red, blue = _LUMA[pixels.matrix]
    black, luma, chroma = _levels(bits, pixels.full)
    y = rgb @ np.array([red, 1 - red - blue, blue], np.float32)
    cb, cr = ((rgb[..., i] - y) / (2 * (1 - weight)) for i, weight in ((2, blue), (0, red)))
    most = 2**bits - 1
    height, width = y.shape
    frame = av.VideoFrame(width, height, "yuv444p" if bits == 8 else "yuv444p10le")
    middle = 2 ** (bits - 1)
    for plane, samples in zip(frame.planes, (black + luma * y, middle + chroma * cb, middle + chroma * cr), strict=True):
        whole = np.zeros((plane.height, plane.line_size // (2 if bits > 8 else 1)), np.uint16 if bits > 8 else np.uint8)
        whole[:, :width] = np.clip(samples + 0.5, 0, most)
        plane.update(whole.tobytes())
    frame = frame.reformat(format=format_, src_color_range=pixels.range, dst_color_range=pixels.range, interpolation=_SCALER)
    frame.color_range, frame.colorspace = pixels.range, pixels.matrix
    frame.color_primaries, frame.color_trc = pixels.primaries, pixels.transfer
    return frame


def upright(matrix: NDArray[np.int32]) -> Turn | None:
    """What a display matrix (9 numbers, 16.16 fixed point) asks for; None if it is no quarter turn or mirror."""
    a, b, c, d = (int(matrix[i]) for i in (0, 1, 3, 4))
    if b == c == 0 and abs(a) == abs(d) == 65536:
        return False, d < 0, a < 0
    if a == d == 0 and abs(b) == abs(c) == 65536:
        return True, b < 0, c < 0
    return None


def _levels(bits: int, full: bool) -> tuple[int, int, int]:
    """Black, and the spans of luma and chroma."""
    step = 2 ** (bits - 8)
    return (0, 2**bits - 1, 2**bits - 1) if full else (16 * step, 219 * step, 224 * step)


def _read_plane(plane: av.video.plane.VideoPlane, bits: int) -> Array:
    samples: NDArray[Any] = np.frombuffer(memoryview(plane), np.uint16 if bits > 8 else np.uint8).reshape(plane.height, -1)
    return np.asarray(samples[:, : plane.width], np.float32)
