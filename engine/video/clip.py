"""A clip read twice: once to learn what is in it and what is wrong with it, before hours are spent; then frame by frame."""

from __future__ import annotations

import heapq
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.stream import Disposition

from ...errors import AmsaError
from ...stages import LR_MIN
from ..images import MAX_PIXELS, Photo
from .choosing import FrameSample
from .pixels import Pixels, Turn, to_photo, upright

# Their hidden frames are packets of their own, so a packet without a picture is nothing lost.
_HIDDEN_FRAMES = ("vp8", "vp9")
_NOT_KEPT = {
    "MASTERING_DISPLAY_METADATA": "HDR mastering data",
    "CONTENT_LIGHT_LEVEL": "HDR light levels",
    "DYNAMIC_HDR_PLUS": "HDR10+",
    "DOVI_RPU_BUFFER": "Dolby Vision",
    "DOVI_METADATA": "Dolby Vision",
    "A53_CC": "closed captions inside the pictures",
    "FILM_GRAIN_PARAMS": "film grain parameters",
}


@dataclass(frozen=True)
class Clip:
    """What a clip holds.

    Attributes:
        path: the file.
        stream: index of the video stream that is read.
        width, height: of an upright frame.
        pixels: how colours are stored.
        turn: from stored to upright.
        aspect: width of an upright pixel by its height; None where the clip says nothing.
        time_base: seconds per tick.
        times: when each frame is shown, in ticks, ascending; a frame that could not be decoded is among them.
        last: how long the last frame is shown, in ticks.
        stand_ins: indices of frames that could not be decoded, where the one before is shown.
        untimed: the file has no times; they are counted by its frame rate.
    """

    path: Path
    stream: int
    width: int
    height: int
    pixels: Pixels
    turn: Turn
    aspect: Fraction | None
    time_base: Fraction
    times: tuple[int, ...]
    last: int
    stand_ins: frozenset[int]
    untimed: bool

    @property
    def rate(self) -> Fraction:
        """Frames per second in the mean, as an encoder is told; within the 1 to 240 that all encoders take."""
        mean = len(self.times) / ((self.times[-1] - self.times[0] + self.last) * self.time_base)
        return min(max(mean, Fraction(1)), Fraction(240)).limit_denominator(1001)

    def seconds(self, index: int) -> float:
        """When a frame is shown."""
        return float(self.times[index] * self.time_base)

    def photos(self) -> Iterator[Photo]:
        """Every frame, upright, as many as `times`; raises AmsaError where the file has changed since it was read."""
        changed = AmsaError(f"{self.path} changed while it was read; start again when it is whole")
        last: Photo | None = None
        with open_clip(self.path) as container:
            decoded = _decode(container, container.streams[self.stream], _Trouble())  # type: ignore[arg-type]
            # What the decoder lost before its first picture is in no clip.
            frames = (frame for _, frame in decoded if frame is not None or last is not None)
            for index in range(len(self.times)):
                frame = next(frames, None)
                if (frame is None) != (index in self.stand_ins):
                    raise changed
                if frame is not None:
                    last = to_photo(frame, self.pixels, self.turn)
                if last is None:
                    raise changed
                yield last


@dataclass
class _Trouble:
    """What went wrong while decoding."""

    concealed: list[float] = field(default_factory=list)
    ended: str = ""


def open_clip(path: Path) -> av.container.InputContainer:
    """Raises AmsaError for a file that is none, or no clip."""
    if not path.exists():
        raise AmsaError(f"{path} does not exist; check the path")
    if not path.is_file():
        raise AmsaError(f"{path} is no regular file; give a video file")
    if path.stat().st_size == 0:
        raise AmsaError(f"{path} is empty; copy or export it again")
    try:
        return av.open(str(path), "r", metadata_errors="replace")
    except av.error.PermissionError:
        raise AmsaError(f"{path} cannot be read: permission denied; change its permissions") from None
    except av.error.FFmpegError as error:
        raise AmsaError(f"{path} is damaged, cut short or no video ({error.strerror}); copy or export it again") from error


