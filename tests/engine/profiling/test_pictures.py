"""Pictures to profile with: sizes, sameness, a natural spectrum, and references that hold what LR shows."""

from __future__ import annotations

import numpy as np
import pytest

from amsa import AmsaError
from amsa.engine.images import resize_bicubic
from amsa.engine.metrics import psnr
from amsa.engine.profiling.pictures import make_pictures, natural_noise


def test_sizes_and_kind() -> None:
    lr, refs = make_pictures((20, 16), [(96, 64), (70, 130)])
    assert lr.rgb.shape == (16, 20, 3)
    assert [ref.rgb.shape for ref in refs] == [(64, 96, 3), (130, 70, 3)]
    for photo in (lr, *refs):
        assert photo.rgb.dtype == np.float32
        levels = photo.rgb * 255
        assert np.abs(levels - levels.round()).max() < 1e-3  # as of 8 bits
        assert 0 <= photo.rgb.min() < 0.3 < 0.7 < photo.rgb.max() <= 1


def test_equal_seeds_give_equal_pictures() -> None:
    (lr, (ref,)), (again, (same,)), (other, _) = (make_pictures((16, 16), [(64, 64)], seed) for seed in (0, 0, 1))
    assert np.array_equal(lr.rgb, again.rgb)
    assert np.array_equal(ref.rgb, same.rgb)
    assert not np.array_equal(lr.rgb, other.rgb)


def test_the_spectrum_falls_with_frequency() -> None:
    noise = natural_noise(256, 256, 0)[..., 1].astype(np.float64)
    power = np.abs(np.fft.fft2(noise - noise.mean())) ** 2
    frequency = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.fftfreq(256)[None])
    bands = [(0.01, 0.02), (0.02, 0.04), (0.04, 0.08), (0.08, 0.16), (0.16, 0.32)]
    means = [power[(low <= frequency) & (frequency < high)].mean() for low, high in bands]
    slope = np.polyfit(np.log([low for low, _ in bands]), np.log(means), 1)[0]
    assert slope == pytest.approx(-2, abs=0.15)


def test_a_reference_holds_what_lr_shows() -> None:
    lr, refs = make_pictures((32, 24), [(128, 96), (128, 96)])
    for i, ref in enumerate(refs):
        step = 2 * (i + 1)  # LR pixels that it is shifted by
        small = resize_bicubic(ref.rgb, 24, 32)
        shown, held = lr.rgb[step:, step:], small[: 24 - step, : 32 - step]
        assert psnr(255 * shown, 255 * held, 2) > 40


def test_too_large_a_picture() -> None:
    with pytest.raises(AmsaError, match="a reference has 20000x20000 pixels; at most 64 megapixels: choose smaller sizes"):
        make_pictures((16, 16), [(20000, 20000)])
