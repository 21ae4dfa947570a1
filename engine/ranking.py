"""Which of many photos is worth to be a reference: each is shrunk to a thumbnail and matched with a small LR picture.

It is the network's own matching of its own features, so it ranks by what counts later, on every backend.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import AmsaError
from ..stages import LR_MIN, REF_MIN, REF_MULTIPLE, SCALE
from .backends import Backend, Execution
from .images import Photo, read_thumbnail, require_size, resize_bicubic
from .references import prepare_lr, round_up, to_nchw

Rgb = NDArray[np.float32]
Progress = Callable[[int, int, str], None]

SIDE = 128
"""Pixels of a thumbnail's longer side. Another view of the scene comes first among 200 unrelated photos for 53 of 56 LR pictures;
with 256 as often, at almost four times the cost; with 64 for 43 (`python benchmarks/ranking.py`). To rank 200 JPEGs of 1.3
megapixels takes 2.0 s of CPU time, half of it to decode them; to upscale 128x96 with one reference takes 2.1."""
LR_SIDES = (SIDE // SCALE, SIDE // SCALE // 2)
"""Pixels of the LR picture's longer side: as large as what a thumbnail shows, or half, where LR shows only a part of it. Each
candidate counts with the better of both."""


class Ranked(NamedTuple):
    """A candidate: where it stood in the list, and the mean relevance of its thumbnail (a cosine; published models: to 3)."""

    candidate: int
    relevance: float


def rank(
    backend: Backend, lr: Photo, candidates: Sequence[str | Path | Photo], *, progress: Progress | None = None
) -> list[Ranked]:
    """Rank candidates by how well they would serve as references of a picture.

    Args:
        backend: of the model; its `encode_lr`, `encode_ref` and `match` run.
        lr: the picture, sides >= 16.
        candidates: picture files or photos, sides >= 64. Those that cannot be read, or are too small, are left out with a
            warning that says why.
        progress: called before every candidate.

    Returns:
        The best first; among equals the order of the list.
    """
    require_size(lr, "LR", LR_MIN)
    found: list[Ranked] = []
    with backend.call() as on:
        match = _Matcher(backend, on, lr.rgb)
        for i, thumbnail in enumerate(_thumbnails(candidates)):
            if progress is not None:
                progress(i, len(candidates), "ranking references")
            if isinstance(thumbnail, AmsaError):
                warnings.warn(f"left out of the references: {thumbnail}", stacklevel=2)
            else:
                found.append(Ranked(i, match.relevance(thumbnail)))
    return sorted(found, key=lambda ranked: -ranked.relevance)


def _thumbnails(candidates: Sequence[str | Path | Photo]) -> Iterator[Rgb | AmsaError]:
    """Every candidate's thumbnail, or what is wrong with it; read while those before are matched."""

    def read(i: int) -> Rgb | AmsaError:
        candidate = candidates[i]
        try:
            if not isinstance(candidate, Photo):
                return read_thumbnail(candidate, SIDE, REF_MIN)
            require_size(candidate, f"reference {i + 1}", REF_MIN)
            return _shrink(candidate.rgb, SIDE, 1)
        except AmsaError as e:
            return e

    with ThreadPoolExecutor(1) as pool:
        yield from pool.map(read, range(len(candidates)))


def _shrink(rgb: Rgb, longer: int, shorter: int) -> Rgb:
    """Shrink until the longer side has so many pixels, but never the shorter side below its own."""
    factor = min(1.0, max(longer / max(rgb.shape[:2]), shorter / min(rgb.shape[:2])))
    height, width = (max(shorter, round(factor * side)) for side in rgb.shape[:2])
    return rgb if factor == 1 else resize_bicubic(rgb, height, width)


class _Matcher:
    """Matches thumbnails with one LR picture."""

    def __init__(self, backend: Backend, on: Execution, lr: Rgb) -> None:
        self._published = backend.config.published_protocol
        self._on = on
        self._lrs = list({small.shape: small for small in (_shrink(lr, side, LR_MIN) for side in LR_SIDES)}.values())
        self._queries: dict[tuple[int, tuple[int, int] | None], dict[str, Any]] = {}
        self._seed = on.to_device(np.zeros(1, np.int32))

    def relevance(self, thumbnail: Rgb) -> float:
        """That of the LR picture's size which matches better."""
        keys: dict[tuple[int, int] | None, dict[str, Any]] = {}
        return max(self._relevance(i, thumbnail, keys) for i in range(len(self._lrs)))

    def _relevance(self, which: int, thumbnail: Rgb, keys: dict[tuple[int, int] | None, dict[str, Any]]) -> float:
        """Mean relevance over the LR picture, but for its border, where no patch is whole."""
        height, width = self._lrs[which].shape[:2]
        canvas = self._canvas((height, width), thumbnail.shape)
        if (which, canvas) not in self._queries:
            lr = self._on.to_device(prepare_lr(self._lrs[which], canvas))
            features = self._on.run("encode_lr", {"lr": lr})
            self._queries[which, canvas] = {k: v for k, v in features.items() if k.startswith("query_")}
        if canvas not in keys:
            keys[canvas] = self._encode(thumbnail, canvas)
        found = self._on.run("match", {**self._queries[which, canvas], **keys[canvas], "seed": self._seed})
        return float(self._on.to_host(found["relevance"])[0, 0, 1 : height - 1, 1 : width - 1].mean())

    def _canvas(self, lr: tuple[int, int], thumbnail: tuple[int, ...]) -> tuple[int, int] | None:
        """The published protocol's common size, which here cuts nothing off: of a thumbnail that would be up to a half."""
        if not self._published:
            return None
        height, width = (round_up(max(SCALE * a, b), REF_MULTIPLE) for a, b in zip(lr, thumbnail[:2], strict=True))
        return height, width

    def _encode(self, thumbnail: Rgb, canvas: tuple[int, int] | None) -> dict[str, Any]:
        """Keys of a thumbnail, and how much of them is picture: as `references.prepare_scales` prepares the first scale."""
        rows, cols = thumbnail.shape[:2]
        padded = canvas or (round_up(rows, REF_MULTIPLE), round_up(cols, REF_MULTIPLE))
        matchable = canvas or (rows, cols)
        ref = self._on.to_device(to_nchw(thumbnail, *padded, "edge" if canvas is None else "constant"))
        features = self._on.run("encode_ref", {"ref": ref})
        valid = np.array([[side // SCALE for side in matchable]], np.int32)
        return {k: v for k, v in features.items() if k.startswith("key_")} | {"valid": self._on.to_device(valid)}
