"""Hidden colours do not show, and colours do not shift."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from amsa.engine.colour import fill_transparent, match_low_frequencies
from amsa.engine.images import PackedPhoto, Photo, resize_bicubic, to_array


def smooth(height: int, width: int, seed: int = 0) -> NDArray[np.float32]:
    noise = np.random.default_rng(seed).random((max(2, height // 8), max(2, width // 8), 3), np.float32)
    return np.clip(resize_bicubic(noise, height, width), 0, 1)


def disc(height: int, width: int) -> NDArray[np.float32]:
    y, x = np.mgrid[:height, :width]
    return np.clip(height / 3 - np.hypot(y - height / 2, x - width / 2), 0, 1).astype(np.float32)


@pytest.mark.parametrize("size", [(40, 56), (17, 33), (1, 9), (2, 2)])
def test_hidden_colours_are_replaced_and_visible_ones_kept(size: tuple[int, int]) -> None:
    alpha = disc(*size)
    alpha[0, 0] = 1  # something is visible, whatever the size
    black = np.where(alpha[..., None] > 0, np.float32(0.8), np.float32(0.0)).repeat(3, 2)
    filled = fill_transparent(Photo(black, alpha))
    np.testing.assert_array_equal(filled.rgb[alpha > 0], black[alpha > 0])
    np.testing.assert_allclose(filled.rgb, 0.8, atol=1e-5)
    assert filled.alpha is alpha


def test_what_is_filled_in_resembles_what_is_near() -> None:
    rgb = np.zeros((32, 64, 3), np.float32)
    rgb[:, :20], rgb[:, 44:] = (1, 0, 0), (0, 0, 1)
    alpha = np.zeros((32, 64), np.float32)
    alpha[:, :20] = alpha[:, 44:] = 1
    filled = fill_transparent(Photo(rgb, alpha)).rgb
    assert (filled[:, 22, 0] > 0.8).all()
    assert (filled[:, 41, 2] > 0.8).all()
    assert filled.min() >= 0
    assert filled.max() <= 1


@pytest.mark.parametrize("alpha", [None, np.ones((8, 8), np.float32), np.zeros((8, 8), np.float32)])
def test_photos_with_nothing_to_fill(alpha: NDArray[np.float32] | None) -> None:
    photo = Photo(smooth(8, 8), alpha)
    assert fill_transparent(photo) is photo


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("gray", "bits"), [(False, 8), (True, 8), (False, 16), (True, 16)])
def test_colours_that_shifted_come_back(gray: bool, bits: int, packed: bool) -> None:
    """A result that is too red, too bright on one side and has texture that LR does not show."""
    lr_rgb = 0.2 + 0.5 * smooth(40, 30)
    if gray:
        lr_rgb = lr_rgb[..., :1].repeat(3, 2)
    rng = np.random.default_rng(1)
    checker = np.float32(0.04) * ((np.indices((160, 120)).sum(0) % 2) * 2 - 1)[..., None]
    shift = np.linspace(0, 0.1, 120, dtype=np.float32)[None, :, None] + np.float32(0.02)
    sr_rgb = np.clip(resize_bicubic(lr_rgb, 160, 120) + checker + shift, 0, 1).astype(np.float32)
    alpha = rng.random((160, 120), np.float32)
    sr = Photo(sr_rgb, alpha, gray, bits, b"icc", None)
    if packed:
        sr = PackedPhoto(to_array(Photo(sr_rgb, None, gray, bits)), alpha, b"icc", None)
    found = match_low_frequencies(sr, Photo(lr_rgb, None, gray, bits))
    assert (found.gray, found.bits, found.icc, found.height, found.width) == (gray, bits, b"icc", 160, 120)
    assert found.alpha is alpha
    before = np.abs(resize_bicubic(sr_rgb, 40, 30) - lr_rgb)
    after = np.abs(resize_bicubic(found.rgb, 40, 30) - lr_rgb)
    assert before.mean() > 0.06
    assert after.mean() < 0.002
    # The texture is still there: of one sign change per pixel, LR shows nothing.
    detail = found.rgb - resize_bicubic(resize_bicubic(found.rgb, 40, 30), 160, 120)
    assert np.corrcoef(detail[8:-8, 8:-8, 0].ravel(), np.broadcast_to(checker[8:-8, 8:-8, 0], (144, 104)).ravel())[0, 1] > 0.95


def test_bands_leave_no_seam() -> None:
    """300 rows are three bands; the same as in one."""
    lr, sr = Photo(smooth(300, 16, 1), bits=16), Photo(smooth(1200, 64, 2), bits=16)
    missing = resize_bicubic(lr.rgb - resize_bicubic(sr.rgb, 300, 16), 1200, 64)
    expected = np.clip(sr.rgb + missing, 0, 1)
    assert np.abs(match_low_frequencies(sr, lr).rgb - expected).max() < 3 / 65535


def test_what_fits_already_stays() -> None:
    sr = Photo(smooth(64, 48))
    lr = Photo(resize_bicubic(sr.rgb, 16, 12))
    assert np.abs(match_low_frequencies(sr, lr).rgb - sr.rgb).max() < 1.5 / 255