def read_clip(path: Path, sample: FrameSample | None = None) -> Clip:
    """Read a whole clip for what it holds; what is left out or mended is told in a warning.

    Args:
        path: the file.
        sample: takes some of the frames while they are there.

    Raises:
        AmsaError: no clip, no frame in it, frames below 16 pixels or over 64 megapixels, or of several sizes.
    """
    with open_clip(path) as container:
        videos = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if not videos:
            raise AmsaError(f"{path} holds no video stream; give a video")
        stream = videos[0]
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        trouble = _Trouble()
        first: av.VideoFrame | None = None
        times: list[int | None] = []
        stand_ins: set[int] = set()
        lost_at_start, duration = 0, 0
        for time, frame in _decode(container, stream, trouble):
            if frame is None:
                if first is None:
                    lost_at_start += 1
                    continue
                stand_ins.add(len(times))
            elif first is None:
                first = frame
                _check_size(path, frame)
                pixels, turn = Pixels.of(frame, str(path)), _turn(path, frame)
            elif (frame.width, frame.height, frame.format.name) != (first.width, first.height, first.format.name):
                raise AmsaError(_changes(path, first, frame))
            if sample is not None and frame is not None:
                sample.offer(len(times), frame, pixels, turn)
            times.append(time)
            duration = frame.duration if frame is not None and frame.duration else duration
        if first is None:
            reason = f" ({trouble.ended})" if trouble.ended else ""
            raise AmsaError(f"{path}: not one frame could be decoded{reason}; copy or export it again")
        untimed = any(time is None for time in times)
        time_base = 1 / rate if untimed or stream.time_base is None else stream.time_base
        ascending = list(range(len(times))) if untimed else _ascending(path, [t for t in times if t is not None])
        clip = Clip(
            path=path,
            stream=stream.index,
            width=first.height if turn[0] else first.width,
            height=first.width if turn[0] else first.height,
            pixels=pixels,
            turn=turn,
            aspect=_aspect(stream.sample_aspect_ratio, turn),
            time_base=time_base,
            times=tuple(ascending),
            last=duration if duration and not untimed else max(1, round(1 / rate / time_base)),
            stand_ins=frozenset(stand_ins),
            untimed=untimed,
        )
        _tell(clip, first, trouble, lost_at_start, stream)
        return clip


def _decode(
    container: av.container.InputContainer, stream: av.VideoStream, trouble: _Trouble
) -> Iterator[tuple[int | None, av.VideoFrame | None]]:
    """Time in ticks and frame, in the order in which they are shown; None for a frame that could not be decoded."""
    waiting: list[int] = []  # times of packets whose frame has not come yet
    packets = iter(container.demux(stream))
    seconds = float(stream.time_base or 0)
    while True:
        packet, decoded = None, []
        try:
            packet = next(packets, None)
            if packet is None:
                break
            if packet.pts is not None and packet.size and not packet.is_discard and stream.codec.name not in _HIDDEN_FRAMES:
                heapq.heappush(waiting, packet.pts)
            decoded = packet.decode()
        except EOFError:
            break
        except av.error.FFmpegError as error:
            if packet is None:  # of the container, which is cut or damaged: what came until here is all there is
                trouble.ended = str(error.strerror)
                decoded = _rest(stream)
        for frame in decoded:
            while frame.pts is not None and waiting and waiting[0] < frame.pts:
                yield heapq.heappop(waiting), None
            if frame.pts is not None and waiting and waiting[0] == frame.pts:
                heapq.heappop(waiting)
            if frame.is_corrupt:
                trouble.concealed.append(seconds * (frame.pts or 0))
            yield frame.pts, frame
        if packet is None:
            break
    for time in sorted(waiting):
        yield time, None


def _rest(stream: av.VideoStream) -> list[av.VideoFrame]:
    """The frames that the decoder still holds."""
    try:
        return stream.codec_context.decode(None)
    except (EOFError, av.error.FFmpegError):
        return []


def _check_size(path: Path, frame: av.VideoFrame) -> None:
    size = f"{path} is {frame.width}x{frame.height} pixels"
    if min(frame.width, frame.height) < LR_MIN:
        raise AmsaError(f"{size}; at least {LR_MIN} on each side are needed: give a larger clip")
    if frame.width * frame.height > MAX_PIXELS:
        raise AmsaError(f"{size}; at most {MAX_PIXELS / 1e6:g} megapixels are read: scale it down")


