"""Test pairs from photos of one scene: crops of one photo, and of another the window that shows them, found from LR alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ...stages import SCALE

Image8 = NDArray[np.uint8]

# How much larger than the picture a reference may show things.
_SCALES = tuple(2 ** (k / 4) for k in range(-3, 4))


@dataclass(frozen=True)
class Window:
    """A part of a photo: its number, corner, and how well the LR picture fits there (normalised correlation, -1 to 1)."""

    photo: int
    top: int
    left: int
    fit: float


def find_window(lr: Image8, photos: Sequence[Image8], size: int) -> Window:
    """The window of some photo that looks most like an LR picture.

    The photos are shrunk so that things are as large as in LR, at seven scales from 0.6 to 1.7, and the LR picture is slid
    over each; brightness and contrast do not matter. Nothing of the truth is looked at.

    Args:
        lr: uint8 [h, w, 3].
        photos: uint8 [H, W, 3] each, both sides at least `size`.
        size: side of the window, in the photos' pixels.
    """
    template = cv2.cvtColor(lr, cv2.COLOR_RGB2GRAY)
    best = Window(-1, 0, 0, -2.0)
    for index, photo in enumerate(photos):
        gray = cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY)
        for scale in _SCALES:
            factor = 1 / (SCALE * scale)
            small = cv2.resize(gray, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
            if small.shape[0] < template.shape[0] or small.shape[1] < template.shape[1]:
                continue
            _, fit, _, (x, y) = cv2.minMaxLoc(cv2.matchTemplate(small, template, cv2.TM_CCOEFF_NORMED))
            if fit > best.fit:
                centre = ((y + template.shape[0] / 2) / factor, (x + template.shape[1] / 2) / factor)
                top, left = (
                    int(np.clip(round(c - size / 2), 0, side - size)) for c, side in zip(centre, photo.shape[:2], strict=True)
                )
                best = Window(index, top, left, fit)
    return best


def grid_crops(photo: Image8, size: int, step: int) -> list[tuple[int, int]]:
    """Corners (top, left) of crops on an even grid over the whole photo, at most `step` pixels apart."""
    corners = []
    for side in photo.shape[:2]:
        count = 1 + -(-(side - size) // step)
        corners.append(np.linspace(0, side - size, count).round().astype(int).tolist())
    return [(top, left) for top in corners[0] for left in corners[1]]
