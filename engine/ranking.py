"""Which of many photos is worth to be a reference: each is shrunk to a thumbnail and matched with a small LR picture.

It is the network's own matching of its own features, so it ranks by what counts later, on every backend.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import AmsaError
from ..stages import LR_MIN, REF_MIN, REF_MULTIPLE, SCALE
from .backends import Backend, Execution
from .images import Photo, read_thumbnail, require_size, resize_bicubic
from .references import file_key, prepare_lr, round_up, to_nchw

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


Candidates: TypeAlias = Sequence[str | Path | Photo]
Keys: TypeAlias = dict[str, Any]
Size: TypeAlias = tuple[int, int]


class Thumbnails:
    """Keys of candidates' thumbnails, kept for the pictures to come: to rank 200 JPEGs of 1.3 megapixels takes 1.6 s of CPU time
    for the first picture and 0.3 s for each other one.

    Up to `limit` bytes are kept, those that came first: candidates come in the same order for every picture, and to keep the last
    instead would mean to keep none that is asked for next.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._kept: dict[tuple[str, int, int], Keys] = {}
        self._bytes = 0

    def get(self, path: str | Path) -> Keys | None:
        """A file's, unless it has changed since; on the host."""
        return self._kept.get(file_key(path))

    def add(self, path: str | Path, keys: Keys) -> None:
        """Keep a file's, where there is room."""
        size = sum(values.nbytes for values in keys.values())
        if self._bytes + size <= self.limit:
            self._kept[file_key(path)] = keys
            self._bytes += size


def rank(
    backend: Backend,
    lr: Photo,
    candidates: Candidates,
    *,
    kept: Thumbnails | None = None,
    progress: Progress | None = None,
) -> list[Ranked]:
    """Rank candidates by how well they would serve as references of a picture.

    Args:
        backend: of the model; its `encode_lr`, `encode_ref` and `match` run.
        lr: the picture, sides >= 16.
        candidates: picture files or photos, sides >= 64. Those that cannot be read, or are too small, are left out with a
            warning that says why.
        kept: of calls before this one, with the same backend. Published models, whose keys hold for one LR size, make no use of
            them.
        progress: called before every candidate.

    Returns:
        The best first; among equals the order of the list.
    """
    found = relevances(backend, [lr], candidates, kept=kept, progress=progress)
    return sorted((Ranked(i, relevance) for i, (relevance,) in found.items()), key=lambda ranked: -ranked.relevance)


def relevances(
    backend: Backend,
    lrs: Sequence[Photo],
    candidates: Candidates,
    *,
    kept: Thumbnails | None = None,
    progress: Progress | None = None,
) -> dict[int, list[float]]:
    """How well each candidate would serve each of several pictures; arguments as of `rank`.

    Every candidate is read and encoded once.

    Returns:
        By the candidate's place in the list: the mean relevance of its thumbnail to each picture, as in `Ranked`.
    """
    for lr in lrs:
        require_size(lr, "LR", LR_MIN)
    found: dict[int, list[float]] = {}
    with backend.call() as on:
        match = _Matcher(backend, on, [lr.rgb for lr in lrs])
        kept = None if backend.config.published_protocol else kept
        for i, thumbnail in enumerate(_thumbnails(candidates, kept)):
            if progress is not None:
                progress(i, len(candidates), "ranking references")
            if isinstance(thumbnail, AmsaError):
                warnings.warn(f"left out of the references: {thumbnail}", stacklevel=2)
                continue
            candidate = candidates[i]
            if kept is not None and not isinstance(thumbnail, dict) and not isinstance(candidate, Photo):
                thumbnail = match.encode(thumbnail)
                # Copies: for all that it has given out, ONNX Runtime keeps memory in pieces.
                kept.add(candidate, {name: np.array(on.to_host(values)) for name, values in thumbnail.items()})
            found[i] = match.relevances(thumbnail)
    return found


def _thumbnails(candidates: Candidates, kept: Thumbnails | None) -> Iterator[Rgb | Keys | AmsaError]:
    """Every candidate's thumbnail, or its keys where they are kept, or what is wrong with it; read while those before are
    matched."""

    def read(i: int) -> Rgb | Keys | AmsaError:
        candidate = candidates[i]
        try:
            if not isinstance(candidate, Photo):
                keys = kept.get(candidate) if kept is not None else None
                return read_thumbnail(candidate, SIDE, REF_MIN) if keys is None else keys
            require_size(candidate, f"reference {i + 1}", REF_MIN)
            return _shrink(candidate.rgb, SIDE, 1)
        except AmsaError as e:
            return e

    with ThreadPoolExecutor(1) as pool:
        yield from pool.map(read, range(len(candidates)))


