"""Picture quality as the paper measures it (PSNR and SSIM, on Y and on RGB), and pictures that show differences.

The protocol is the one of the published AMSA code: 4 pixels are cropped on every side, Y is Matlab's ``rgb2ycbcr`` in
16..235, and float arrays are never rounded. The published tables measure 8-bit pictures; the functions here take the
values they are given, so quantise first to reproduce a table.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ..errors import AmsaError

Picture = NDArray[np.float32]  # HWC RGB in [0, 1]

_LUMA = np.array([65.481, 128.553, 24.966]) / 255  # R, G, B
_WINDOW = 11
_SIGMA = 1.5
_C1 = (0.01 * 255) ** 2
_C2 = (0.03 * 255) ** 2
_MAX_GAIN = 64.0
_GAP = 4  # pixels between two panels
_LABEL_SIZES = range(16, 7, -1)  # font sizes, the preferred one first


def luma(rgb: NDArray[Any]) -> NDArray[np.float64]:
    """Return Y (HW, float64, 16..235) of an RGB picture (HW3, any dtype, 0..255), as Matlab's ``rgb2ycbcr``.

    The published ``bgr2ycbcr`` rounds Y of uint8 arrays only, and the protocol gives it float arrays: Y is not rounded
    here, whatever the dtype.
    """
    _check_rgb(rgb, "the picture")
    y: NDArray[np.float64] = rgb.astype(np.float64) @ _LUMA + 16
    return y


def psnr(a: NDArray[Any], b: NDArray[Any], border: int = 4) -> float:
    """Return the peak signal-to-noise ratio in dB of two arrays (HW or HWC, 0..255), ``inf`` if they are equal.

    ``border`` pixels are cropped on every side first. The mean squared error is taken over all channels at once.
    """
    a, b = _crop_pair(a, b, border, smallest=1)
    mse = float(np.mean((a - b) ** 2))
    return float("inf") if mse == 0 else float(20 * np.log10(255 / np.sqrt(mse)))


def ssim(a: NDArray[Any], b: NDArray[Any], border: int = 4) -> float:
    """Return the structural similarity of two arrays (HW or HWC, 0..255): at most 1, which equal arrays have.

    ``border`` pixels are cropped on every side first. Statistics are those of an 11x11 Gaussian window (sigma 1.5) at
    every position where it lies inside the picture, in float64; channels are averaged.
    """
    a, b = _crop_pair(a, b, border, smallest=_WINDOW)
    mean_a, mean_b = _blur(a), _blur(b)
    var_a = _blur(a * a) - mean_a**2
    var_b = _blur(b * b) - mean_b**2
    covariance = _blur(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + _C1) / (mean_a**2 + mean_b**2 + _C1)
    structure = (2 * covariance + _C2) / (var_a + var_b + _C2)
    # All channels have the same number of positions, so one mean is the mean over channels.
    return float(np.mean(luminance * structure))


@dataclass(frozen=True)
class Comparison:
    """How far two pictures are apart: PSNR in dB (``inf`` if equal), SSIM, and absolute differences in 0..255."""

    psnr_y: float
    ssim_y: float
    psnr_rgb: float
    ssim_rgb: float
    max_difference: float
    mean_difference: float

    def as_dict(self) -> dict[str, float]:
        """Return the numbers by name. Equal pictures have a PSNR of ``inf``, which strict JSON cannot hold."""
        return asdict(self)


def compare_pictures(a_rgb: Picture, b_rgb: Picture, border: int = 4) -> Comparison:
    """Compare two RGB pictures (HW3, float32, [0, 1]).

    Values are taken as given, neither clipped nor quantised to 8 bits. PSNR and SSIM crop ``border`` pixels on every
    side, as the paper does; the maximum and mean absolute difference are those of the whole pictures.
    """
    _check_same_shape(a_rgb, b_rgb)
    _check_rgb(a_rgb, "the picture")
    a = a_rgb.astype(np.float64) * 255
    b = b_rgb.astype(np.float64) * 255
    y_a, y_b = luma(a), luma(b)
    scores = psnr(y_a, y_b, border), ssim(y_a, y_b, border), psnr(a, b, border), ssim(a, b, border)
    difference = np.abs(a - b)
    return Comparison(*scores, max_difference=float(difference.max()), mean_difference=float(difference.mean()))


def difference_picture(a: Picture, b: Picture, gain: float | None = None) -> tuple[Picture, float]:
    """Return the absolute difference of two RGB pictures (HW3, float32, [0, 1]) times a gain, and that gain.

    The picture is HW3, float32, clipped to [0, 1]. Without ``gain``, the 99.9th percentile of the difference is mapped
    to 1 (a few outliers may not hide the rest), with a gain of at most 64 so that float noise does not look like an
    error.
    """
    _check_same_shape(a, b)
    _check_rgb(a, "the picture")
    difference = np.abs(a.astype(np.float64) - b)
    if gain is None:
        high = float(np.percentile(difference, 99.9))
        gain = 1 / high if high > 1 / _MAX_GAIN else _MAX_GAIN
    elif gain <= 0:
        raise AmsaError(f"the gain of a difference picture must be greater than 0, got {gain:g}")
    return np.clip(difference * gain, 0, 1).astype(np.float32), gain


def side_by_side(pictures: list[tuple[str, Picture]]) -> Picture:
    """Return labelled RGB pictures (HW3, float32, [0, 1]) in a row on white: HW3, float32, [0, 1].

    Panels are as high as the highest picture; a lower one is enlarged by pixel repetition (nearest), which leaves its
    pixels as they are, so the panel height must be a multiple of its height. Each label stands in a strip above its
    panel, all in one font size, reduced where a label would be wider than its panel.
    """
    if not pictures:
        raise AmsaError("a row of pictures needs at least one picture")
    for label, picture in pictures:
        _check_rgb(picture, f"'{label}'")
    height = max(picture.shape[0] for _, picture in pictures)
    labels, panels = [], []
    for label, picture in pictures:
        factor, rest = divmod(height, picture.shape[0])
        if rest:
            problem = f"is {picture.shape[0]} pixels high, which does not divide the panel height of {height}"
            raise AmsaError(f"'{label}' {problem}: resize it first")
        labels.append(" ".join(label.split()))  # a strip holds one line
        panels.append(picture.repeat(factor, axis=0).repeat(factor, axis=1))
    strips = _label_strips(labels, [panel.shape[1] for panel in panels])
    columns = [np.concatenate(pair) for pair in zip(strips, panels, strict=True)]
    gap = np.ones((columns[0].shape[0], _GAP, 3), np.float32)
    row = [part for column in columns for part in (gap, column)][1:]
    return np.clip(np.concatenate(row, axis=1), 0, 1).astype(np.float32)


def _label_strips(labels: list[str], widths: list[int]) -> list[Picture]:
    """Draw each label, black on white and centred, in a strip of its panel's width."""
    for size in _LABEL_SIZES:
        font = ImageFont.load_default(size=size)
        if all(font.getlength(label) <= width for label, width in zip(labels, widths, strict=True)):
            break
    strips: list[Picture] = []
    for label, width in zip(labels, widths, strict=True):
        # One strip height for all font sizes. A label too wide even for the smallest is cut off at the strip's edge.
        strip = Image.new("L", (width, _LABEL_SIZES[0] + 8), 255)
        left = max(0.0, (width - font.getlength(label)) / 2)
        ImageDraw.Draw(strip).text((left, strip.height / 2), label, fill=0, font=font, anchor="lm")
        strips.append(np.asarray(strip.convert("RGB"), np.float32) / np.float32(255))
    return strips


