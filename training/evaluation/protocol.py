"""One picture, scored as the paper does it: shrunk to a quarter, upscaled again with a reference, compared on Y.

The published code crops pictures to multiples of 32, which its network needs; ours takes any size, so that we crop to
multiples of 4, except for published models, whose scores are to be compared with the paper's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ...engine.demo import shrink
from ...engine.images import Photo, from_array, read_photo, resize_bicubic, to_array
from ...engine.metrics import luma, psnr, ssim
from ...engine.upscaler import Upscaler
from ...errors import AmsaError
from ...stages import LR_MIN, REF_MIN, REF_MULTIPLE, SCALE
from ..layouts import Case
from .lpips import Distance

BORDER = 4
"""Pixels left out on each side of PSNR and SSIM."""
FULL_GAMMA = 2.0 * SCALE
"""Scale of a reference as it is against LR, where the pictures are halved first (see `Setting.gamma`)."""

Keep: TypeAlias = "Callable[[str, Photo], None]"
"""Called with (case, upscaled picture)."""


@dataclass(frozen=True)
class Setting:
    """How the cases of a dataset are run: a row of a table, or a point of a curve.

    Attributes:
        label: the row's name.
        reference: "given" (the case's own), "lr" (the LR picture itself) or "irrelevant" (of another case).
        first, count: which of the given references: count of them, from the first on (0 is the most relevant).
        gamma: how many times larger the reference shows things than LR (4 in all other settings). The picture is halved
            before it is shrunk, so that the reference as it is has 8, and is shrunk to less.
    """

    label: str
    reference: str = "given"
    first: int = 0
    count: int = 1
    gamma: float | None = None


@dataclass(frozen=True)
class Score:
    """PSNR in dB and SSIM on Y (border 4), and LPIPS on RGB where it was asked for."""

    psnr: float
    ssim: float
    lpips: float | None = None


@dataclass(frozen=True)
class Result:
    """A scored case. `reference` says what was used ("lr x4": LR was too small, so enlarged); size is the truth's."""

    name: str
    width: int
    height: int
    reference: str
    references: tuple[str, ...]
    bicubic: Score
    amsa: Score
    seconds: float

    @property
    def gain(self) -> float:
        """PSNR over bicubic, in dB; 0 where both are equal to the truth."""
        return 0.0 if self.amsa.psnr == self.bicubic.psnr else self.amsa.psnr - self.bicubic.psnr


def score(picture: NDArray[Any], truth: NDArray[Any], distance: Distance | None = None) -> Score:
    """Score a picture (HW3 RGB, 0..255) against the truth. Values are taken as they are, so quantise first."""
    y, y_truth = luma(picture), luma(truth)
    return Score(psnr(y, y_truth, BORDER), ssim(y, y_truth, BORDER), distance(picture, truth) if distance else None)


class Protocol:
    """Scores cases with one model.

    Args:
        upscaler: the model, on any backend.
        seed: of the initial matches and of which picture is irrelevant to which.
        distance: LPIPS, or None.
    """

    def __init__(self, upscaler: Upscaler, seed: int = 0, distance: Distance | None = None) -> None:
        self._upscaler, self._seed, self._distance = upscaler, seed, distance
        self.crop = REF_MULTIPLE if upscaler.config.published_protocol else SCALE

    def run(self, cases: Sequence[Case], index: int, setting: Setting, keep: Keep | None = None) -> Result:
        """Score one of the cases; the others are where an irrelevant reference comes from.

        Raises:
            AmsaError: a file that cannot be read, is too small, or an upscaled picture with values that are no numbers.
        """
        case = cases[index]
        truth = self._truth(case.hr, halve=setting.gamma is not None)
        lr, bicubic = shrink(truth)
        kind, files, refs = self._references(cases, index, setting, lr, bicubic)
        names = [f"{case.hr.name}, shrunk", *(path.name for path in files)]
        begin = time.perf_counter()
        sr = self._upscaler.upscale_photo(lr, refs, seed=self._seed, names=names)
        seconds = time.perf_counter() - begin
        if not np.isfinite(sr.rgb).all():
            raise AmsaError(f"{case.hr.name}: the upscaled picture has values that are no numbers; check the model")
        if keep is not None:
            keep(case.name, sr)
        pixels = to_array(truth)
        before, after = (score(to_array(photo), pixels, self._distance) for photo in (bicubic, sr))
        return Result(case.name, truth.width, truth.height, kind, tuple(p.name for p in files), before, after, seconds)

    def _truth(self, path: Path, halve: bool) -> Photo:
        """The picture in 8-bit RGB, without alpha, cropped at the bottom and right to what can be shrunk."""
        rgb = read_photo(path).rgb
        if halve:
            rgb = resize_bicubic(rgb, rgb.shape[0] // 2, rgb.shape[1] // 2)
        height, width = (side // self.crop * self.crop for side in rgb.shape[:2])
        if min(height, width) < SCALE * LR_MIN:
            least = (2 if halve else 1) * SCALE * LR_MIN
            raise AmsaError(f"{path} is too small; pictures to recover need at least {least} pixels on each side")
        return _eight_bits(rgb[:height, :width])

    def _references(
        self, cases: Sequence[Case], index: int, setting: Setting, lr: Photo, bicubic: Photo
    ) -> tuple[str, list[Path], list[Photo]]:
        """What is used, its files, and the pictures as they are: none is resized but for `gamma`."""
        case = cases[index]
        if setting.reference == "lr":
            large = min(lr.height, lr.width) >= REF_MIN
            return ("lr", [case.hr], [lr]) if large else (f"lr x{SCALE}", [case.hr], [bicubic])
        files = list(case.refs[setting.first : setting.first + setting.count])
        if setting.reference == "irrelevant":
            files = [_irrelevant(cases, index, self._seed)]
        photos = [read_photo(path) for path in files]
        if setting.gamma is not None:
            scale = setting.gamma / FULL_GAMMA
            photos = [_eight_bits(_resized(photo.rgb, scale)) if scale != 1 else photo for photo in photos]
        return setting.reference, files, photos


def _irrelevant(cases: Sequence[Case], index: int, seed: int) -> Path:
    """Another case's reference, or its picture where it has none. It depends on nothing but the cases and the seed."""
    if len(cases) < 2:
        raise AmsaError("there is no other picture to take an irrelevant reference from; give a folder with more")
    step = int(np.random.default_rng((seed, index)).integers(1, len(cases)))
    other = cases[(index + step) % len(cases)]
    return other.refs[0] if other.refs else other.hr


def _resized(rgb: NDArray[np.float32], scale: float) -> NDArray[np.float32]:
    return resize_bicubic(rgb, round(rgb.shape[0] * scale), round(rgb.shape[1] * scale))


def _eight_bits(rgb: NDArray[np.float32]) -> Photo:
    return from_array(to_array(Photo(rgb)))
