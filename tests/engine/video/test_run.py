"""A clip from end to end: what is kept, resuming after a kill, and what is told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import warnings
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.stream import Disposition
from numpy.typing import NDArray

from amsa import AmsaError, Upscaler
from amsa.engine.images import from_array, resize_bicubic
from amsa.engine.metrics import psnr
from amsa.engine.video import upscale_video
from amsa.engine.video.clip import read_clip
from amsa.engine.video.encoding import Encoding
from amsa.engine.video.history import FrameHistory

from .clips import decode, make_clip, packets, pictures, remux

TIMES = [0, 50, 100, 151, 200, 250, 400, 401, 450, 500, 550, 600]  # of 600 in a second: a variable rate
METADATA = {"title": "A title", "creation_time": "2020-02-03T04:05:06.000000Z", "comment": "A comment"}
TAGS = {"color_primaries": 9, "color_trc": 16, "colorspace": 9, "color_range": 1, "sample_aspect_ratio": Fraction(4, 3)}
REFERENCE: NDArray[np.uint8] = pictures(1, 64, 72, seed=1)[0]


@pytest.fixture(scope="module")
def upscaler() -> Upscaler:
    return Upscaler(threads=1)


def upscale(upscaler: Upscaler, path: Path, output: Path, **arguments: Any) -> Any:
    return upscale_video(upscaler, path, [REFERENCE], output, segment=5, **arguments)


def half_still(count: int) -> list[NDArray[np.uint8]]:
    """Pictures whose left half stands still but for noise, so that frames take over matches from those before."""
    rng, frames = np.random.default_rng(0), pictures(count)
    for frame in frames:
        frame[:, :20] = np.clip(frames[0][:, :20] + rng.normal(0, 3, (24, 20, 3)), 0, 255)
    return frames


@pytest.fixture(scope="module")
def result(upscaler: Upscaler, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A clip with everything in it, and its result."""
    folder = tmp_path_factory.mktemp("clip")
    path = make_clip(
        folder / "a.mp4",
        half_still(12),
        TIMES,
        Fraction(1, 600),
        sound=True,
        metadata=METADATA,
        chapters=True,
        tags=TAGS,
        subtitle="mov_text",
    )
    said: list[tuple[int, int, str]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = upscale(upscaler, path, folder / "out.mp4", progress=lambda *step: said.append(step))
    assert (report.width, report.height, report.frames, report.resumed) == (128, 96, 12, 0)
    assert [done for done, _, _ in said] == list(range(13))
    assert said[1][2].startswith("frame 2 of 12, ")
    assert sorted(p.name for p in folder.iterdir()) == ["a.mp4", "out.mp4"]
    return path, folder / "out.mp4"


# ------------------------------------------------------------------------------------------------ what is kept


def test_every_frame_at_its_time(result: tuple[Path, Path]) -> None:
    times = [time for time, _ in decode(result[1])]
    assert times == [Fraction(t, 600) for t in TIMES]
    with av.open(str(result[1])) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height, stream.codec.name) == (128, 96, "h264")
        decoding = [p.dts for p in container.demux(stream) if p.dts is not None]
        assert decoding == sorted(set(decoding))


def test_frames_are_the_upscaled_ones(result: tuple[Path, Path], upscaler: Upscaler) -> None:
    """Frame by frame what `upscale_photo` gives, but for the encoder's loss."""
    history, encoded = FrameHistory(), upscaler.encode_reference(REFERENCE)
    with av.open(str(result[1])) as container:
        for frame, photo in zip(container.decode(video=0), read_clip(result[0]).photos(), strict=True):
            sr = upscaler.upscale_photo(photo, [encoded], history=history).rgb
            rgb = frame.reformat(format="rgb24", src_colorspace=9).to_ndarray()
            assert psnr(255 * sr[8:-8, 8:-8], rgb[8:-8, 8:-8].astype(np.float32)) > 27
            small = resize_bicubic(rgb.astype(np.float32), 24, 32)
            assert np.abs(small - 255 * photo.rgb).mean() < 8


