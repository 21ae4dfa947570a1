"""What is read of a clip, and one line for every kind of broken one."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from amsa import AmsaError
from amsa.engine.video.clip import read_clip

from .clips import decode, make_clip, packets, pictures, remux


def test_every_frame_and_its_time(tmp_path: Path) -> None:
    times = [0, 7, 8, 20, 90, 91, 92, 300]
    clip = read_clip(make_clip(tmp_path / "a.mp4", pictures(8), times, Fraction(1, 600)))
    assert [t * clip.time_base for t in clip.times] == [Fraction(t, 600) for t in times]
    photos = list(clip.photos())
    assert len(photos) == 8
    for photo, picture in zip(photos, pictures(8), strict=True):
        assert np.abs(255 * photo.rgb - picture).mean() < 8  # chroma at half resolution


def test_ten_bits_are_read(tmp_path: Path) -> None:
    ramp = np.repeat(np.linspace(0, 65535, 256)[None, :, None], 16, 0).repeat(3, 2).astype(np.uint16)
    clip = read_clip(make_clip(tmp_path / "a.mkv", [ramp, ramp], pix_fmt="yuv420p10le"))
    photo = next(clip.photos())
    assert (photo.bits, clip.pixels.bits) == (16, 10)
    assert len(np.unique(np.round(1023 * photo.rgb[8, :, 1]))) > 230  # 8 bits limited: at most 220


def test_a_turned_clip_is_read_upright(tmp_path: Path) -> None:
    clip = read_clip(make_clip(tmp_path / "a.mp4", pictures(3), rotation=90, tags={"sample_aspect_ratio": Fraction(4, 3)}))
    assert (clip.width, clip.height, clip.aspect) == (24, 32, Fraction(3, 4))
    photo = next(clip.photos())
    assert np.abs(255 * photo.rgb - np.rot90(pictures(3)[0], 1)).mean() < 8


def sound_only(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def sizes_change(path: Path) -> None:
    """As a transport stream may: another size from one key picture to the next."""
    for name, size in (("a.ts", (24, 32)), ("b.ts", (48, 64))):
        make_clip(path.with_name(name), pictures(6, *size), codec="mpeg2video")
    path.write_bytes(path.with_name("a.ts").read_bytes() + path.with_name("b.ts").read_bytes())


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda p: None, "does not exist"),
    "empty": (lambda p: p.touch(), "is empty"),
    "folder": (lambda p: p.mkdir(), "no regular file"),
    "text": (lambda p: p.write_text("hello " * 99), "damaged, cut short or no video"),
    "cut before its index": (
        lambda p: p.write_bytes(make_clip(p.with_name("whole.mp4"), pictures(9)).read_bytes()[:2000]),
        "damaged, cut short or no video",
    ),
    "sound only": (sound_only, "holds no video stream"),
    "small": (lambda p: make_clip(p, pictures(3, 14, 32)), "32x14 pixels; at least 16"),
    "another size": (sizes_change, "changes from 32x24 yuv420p to 64x48 yuv420p at "),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_clips(tmp_path: Path, kind: str) -> None:
    make, words = BROKEN[kind]
    path = tmp_path / ("clip.ts" if kind == "another size" else "clip.mp4")
    make(path)
    with pytest.raises(AmsaError) as caught:
        read_clip(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_frames(tmp_path: Path) -> None:
    whole = make_clip(tmp_path / "whole.mkv", pictures(3), codec="mjpeg", pix_fmt="yuvj420p")
    path = remux(whole, tmp_path / "a.mkv", dict.fromkeys(range(3), b"garbage"))
    with pytest.raises(AmsaError, match="not one frame could be decoded"):
        read_clip(path)


def test_a_frame_that_cannot_be_decoded(tmp_path: Path) -> None:
    """The one before stands in for it, and its time is told."""
    whole = make_clip(tmp_path / "whole.mkv", pictures(8), codec="mjpeg", pix_fmt="yuvj420p")
    path = remux(whole, tmp_path / "a.mkv", {3: b"garbage", 4: b"garbage"})
    with pytest.warns(UserWarning, match=r"2 frames could not be decoded, at 0\.25 s, 0\.33 s; the one before"):
        clip = read_clip(path)
    assert (len(clip.times), clip.stand_ins) == (8, {3, 4})
    photos = list(clip.photos())
    assert np.array_equal(photos[3].rgb, photos[2].rgb)
    assert np.array_equal(photos[4].rgb, photos[2].rgb)
    assert not np.array_equal(photos[5].rgb, photos[2].rgb)


def test_a_damaged_frame(tmp_path: Path) -> None:
    """What the decoder makes of it is used, and told."""
    whole = make_clip(tmp_path / "whole.mkv", pictures(8, 96, 128))
    content = packets(whole, "video")[2][1]
    path = remux(whole, tmp_path / "a.mkv", {2: content[: len(content) // 2] + bytes(len(content) // 2)})
    with pytest.warns(UserWarning, match=r"(damaged: \d+ frames?|frames? could not be decoded), at 0\.\d+ s"):
        clip = read_clip(path)
    assert len(clip.times) == 8
    assert len(list(clip.photos())) == 8


def test_a_clip_that_ends_early(tmp_path: Path) -> None:
    whole = make_clip(tmp_path / "whole.mp4", pictures(24, 48, 64), sound=True)
    with av.open(str(whole)) as source, av.open(str(tmp_path / "fast.mp4"), "w", options={"movflags": "faststart"}) as result:
        streams = [result.add_stream_from_template(s) for s in source.streams]
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                result.mux(packet)
    content = (tmp_path / "fast.mp4").read_bytes()
    path = tmp_path / "a.mp4"
    path.write_bytes(content[: int(0.6 * len(content))])
    with pytest.warns(UserWarning, match=r"it ends early, at [01]\.\d+ s .*; what could be decoded is kept"):
        clip = read_clip(path)
    assert 1 <= len(clip.times) < 24
    assert len(list(clip.photos())) == len(clip.times)


def test_a_whole_clip_is_told_nothing_of(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("a.mp4", "a.mkv", "a.mov"):
            read_clip(make_clip(tmp_path / name, pictures(12), sound=True, chapters=True))
        read_clip(make_clip(tmp_path / "b.mkv", pictures(2), sound=True, subtitle="subrip"))  # sound goes on after the pictures


def test_frames_without_times(tmp_path: Path) -> None:
    make_clip(tmp_path / "a.h264", pictures(6))
    with pytest.warns(UserWarning, match="no times; they are counted at "):
        clip = read_clip(tmp_path / "a.h264")
    assert clip.times == tuple(range(6))
    assert len(list(clip.photos())) == 6


def test_the_same_frames_twice(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4", pictures(6))
    assert len(decode(path)) == len(read_clip(path).times)
