"""The sizes that an engine takes: one wide profile, from smallest, usual and largest pictures, for every graph's size words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from ..errors import AmsaError
from ..stages import LR_MULTIPLE, TensorIO
from .engine_cache import Profile
from .tiling import TILE

LR_SIZES = "16x16/128x128/512x512"
"""Width x height of the LR picture, padded: smallest, usual, largest."""
REF_SIZES = "8x8/128x128/512x512"
"""The same of a reference's matching grid: a quarter of the photo's sides, padded."""
GRID_MIN = LR_MULTIPLE
"""The smallest side of that grid: at scale 0.8^4 a reference of 64 pixels is padded to 32."""
_WORD = re.compile(r"(?:(\d+)\*)?([A-Za-z]+)(?:([+/])(\d+))?")
TILED = ("restore", "finish")
"""Stages that see tiles with their halo, not whole pictures."""


def parse_sizes(text: str, what: str, smallest: int) -> tuple[tuple[int, int], ...]:
    """Smallest, usual and largest (height, width) from "WxH/WxH/WxH".

    Args:
        text: as the user wrote it.
        what: what to call it in an error.
        smallest: the smallest side that the graphs take.

    Raises:
        AmsaError: another form, sides that are no multiple of 8 or too small, or sizes that do not grow.
    """
    found = re.fullmatch(r"(\d+)x(\d+)/(\d+)x(\d+)/(\d+)x(\d+)", text.strip(), re.ASCII)
    if found is None:
        raise AmsaError(f"{what} {text!r}: give smallest, usual and largest size as WIDTHxHEIGHT, as in {LR_SIZES}")
    n = [int(side) for side in found.groups()]
    sizes = ((n[1], n[0]), (n[3], n[2]), (n[5], n[4]))
    for side in n:
        if side % LR_MULTIPLE or side < smallest:
            raise AmsaError(
                f"{what} {text}: {side} does not fit; every side must be a multiple of {LR_MULTIPLE} from {smallest} on"
            )
    if any(a > b for small, large in pairwise(sizes) for a, b in zip(small, large, strict=True)):
        raise AmsaError(f"{what} {text}: sides must not shrink from smallest over usual to largest")
    return sizes


def make_profile(
    stage: str, inputs: Sequence[TensorIO], lr: Sequence[tuple[int, int]], ref: Sequence[tuple[int, int]], halo: int
) -> Profile:
    """What every size word of a graph's inputs goes from and to.

    Args:
        stage: the graph's name. `restore` and `finish` see tiles with their halo, and at a picture's edge parts of tiles.
        inputs: its inputs.
        lr, ref: from `parse_sizes`.
        halo: LR pixels around a tile.
    """
    profile: Profile = {}
    for axis, (lr_word, ref_word) in enumerate((("h", "Hk"), ("w", "Wk"))):
        low, usual, high = (size[axis] for size in lr)
        if stage in TILED:
            most = TILE + 2 * halo
            low, usual, high = min(low, 1 + halo), min(usual, most), min(high, most)
        profile[lr_word] = (low, usual, high)
        grid_low, grid_usual, grid_high = (size[axis] for size in ref)
        profile[ref_word] = (grid_low, grid_usual, grid_high)
    used = {_split(dim)[1] for tensor in inputs for dim in tensor.dims if isinstance(dim, str)}
    return {word: sizes for word, sizes in profile.items() if word in used}


def dimensions(tensor: TensorIO, profile: Profile) -> tuple[tuple[int, ...], ...]:
    """A tensor's smallest, usual and largest shape."""
    return tuple(tuple(_size(dim, profile, i) for dim in tensor.dims) for i in range(3))


def bounds(inputs: Sequence[TensorIO], profile: Profile) -> dict[str, frozenset[tuple[int, int]]]:
    """By size word: smallest and largest size of every dimension of the inputs that varies with it."""
    found: dict[str, set[tuple[int, int]]] = {}
    for tensor in inputs:
        least, _, most = dimensions(tensor, profile)
        for dim, low, high in zip(tensor.dims, least, most, strict=True):
            if isinstance(dim, str) and low != high:
                found.setdefault(_split(dim)[1], set()).add((low, high))
    return {word: frozenset(sizes) for word, sizes in found.items()}


def _split(dim: str) -> tuple[int, str, str, int]:
    found = _WORD.fullmatch(dim)
    assert found, dim
    return int(found[1] or 1), found[2], found[3] or "+", int(found[4] or 0)


def _size(dim: int | str, profile: Profile, which: int) -> int:
    if isinstance(dim, int):
        return dim
    factor, word, sign, number = _split(dim)
    size = factor * profile[word][which]
    return size + number if sign == "+" else size // number
