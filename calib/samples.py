"""Pictures to calibrate and to measure on: crops of photos, shrunk as the paper does, each with a part of another view."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from ..engine.demo import shrink
from ..engine.images import Photo, read_photo
from ..errors import AmsaError
from ..stages import REF_MIN
from ..training.evaluation.scenes import find_window
from ..training.layouts import Case, read_layout

CROP = 160
"""Side of a crop in pixels of the photo; LR is a quarter."""
WINDOW = 192
"""Side of the reference's part."""
_CANDIDATES = 3  # other photos of a folder without references among which the window is looked for


@dataclass(frozen=True)
class Sample:
    """A crop: LR, a reference, and what LR was shrunk from."""

    name: str
    lr: Photo
    ref: Photo
    truth: Photo


def read_samples(data: Sequence[str | Path], count: int, seed: int = 0) -> list[Sample]:
    """Draw crops evenly from folders of photos or of pairs, or CSV files of pairs, as `amsa evaluate` reads them.

    The reference is the window of a given reference, or in a folder of single photos of one of the next three by name, that looks
    most like the LR crop. Equal arguments and files give equal crops.

    Args:
        data: folders or CSV files.
        count: crops in all.
        seed: of the crops' places.

    Raises:
        AmsaError: nothing usable there, files that cannot be decoded, or all photos smaller than a crop.
    """
    if not data:
        raise AmsaError("no photos to calibrate with; give a folder or CSV file with --data")
    shares = np.diff([count * i // len(data) for i in range(len(data) + 1)]).tolist()
    samples: list[Sample] = []
    for path, share in zip(data, shares, strict=True):
        samples += _from_layout(Path(path), share, seed)
    if len({sample.name.rpartition("@")[0] for sample in samples}) == 1:
        warnings.warn(
            f"all {len(samples)} crops are of one picture, so what is found holds for this picture; give more photos",
            stacklevel=2,
        )
    return samples


def samples_hash(samples: Sequence[Sample]) -> str:
    """A hash of all pixels."""
    digest = hashlib.sha256()
    for sample in samples:
        for photo in (sample.lr, sample.ref):
            digest.update(f"{photo.rgb.shape}".encode() + np.ascontiguousarray(photo.rgb).tobytes())
    return digest.hexdigest()


def _from_layout(path: Path, count: int, seed: int) -> list[Sample]:
    cases = read_layout(path).cases
    read = lru_cache(maxsize=6)(read_photo)  # crops of one photo follow each other, and photos may be large
    usable: dict[int, bool] = {}
    found: list[Sample] = []
    draws = 0
    while len(found) < count:
        if draws == count + len(cases):
            break
        # The first round takes `count` cases evenly from all; those too small are made up for by the ones that follow.
        index = draws * len(cases) // count if draws < count else draws % len(cases)
        draws += 1
        case = cases[index]
        photo = read(case.hr)
        usable[index] = min(photo.height, photo.width) >= CROP
        if usable[index]:
            rng = np.random.default_rng((seed, draws))
            found.append(_crop(photo, case, [read(p) for p in _others(cases, index)], rng))
    if not found:
        raise AmsaError(f"{path}: no picture has {CROP} pixels on each side, which a crop needs; give larger photos")
    if small := sum(not good for good in usable.values()):
        warnings.warn(f"{path}: {small} pictures are smaller than {CROP} pixels and were left out", stacklevel=3)
    return found


def _others(cases: Sequence[Case], index: int) -> list[Path]:
    """Where a case's reference is looked for: its own references, else the photos that follow, else the photo itself."""
    if refs := cases[index].refs:
        return list(refs[:_CANDIDATES])
    following = [cases[(index + i) % len(cases)].hr for i in range(1, min(_CANDIDATES, len(cases) - 1) + 1)]
    return following or [cases[index].hr]


def _crop(photo: Photo, case: Case, others: Sequence[Photo], rng: np.random.Generator) -> Sample:
    top, left = (int(rng.integers(side - CROP + 1)) for side in photo.rgb.shape[:2])
    truth = Photo(np.ascontiguousarray(photo.rgb[top : top + CROP, left : left + CROP]))
    lr, _ = shrink(truth)
    large = [other for other in others if min(other.height, other.width) >= WINDOW]
    if large:
        window = find_window(_bytes(lr), [_bytes(other) for other in large], WINDOW)
        part = large[window.photo].rgb[window.top : window.top + WINDOW, window.left : window.left + WINDOW]
    else:
        part = max(others, key=lambda other: min(other.height, other.width)).rgb[:WINDOW, :WINDOW]
        if min(part.shape[:2]) < REF_MIN:
            raise AmsaError(f"{case.name}: its reference is smaller than {REF_MIN} pixels; give larger photos")
    return Sample(f"{case.name}@{top},{left}", lr, Photo(np.ascontiguousarray(part)), truth)


def _bytes(photo: Photo) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return (photo.rgb * 255 + 0.5).astype(np.uint8)
