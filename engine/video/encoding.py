"""What a result is written as: codecs, containers, and their limits; and one segment's pictures through an encoder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import av
from av.video.stream import VideoStream

from ...errors import AmsaError
from ...stages import SCALE
from .clip import Clip

CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}
"""Suffixes that are written, and FFmpeg's names of their formats."""


@dataclass(frozen=True)
class Codec:
    """A codec to write.

    Attributes:
        encoder: FFmpeg's name of it.
        crf: the default, visually lossless at usual viewing distance: what the codec's own guides call so, two steps finer.
        crf_most: the largest, worst.
        most_pixels: per frame at the highest level (6.2 of H.264 and HEVC, 6 of AV1).
        tag: how MP4 calls it; hvc1 is the one that Apple's players take.
        chroma: subsamplings that the encoder takes.
        options: of the encoder; with x264's "stitchable" headers do not depend on the pictures, so that segments can be joined.
    """

    encoder: str
    crf: int
    crf_most: int
    most_pixels: int
    tag: str
    chroma: tuple[str, ...]
    options: dict[str, str]


CODECS = {
    "h264": Codec("libx264", 16, 51, 35_651_584, "avc1", ("420", "422", "444"), {"x264-params": "stitchable=1"}),
    "hevc": Codec("libx265", 18, 51, 35_651_584, "hvc1", ("420", "422", "444"), {"x265-params": "log-level=error"}),
    "av1": Codec("libsvtav1", 20, 63, 142_606_336, "av01", ("420",), {"preset": "6", "svtav1-params": "lp=2"}),
}
_MOST_SIDE = 16384
"""Pixels that x264 and SVT-AV1 take on a side."""
_SEGMENT_FORMAT = "nut"
"""Holds every codec, at any rate."""


@dataclass(frozen=True)
class Encoding:
    """How frames are encoded.

    Attributes:
        codec: name in `CODECS`.
        crf: quality, 0 the best.
        format: pixel format.
        notes: what of the source it cannot hold.
    """

    codec: str
    crf: int
    format: str
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, clip: Clip, output: Path, codec: str, crf: int | None) -> Encoding:
        """How a clip's result is encoded: its own chroma and depth, as far as the codec goes.

        Raises:
            AmsaError: no such codec, quality or container, or more pixels than the codec holds.
        """
        if codec not in CODECS:
            raise AmsaError(f"unknown codec {codec!r}; choose one of {', '.join(CODECS)}")
        known = CODECS[codec]
        if crf is not None and not 0 <= crf <= known.crf_most:
            raise AmsaError(f"crf is {crf}; with {codec} it must be from 0 (best) to {known.crf_most}")
        if CONTAINERS[output.suffix.lower()] == "webm" and codec != "av1":
            raise AmsaError(f"{output}: WebM holds no {codec}; write a .mkv or .mp4, or take --codec av1")
        width, height = SCALE * clip.width, SCALE * clip.height
        if width * height > known.most_pixels or max(width, height) > _MOST_SIDE:
            limit = f"{known.most_pixels / 1e6:.1f} megapixels and {_MOST_SIDE} pixels a side"
            other = "" if codec == "av1" else ", or take --codec av1 (142.6 megapixels)"
            raise AmsaError(f"the result would be {width}x{height}; {codec} holds {limit}: scale the clip down{other}")
        if not (available := _formats(known.encoder)):
            raise AmsaError(f"this PyAV has no {known.encoder}; install its own wheels (pip install av) or take another --codec")
        pixels, notes = clip.pixels, []
        chroma = pixels.chroma if pixels.chroma in known.chroma else "420"
        if chroma != pixels.chroma:
            notes.append(f"{codec} keeps chroma at 4:2:0, and the source has 4:{pixels.chroma[1]}:{pixels.chroma[2]}")
        if pixels.rgb:
            notes.append(f"the source's RGB is written as YCbCr 4:{chroma[1]}:{chroma[2]}")
        if pixels.bits > 10:
            notes.append(f"10 of the source's {pixels.bits} bits are kept")
        format_ = f"yuv{chroma}p" if pixels.bits == 8 else f"yuv{chroma}p10le"
        if format_ not in available:
            raise AmsaError(f"this PyAV's {known.encoder} does not take {format_}; take another --codec")
        return cls(codec, known.crf if crf is None else crf, format_, tuple(notes))


class SegmentWriter:
    """Encodes frames into a file of their own, which begins with a picture that stands alone; frame n is at n frames' time."""

    def __init__(self, path: Path, clip: Clip, encoding: Encoding, frames: int) -> None:
        """`frames`: how many will come, at most; no second picture of them stands alone but at cuts."""
        codec = CODECS[encoding.codec]
        os.environ.setdefault("SVT_LOG", "1")  # errors only: it prints its settings for every segment, past FFmpeg's log
        options = {"crf": str(encoding.crf), **codec.options}
        self._container = av.open(str(path), "w", format=_SEGMENT_FORMAT)
        self._stream: VideoStream = self._container.add_stream(codec.encoder, rate=clip.rate, options=options)  # type: ignore[assignment]
        self._stream.width, self._stream.height, self._stream.pix_fmt = SCALE * clip.width, SCALE * clip.height, encoding.format
        context = self._stream.codec_context
        context.gop_size = frames
        context.color_primaries, context.color_trc = clip.pixels.primaries, clip.pixels.transfer
        context.colorspace, context.color_range = clip.pixels.matrix, clip.pixels.range
        if clip.aspect is not None:
            context.sample_aspect_ratio = clip.aspect
        self._time_base = 1 / clip.rate
        self._count = 0

    def add(self, frame: av.VideoFrame) -> None:
        """Encode the next frame."""
        frame.pts, frame.time_base = self._count, self._time_base
        self._count += 1
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Encode what is left, and finish the file."""
        self._container.mux(self._stream.encode())
        self._container.close()


def _formats(encoder: str) -> list[str]:
    try:
        return [f.name for f in av.Codec(encoder, "w").video_formats or []]
    except (ValueError, av.error.FFmpegError):  # UnknownCodecError
        return []
