"""Restoring: window by window and reference by reference, in the order that memory allows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..config import AMSAConfig
from ..stages import SCALE, VALUES
from .backends import Execution
from .features import LRFeatures, ScaleFeatures
from .images import Photo, Samples, to_array
from .tiling import Window


class Canvas(Protocol):
    """Where the picture comes together."""

    def put(self, window: Window, finished: Any) -> None:
        """Take what a window keeps of `finished`, its SR float32 [1, 3, 4*rows, 4*cols]."""


def _kept(window: Window) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Of SR and of a window's SR: what the window keeps, as slices of [1, 3, rows, cols]."""
    own = [slice(SCALE * part.start, SCALE * part.stop) for part in (window.own_rows, window.own_cols)]
    starts = [SCALE * part.start for part in (window.rows, window.cols)]
    every = slice(None)
    inside = [slice(part.start - start, part.stop - start) for part, start in zip(own, starts, strict=True)]
    return (every, every, *own), (every, every, *inside)


class TensorCanvas:
    """SR as float32 [1, 3, 4*h, 4*w], not clipped, on the backend's device."""

    def __init__(self, on: Execution, size: tuple[int, int]) -> None:
        self._on = on
        self.sr = on.empty((1, 3, SCALE * size[0], SCALE * size[1]), np.float32)

    def put(self, window: Window, finished: Any) -> None:
        to, source = _kept(window)
        self._on.copy(self.sr[to], finished[source])


class SampleCanvas:
    """SR as the samples of a file, uint8 or uint16 [4*h, 4*w, 3] (gray: [4*h, 4*w]): a quarter or half of the memory.

    Args:
        on: the backend.
        lr: whose depth and grayness it has.
    """

    def __init__(self, on: Execution, lr: Photo) -> None:
        self._on, self._like = on, lr
        sides = SCALE * lr.height, SCALE * lr.width
        self.samples: Samples = np.empty(sides if lr.gray else (*sides, 3), np.uint16 if lr.bits == 16 else np.uint8)

    def put(self, window: Window, finished: Any) -> None:
        to, source = _kept(window)
        rgb = self._on.to_host(finished)[source][0].transpose(1, 2, 0)
        self.samples[to[2:]] = to_array(Photo(colours(rgb, self._like.gray), gray=self._like.gray, bits=self._like.bits))


def colours(rgb: NDArray[np.float32], gray: bool) -> NDArray[np.float32]:
    """SR [rows, cols, 3] within [0, 1]; the mean of the colours for a gray photo."""
    clipped = np.clip(rgb, 0, 1)
    return np.repeat(clipped.mean(2, keepdims=True), 3, 2) if gray else clipped


@dataclass(frozen=True)
class Matched:
    """A reference at one scale that is restored from: its features, its matches int32 [1, 2, h+2, w+2], its fusion weights."""

    features: ScaleFeatures
    match: Any
    weight: Any


@dataclass(frozen=True)
class Order:
    """In which order a picture is restored.

    Attributes:
        windows: of LR.
        group: how many of them are restored from one reference before the next reference's turn.
        keep: whether the values of all references are held at once; if not, they are made again for every group.
    """

    windows: Sequence[Window]
    group: int = 1
    keep: bool = True


def restore(
    on: Execution,
    config: AMSAConfig,
    run: Callable[[str, Mapping[str, Any]], dict[str, Any]],
    lr: Any,
    features: LRFeatures,
    references: Sequence[Matched],
    order: Order,
    canvas: Canvas,
    step: Callable[[str], None],
) -> None:
    """Restore every window from every reference, finish it, and put it on the canvas.

    Args:
        on, config: the backend, and its network.
        run: runs a stage there.
        lr, features: the LR picture, float32 [1, 3, h, w], and what is encoded of it.
        references: what to restore from.
        order: windows, and how many at a time.
        canvas: takes them.
        step: called before each window's restoring from each reference.
    """
    every = slice(None)
    values: Mapping[str, Any] = {}
    inputs: dict[str, Any] = {}
    for first in range(0, len(order.windows), order.group):
        windows = order.windows[first : first + order.group]
        sums: list[Any] = [None] * len(windows)
        for i, reference in enumerate(references):
            if not order.keep and not reference.features.held:
                values, inputs = {}, {}  # which hold the last reference's
                for other in references:
                    other.features.drop_values()
            values = reference.features.values()
            for w, window in enumerate(windows):
                step(f"restoring from {i + 1} of {len(references)}")
                rows, cols = window.rows, window.cols
                content = features.content(rows, cols)
                if sums[w] is None:
                    sides = (SCALE * side for side in content.shape[2:])
                    sums[w] = on.zeros((1, config.channels[-1], *sides), content.dtype)
                inputs = {
                    "content": content,
                    "match": reference.match[every, every, rows.start : rows.stop + 2, cols.start : cols.stop + 2],
                    "weight": reference.weight[every, every, rows, cols],
                    "accumulator": sums[w],
                }
                total = run("restore", inputs | _of_window(values, rows, cols))["accumulator_out"]
                if order.group == 1:
                    sums[w] = total
                else:  # what is kept for long does not stay in the runtime's own memory, which it would keep from shrinking
                    on.copy(sums[w], total)
                del total
        for w, window in enumerate(windows):
            inputs = {"accumulator": sums[w], "lr": lr[every, every, window.rows, window.cols]}
            canvas.put(window, run("finish", inputs)["sr"])
            sums[w] = None


def _of_window(values: Mapping[str, Any], rows: slice, cols: slice) -> dict[str, Any]:
    """Values as they are, which a window may read anywhere, and the window's part of the published variant's warp masks."""
    inputs: dict[str, Any] = {}
    every = slice(None)
    for name, tensor in values.items():
        if name in VALUES:
            inputs[name] = tensor
        else:
            s = int(name.removeprefix("warp_mask_"))
            inputs[name] = tensor[every, every, s * rows.start : s * rows.stop, s * cols.start : s * cols.stop]
    return inputs