@pytest.mark.parametrize("kind", ["audio", "subtitle"])
def test_other_streams_are_copied(result: tuple[Path, Path], kind: str) -> None:
    assert packets(result[1], kind) == packets(result[0], kind)


def test_metadata_and_chapters(result: tuple[Path, Path]) -> None:
    with av.open(str(result[0])) as source, av.open(str(result[1])) as target:
        assert {k: target.metadata.get(k) for k in METADATA} == METADATA
        assert target.chapters() == source.chapters()
        assert [s.type for s in target.streams] == [s.type for s in source.streams]
        assert target.streams.audio[0].metadata["language"] == "fra"


def test_colour_tags(result: tuple[Path, Path]) -> None:
    with av.open(str(result[1])) as container:
        context = container.streams.video[0].codec_context
        found = {name: getattr(context, name) for name in TAGS}
        assert found | {"sample_aspect_ratio": container.streams.video[0].sample_aspect_ratio} == TAGS


def test_ten_bits_odd_sides_and_matroska(upscaler: Upscaler, tmp_path: Path) -> None:
    deep = [(257 * p.astype(np.uint16))[:23, :31] for p in pictures(3)]
    path = make_clip(tmp_path / "a.mkv", deep, codec="ffv1", pix_fmt="yuv444p10le", sound=True)
    upscale(upscaler, path, tmp_path / "out.mkv", codec="hevc")
    with av.open(str(tmp_path / "out.mkv")) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height, stream.pix_fmt, stream.codec.name) == (124, 92, "yuv444p10le", "hevc")
        frame = next(container.decode(video=0))
        luma = np.frombuffer(frame.planes[0], np.uint16).reshape(frame.height, -1)[:, : frame.width]
        assert (luma % 4 != 0).any()
    assert packets(tmp_path / "out.mkv", "audio") == packets(path, "audio")


