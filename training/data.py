"""Training samples. Sample i is a pure function of (seed, i), so that a run resumes exactly, on any number of workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ..engine.images import FORMATS
from ..errors import AmsaError
from .layouts import Case
from .synthetic import Image8, Pair, Warp, no_flow, recolour, synthetic_reference
from .views import Views

_KEEP_BYTES = 4 << 30


@dataclass(frozen=True)
class Mix:
    """What share of the samples has which kind of reference; the rest is synthetic.

    A kind for which there is nothing to draw from is synthetic too; without photos, every sample is a given pair.

    Attributes:
        pairs: given pairs of pictures, where there are such.
        views: another photo of the same scene, where folders of such are given.
        irrelevant: another photo.
        lr: the LR picture itself, enlarged or as it is.
        blurred: synthetic, but as unsharp as LR.
    """

    pairs: float = 0.0
    views: float = 0.2
    irrelevant: float = 0.12
    lr: float = 0.12
    blurred: float = 0.05


class PhotoFiles(Sequence[Image8]):
    """Photos that are decoded when they are asked for; up to 4 GB of them are kept.

    Args:
        paths: of files that `usable` let pass.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._kept: dict[int, Image8] = {}
        self._room = _KEEP_BYTES

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: Any) -> Any:
        if index in self._kept:
            return self._kept[index]
        photo = decode(self._paths[index])
        if photo.nbytes <= self._room:
            self._kept[index] = photo
            self._room -= photo.nbytes
        return photo


