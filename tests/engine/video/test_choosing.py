"""Which references serve a clip as a whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from amsa import AmsaError, Upscaler
from amsa.engine.images import Photo, from_array, resize_bicubic
from amsa.engine.ranking import rank
from amsa.engine.video import upscale_video
from amsa.engine.video.choosing import MOST_FRAMES, FrameSample, _most_useful, choose_for_clip
from amsa.engine.video.clip import read_clip

from .clips import make_clip, pictures


def chosen(relevances: list[list[float]], most: int) -> list[int]:
    """Places of those that are chosen, by their relevance to each frame."""
    left, places = dict(enumerate(relevances)), list[int]()
    while left and len(places) < most:
        places.append(_most_useful(left, [relevances[place] for place in places]))
        del left[places[-1]]
    return places


@pytest.mark.parametrize(
    ("relevances", "expected"),
    [
        ([[0.9, 0.1], [0.3, 0.3], [0.1, 0.9]], [0, 2, 1]),  # one for each scene before one that serves both a little
        ([[0.9, 0.1], [0.8, 0.7], [0.1, 0.9]], [1, 2, 0]),
        ([[0.5], [0.7], [0.7], [0.6]], [1, 2, 3, 0]),  # one frame: by relevance, among equals in order
    ],
)
def test_scenes_share_the_references(relevances: list[list[float]], expected: list[int]) -> None:
    assert chosen(relevances, 3) == expected[:3]
    assert chosen(relevances, len(expected)) == expected


@pytest.mark.parametrize("count", [1, MOST_FRAMES, MOST_FRAMES + 1, 75])
def test_frames_are_spread_over_the_clip(count: int, tmp_path: Path) -> None:
    frames = [np.full((16, 20, 3), 3 * i, np.uint8) for i in range(count)]
    sample = FrameSample()
    read_clip(make_clip(tmp_path / "a.mkv", frames, codec="ffv1", pix_fmt="bgr0"), sample)
    levels = [round(255 * float(frame.rgb.mean()) / 3) for frame in sample.frames]
    steps = set(np.diff(levels).tolist())
    assert len(steps) <= 1
    assert levels[0] == 0
    assert min(count, MOST_FRAMES // 2) <= len(levels) <= MOST_FRAMES
    assert count - levels[-1] <= max(steps, default=1)


def test_a_clip_of_one_picture_ranks_as_that_picture() -> None:
    upscaler = Upscaler(threads=1)
    scenes = [from_array(pictures(1, 96, 96, seed)[0]) for seed in range(5)]
    lr = Photo(resize_bicubic(scenes[3].rgb, 24, 24))
    order = [ranked.candidate for ranked in rank(upscaler.backend_in_use, lr, scenes)]
    places, photos = choose_for_clip(upscaler.backend_in_use, [lr, lr], scenes, 4)
    assert places == order[:4]
    assert photos == [scenes[place] for place in places]
    assert places[0] == 3


def test_wrong_numbers_and_no_candidate(tmp_path: Path) -> None:
    upscaler = Upscaler(threads=1)
    clip = make_clip(tmp_path / "a.mp4", pictures(2))
    with pytest.raises(AmsaError, match="max_refs is 0; it must be at least 1"):
        upscale_video(upscaler, clip, [pictures(1, 64, 64)[0]], tmp_path / "out.mp4", max_refs=0)
    broken = [tmp_path / "a.png", tmp_path / "b.png"]
    for path in broken:
        path.write_bytes(b"no picture")
    with (
        pytest.warns(UserWarning, match="left out of the references"),
        pytest.raises(AmsaError, match="none of 2 photos can be a reference"),
    ):
        upscale_video(upscaler, clip, broken, tmp_path / "out.mp4", max_refs=1)
    assert not (tmp_path / "out.mp4").exists()
