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

from ..errors import AmsaError
from .synthetic import Image8, Pair, Warp, no_flow, recolour, synthetic_reference
from .views import Views

_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}


@dataclass(frozen=True)
class Mix:
    """What share of the samples has which kind of reference; the rest is synthetic.

    Attributes:
        views: another photo of the same scene, where folders of such are given.
        irrelevant: another photo.
        lr: the LR picture itself, enlarged or as it is.
        blurred: synthetic, but as unsharp as LR.
    """

    views: float = 0.2
    irrelevant: float = 0.12
    lr: float = 0.12
    blurred: float = 0.05


def read_photos(folders: Sequence[str | Path], smallest: int) -> tuple[list[Image8], list[str]]:
    """All photos below the folders as uint8 RGB, and a line for each file that was skipped with the reason."""
    photos, skipped = [], []
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise AmsaError(f"{folder}: no such folder of training photos")
        for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES):
            try:
                with Image.open(path) as image:
                    photo = np.asarray(image.convert("RGB"))
            except (OSError, ValueError, SyntaxError) as e:
                skipped.append(f"{path}: {e}")
                continue
            if min(photo.shape[:2]) < smallest:
                skipped.append(f"{path}: {photo.shape[1]}x{photo.shape[0]}, smaller than {smallest}")
                continue
            photos.append(photo)
    if not photos:
        raise AmsaError(f"no usable photo in {', '.join(map(str, folders))}")
    return photos, skipped


class ReferencePairs(Dataset[dict[str, Tensor]]):
    """HR crop, its LR, and a reference, made on the fly.

    Args:
        photos: uint8 [H, W, 3] each.
        views: groups of photos of one scene with known overlaps.
        crop, ref: sides of the HR crop (multiple of 32) and of the reference.
        length: how many samples there are; sample i depends on nothing but (seed, i).
        seed: of everything random.
        mix, warp: what references there are and how they differ.
    """

    def __init__(
        self,
        photos: Sequence[Image8],
        views: Sequence[Views],
        *,
        crop: int,
        ref: int,
        length: int,
        seed: int,
        mix: Mix,
        warp: Warp,
    ) -> None:
        self._photos, self._views = photos, views
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
        kind = rng.choice(
            ["views", "irrelevant", "lr", "blurred", "synthetic"],
            p=[mix.views, mix.irrelevant, mix.lr, mix.blurred, 1 - mix.views - mix.irrelevant - mix.lr - mix.blurred],
        )
        if kind == "views" and self._views:
            hr, reference = self._views[int(rng.integers(len(self._views)))].pair(rng, crop, ref)
            return Pair(hr, recolour(rng, reference, self._warp) if rng.random() < 0.3 else reference, *no_flow(crop))
        photo = self._photo(rng)
        corner = (int(rng.integers(photo.shape[0] - crop + 1)), int(rng.integers(photo.shape[1] - crop + 1)))
        hr = photo[corner[0] : corner[0] + crop, corner[1] : corner[1] + crop]
        if kind == "irrelevant":
            other = self._photo(rng)
            top, left = (rng.integers(max(1, side - ref + 1)) for side in other.shape[:2])
            part = other[top : top + ref, left : left + ref]
            whole = cv2.copyMakeBorder(part, 0, ref - part.shape[0], 0, ref - part.shape[1], cv2.BORDER_REFLECT)
            return Pair(hr, np.asarray(whole, np.uint8), *no_flow(crop))
        if kind == "lr":
            return Pair(hr, _lr_as_reference(rng, photo, corner, crop, ref), *no_flow(crop))
        reference, position, known = synthetic_reference(rng, photo, corner, crop, ref, self._warp)
        if kind == "blurred":
            reference = _blur(reference, 4)
        return Pair(hr, reference, position, known)

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
