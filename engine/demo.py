"""The demonstration's photos: a real two-view pair that comes with scikit-image."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import AmsaError
from ..stages import SCALE
from .images import Photo, from_array, resize_bicubic, to_array

# A part of both views in which most of the scene is visible twice (the motorcycle).
_TOP, _LEFT, _HEIGHT, _WIDTH = 58, 100, 384, 512


def load_pair() -> tuple[Photo, Photo]:
    """The left view (the picture to recover) and the right view (the reference), 512x384 each.

    Middlebury 2014 stereo benchmark, shrunk by scikit-image. Raises AmsaError where scikit-image is not installed.
    """
    try:
        from skimage.data import stereo_motorcycle
    except ModuleNotFoundError as e:
        raise AmsaError("the demo's photos come with scikit-image; install it with: pip install 'amsa[demo]'") from e
    left, right, _ = stereo_motorcycle()  # type: ignore[no-untyped-call]
    part = (slice(_TOP, _TOP + _HEIGHT), slice(_LEFT, _LEFT + _WIDTH))
    return from_array(left[part][:, :, :3].copy(), "left view"), from_array(right[part][:, :, :3].copy(), "right view")


def shrink(truth: Photo) -> tuple[Photo, Photo]:
    """The paper's degradation: bicubic with antialias to a quarter, 8 bits. Returns it and its bicubic enlargement."""
    small = resize_bicubic(truth.rgb, truth.height // SCALE, truth.width // SCALE)
    lr = _eight_bits(small)
    return lr, _eight_bits(resize_bicubic(lr.rgb, truth.height, truth.width))


def _eight_bits(rgb: NDArray[np.float32]) -> Photo:
    return from_array(to_array(Photo(rgb)))