def _changes(path: Path, first: av.VideoFrame, frame: av.VideoFrame) -> str:
    was, now = (f"{f.width}x{f.height} {f.format.name}" for f in (first, frame))
    return f"{path} changes from {was} to {now} at {frame.time or 0:.2f} s; cut it there and upscale the parts"


def _ascending(path: Path, times: list[int]) -> list[int]:
    """Every time at least a tick after the one before."""
    fixed = times[:1]
    for time in times[1:]:
        fixed.append(max(time, fixed[-1] + 1))
    if moved := sum(a != b for a, b in zip(times, fixed, strict=True)):
        warnings.warn(f"{path}: {_frames(moved)} not after the one before, shown a tick later", stacklevel=3)
    return fixed


def _turn(path: Path, frame: av.VideoFrame) -> Turn:
    for data in _side_data(frame):
        if data.type.name == "DISPLAYMATRIX":
            turn = upright(np.frombuffer(bytes(data), np.int32))
            if turn is None:
                warnings.warn(f"{path} is to be shown turned by no quarter turn; it is written as it is stored", stacklevel=3)
            return turn or (False, False, False)
    return False, False, False


def _side_data(frame: av.VideoFrame) -> list[Any]:
    return list(frame.side_data)  # PyAV's stubs call it a mapping; it yields the data


def _aspect(ratio: Fraction | None, turn: Turn) -> Fraction | None:
    if not ratio:
        return None
    return 1 / ratio if turn[0] else ratio


def _tell(clip: Clip, first: av.VideoFrame, trouble: _Trouble, lost_at_start: int, stream: av.VideoStream) -> None:
    """Warn of everything that the result will lack."""
    said: list[str] = []
    if lost_at_start:
        said.append(f"the first {_frames(lost_at_start)} could not be decoded: left out")
    if clip.stand_ins:
        when = _times([clip.seconds(i) for i in sorted(clip.stand_ins)])
        said.append(f"{_frames(len(clip.stand_ins))} could not be decoded, at {when}; the one before is shown instead")
    if trouble.concealed:
        said.append(f"damaged: {_frames(len(trouble.concealed))}, at {_times(trouble.concealed)}; upscaled as decoded")
    end = clip.seconds(len(clip.times) - 1) + float(clip.last * clip.time_base)
    stated = _stated_end(stream, clip.seconds(0))
    longest = max((b - a for a, b in pairwise(clip.times)), default=clip.last)
    if trouble.ended or end < stated - 0.75 * float(longest * clip.time_base):
        reason = trouble.ended or f"it says {stated:.2f} s"
        said.append(f"it ends early, at {end:.2f} s ({reason}); what could be decoded is kept")
    if clip.untimed:
        said.append(f"its frames have no times; they are counted at {1 / clip.time_base} per second")
    if first.interlaced_frame:
        said.append("it is interlaced, and its frames are taken as they are; deinterlace it first (ffmpeg -vf bwdif)")
    if clip.pixels.alpha:
        said.append("transparency is left out")
    kept_not = {_NOT_KEPT[data.type.name] for data in _side_data(first) if data.type.name in _NOT_KEPT}
    said += [f"{what}: not kept" for what in sorted(kept_not)]
    for text in said:
        warnings.warn(f"{clip.path}: {text}", stacklevel=4)


def _stated_end(stream: av.VideoStream, start: float) -> float:
    """When the stream ends, as the file says, in seconds; 0 where it says nothing."""
    if "matroska" not in stream.container.format.name:
        return start + float((stream.duration or 0) * (stream.time_base or 0))
    try:  # FFmpeg gives every stream the whole file's duration; a tag tells the stream's end
        hours, minutes, seconds = stream.metadata.get("DURATION", "0:0:0").split(":")
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    except ValueError:
        return 0.0


def _frames(count: int) -> str:
    return f"{count} frame" if count == 1 else f"{count} frames"


def _times(seconds: Sequence[float]) -> str:
    """The first few, in words."""
    shown = ", ".join(f"{s:.2f} s" for s in seconds[:4])
    return f"{shown} and later" if len(seconds) > 4 else shown
