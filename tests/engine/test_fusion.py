"""Fusion weights, and which references are left out because they weigh little."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from amsa import AmsaError, Upscaler
from amsa.engine.backends import SHIPPED_MODEL
from amsa.engine.demo import load_pair, shrink
from amsa.engine.fusion import BLOCK, SKIP, fusion_weights, skip_lightest
from amsa.engine.images import Photo
from amsa.engine.metrics import compare_pictures
from amsa.engine.upscaler import Stats
from amsa.model.matching import fusion_weights as torch_fusion_weights


def maps(*values: float, rows: int = 40, cols: int = 53) -> list[NDArray[np.float32]]:
    return [np.full((1, 1, rows, cols), value, np.float32) for value in values]


def test_fusion_weights_are_torchs() -> None:
    rng = np.random.default_rng(0)
    relevances = [rng.normal(size=(1, 1, 5, 7)).astype(np.float32) for _ in range(3)]
    weights = fusion_weights(relevances, 10.0)
    np.testing.assert_allclose(sum(weights), 1, rtol=1e-6)
    expected = torch_fusion_weights([torch.from_numpy(r) for r in relevances], 10.0)
    np.testing.assert_allclose(np.stack(weights), torch.stack(expected).numpy(), atol=1e-6)


def test_the_lightest_go_as_far_as_allowed() -> None:
    weights = maps(0.5, 0.1, 0.15, 0.25)
    kept = skip_lightest(weights, (40, 53), 0.3)
    assert [k is not None for k in kept] == [True, False, False, True]
    np.testing.assert_allclose(kept[0], 0.5 / 0.75, rtol=1e-6)
    np.testing.assert_allclose(kept[3], 0.25 / 0.75, rtol=1e-6)
    assert all(a is b for a, b in zip(skip_lightest(weights, (40, 53), 0), weights, strict=True))


def test_one_is_always_kept() -> None:
    assert [k is not None for k in skip_lightest(maps(0.4, 0.6), (40, 53), 0.999)] == [False, True]
    (only,) = skip_lightest(maps(1.0), (40, 53), 0.9)
    assert only is not None


def test_what_serves_a_corner_alone_stays() -> None:
    a, b = maps(1.0, 0.0)
    a[0, 0, -BLOCK:, -BLOCK:], b[0, 0, -BLOCK:, -BLOCK:] = 0, 1  # 12% of the picture
    kept = skip_lightest([a, b], (40, 53), 0.5)
    assert all(k is not None for k in kept)
    # beyond the picture it does not count
    assert skip_lightest([a, b], (24, 37), 0.5)[1] is None


@pytest.mark.parametrize("size", [(2, 3), (15, 16), (16, 17), (31, 33), (47, 20)])
def test_any_size(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(sum(size))
    weights = fusion_weights([rng.normal(size=(1, 1, *size)).astype(np.float32) for _ in range(4)], 3.0)
    for skip in (0.0, 0.3, 0.6, 0.95):
        kept = [k for k in skip_lightest(weights, size, skip) if k is not None]
        assert kept
        assert {k.dtype for k in kept} == {np.dtype(np.float32)}
        np.testing.assert_allclose(sum(kept), 1, rtol=1e-5)


def test_weights_that_underflow_still_sum_to_one() -> None:
    a, b = maps(1.0, 0.0)
    a[0, 0, 0, 0], b[0, 0, 0, 0] = 0, 1  # one pixel of a block, served by what is left out
    (kept, gone) = skip_lightest([a, b], (40, 53), 0.5)
    assert gone is None
    np.testing.assert_array_equal(kept, np.ones_like(a))


def test_the_shipped_model_leaves_out_what_does_not_help() -> None:
    truth, ref = load_pair()
    lr, _ = shrink(truth)
    psnr, stats = {}, {}
    for skip in (0.0, None):
        stats[skip] = Stats()
        sr = Upscaler(SHIPPED_MODEL, skip=skip).upscale_photo(lr, [ref], stats=stats[skip])
        psnr[skip] = compare_pictures(sr.rgb, truth.rgb).psnr_y
    assert (stats[0.0].matched, stats[0.0].restored) == (5, 5)
    assert (stats[None].matched, stats[None].restored) == (5, 2)
    assert psnr[None] >= psnr[0.0] - 0.02
    assert Upscaler(SHIPPED_MODEL).skip == SKIP["small"]


def test_progress_counts_what_is_done() -> None:
    truth, ref = load_pair()
    steps: list[tuple[int, int]] = []
    lr = Photo(shrink(truth)[0].rgb[:32, :32])
    Upscaler(SHIPPED_MODEL).upscale_photo(lr, [Photo(ref.rgb[:96, :96])], progress=lambda i, n, _: steps.append((i, n)))
    assert [i for i, _ in steps] == [*range(len(steps))]
    assert steps[-1][0] == steps[-1][1] - 1


def test_wrong_limits() -> None:
    for skip in (-0.1, 1.0, float("nan")):
        with pytest.raises(AmsaError, match="it must be from 0"):
            Upscaler(SHIPPED_MODEL, skip=skip)
