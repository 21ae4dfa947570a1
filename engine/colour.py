"""Colours that nobody sees, and colours that must not shift."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from ..stages import SCALE
from .images import PackedPhoto, Photo, Samples, resize_bicubic, to_array

Floats = NDArray[np.float32]

_BAND = 128  # LR rows that are corrected at a time
_MARGIN = 8
"""LR rows beyond a band that take part: shrinking and enlarging bicubically see two each."""


def fill_transparent(photo: Photo) -> Photo:
    """Give wholly transparent pixels the colours of the visible ones around them.

    Files hold anything there, mostly black, which would show as a fringe around what is visible, for a restored pixel sees far.
    Each pixel takes the mean of the smallest block of 2^k x 2^k pixels around it that has visible ones, blended between blocks.

    Returns:
        The photo, with other `rgb`; itself where nothing is transparent, or everything.
    """
    if photo.alpha is None:
        return photo
    import cv2

    def resize(level: Floats, size: tuple[int, ...], how: int) -> Floats:
        return cv2.resize(level, size, interpolation=how).astype(np.float32, copy=False)

    visible = photo.alpha > 0
    if visible.all() or not visible.any():
        return photo
    rgb = photo.rgb
    levels: list[tuple[Floats, Floats]] = []  # colours times weights, and weights: means over blocks
    colours, weights = rgb * visible[..., None], visible.astype(np.float32)
    while not weights.all():
        levels.append((colours, weights))
        half = -(-weights.shape[1] // 2), -(-weights.shape[0] // 2)
        colours, weights = resize(colours, half, cv2.INTER_AREA), resize(weights, half, cv2.INTER_AREA)
    filled: Floats = colours / weights[..., None]
    for colours, weights in reversed(levels):
        filled = resize(filled, weights.shape[::-1], cv2.INTER_LINEAR).reshape(*weights.shape, 3)
        known = weights > 0
        filled[known] = colours[known] / weights[known, None]
    filled[visible] = rgb[visible]
    return Photo(filled, photo.alpha, photo.gray, photo.bits, photo.icc, photo.exif)


def match_low_frequencies(sr: Photo, lr: Photo) -> Photo:
    """Correct an upscaled photo so that, shrunk again, it is the LR photo: colours and brightness never shift.

    One step of back-projection: the difference between LR and SR shrunk to it (bicubic with antialias) is enlarged (bicubic) and
    added. Whatever LR does not show, which is all that was gained, stays.

    Args:
        sr: four times the size of `lr`.

    Returns:
        The photo, rounded to its depth.
    """
    samples = sr.samples if isinstance(sr, PackedPhoto) else to_array(dataclasses.replace(sr, alpha=None))
    rgb = lr.rgb
    largest = np.float32(np.iinfo(samples.dtype).max)
    corrected: Samples = np.empty_like(samples)
    for first in range(0, lr.height, _BAND):
        last = min(first + _BAND, lr.height)
        top, bottom = max(0, first - _MARGIN), min(last + _MARGIN, lr.height)
        band = samples[SCALE * top : SCALE * bottom].astype(np.float32) / largest
        seen = rgb[top:bottom, :, 0] if samples.ndim == 2 else rgb[top:bottom]
        missing = seen - resize_bicubic(band, bottom - top, lr.width)
        band += resize_bicubic(missing, *band.shape[:2])
        kept = band[SCALE * (first - top) : SCALE * (last - top)]
        corrected[SCALE * first : SCALE * last] = np.clip(kept, 0, 1) * largest + np.float32(0.5)
    return PackedPhoto(corrected, sr.alpha, sr.icc, sr.exif)
