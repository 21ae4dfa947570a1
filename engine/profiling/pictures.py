"""Pictures to profile with where there are no photos: noise with the spectrum of natural pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...errors import AmsaError
from ...stages import SCALE
from ..images import MAX_PIXELS, Photo, resize_bicubic

Size = tuple[int, int]
"""Width and height in pixels, as pictures' sizes are written."""

NOTE = (
    "The pictures are noise with a 1/f spectrum, all cut from one scene; how many references are restored depends on the "
    "picture, so photos of your own may take more or less."
)

_STEP = 8
"""Pixels by which each reference is shifted against the scene, so that no match is where it is looked for first."""


def make_pictures(lr: Size, refs: Sequence[Size], seed: int = 0) -> tuple[Photo, list[Photo]]:
    """Pictures of these sizes, of 8 bits, always the same for the same sizes and seed.

    LR is a part of a scene, shrunk to a quarter; each reference is a part of the same scene in full size. They begin at its top
    left corner, up to a small shift, so a reference holds what LR shows as far as its size allows.

    Raises:
        AmsaError: a picture with more pixels than are read from files.
    """
    for name, (width, height) in (("LR, enlarged,", (SCALE * lr[0], SCALE * lr[1])), *(("a reference", ref) for ref in refs)):
        if width * height > MAX_PIXELS:
            raise AmsaError(f"{name} has {width}x{height} pixels; at most {MAX_PIXELS / 1e6:g} megapixels: choose smaller sizes")
    shifted = [(width + _STEP * (i + 1), height + _STEP * (i + 1)) for i, (width, height) in enumerate(refs)]
    sizes = [(SCALE * lr[0], SCALE * lr[1]), *shifted]
    scene = natural_noise(max(height for _, height in sizes), max(width for width, _ in sizes), seed)
    small = resize_bicubic(scene[: SCALE * lr[1], : SCALE * lr[0]], lr[1], lr[0])
    parts = [scene[h - height : h, w - width : w] for (w, h), (width, height) in zip(shifted, refs, strict=True)]
    return _photo(small), [_photo(part) for part in parts]


def natural_noise(height: int, width: int, seed: int) -> NDArray[np.float32]:
    """Noise [height, width, 3] in [0, 1] whose amplitude falls with frequency as 1/f, as that of natural pictures does; its
    colours are weak, as theirs are."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]).astype(np.float32)
    frequency[0, 0] = np.inf  # no mean

    def plane() -> NDArray[np.float32]:
        spectrum = np.fft.rfft2(rng.standard_normal((height, width), np.float32)) / frequency
        noise: NDArray[np.float32] = np.fft.irfft2(spectrum, (height, width)).astype(np.float32)
        noise /= noise.std()
        return noise

    light = plane()
    return np.stack([np.clip(0.5 + 0.2 * light + 0.04 * plane(), 0, 1) for _ in range(3)], axis=2)


def _photo(rgb: NDArray[np.float32]) -> Photo:
    """In 8 bits, as a file would hold it."""
    return Photo(np.floor(np.clip(rgb, 0, 1) * 255 + 0.5).astype(np.float32) / np.float32(255))
