"""Where every LR pixel's texture came from, as maps, from what the matching found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...config import AMSAConfig
from ...stages import SCALE
from ..details import Details
from ..fusion import BLOCK
from ..images import Photo
from ..references import prepare_scale

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Maps:
    """Of every LR pixel, [h, w]. Along the LR picture's border no patch is whole: there the nearest whole patch stands.

    Attributes:
        config: of the network.
        refs: the reference photos.
        details: what they were made of.
        entry: int, the reference that weighs most, at its heaviest scale; scale s of reference r is entry r * ref_scales + s.
        relevance: float32, the score of its match.
        centre: int [h, w, 2], (y, x) of its match in that scale's matching grid: the centre of the patch.
        weights: float32 [entries, h, w], what each reference at each scale gave; 0 for those that were not restored from.
    """

    config: AMSAConfig
    refs: Sequence[Photo]
    details: Details
    entry: NDArray[np.int64]
    relevance: NDArray[np.float32]
    centre: NDArray[np.int64]
    weights: NDArray[np.float32]

    @property
    def reference(self) -> NDArray[np.int64]:
        """The reference of `entry`."""
        return self.entry // self.config.ref_scales

    @property
    def scale(self) -> NDArray[np.int64]:
        """The scale of `entry`."""
        return self.entry % self.config.ref_scales

    @property
    def shares(self) -> NDArray[np.float32]:
        """float32 [references, h, w]: what each reference gave, at all its scales together; summing to 1."""
        count, height, width = self.weights.shape
        per_reference = self.weights.reshape(count // self.config.ref_scales, self.config.ref_scales, height, width)
        shares: NDArray[np.float32] = per_reference.sum(1)
        return shares

    def mean_relevance(self, entry: int | slice) -> float:
        """Of a reference at a scale, or of the best of several: over the LR picture, but for its border."""
        entries = self.details.relevances[entry if isinstance(entry, slice) else slice(entry, entry + 1)]
        return float(np.max(entries, 0)[1:-1, 1:-1].mean())

    def entries(self, reference: int) -> slice:
        """The entries of a reference, one for each scale."""
        return slice(reference * self.config.ref_scales, (reference + 1) * self.config.ref_scales)

    @property
    def factors(self) -> list[float]:
        """The scales' factors."""
        return [self.config.ref_factor**s for s in range(self.config.ref_scales)]

    @property
    def position(self) -> NDArray[np.float64]:
        """[h, w, 2], (y, x) in pixels of the reference photo: the middle of what the pixel was matched with."""
        factor = self.config.ref_factor ** self.scale[..., None]
        sizes = np.array([[ref.height, ref.width] for ref in self.refs])[self.reference]
        place: NDArray[np.float64] = np.clip((self.centre + 0.5) * SCALE / factor, 0, sizes - 1)
        return place


def make_maps(details: Details, refs: Sequence[Photo], config: AMSAConfig) -> Maps:
    """Make the maps of one picture.

    Args:
        details: of one call of `Upscaler.upscale_photo`.
        refs: the photos it was given.
        config: of its network.
    """
    height, width = details.relevances[0].shape
    padded = [side - 2 for side in details.matches[0].shape[1:]]
    rows = np.clip(np.arange(height), 1, padded[0] - 2)[:, None]
    cols = np.clip(np.arange(width), 1, padded[1] - 2)[None, :]
    weights = np.zeros((len(details.weights), height, width), np.float32)
    for i, weight in enumerate(details.weights):
        if weight is not None:
            weights[i] = weight[rows, cols]
    per_reference = weights.reshape(len(refs), config.ref_scales, height, width)
    reference = per_reference.sum(1).argmax(0)
    scale = np.take_along_axis(per_reference, reference[None, None], 0)[0].argmax(0)
    entry = reference * config.ref_scales + scale

    relevance = np.zeros((height, width), np.float32)
    centre = np.zeros((height, width, 2), np.int64)
    off = np.stack(np.broadcast_arrays(np.arange(height)[:, None] - rows, np.arange(width)[None, :] - cols), -1)
    for i in np.unique(entry):
        here = entry == i
        relevance[here] = details.relevances[i][rows, cols][here]
        # Element [1 + y, 1 + x] is the corner of the patch whose centre is on LR pixel (y, x).
        centre[here] = (details.matches[i][:, 1 + rows, 1 + cols].transpose(1, 2, 0) + 1 + off)[here]
    return Maps(config, refs, details, entry, relevance, centre, weights)


def matched_picture(maps: Maps) -> Bytes:
    """The matching alone: every LR pixel replaced by the 4x4 pixels of the reference at its match; uint8 [4*h, 4*w, 3]."""
    height, width = maps.entry.shape
    picture = np.zeros((height, SCALE, width, SCALE, 3), np.uint8)
    for entry in np.unique(maps.entry):
        r, s = divmod(int(entry), maps.config.ref_scales)
        scale = prepare_scale(maps.refs[r].rgb, maps.config, maps.details.canvas, s)
        tensor = scale.part(slice(0, scale.size[0]), slice(0, scale.size[1]))
        pixels = (np.clip(tensor[0].transpose(1, 2, 0), 0, 1) * 255 + 0.5).astype(np.uint8)
        blocks = pixels.reshape(scale.size[0] // SCALE, SCALE, scale.size[1] // SCALE, SCALE, 3)
        i, j = np.nonzero(maps.entry == entry)
        # Along LR's border, which has no patch of its own, the place may lie outside of the reference.
        y, x = (np.clip(maps.centre[i, j, axis], 0, scale.valid[0, axis] - 1) for axis in (0, 1))
        picture[i, :, j] = blocks[y, :, x]
    return picture.reshape(SCALE * height, SCALE * width, 3)


@dataclass(frozen=True)
class Region:
    """A block of the result, at most 64 pixels a side.

    Attributes:
        x, y, width, height: in pixels of the result.
        reference: of those that weigh most somewhere in it, the one with the largest share.
        share: its mean weight, at all scales together.
        relevance: mean over the pixels of the block that it serves.
        scale: the factor at which it was matched where it weighs most.
        at: (x, y) in pixels of that reference, which this place was matched with.
    """

    x: int
    y: int
    width: int
    height: int
    reference: int
    share: float
    relevance: float
    scale: float
    at: tuple[int, int]


def regions(maps: Maps) -> list[Region]:
    """The picture block by block, row by row; blocks of `fusion.BLOCK` LR pixels."""
    found = []
    height, width = maps.entry.shape
    shares, position, references = maps.shares, maps.position, maps.reference
    for top in range(0, height, BLOCK):
        for left in range(0, width, BLOCK):
            part = np.s_[top : top + BLOCK, left : left + BLOCK]
            means = shares[:, *part].mean((1, 2))
            reference = max(map(int, np.unique(references[part])), key=means.__getitem__)
            mine = references[part] == reference
            weight = np.where(mine, shares[reference][part], -1)
            i, j = np.unravel_index(int(weight.argmax()), weight.shape)
            y, x = position[part][i, j]
            found.append(
                Region(
                    SCALE * left,
                    SCALE * top,
                    SCALE * weight.shape[1],
                    SCALE * weight.shape[0],
                    reference,
                    float(means[reference]),
                    float(maps.relevance[part][mine].mean()),
                    float(maps.config.ref_factor ** int(maps.scale[part][i, j])),
                    (int(x), int(y)),
                )
            )
    return found
