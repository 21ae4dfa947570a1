"""Small clips for the tests."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

RATE = 8000
ASS = b"""[Script Info]
ScriptType: v4.00+
[V4+ Styles]
Format: Name, Fontname, Fontsize, PrimaryColour, SecondaryColour, OutlineColour, BackColour, Bold, Italic, Underline, StrikeOut, \
ScaleX, ScaleY, Spacing, Angle, BorderStyle, Outline, Shadow, Alignment, MarginL, MarginR, MarginV, Encoding
Style: Default,Arial,16,&Hffffff,&Hffffff,&H0,&H0,0,0,0,0,100,100,0,0,1,1,0,2,10,10,10,1
[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
"""


def pictures(count: int, height: int = 24, width: int = 32, seed: int = 0, step: int = 1) -> list[NDArray[np.uint8]]:
    """A smooth picture that moves by `step` pixels a frame."""
    rng = np.random.default_rng(seed)
    wide = width + step * count
    coarse = Image.fromarray(rng.integers(0, 256, (height // 8 + 1, wide // 8 + 1, 3), np.uint8))
    scene = np.asarray(coarse.resize((wide, height), Image.Resampling.BICUBIC))
    return [np.ascontiguousarray(scene[:, step * i : step * i + width]) for i in range(count)]


def make_clip(
    path: Path,
    frames: Sequence[NDArray[Any]],
    times: Sequence[int] | None = None,
    time_base: Fraction = Fraction(1, 12),
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    sound: bool = False,
    rotation: float | None = None,
    metadata: dict[str, str] | None = None,
    chapters: bool = False,
    tags: dict[str, Any] | None = None,
    subtitle: str = "",
) -> Path:
    """Write pictures (uint8, or uint16 for 10 bits) as a clip with, if asked for, a sine, two chapters, or a line of text."""
    with av.open(str(path), "w") as container:
        options = {"crf": "10", "bf": "2"} if codec == "libx264" else {}
        video = container.add_stream(codec, rate=12, options=options)
        video.height, video.width = frames[0].shape[:2]
        video.pix_fmt = pix_fmt
        video.codec_context.time_base = video.time_base = time_base
        for name, value in (tags or {}).items():
            setattr(video.codec_context, name, value)
        if rotation is not None:
            video.set_display_rotation(rotation)
        audio = container.add_stream("aac", rate=RATE, layout="mono") if sound else None
        if audio is not None:
            audio.metadata["language"] = "fra"
        text = container.add_stream(subtitle) if subtitle else None
        if text is not None:
            text.codec_context.subtitle_header = ASS
        container.metadata.update(metadata or {})
        if chapters:
            parts = ((0, 500, "one"), (500, 1000, "two"))
            container.set_chapters(
                [
                    {"id": i, "start": a, "end": b, "time_base": Fraction(1, 1000), "metadata": {"title": title}}
                    for i, (a, b, title) in enumerate(parts)
                ]
            )
        container.start_encoding()
        for i, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(array, "rgb48le" if array.dtype == np.uint16 else "rgb24")
            if tags:
                frame = frame.reformat(format=pix_fmt, dst_colorspace=tags.get("colorspace"))
            frame.pts, frame.time_base = (i if times is None else times[i]), time_base
            container.mux(video.encode(frame))
        container.mux(video.encode())
        if audio is not None:
            wave = np.sin(0.3 * np.arange(RATE)).astype(np.float32)[None]
            for begin in range(0, RATE, 1024):
                sample = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave[:, begin : begin + 1024]), "fltp", "mono")
                sample.sample_rate, sample.pts = RATE, begin
                container.mux(audio.encode(sample))
            container.mux(audio.encode())
        if text is not None:
            line = av.Packet(b"\0\5Hello" if subtitle == "mov_text" else b"Hello")
            line.stream, line.time_base, line.pts, line.dts, line.duration = text, Fraction(1, 1000), 100, 100, 300
            container.mux(line)
    return path


def decode(path: Path) -> list[tuple[Fraction, NDArray[Any]]]:
    """Seconds and luma of every frame."""
    with av.open(str(path)) as container:
        frames = []
        for frame in container.decode(video=0):
            assert frame.pts is not None
            luma = np.frombuffer(frame.planes[0], np.uint8).reshape(frame.height, -1).copy()
            frames.append((frame.pts * frame.time_base, luma))
        return frames


def packets(path: Path, kind: str) -> list[tuple[Fraction, bytes]]:
    """Seconds and content of every packet of the first stream of a kind."""
    with av.open(str(path)) as container:
        stream = next(s for s in container.streams if s.type == kind)
        return [(p.pts * p.time_base, bytes(p)) for p in container.demux(stream) if p.size and p.pts is not None]


def remux(path: Path, target: Path, change: dict[int, bytes]) -> Path:
    """Copy a clip's video, with other bytes in some packets."""
    with av.open(str(path)) as source, av.open(str(target), "w") as result:
        stream = result.add_stream_from_template(source.streams.video[0])
        for i, packet in enumerate(p for p in source.demux(video=0) if p.size):
            copy = av.Packet(change[i]) if i in change else packet
            if i in change:
                copy.pts, copy.dts, copy.time_base = packet.pts, packet.dts, packet.time_base
                copy.is_keyframe = packet.is_keyframe
            copy.stream = stream
            result.mux(copy)
    return target
