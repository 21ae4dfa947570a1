"""Which of many references serve a clip: chosen once, by frames spread over it, before its work begins."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import av
import numpy as np

from ...errors import AmsaError
from ...stages import REF_MIN
from ..backends import Backend
from ..images import Photo, read_photo, require_size
from ..ranking import Progress, relevances, small_enough
from .pixels import Pixels, Turn, to_photo

MOST_FRAMES = 16
"""Frames that references are chosen by, at most; at least half as many of a longer clip. Each costs 0.3 s of CPU time for 200
candidates, so all together less than two frames of 128x96 take to upscale."""
_LATER = 0.5
"""What the second best of the chosen references counts for a frame; the third counts half of that, and so on."""


class FrameSample:
    """Frames of a clip, evenly spread, taken while it is read and its length is not known yet.

    Every `stride`-th frame is kept, small. Whenever there are too many, each second one goes and the stride doubles: of a clip of
    10000 frames about 100 are converted, and no more than 17 are held, of 200 KB each.
    """

    def __init__(self) -> None:
        self._stride = 1
        self._kept: list[Photo] = []

    @property
    def frames(self) -> list[Photo]:
        """Upright, shrunk as far as ranking allows; the first frame of the clip comes first."""
        return list(self._kept)

    def offer(self, index: int, frame: av.VideoFrame, pixels: Pixels, turn: Turn) -> None:
        """The clip's next frame that could be decoded; `index` counts the others too."""
        if index < self._stride * len(self._kept):
            return
        self._kept.append(small_enough(to_photo(frame, pixels, turn)))
        if len(self._kept) > MOST_FRAMES:
            self._kept = self._kept[::2]
            self._stride *= 2


def choose_for_clip(
    backend: Backend,
    frames: Sequence[Photo],
    candidates: Sequence[Photo | Path],
    most: int,
    *,
    progress: Progress | None = None,
) -> tuple[list[int], list[Photo]]:
    """The references that serve a clip as a whole: places among the candidates, the most useful first, and photos.

    A frame's gain from a set of references is the relevance of the best, plus half of the second's, a quarter of the third's and
    so on; the set with the largest gain over all frames is sought greedily. So a reference that serves one scene very well comes
    before one that serves all a little, and for a clip of one picture the order is `ranking.rank`'s. Equal input gives an equal
    choice. A file that turns out to be broken makes room for another. Where there are no more candidates than are wanted they
    stay as they are.

    Raises:
        AmsaError: none of the candidates can be a reference.
    """
    if len(candidates) > most:
        left = relevances(backend, frames, candidates, progress=progress)
    else:
        left = {i: [] for i in range(len(candidates))}
    places: list[int] = []
    photos: list[Photo] = []
    serving: list[list[float]] = []
    while left and len(places) < most:
        place = _most_useful(left, serving)
        relevance, candidate = left.pop(place), candidates[place]
        try:
            photo = candidate if isinstance(candidate, Photo) else read_photo(candidate)
            require_size(photo, f"reference {place + 1}" if photo is candidate else str(candidate), REF_MIN)
        except AmsaError as e:  # a file may be broken behind what its thumbnail needs
            warnings.warn(f"left out of the references: {e}", stacklevel=2)
            continue
        photos.append(photo)
        places.append(place)
        serving.append(relevance)
    if not places:
        raise AmsaError(f"none of {len(candidates)} photos can be a reference; give photos of at least {REF_MIN} pixels a side")
    return places, photos


def _most_useful(left: Mapping[int, Sequence[float]], serving: Sequence[Sequence[float]]) -> int:
    """Which candidate adds most to those that serve already; among equals the first."""
    return max(left, key=lambda place: (_gain([*serving, left[place]]), -place))


def _gain(relevances: Sequence[Sequence[float]]) -> float:
    """What the frames have from references with these relevances, one for each frame."""
    best_first = -np.sort(-np.array(relevances), axis=0)
    return float(np.sum(_LATER ** np.arange(len(relevances)) * best_first.sum(1)))
