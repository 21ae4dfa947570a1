"""What a clip's frames remember of the ones before, so that what stands still does not flicker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ..fusion import Map, block_means, share_out, skip_lightest

WINDOW = 5
"""LR pixels on a side over which a difference is averaged."""
LEAST, MOST = 2.5, 6.0
"""Bounds, in levels of 255, of the mean difference up to which a place counts as unchanged."""
NOISE = 1.6
"""That difference, by the one that 2% of the picture stay below: the noise, seen where nothing moves or nothing shows it."""
MOTION = 0.2
"""LR pixels by which a place may have moved and still count as unchanged. Without this bound a slow pan lost 0.4 dB."""
MOTION_WINDOW = 9
"""LR pixels on a side from which motion is estimated."""
STIFFNESS = 4.0
"""Squared levels per pixel that hold the estimate at zero where nothing shows motion."""
SLACK = 0.1
"""By how much the references that are left out may weigh more than `skip` before others are restored."""


class FrameHistory:
    """Matches, relevances and restored references of the frames so far.

    Where a frame equals an earlier one but for noise, the earlier frame's matches and relevances are taken again: new noise
    would draw other, equally good matches, and with them other texture. Places are compared with the frame that their matches
    are from, not with the last one, so that slow changes add up until they show. The set of restored references stays until
    what it leaves out weighs `SLACK` too much. What that gains: `python benchmarks/flicker.py`, docs/video.md.

    Attributes:
        reused: share of the last frame's places whose matches were taken again, 0 to 1.
    """

    def __init__(self) -> None:
        self.reused = 0.0
        self._seen: NDArray[np.float32] | None = None  # LR [h, w, 3], of each place as it was when it was matched
        self._matches: list[NDArray[np.int32]] = []
        self._relevances: list[Map] = []
        self._kept: list[int] = []

    def recall(
        self, lr: NDArray[np.float32], matches: Sequence[NDArray[np.int32]], relevances: Sequence[Map]
    ) -> tuple[list[NDArray[np.int32]], list[Map]]:
        """Matches and relevances to use for a frame.

        Args:
            lr: the frame as it was matched, [1, 3, h, w], from 0 to 1.
            matches, relevances: as the stage `match` found them, for each reference and scale.
        """
        picture = np.ascontiguousarray(lr[0].transpose(1, 2, 0))
        if self._seen is None or self._seen.shape != picture.shape or len(self._matches) != len(matches):
            self._seen, self._matches, self._relevances = picture, list(matches), list(relevances)
            self.reused = 0.0
            return self._matches, self._relevances
        same = _unchanged(picture, self._seen)
        # A match belongs to the patch whose top left corner is 2 up and left of its place in the array; 1 is its middle.
        centred = np.pad(same, 1)
        self._matches = [np.where(centred, old, new) for old, new in zip(self._matches, matches, strict=True)]
        self._relevances = [np.where(same, old, new) for old, new in zip(self._relevances, relevances, strict=True)]
        self._seen = np.where(same[..., None], self._seen, picture)
        self.reused = float(same.mean())
        return self._matches, self._relevances

    def choose(self, weights: Sequence[Map], size: tuple[int, int], skip: float) -> list[Map | None]:
        """As `fusion.skip_lightest`, but with the last frame's references as long as they serve, and are no more."""
        shares = skip_lightest(weights, size, skip)
        kept = [i for i, share in enumerate(shares) if share is not None]
        if self._kept and self._kept != kept and len(self._kept) <= len(kept) and max(self._kept) < len(weights):
            gone = [block_means(weight[0, 0, : size[0], : size[1]]) for i, weight in enumerate(weights) if i not in self._kept]
            if np.sum(gone, 0).max() <= skip + SLACK:
                return share_out(weights, self._kept)
        self._kept = kept
        return shares

    def state(self) -> dict[str, NDArray[Any]]:
        """All of it as arrays, for `from_state`."""
        if self._seen is None:
            return {}
        arrays: dict[str, NDArray[Any]] = {"seen": self._seen, "kept": np.array(self._kept, np.int32)}
        for i, (match, relevance) in enumerate(zip(self._matches, self._relevances, strict=True)):
            arrays |= {f"match_{i}": match, f"relevance_{i}": relevance}
        return arrays

    @classmethod
    def from_state(cls, arrays: Mapping[str, NDArray[Any]]) -> FrameHistory:
        history = cls()
        if "seen" in arrays:
            count = sum(name.startswith("match_") for name in arrays)
            history._seen, history._kept = arrays["seen"], [int(i) for i in arrays["kept"]]
            history._matches = [arrays[f"match_{i}"] for i in range(count)]
            history._relevances = [arrays[f"relevance_{i}"] for i in range(count)]
        return history


def _unchanged(picture: NDArray[np.float32], seen: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Where two pictures [h, w, 3] differ by noise at most, and have not moved."""
    difference = _mean(255 * np.abs(picture - seen).mean(2), WINDOW)
    most = np.clip(NOISE * np.percentile(difference, 2), LEAST, MOST)
    return np.asarray((difference <= most) & (_motion(255 * picture.mean(2), 255 * seen.mean(2)) <= MOTION))


def _motion(a: Map, b: Map) -> Map:
    """By how many pixels each place of one picture [h, w] has moved to the other: least squares of the change against the
    gradient (Lucas and Kanade), which tells slow motion from noise of the same size."""
    x, y = (cv2.Sobel((a + b) / 2, -1, dx, dy, ksize=3, scale=1 / 8) for dx, dy in ((1, 0), (0, 1)))
    xx, yy = (_mean(g * g, MOTION_WINDOW) + STIFFNESS for g in (x, y))
    xy, xt, yt = (_mean(product, MOTION_WINDOW) for product in (x * y, x * (a - b), y * (a - b)))
    return np.asarray(np.hypot(yy * xt - xy * yt, xx * yt - xy * xt) / (xx * yy - xy * xy))


def _mean(values: NDArray[np.float32], window: int) -> NDArray[np.float32]:
    return np.asarray(cv2.boxFilter(values, -1, (window, window), borderType=cv2.BORDER_REFLECT))