def decode(path: Path) -> Image8:
    """A file as uint8 RGB [H, W, 3]. AmsaError where it cannot be decoded."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as e:
        raise AmsaError(f"{path}: {e}") from e


def usable(paths: Sequence[Path], smallest: int) -> tuple[list[Path], list[str]]:
    """The files that decode and have `smallest` pixels a side, and a line for each other one with the reason.

    Every file is decoded once: a broken one found in the middle of a long run would be too late.
    """
    good, skipped = [], []
    for path in paths:
        try:
            height, width = decode(path).shape[:2]
        except AmsaError as e:
            skipped.append(str(e))
            continue
        if min(height, width) < smallest:
            skipped.append(f"{path}: {width}x{height}, smaller than {smallest}")
        else:
            good.append(path)
    return good, skipped


def find_photos(folders: Sequence[str | Path], smallest: int) -> tuple[list[Path], list[str]]:
    """All usable photos below the folders, and a line for each file that was skipped with the reason."""
    paths: list[Path] = []
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise AmsaError(f"{folder}: no such folder of training photos")
        paths += sorted(p for p in folder.rglob("*") if p.suffix.lower() in FORMATS and not p.name.startswith("."))
    good, skipped = usable(paths, smallest)
    if not good:
        why = f" ({skipped[0]})" if skipped else ""
        raise AmsaError(f"no usable photo in {', '.join(map(str, folders))}{why}")
    return good, skipped


class ReferencePairs(Dataset[dict[str, Tensor]]):
    """HR crop, its LR, and a reference, made on the fly.

    Args:
        photos: uint8 [H, W, 3] each.
        views: groups of photos of one scene with known overlaps.
        pairs: pictures with references of their own, every file usable.
        crop, ref: sides of the HR crop (multiple of 32) and of the reference.
        length: how many samples there are; sample i depends on nothing but (seed, i).
        seed: of everything random.
        mix, warp: what references there are and how they differ.
    """

    def __init__(
        self,
        photos: Sequence[Image8],
        views: Sequence[Views] = (),
        pairs: Sequence[Case] = (),
        *,
        crop: int,
        ref: int,
        length: int,
        seed: int,
        mix: Mix,
        warp: Warp,
    ) -> None:
        self._photos, self._views, self._pairs = photos, views, pairs
        self._crop, self._ref, self._length, self._seed = crop, ref, length, seed
        self._mix, self._warp = mix, warp

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        cv2.setNumThreads(1)
        rng = np.random.default_rng((self._seed, index))
        pair = self.pair(rng)
        if rng.random() < 0.5:
            pair = _transposed(pair)
        lr = np.asarray(Image.fromarray(pair.hr).resize((self._crop // 4, self._crop // 4), Image.Resampling.BICUBIC))
        return {
            "lr": to_tensor(lr),
            "hr": to_tensor(pair.hr),
            "ref": to_tensor(pair.ref),
            "position": torch.from_numpy(pair.position),
            "known": torch.from_numpy(pair.known),
        }

    def pair(self, rng: np.random.Generator) -> Pair:
        """Draw one pair."""
        mix, crop, ref = self._mix, self._crop, self._ref
        shares = [mix.pairs, mix.views, mix.irrelevant, mix.lr, mix.blurred]
        kind = rng.choice(["pairs", "views", "irrelevant", "lr", "blurred", "synthetic"], p=[*shares, 1 - sum(shares)])
        if self._pairs and (kind == "pairs" or not self._photos):
            return self._given(rng)
        if kind == "views" and self._views:
            hr, reference = self._views[int(rng.integers(len(self._views)))].pair(rng, crop, ref)
            return Pair(hr, recolour(rng, reference, self._warp) if rng.random() < 0.3 else reference, *no_flow(crop))
        photo = self._photo(rng)
        corner = (int(rng.integers(photo.shape[0] - crop + 1)), int(rng.integers(photo.shape[1] - crop + 1)))
        hr = photo[corner[0] : corner[0] + crop, corner[1] : corner[1] + crop]
        if kind == "irrelevant":
            other = self._photo(rng)
            corner_y, corner_x = (int(rng.integers(max(1, side - ref + 1))) for side in other.shape[:2])
            return Pair(hr, _padded(other[corner_y : corner_y + ref, corner_x : corner_x + ref], ref), *no_flow(crop))
        if kind == "lr":
            return Pair(hr, _lr_as_reference(rng, photo, corner, crop, ref), *no_flow(crop))
        reference, position, known = synthetic_reference(rng, photo, corner, crop, ref, self._warp)
        if kind == "blurred":
            reference = _blur(reference, 4)
        return Pair(hr, reference, position, known)

    def _given(self, rng: np.random.Generator) -> Pair:
        """A crop of a given picture, and of one of its references the part at the same place in proportion."""
        case = self._pairs[int(rng.integers(len(self._pairs)))]
        hr, other = decode(case.hr), decode(case.refs[int(rng.integers(len(case.refs)))])
        flips = (slice(None, None, rng.choice((-1, 1))), slice(None, None, rng.choice((-1, 1))))
        hr, other = hr[flips], other[flips]
        place = rng.random(2)
        return Pair(_part(hr, place, self._crop), _part(other, place, self._ref), *no_flow(self._crop))

    def _photo(self, rng: np.random.Generator) -> Image8:
        """A photo, shrunken at random: smaller is sharper and shows other scales."""
        photo = self._photos[int(rng.integers(len(self._photos)))]
        least = (self._crop + 16) / min(photo.shape[:2])
        scale = rng.uniform(max(0.5, least), 1)
        photo = np.ascontiguousarray(photo[:: rng.choice((-1, 1)), :: rng.choice((-1, 1))])
        if scale > 0.95:
            return photo
        size = (round(photo.shape[1] * scale), round(photo.shape[0] * scale))
        return np.asarray(cv2.resize(photo, size, interpolation=cv2.INTER_AREA), np.uint8)


def _part(picture: Image8, place: NDArray[np.float64], side: int) -> Image8:
    """The side x side part whose corner is at `place` of what is possible, 0 to 1 down and across."""
    top, left = (round(p * max(0, whole - side)) for p, whole in zip(place, picture.shape[:2], strict=True))
    return _padded(picture[top : top + side, left : left + side], side)


def _padded(picture: Image8, side: int) -> Image8:
    """Reflected at the bottom and right to side x side where it is smaller."""
    rows, cols = (side - whole for whole in picture.shape[:2])
    return np.asarray(cv2.copyMakeBorder(picture, 0, rows, 0, cols, cv2.BORDER_REFLECT), np.uint8)


def _lr_as_reference(rng: np.random.Generator, photo: Image8, corner: tuple[int, int], crop: int, ref: int) -> Image8:
    """The LR picture, enlarged x4 (no new detail), or as it is around the crop (the same textures at another scale)."""
    margin = (ref - crop) // 2
    if rng.random() < 0.5:
        around = cv2.copyMakeBorder(photo, margin, margin, margin, margin, cv2.BORDER_REFLECT_101)
        return _blur(np.asarray(around[corner[0] : corner[0] + ref, corner[1] : corner[1] + ref], np.uint8), 4)
    small = Image.fromarray(photo).resize((photo.shape[1] // 4, photo.shape[0] // 4), Image.Resampling.BICUBIC)
    lr = np.asarray(small)
    rows, cols = (max(0, ref - side) for side in lr.shape[:2])
    padded = cv2.copyMakeBorder(lr, 0, rows, 0, cols, cv2.BORDER_REFLECT)
    top, left = (int(np.clip(c // 4 - ref // 2, 0, side - ref)) for c, side in zip(corner, padded.shape[:2], strict=True))
    return np.asarray(padded[top : top + ref, left : left + ref], np.uint8)


def _blur(picture: Image8, factor: int) -> Image8:
    """Shrink and enlarge with bicubic: the detail that LR has."""
    image = Image.fromarray(picture)
    small = image.resize((image.width // factor, image.height // factor), Image.Resampling.BICUBIC)
    return np.asarray(small.resize(image.size, Image.Resampling.BICUBIC))


def _transposed(pair: Pair) -> Pair:
    """Rows and columns exchanged; with the photo's flips this makes all eight flips and quarter turns."""
    return Pair(
        pair.hr.transpose(1, 0, 2),
        pair.ref.transpose(1, 0, 2),
        pair.position[::-1].transpose(0, 2, 1).copy(),
        pair.known.T.copy(),
    )


def to_tensor(picture: NDArray[Any]) -> Tensor:
    """uint8 [H, W, 3] -> float32 [3, H, W] in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1))).float() / 255
