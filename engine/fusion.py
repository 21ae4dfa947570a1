"""How references share a picture: the fusion weights (paper, Eq. 9), and which ones weigh too little to be restored from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Map = NDArray[np.float32]

BLOCK = 16
"""LR pixels on a side over which weights are averaged: about what a restored pixel sees."""
SKIP = {"small": 0.6}
"""By variant, how much the references that are not restored may weigh together. The others' weights are used as they are.

Restoring costs the same however little a reference weighs, and most scales of a reference weigh little. What it costs and gives:
`python benchmarks/skipping.py FOLDER`, docs/performance.md.
"""


def fusion_weights(relevances: Sequence[Map], sharpness: float) -> list[Map]:
    """S' of Eq. 9: softmax of sharpness * relevance over all references and scales; float32 [1, 1, h, w] each."""
    logits = sharpness * np.stack(relevances)
    exponentials = np.exp(logits - logits.max(0))
    return list(exponentials / exponentials.sum(0))


def skip_lightest(weights: Sequence[Map], size: tuple[int, int], skip: float) -> list[Map | None]:
    """Leave out the lightest references, and let the others share their weight.

    Args:
        weights: of each reference and scale, [1, 1, h, w], summing to 1.
        size: rows and columns that are picture.
        skip: what those left out may weigh together at most, in the mean over any block of BLOCK x BLOCK pixels. 0: none is.

    Returns:
        The weights, summing to 1 again; None for those left out. It is decided for the whole picture: tiles have no seams.
    """
    if skip <= 0:
        return list(weights)
    blocks = np.stack([block_means(weight[0, 0, : size[0], : size[1]]) for weight in weights])
    gone = np.zeros_like(blocks[0])
    kept = list(range(len(weights)))
    for i in np.argsort(blocks.mean(1), kind="stable")[:-1]:
        if (gone + blocks[i]).max() <= skip:
            gone += blocks[i]
            kept.remove(int(i))
    return share_out(weights, kept)


def share_out(weights: Sequence[Map], kept: Sequence[int]) -> list[Map | None]:
    """The weights of those kept, made to sum to 1; None for the others."""
    total = np.sum([weights[i] for i in kept], 0)
    # Where all that is kept underflows to zero, which of them serves the pixel does not matter.
    even = np.float32(1 / len(kept))
    shares = {i: np.where(total > 0, weights[i] / np.maximum(total, np.float32(1e-30)), even).astype(np.float32) for i in kept}
    return [shares.get(i) for i in range(len(weights))]


def block_means(weight: Map) -> NDArray[np.float64]:
    """Of a map [h, w]: means over whole blocks; what is left over at the bottom and right goes to the last ones."""
    rows, cols = (np.minimum(np.arange(n) // BLOCK, max(n // BLOCK, 1) - 1) for n in weight.shape)
    block = (rows[:, None] * (cols[-1] + 1) + cols).reshape(-1)
    return np.bincount(block, weight.reshape(-1)) / np.bincount(block)
