"""What frames take over from those before them: where, and what it does to flicker."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from amsa import Upscaler
from amsa.engine.demo import load_pair
from amsa.engine.fusion import Map, skip_lightest
from amsa.engine.images import Photo, from_array, resize_bicubic
from amsa.engine.video.history import FrameHistory

from .clips import pictures

SIZE = (24, 32)


def found(seed: int, size: tuple[int, int] = SIZE) -> tuple[list[NDArray[np.int32]], list[Map]]:
    """Matches and relevances of two references, as the stage gives them."""
    rng = np.random.default_rng(seed)
    matches = [rng.integers(0, 99, (1, 2, size[0] + 2, size[1] + 2), dtype=np.int32) for _ in range(2)]
    return matches, [rng.random((1, 1, *size), np.float32) for _ in range(2)]


def lr(picture: NDArray[Any]) -> NDArray[np.float32]:
    return np.ascontiguousarray(picture.transpose(2, 0, 1)[None], np.float32) / 255


def test_what_stands_still_keeps_its_matches() -> None:
    history, picture = FrameHistory(), pictures(1)[0]
    first, second = found(1), found(2)
    assert history.recall(lr(picture), *first) == first
    moved = picture.copy()
    moved[:, 16:] = pictures(1, seed=9)[0][:, 16:]
    matches, relevances = history.recall(lr(moved), *second)
    for old, new, kept in zip(first[0], second[0], matches, strict=True):
        assert np.array_equal(kept[..., 1:-1, 1:11], old[..., 1:-1, 1:11])  # place 1 is the patch in the middle of pixel 0
        assert np.array_equal(kept[..., 1:-1, 24:-1], new[..., 1:-1, 24:-1])
    for old, new, kept in zip(first[1], second[1], relevances, strict=True):
        assert np.array_equal(kept[..., :10], old[..., :10])
        assert np.array_equal(kept[..., 23:], new[..., 23:])
    assert 0.3 < history.reused < 0.6


def test_noise_is_no_change_and_a_cut_is() -> None:
    rng = np.random.default_rng(0)
    for sigma, picture, reused in ((2, pictures(1)[0], 1.0), (3.5, pictures(1)[0], 1.0), (0, pictures(1, seed=4)[0], 0.1)):
        history = FrameHistory()
        before = np.clip(pictures(1)[0] + rng.normal(0, sigma, (*SIZE, 3)), 0, 255)
        history.recall(lr(before), *found(1))
        history.recall(lr(np.clip(picture + rng.normal(0, sigma, (*SIZE, 3)), 0, 255)), *found(2))
        assert history.reused >= 0.9 if reused == 1 else history.reused < reused


def test_slow_changes_add_up() -> None:
    """A fade of one level a frame: compared with the last frame alone, it would never be a change."""
    history = FrameHistory()
    reused = []
    for step in range(12):
        history.recall(lr(np.full((*SIZE, 3), 100 + step, np.uint8)), *found(step))
        reused.append(history.reused)
    assert reused[1:3] == [1.0, 1.0]
    assert reused.count(0.0) >= 2


def weights(*shares: float) -> list[Map]:
    return [np.full((1, 1, *SIZE), share, np.float32) for share in shares]


def test_the_references_stay_while_they_serve() -> None:
    history = FrameHistory()

    def kept(*shares: float) -> list[int]:
        chosen = history.choose(weights(*shares), SIZE, 0.6)
        assert np.allclose(sum(share for share in chosen if share is not None), 1)
        return [i for i, share in enumerate(chosen) if share is not None]

    assert kept(0.42, 0.38, 0.2) == [0]
    assert [i for i, share in enumerate(skip_lightest(weights(0.38, 0.42, 0.2), SIZE, 0.6)) if share is not None] == [1]
    assert kept(0.38, 0.42, 0.2) == [0]
    assert kept(0.2, 0.6, 0.2) == [1]
    assert kept(0.38, 0.42, 0.2) == [1]


def test_slow_motion_is_a_change() -> None:
    """Of half a pixel, in a picture that it changes no more than noise would."""
    history, frames = FrameHistory(), pictures(2, 48, 64)
    half = (frames[0].astype(np.float32) + frames[1]) / 2
    history.recall(lr(80 + 0.35 * frames[0]), *found(1, (48, 64)))
    history.recall(lr(80 + 0.35 * half), *found(2, (48, 64)))
    assert history.reused < 0.5


def test_the_upscaler_asks_which_references_to_restore(monkeypatch: pytest.MonkeyPatch) -> None:
    upscaler, picture, reference = Upscaler(threads=1), from_array(pictures(1)[0]), from_array(pictures(1, 64, 72, seed=1)[0])
    alone = upscaler.upscale_photo(picture, [reference]).rgb
    history = FrameHistory()
    monkeypatch.setattr(history, "choose", lambda weights, size, skip: skip_lightest(weights, size, 0.0))
    assert not np.array_equal(upscaler.upscale_photo(picture, [reference], history=history).rgb, alone)


def test_never_more_references_than_needed() -> None:
    history = FrameHistory()
    many = history.choose(weights(0.3, 0.3, 0.3, 0.1), SIZE, 0.35)
    assert sum(share is not None for share in many) == 3
    few = history.choose(weights(0.7, 0.1, 0.1, 0.1), SIZE, 0.35)
    assert sum(share is not None for share in few) == 1


def test_state_and_back() -> None:
    a = FrameHistory()
    a.recall(lr(pictures(1)[0]), *found(1))
    a.choose(weights(0.4, 0.35, 0.25), SIZE, 0.6)
    b = FrameHistory.from_state(a.state())
    for picture, seed in ((pictures(2)[1], 2), (pictures(2)[1], 3)):
        for kept_a, kept_b in zip(a.recall(lr(picture), *found(seed)), b.recall(lr(picture), *found(seed)), strict=True):
            assert all(np.array_equal(x, y) for x, y in zip(kept_a, kept_b, strict=True))
    assert FrameHistory.from_state(FrameHistory().state()).state() == {}


@pytest.mark.parametrize("sigma", [1, 2])
def test_a_still_flickers_less(sigma: int) -> None:
    """With noise alone, results change by less than 0.9 of what they do without (figures: docs/video.md)."""
    rng = np.random.default_rng(0)
    left, right = (photo.rgb for photo in load_pair())
    truth, reference = left[100:260, 100:292], np.ascontiguousarray(right[80:280, 60:292])
    picture = 255 * resize_bicubic(truth, 40, 48)
    frames = [np.clip(picture + rng.normal(0, sigma, picture.shape), 0, 255).astype(np.uint8) for _ in range(4)]
    upscaler = Upscaler(threads=1)
    encoded = upscaler.encode_reference(Photo(reference))
    change = []
    for history in (None, FrameHistory()):
        made = [upscaler.upscale_photo(from_array(frame), [encoded], history=history).rgb for frame in frames]
        change.append(np.mean([np.abs(b - a).mean() for a, b in pairwise(made)]))
    assert change[1] < 0.9 * change[0]
