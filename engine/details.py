"""What one call found on its way to the picture, kept for those who want to look at it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass
class Details:
    """What the matching found for one LR picture of h x w pixels, and what each reference weighed.

    The lists have an entry for each reference at each scale: scale s of reference r is entry r * ref_scales + s.

    Attributes:
        ref_scales: how many scales each reference has.
        canvas: published variant: the common size (height, width) that pictures were padded to; otherwise None.
        matches: int32 [2, H+2, W+2], (y, x) of the best 3x3 patch of the reference's grid for every patch of the LR picture, of
            H x W pixels with its padding; element [1 + i, 1 + j] is the patch centred on LR pixel (i, j).
        relevances: float32 [h, w], its score. 0 along the LR picture's border, where no patch is whole.
        weights: float32 [h, w], what each gave to the picture, summing to 1; None for those that were not restored from.
    """

    ref_scales: int = 1
    canvas: tuple[int, int] | None = None
    matches: list[NDArray[np.int32]] = field(default_factory=list)
    relevances: list[NDArray[np.float32]] = field(default_factory=list)
    weights: list[NDArray[np.float32] | None] = field(default_factory=list)

    def add(
        self,
        size: tuple[int, int],
        match: NDArray[np.int32],
        relevance: NDArray[np.float32],
        weight: NDArray[np.float32] | None,
    ) -> None:
        """Keep a reference's scale: what `match` made, and the fusion weight [1, 1, H, W]; `size`: what is picture."""
        rows, cols = size
        self.matches.append(match[0])
        self.relevances.append(relevance[0, 0, :rows, :cols])
        self.weights.append(None if weight is None else weight[0, 0, :rows, :cols])

    def served(self) -> list[float]:
        """The share of the picture that each reference gave, 0 to 1: the mean of its weights; summing to 1."""
        means = [0.0 if weight is None else float(weight.mean()) for weight in self.weights]
        return [sum(means[i : i + self.ref_scales]) for i in range(0, len(means), self.ref_scales)]


def short_names(files: Sequence[str | Path]) -> list[str]:
    """Names to show for files: without folders where that leaves them different, and on one line."""
    last = [Path(file).name for file in files]
    names = last if len(set(last)) == len(set(map(str, files))) else [str(file) for file in files]
    return [name if name.isprintable() else repr(name) for name in names]


def served_line(names: Sequence[str], shares: Sequence[float]) -> str:
    """The references that served, the largest share first: "references: b.jpg 71 %, a.jpg 29 %"."""
    order = sorted(range(len(names)), key=lambda i: -shares[i])
    percent = [f"{names[i]} {100 * shares[i]:.0f} %" for i in order if shares[i] >= 0.005]
    rest = len(names) - len(percent)
    return f"references: {', '.join(percent)}" + (f"; {rest} under 0.5 %" if rest else "")
