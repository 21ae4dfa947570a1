"""The paper's protocol: published numbers, a naive SSIM, and what follows from the definitions."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from amsa.engine.metrics import Comparison, compare_pictures, difference_picture, luma, psnr, side_by_side, ssim
from amsa.errors import AmsaError

GOLDEN = Path(os.environ.get("AMSA_GOLDEN_DIR") or Path(__file__).parents[1] / "golden")


def noise(*shape: int, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).uniform(0, 255, shape)


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).random((height, width, 3), np.float32)


# Published numbers


@pytest.mark.golden
def test_published_metrics() -> None:
    golden = np.load(GOLDEN / "metrics.npz")
    a, b = (golden[name][..., ::-1].astype(np.float64) for name in ("a_bgr", "b_bgr"))
    np.testing.assert_allclose(luma(a), golden["y_a"], rtol=0, atol=1e-9)
    assert psnr(a, b) == pytest.approx(float(golden["psnr_float"]), abs=1e-6)
    assert psnr(luma(a), luma(b)) == pytest.approx(float(golden["psnr_y"]), abs=1e-6)
    assert ssim(luma(a), luma(b)) == pytest.approx(float(golden["ssim_y"]), abs=1e-6)


@pytest.mark.golden
def test_published_result_picture() -> None:
    path = GOLDEN / "pipeline_same.npz"
    if not path.exists():
        pytest.skip("pipeline_same.npz is not in the golden folder (set AMSA_GOLDEN_DIR)")
    golden = np.load(path)
    sr, gt = (golden[name][..., ::-1].astype(np.float32) / 255 for name in ("sr_img_bgr", "gt_img_bgr"))
    result = compare_pictures(sr, gt)
    assert result.psnr_rgb == pytest.approx(float(golden["psnr_rgb"]), abs=1e-5)
    assert result.psnr_y == pytest.approx(float(golden["psnr_y"]), abs=1e-5)  # float32 in the published run
    assert result.ssim_y == pytest.approx(float(golden["ssim_y"]), abs=1e-6)


# Y


@pytest.mark.parametrize(
    ("rgb", "y"),
    [((0, 0, 0), 16.0), ((255, 255, 255), 235.0), ((255, 0, 0), 81.481), ((0, 255, 0), 144.553), ((0, 0, 255), 40.966)],
)
def test_luma_of_known_colours(rgb: tuple[int, int, int], y: float) -> None:
    as_uint8 = np.array(rgb, np.uint8).reshape(1, 1, 3)
    assert luma(as_uint8).dtype == np.float64
    assert luma(as_uint8).shape == (1, 1)
    assert luma(as_uint8)[0, 0] == pytest.approx(y, abs=1e-9)  # not rounded, even of uint8


# PSNR


@given(offset=st.floats(0.01, 200), sign=st.sampled_from([-1, 1]), border=st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_psnr_of_a_constant_offset(offset: float, sign: int, border: int) -> None:
    a = noise(12, 15, 3)
    assert psnr(a, a + sign * offset, border) == pytest.approx(20 * np.log10(255 / offset), abs=1e-9)


def test_psnr_does_not_wrap_uint8() -> None:
    a, b = np.full((9, 9), 10, np.uint8), np.full((9, 9), 20, np.uint8)
    assert psnr(a, b) == psnr(b, a) == pytest.approx(20 * np.log10(25.5))


def test_psnr_of_equal_pictures_is_infinite() -> None:
    assert psnr(noise(9, 9), noise(9, 9)) == float("inf")


# SSIM


def naive_ssim(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """SSIM of one channel, one window after the other, from centred moments."""
    axis = np.arange(-5, 6)
    window = np.exp(-(axis[:, None] ** 2 + axis[None, :] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for y in range(a.shape[0] - 10):
        for x in range(a.shape[1] - 10):
            p, q = a[y : y + 11, x : x + 11], b[y : y + 11, x : x + 11]
            mean_p, mean_q = (window * p).sum(), (window * q).sum()
            var_p, var_q = (window * (p - mean_p) ** 2).sum(), (window * (q - mean_q) ** 2).sum()
            covariance = (window * (p - mean_p) * (q - mean_q)).sum()
            top = (2 * mean_p * mean_q + 2.55**2) * (2 * covariance + 7.65**2)
            bottom = (mean_p**2 + mean_q**2 + 2.55**2) * (var_p + var_q + 7.65**2)
            values.append(top / bottom)
    return float(np.mean(values))


def test_ssim_agrees_with_a_naive_one() -> None:
    a = noise(17, 22)
    b = 0.7 * a + 0.3 * noise(17, 22, seed=1)
    assert ssim(a, b, border=0) == pytest.approx(naive_ssim(a, b), abs=1e-9)
    assert ssim(a, b, border=2) == pytest.approx(naive_ssim(a[2:-2, 2:-2], b[2:-2, 2:-2]), abs=1e-9)


def test_ssim_is_the_mean_over_channels() -> None:
    a, b = noise(20, 24, 3), noise(20, 24, 3, seed=1)
    assert ssim(a, b) == pytest.approx(np.mean([ssim(a[..., c], b[..., c]) for c in range(3)]), abs=1e-12)


@given(seed=st.integers(0, 2**32 - 1), height=st.integers(19, 30), width=st.integers(19, 30))
@settings(max_examples=20, deadline=None)
def test_scores_are_symmetric_and_bounded(seed: int, height: int, width: int) -> None:
    a, b = noise(height, width, seed=seed), noise(height, width, seed=seed ^ 1)
    assert ssim(a, a) == pytest.approx(1, abs=1e-12)
    assert ssim(a, b) == pytest.approx(ssim(b, a), abs=1e-12)
    assert -1 <= ssim(a, b) < 1
    assert psnr(a, b) == psnr(b, a)


# Borders


@pytest.mark.parametrize("border", [0, 1, 4])
def test_exactly_the_border_is_cropped(border: int) -> None:
    a = noise(24, 27, 3)
    inside = np.s_[border : 24 - border, border : 27 - border]
    outside_changed = noise(24, 27, 3, seed=1)
    outside_changed[inside] = a[inside]
    assert psnr(a, outside_changed, border) == float("inf")
    assert ssim(a, outside_changed, border) == pytest.approx(1, abs=1e-12)
    for y, x in ((border, border), (23 - border, 26 - border)):  # the outermost pixels that count
        b = a.copy()
        b[y, x] = 255 - b[y, x]
        assert psnr(a, b, border) < 100
        assert ssim(a, b, border) < 1


# Comparison


def test_compare_pictures_uses_the_same_functions() -> None:
    a, b = picture(22, 25), picture(22, 25, seed=1)
    a255, b255 = a.astype(np.float64) * 255, b.astype(np.float64) * 255
    result = compare_pictures(a, b)
    assert result == Comparison(
        psnr_y=psnr(luma(a255), luma(b255)),
        ssim_y=ssim(luma(a255), luma(b255)),
        psnr_rgb=psnr(a255, b255),
        ssim_rgb=ssim(a255, b255),
        max_difference=float(np.abs(a255 - b255).max()),
        mean_difference=float(np.abs(a255 - b255).mean()),
    )
    assert json.loads(json.dumps(result.as_dict())) == result.as_dict()
    assert compare_pictures(a, b, border=0) != result


def test_values_are_taken_as_given() -> None:
    a = np.full((22, 22, 3), 1.0, np.float32)
    b = a + np.float32(0.25 / 255)  # above 1, and less than one 8-bit level away
    assert compare_pictures(a, b).max_difference == pytest.approx(0.25, abs=1e-4)


def test_differences_count_the_border() -> None:
    a = picture(22, 22)
    b = a.copy()
    b[0, 0, 0] = 1 - b[0, 0, 0]
    result = compare_pictures(a, b)
    assert result.psnr_rgb == float("inf")
    assert result.max_difference > 0


# Pictures


def test_difference_picture_maps_the_high_end_to_one() -> None:
    a = np.zeros((40, 50, 3), np.float32)
    b = np.full_like(a, 0.125)
    b[0, 0, 0] = 1  # one outlier of 6000 values
    shown, gain = difference_picture(a, b)
    assert (shown.dtype, shown.shape) == (np.float32, a.shape)
    assert gain == 8
    assert (shown == 1).all()


def test_difference_picture_limits_its_gain() -> None:
    a = picture(9, 9)
    shown, gain = difference_picture(a, a)
    assert gain == 64
    assert not shown.any()
    assert difference_picture(a, a + np.float32(1e-5))[0].max() < 0.01


def test_difference_picture_with_a_given_gain() -> None:
    a = np.zeros((4, 4, 3), np.float32)
    shown, gain = difference_picture(a, np.full_like(a, -0.1), gain=2)
    assert gain == 2
    np.testing.assert_allclose(shown, 0.2, atol=1e-6)


def test_side_by_side_keeps_every_pixel() -> None:
    low, high = picture(12, 15), picture(48, 60, seed=1)
    row = side_by_side([("LR", low), ("AMSA", high), ("no\nline break", high)])
    assert row.dtype == np.float32
    strip = row.shape[0] - 48
    assert strip > 0
    gap = (row.shape[1] - 3 * 60) // 2
    assert gap > 0
    np.testing.assert_array_equal(row[strip:, :60], low.repeat(4, 0).repeat(4, 1))
    np.testing.assert_array_equal(row[strip:, 60 + gap : 120 + gap], high)
    assert (row[:, 60 : 60 + gap] == 1).all()
    for left in (0, 60 + gap, 120 + 2 * gap):
        assert row[:strip, left : left + 60].min() < 0.5  # a label is drawn


def test_side_by_side_fits_labels_to_their_panels() -> None:
    panel = picture(40, 100)
    row = side_by_side([("a label that is rather long", panel)])
    assert (row[:-40, [0, -1]] > 0.9).all()  # the whole label fits after reduction
    assert side_by_side([("far too long for any font size " * 3, panel)]).shape == row.shape


def test_side_by_side_clips() -> None:
    row = side_by_side([("", np.full((8, 8, 3), 1.5, np.float32)), ("", np.full((8, 8, 3), -1, np.float32))])
    assert (row.min(), row.max()) == (0, 1)


# Errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: psnr(noise(20, 20), noise(20, 21)), "same shape"),
        (lambda: ssim(noise(20, 20, 3), noise(20, 20)), "same shape"),
        (lambda: psnr(noise(8, 20), noise(8, 20)), "at least 9x9 pixels with a border of 4, got 20x8"),
        (lambda: ssim(noise(20, 18), noise(20, 18)), "at least 19x19 pixels with a border of 4, got 18x20"),
        (lambda: psnr(noise(20), noise(20)), r"\(height, width\)"),
        (lambda: psnr(noise(20, 20), noise(20, 20), -1), "0 or more"),
        (lambda: luma(noise(20, 20)), r"\(height, width, 3\)"),
        (lambda: compare_pictures(picture(20, 20), picture(20, 24)), "same shape"),
        (lambda: compare_pictures(picture(20, 20)[..., :1], picture(20, 20)[..., :1]), r"\(height, width, 3\)"),
        (lambda: compare_pictures(picture(18, 30), picture(18, 30)), "at least 19x19"),
        (lambda: difference_picture(picture(9, 9), picture(9, 8)), "same shape"),
        (lambda: difference_picture(picture(9, 9), picture(9, 9), gain=0), "greater than 0"),
        (lambda: difference_picture(picture(0, 9), picture(0, 9)), "not empty"),
        (lambda: side_by_side([]), "at least one picture"),
        (lambda: side_by_side([("Y", picture(9, 9)[..., 0])]), "'Y' must be RGB of shape"),
        (lambda: side_by_side([("LR", picture(7, 9)), ("HR", picture(16, 16))]), "'LR' is 7 pixels high.*16"),
    ],
)
def test_errors_say_what_is_needed(call: Callable[[], object], message: str) -> None:
    with pytest.raises(AmsaError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_smallest_pictures_work() -> None:
    assert np.isfinite(psnr(noise(9, 9), noise(9, 9, seed=1)))
    assert np.isfinite(ssim(noise(19, 19), noise(19, 19, seed=1)))