def test_a_turned_clip_comes_out_upright(upscaler: Upscaler, tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4", pictures(2), rotation=90)
    upscale(upscaler, path, tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as container:
        frame = next(container.decode(video=0))
        assert (frame.width, frame.height, frame.rotation) == (96, 128, 0)
        small = resize_bicubic(frame.to_ndarray(format="rgb24").astype(np.float32), 32, 24)
        assert np.abs(small - np.rot90(pictures(2)[0])).mean() < 12


def test_cover_pictures(upscaler: Upscaler, tmp_path: Path) -> None:
    make_clip(tmp_path / "plain.mp4", pictures(2))
    cover = packets(make_clip(tmp_path / "cover.mkv", pictures(1, seed=5), codec="mjpeg", pix_fmt="yuvj420p"), "video")[0][1]
    with av.open(str(tmp_path / "plain.mp4")) as source, av.open(str(tmp_path / "a.mp4"), "w") as result:
        video = result.add_stream_from_template(source.streams.video[0])
        with av.open(str(tmp_path / "cover.mkv")) as picture:
            still = result.add_stream_from_template(picture.streams.video[0], opaque=True)
            still.disposition = Disposition.attached_pic
            for packet in source.demux(video=0):
                if packet.dts is not None:
                    packet.stream = video
                    result.mux(packet)
            attached = av.Packet(cover)
            attached.stream, attached.pts, attached.dts, attached.time_base = still, 0, 0, Fraction(1, 1000)
            result.mux(attached)
    upscale(upscaler, tmp_path / "a.mp4", tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as container:
        copied = container.streams.video[1]
        assert copied.disposition & Disposition.attached_pic
        assert [bytes(p) for p in container.demux(copied) if p.size] == [cover]


def test_av1_in_webm(upscaler: Upscaler, tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4", pictures(6), sound=True)
    with pytest.warns(UserWarning, match=r"audio stream 1 \(aac\) is left out: \.webm files cannot hold it; write a \.mkv"):
        upscale(upscaler, path, tmp_path / "out.webm", codec="av1")
    with av.open(str(tmp_path / "out.webm")) as container:
        assert [s.codec_context.name for s in container.streams] == ["libdav1d"]
        assert len(list(container.decode(video=0))) == 6


def test_equal_frames_are_computed_once(upscaler: Upscaler, tmp_path: Path) -> None:
    still = pictures(1)[0]
    path = make_clip(tmp_path / "a.mkv", [still] * 8, codec="ffv1")
    report = upscale(upscaler, path, tmp_path / "out.mkv")
    assert report.repeated == 6  # but the first of each segment
    frames = [luma for _, luma in decode(tmp_path / "out.mkv")]
    assert len(frames) == 8


# ------------------------------------------------------------------------------------------------ going on


KILLED = """
import sys, warnings
import numpy as np
from pathlib import Path
from amsa import Upscaler
from amsa.engine.video import upscale_video
warnings.simplefilter("error")
reference = np.load(sys.argv[3])
print(upscale_video(Upscaler(threads=1), sys.argv[1], [reference], sys.argv[2], segment=5).resumed)
"""


def test_killed_and_gone_on(result: tuple[Path, Path], tmp_path: Path) -> None:
    """As if it had never been killed: every frame equal, every time, and the sound."""
    path, whole = result
    np.save(tmp_path / "reference.npy", REFERENCE)
    output = tmp_path / "out.mp4"
    command = [sys.executable, "-c", KILLED, str(path), str(output), str(tmp_path / "reference.npy")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    saved = tmp_path / "out.mp4.amsa" / "segment_0000.nut"
    while not saved.exists():
        assert process.poll() is None
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not output.exists()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) >= 5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.mp4", "reference.npy"]
    for (time_a, a), (time_b, b) in zip(decode(whole), decode(output), strict=True):
        assert time_a == time_b
        assert np.array_equal(a, b)
    assert packets(output, "audio") == packets(whole, "audio")


class Stopped(Exception):
    pass


def stop_at(frame: int) -> Any:
    def progress(done: int, _total: int, _what: str) -> None:
        if done == frame:
            raise Stopped

    return progress


@pytest.fixture
def stopped(upscaler: Upscaler, tmp_path: Path) -> Path:
    """A clip of 12 frames whose upscaling ended in the third segment."""
    path = make_clip(tmp_path / "a.mp4", pictures(12))
    with pytest.raises(Stopped):
        upscale(upscaler, path, tmp_path / "out.mp4", progress=stop_at(11))
    return path


def test_it_goes_on_after_the_last_whole_segment(upscaler: Upscaler, stopped: Path) -> None:
    report = upscale(upscaler, stopped, stopped.with_name("out.mp4"))
    assert (report.resumed, report.frames) == (10, 12)


@pytest.mark.parametrize("change", ["codec", "references", "clip", "setting"])
def test_it_begins_anew_after_a_change(upscaler: Upscaler, stopped: Path, change: str) -> None:
    reference, arguments = REFERENCE, {}
    if change == "codec":
        arguments = {"crf": 30}
    elif change == "setting":
        arguments = {"seed": 5}
    elif change == "clip":
        make_clip(stopped, pictures(12, seed=3))
    else:
        reference = pictures(1, 64, 72, seed=2)[0]
    with pytest.warns(UserWarning, match=f"made with another {change}; it begins anew"):
        report = upscale_video(upscaler, stopped, [reference], stopped.with_name("out.mp4"), segment=5, **arguments)
    assert report.resumed == 0


def test_damaged_segments_are_made_again(upscaler: Upscaler, stopped: Path) -> None:
    folder = stopped.with_name("out.mp4.amsa")
    segment = folder / "segment_0001.nut"
    segment.write_bytes(segment.read_bytes()[:2000])
    (folder / "history_0000.npz").write_bytes(b"damaged")
    assert upscale(upscaler, stopped, stopped.with_name("out.mp4")).resumed == 0


def test_two_at_once(upscaler: Upscaler, tmp_path: Path) -> None:
    path, output = make_clip(tmp_path / "a.mp4", pictures(3)), tmp_path / "out.mp4"

    def second(done: int, _total: int, _what: str) -> None:
        if done == 1:
            with pytest.raises(AmsaError, match="is being made by another process"):
                upscale(upscaler, path, output)

    upscale(upscaler, path, output, progress=second)


def test_nothing_is_left_of_a_run_that_saved_nothing(upscaler: Upscaler, tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4", pictures(3))
    with pytest.raises(Stopped):
        upscale(upscaler, path, tmp_path / "out.mp4", progress=stop_at(2))
    with pytest.raises(AmsaError, match="seed is -1"):
        upscale(upscaler, path, tmp_path / "out.mp4", seed=-1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4"]


# ------------------------------------------------------------------------------------------------ what is refused or told


@pytest.mark.parametrize(
    ("output", "arguments", "words"),
    [
        ("out.png", {}, "names no video format"),
        ("absent/out.mp4", {}, "create it first"),
        ("a.mp4", {}, "also an input"),
        ("folder.mp4", {}, "is a folder"),
        ("out.webm", {}, "WebM holds no h264"),
        ("out.mp4", {"codec": "vp9"}, "choose one of h264, hevc, av1"),
        ("out.mp4", {"crf": 52}, "crf is 52; with h264 it must be from 0"),
    ],
)
def test_outputs_and_settings_that_do_not_fit(
    upscaler: Upscaler, tmp_path: Path, output: str, arguments: dict[str, Any], words: str
) -> None:
    (tmp_path / "folder.mp4").mkdir()
    path = make_clip(tmp_path / "a.mp4", pictures(2))
    before = path.read_bytes()
    with pytest.raises(AmsaError, match=words):
        upscale(upscaler, path, tmp_path / output, **arguments)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "folder.mp4"]
    assert path.read_bytes() == before


def test_small_references_and_none(upscaler: Upscaler, tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4", pictures(2))
    with pytest.raises(AmsaError, match="at least 64 on each side"):
        upscale_video(upscaler, path, [REFERENCE[:50]], tmp_path / "out.mp4")
    with pytest.raises(AmsaError, match="no reference photo"):
        upscale_video(upscaler, path, [], tmp_path / "out.mp4")


def test_what_a_codec_cannot_hold(tmp_path: Path) -> None:
    large = read_clip(make_clip(tmp_path / "a.mp4", [np.zeros((1500, 1600, 3), np.uint8)]))
    with pytest.raises(AmsaError, match=r"6400x6000; h264 holds 35\.7 megapixels .* or take --codec av1"):
        Encoding.of(large, tmp_path / "out.mp4", "h264", None)
    full = read_clip(make_clip(tmp_path / "b.mkv", pictures(2), codec="ffv1", pix_fmt="yuv444p"))
    assert Encoding.of(full, tmp_path / "out.mp4", "h264", None).format == "yuv444p"
    encoding = Encoding.of(full, tmp_path / "out.mp4", "av1", None)
    assert (encoding.format, encoding.notes) == ("yuv420p", ("av1 keeps chroma at 4:2:0, and the source has 4:4:4",))


def test_frames_that_could_not_be_decoded_are_in_the_result(upscaler: Upscaler, tmp_path: Path) -> None:
    whole = make_clip(tmp_path / "whole.mkv", pictures(7), codec="mjpeg", pix_fmt="yuvj420p")
    path = remux(whole, tmp_path / "a.mkv", {3: b"garbage"})
    with pytest.warns(UserWarning, match=r"1 frame could not be decoded, at 0\.25 s"):
        report = upscale(upscaler, path, tmp_path / "out.mkv")
    assert (report.frames, report.repeated) == (7, 1)
    assert [time for time, _ in decode(tmp_path / "out.mkv")] == [time for time, _ in packets(path, "video")]


def test_subtitles_that_the_container_cannot_hold(upscaler: Upscaler, tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mkv", pictures(2), subtitle="subrip", metadata={"mood": "calm"})
    with (
        pytest.warns(UserWarning, match="is left out: .mp4 files cannot hold it"),
        pytest.warns(UserWarning, match="no place for the metadata mood"),
    ):
        upscale(upscaler, path, tmp_path / "out.mp4")


def test_photos_and_clips_have_one_upscaler(upscaler: Upscaler) -> None:
    """A first frame is what the photo alone gives."""
    photo = from_array(pictures(1)[0])
    alone = upscaler.upscale_photo(photo, [from_array(REFERENCE)])
    assert np.array_equal(upscaler.upscale_photo(photo, [from_array(REFERENCE)], history=FrameHistory()).rgb, alone.rgb)
