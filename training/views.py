"""Photos of one scene: which places of one are seen in another, found once with SIFT."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from .synthetic import Image8

# Lowe's ratio test; and how many matches must agree on one epipolar geometry for two photos to count as overlapping.
_RATIO, _FEWEST = 0.75, 40


class Views:
    """Photos of one scene with the points that pairs of them share.

    Args:
        photos: uint8 [H, W, 3], two or more.
    """

    def __init__(self, photos: Sequence[Image8]) -> None:
        self._photos = photos
        sift = cv2.SIFT.create(2000)
        described = [sift.detectAndCompute(cv2.cvtColor(p, cv2.COLOR_RGB2GRAY), None) for p in photos]
        self._shared: list[tuple[int, int, NDArray[np.float32]]] = []
        for i, (points_i, words_i) in enumerate(described):
            for j, (points_j, words_j) in enumerate(described):
                if i == j:
                    continue
                pairs = cv2.BFMatcher().knnMatch(words_i, words_j, k=2)
                good = [m for m, second in pairs if m.distance < _RATIO * second.distance]
                if len(good) < _FEWEST:
                    continue
                a = np.array([points_i[m.queryIdx].pt for m in good], np.float32)
                b = np.array([points_j[m.trainIdx].pt for m in good], np.float32)
                _, inliers = cv2.findFundamentalMat(a, b, cv2.FM_RANSAC, 3.0)
                if inliers is not None and inliers.sum() >= _FEWEST:
                    keep = inliers.ravel() > 0
                    self._shared.append((i, j, np.stack((a[keep], b[keep]), 1)))

    def __len__(self) -> int:
        """How many ordered pairs of photos overlap."""
        return len(self._shared)

    def pair(self, rng: np.random.Generator, crop: int, ref: int) -> tuple[Image8, Image8]:
        """A crop of one photo, and a reference of another around a point that both show, both shrunken alike."""
        i, j, points = self._shared[rng.integers(len(self._shared))]
        scale = rng.uniform(0.35, 1.0)
        (ax, ay), (bx, by) = points[rng.integers(len(points))] * scale
        jitter = rng.uniform(-crop / 3, crop / 3, 2)
        return (
            _window(self._photos[i], scale, ay + jitter[0], ax + jitter[1], crop),
            _window(self._photos[j], scale, by + jitter[0], bx + jitter[1], ref),
        )


def _window(photo: Image8, scale: float, y: float, x: float, size: int) -> Image8:
    """The size x size window of the shrunken photo around (y, x), moved inside where it would stick out."""
    height, width = int(photo.shape[0] * scale), int(photo.shape[1] * scale)
    top, left = int(np.clip(y - size / 2, 0, height - size)), int(np.clip(x - size / 2, 0, width - size))
    # Shrink only what is needed, with a margin for the filter.
    margin = 4
    y0, x0 = max(0, top - margin), max(0, left - margin)
    y1, x1 = min(height, top + size + margin), min(width, left + size + margin)
    source = photo[int(y0 / scale) : int(np.ceil(y1 / scale)), int(x0 / scale) : int(np.ceil(x1 / scale))]
    shrunk = cv2.resize(source, (x1 - x0, y1 - y0), interpolation=cv2.INTER_AREA)
    return np.asarray(shrunk[top - y0 : top - y0 + size, left - x0 : left - x0 + size], np.uint8)