def small_enough(lr: Photo) -> Photo:
    """An LR picture, shrunk to be kept until it is ranked by: its longer side is four times what it is matched as."""
    return Photo(_shrink(lr.rgb, SIDE, LR_MIN))


def _shrink(rgb: Rgb, longer: int, shorter: int) -> Rgb:
    """Shrink until the longer side has so many pixels, but never the shorter side below its own."""
    factor = min(1.0, max(longer / max(rgb.shape[:2]), shorter / min(rgb.shape[:2])))
    height, width = (max(shorter, round(factor * side)) for side in rgb.shape[:2])
    return rgb if factor == 1 else resize_bicubic(rgb, height, width)


class _Matcher:
    """Matches thumbnails with LR pictures."""

    def __init__(self, backend: Backend, on: Execution, lrs: Sequence[Rgb]) -> None:
        self._published = backend.config.published_protocol
        self._on = on
        self._lrs = [list({s.shape: s for s in (_shrink(lr, side, LR_MIN) for side in LR_SIDES)}.values()) for lr in lrs]
        self._queries: dict[tuple[int, int, Size | None], Keys] = {}
        self._seed = on.to_device(np.zeros(1, np.int32))

    def relevances(self, thumbnail: Rgb | Keys) -> list[float]:
        """To each LR picture; that of its sizes which matches better. A thumbnail's keys are enough, but for published models."""
        keys: dict[Size | None, Keys] = {}
        if isinstance(thumbnail, dict):
            keys[None] = {name: self._on.to_device(values) for name, values in thumbnail.items()}

        def keys_on(canvas: Size | None) -> Keys:
            if canvas not in keys:
                assert not isinstance(thumbnail, dict)
                keys[canvas] = self.encode(thumbnail, canvas)
            return keys[canvas]

        shape = None if isinstance(thumbnail, dict) else thumbnail.shape
        return [max(self._relevance(i, j, shape, keys_on) for j in range(len(sizes))) for i, sizes in enumerate(self._lrs)]

    def _relevance(self, picture: int, size: int, shape: tuple[int, ...] | None, keys: Callable[[Size | None], Keys]) -> float:
        """Mean relevance over an LR picture at one of its sizes, but for its border, where no patch is whole."""
        small = self._lrs[picture][size]
        height, width = small.shape[:2]
        canvas = self._canvas((height, width), shape)
        if (picture, size, canvas) not in self._queries:
            lr = self._on.to_device(prepare_lr(small, canvas))
            features = self._on.run("encode_lr", {"lr": lr})
            self._queries[picture, size, canvas] = {k: v for k, v in features.items() if k.startswith("query_")}
        found = self._on.run("match", {**self._queries[picture, size, canvas], **keys(canvas), "seed": self._seed})
        return float(self._on.to_host(found["relevance"])[0, 0, 1 : height - 1, 1 : width - 1].mean())

    def _canvas(self, lr: Size, thumbnail: tuple[int, ...] | None) -> Size | None:
        """The published protocol's common size, which here cuts nothing off: of a thumbnail that would be up to a half."""
        if not self._published or thumbnail is None:
            return None
        height, width = (round_up(max(SCALE * a, b), REF_MULTIPLE) for a, b in zip(lr, thumbnail[:2], strict=True))
        return height, width

    def encode(self, thumbnail: Rgb, canvas: Size | None = None) -> Keys:
        """Keys of a thumbnail, and how much of them is picture: as `references.prepare_scales` prepares the first scale."""
        rows, cols = thumbnail.shape[:2]
        padded = canvas or (round_up(rows, REF_MULTIPLE), round_up(cols, REF_MULTIPLE))
        matchable = canvas or (rows, cols)
        ref = self._on.to_device(to_nchw(thumbnail, *padded, "edge" if canvas is None else "constant"))
        features = self._on.run("encode_ref", {"ref": ref})
        valid = np.array([[side // SCALE for side in matchable]], np.int32)
        return {k: v for k, v in features.items() if k.startswith("key_")} | {"valid": self._on.to_device(valid)}
