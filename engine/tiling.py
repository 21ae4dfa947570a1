"""Cutting a picture into windows that overlap by what a network sees around a pixel."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

TILE = 128
"""LR pixels on a side that are restored at a time, without halo: TensorRT engines are built for it, and on the CPU it is what
is taken where memory is short of `planning.LARGE_TILE`. Matching always sees the whole picture."""


@dataclass(frozen=True)
class Window:
    """A part of a picture: `rows` and `cols` are computed; `own_rows` and `own_cols`, inside of them, are what is kept.

    What the windows of a picture keep covers it without overlap.
    """

    rows: slice
    cols: slice
    own_rows: slice
    own_cols: slice

    @property
    def area(self) -> int:
        """Positions that are computed."""
        return int((self.rows.stop - self.rows.start) * (self.cols.stop - self.cols.start))


def cut(
    height: int, width: int, halo: int, *, side: int | None = None, area: int | None = None, multiple: int = 1
) -> list[Window]:
    """The windows that compute the fewest positions in all; all of one size, but for rounding.

    A window at the picture's edge keeps more than one in the middle, which has a halo on both sides. Equal sizes need the least
    memory for so many windows, and what one has given back fits the next.

    Args:
        height, width: of the picture.
        halo: positions that a window computes beyond those it keeps, except at the picture's edge.
        side: the longest side of a window; None: any.
        area: the most positions of a window; None: any.
        multiple: of which all of these are multiples, and where windows begin and end. `side` and `area` are rounded down to it.

    Raises:
        ValueError: no window can keep anything.
    """
    rows, cols, around = height // multiple, width // multiple, halo // multiple
    longest = max(rows, cols) if side is None else side // multiple
    most = rows * cols if area is None else area // multiple**2
    best: tuple[int, int, int, int] | None = None
    for down in range(1, rows + 1):
        tall = _length(rows, down, around)
        if tall > longest or tall > most:
            continue
        across = _count(cols, min(longest, most // tall), around)
        if across:
            size = tall * _length(cols, across, around)
            best = min(best or (down * across * size, size, down, across), (down * across * size, size, down, across))
    if best is None:
        raise ValueError(f"windows of {side} or {area} positions keep nothing of {height}x{width} with a halo of {halo}")
    return [
        Window(*(slice(multiple * s.start, multiple * s.stop) for s in (r, c, own_r, own_c)))
        for r, own_r in _along(rows, best[2], around)
        for c, own_c in _along(cols, best[3], around)
    ]


def _length(whole: int, count: int, halo: int) -> int:
    """Of so many windows that cover a side: they overlap by two halos."""
    return -(-(whole + 2 * halo * (count - 1)) // count)


def _count(whole: int, longest: int, halo: int) -> int:
    """The fewest windows that are no longer; 0: there are none."""
    if whole <= longest:
        return 1
    return -(-(whole - 2 * halo) // (longest - 2 * halo)) if longest > 2 * halo else 0


def _along(whole: int, count: int, halo: int) -> Iterator[tuple[slice, slice]]:
    """What each window computes and keeps of a side."""
    length = _length(whole, count, halo)
    starts = [i * (whole - length) // max(1, count - 1) for i in range(count)]
    ends = [*(start + halo for start in starts[1:]), whole]
    for i, start in enumerate(starts):
        yield slice(start, start + length), slice(start + halo if i else 0, ends[i])


def in_windows(windows: Sequence[Window], run: Callable[[Window], Mapping[str, Any]]) -> dict[str, Any]:
    """Run a graph window by window and put its outputs together.

    Args:
        windows: of one picture, from `cut`.
        run: takes what a window computes to outputs [1, C, f*rows, f*cols] by name, where a factor f is such that all that
            windows begin and end with is whole.

    Returns:
        What `run` gives for one window; numpy arrays of the whole picture, laid out as those, for several.
    """
    if len(windows) == 1:
        return dict(run(windows[0]))
    height, width = windows[-1].rows.stop, windows[-1].cols.stop
    whole: dict[str, Any] = {}
    for window in windows:
        rows = window.rows.stop - window.rows.start
        for name, part in run(window).items():

            def scaled(value: int, size: int = part.shape[2], rows: int = rows) -> int:
                return value * size // rows

            if name not in whole:
                whole[name] = np.empty_like(part, shape=(*part.shape[:2], scaled(height), scaled(width)))
            to_rows, to_cols = (slice(scaled(own.start), scaled(own.stop)) for own in (window.own_rows, window.own_cols))
            top, left = scaled(window.rows.start), scaled(window.cols.start)
            whole[name][:, :, to_rows, to_cols] = part[
                :, :, to_rows.start - top : to_rows.stop - top, to_cols.start - left : to_cols.stop - left
            ]
    return whole