def _blur(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Filter H and W of an array (HWC) with the Gaussian window; only positions where it fits: (H-10)(W-10)C."""
    taps = np.exp(-((np.arange(_WINDOW) - _WINDOW // 2) ** 2) / (2 * _SIGMA**2))
    taps /= taps.sum()
    rows, columns = x.shape[0] - _WINDOW + 1, x.shape[1] - _WINDOW + 1
    x = sum((tap * x[i : i + rows] for i, tap in enumerate(taps)), start=np.zeros(()))
    return sum((tap * x[:, i : i + columns] for i, tap in enumerate(taps)), start=np.zeros(()))


def _crop_pair(a: NDArray[Any], b: NDArray[Any], border: int, smallest: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Check two arrays (HW or HWC), crop ``border`` on every side and return float64."""
    _check_same_shape(a, b)
    if a.ndim not in (2, 3):
        raise AmsaError(f"pictures must have shape (height, width) or (height, width, channels), got {a.shape}")
    if border < 0:
        raise AmsaError(f"the border to crop must be 0 or more, got {border}")
    height, width = a.shape[:2]
    needed = 2 * border + smallest
    if min(height, width) < needed:
        raise AmsaError(f"pictures must be at least {needed}x{needed} pixels with a border of {border}, got {width}x{height}")
    inside = np.s_[border : height - border, border : width - border]
    return a[inside].astype(np.float64), b[inside].astype(np.float64)


def _check_same_shape(a: NDArray[Any], b: NDArray[Any]) -> None:
    if a.shape != b.shape:
        raise AmsaError(f"pictures to compare must have the same shape, got {a.shape} and {b.shape}")


def _check_rgb(picture: NDArray[Any], name: str) -> None:
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.size == 0:
        raise AmsaError(f"{name} must be RGB of shape (height, width, 3) and not empty, got {picture.shape}")
