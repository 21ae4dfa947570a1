"""From segments to the result: packets are copied, never encoded again, next to the source's sound, subtitles and data."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.stream import AttachmentStream, Disposition, Stream
from av.video.stream import VideoStream

from ...errors import AmsaError
from .clip import Clip, open_clip
from .encoding import CODECS, CONTAINERS

# What a muxer writes itself, and Matroska's statistics of the source's video stream.
_OF_THE_FILE = ("major_brand", "minor_version", "compatible_brands", "encoder")
_OF_THE_STREAM = ("encoder", "duration", "number_of_", "bps", "_statistics_", "vendor_id", "rotate")
_MP4 = ("mp4", "mov")
_REFUSED = (ValueError, NotImplementedError, av.error.FFmpegError)
"""What PyAV raises for a stream or packet that a container cannot hold."""


@dataclass(frozen=True)
class Copied:
    """What is copied from the source: indices of its streams; in words, what is not, and what else there is to say of it."""

    streams: tuple[int, ...]
    notes: tuple[str, ...]


def choose_streams(clip: Clip, output: Path) -> Copied:
    """The streams beside the one that is upscaled that the output's container can hold."""
    streams: list[int] = []
    notes: list[str] = []
    with open_clip(clip.path) as source:
        chapters = len(source.chapters())
        for stream in source.streams:
            if stream.index == clip.stream or _comes_anyway(stream, chapters):
                continue
            name = "time code" if "timecode" in stream.metadata else stream.name or "unknown kind"
            kind = f"{stream.type} stream {stream.index} ({name})"
            if not _takes(CONTAINERS[output.suffix.lower()], stream):
                other = "" if output.suffix.lower() == ".mkv" else "; write a .mkv"
                notes.append(f"{kind} is left out: {output.suffix} files cannot hold it{other}")
                continue
            if stream.type == "video" and not stream.disposition & Disposition.attached_pic:
                notes.append(f"{kind} is copied as it is: only the first video stream is upscaled")
            streams.append(stream.index)
    return Copied(tuple(streams), tuple(notes))


def join(clip: Clip, copied: Copied, codec: str, segments: Sequence[tuple[Path, range]], target: Path) -> None:
    """Write segments and copied streams into one file.

    Args:
        clip: the source.
        copied: `choose_streams`'.
        codec: name in `CODECS`, of the segments.
        segments: files, and which of the clip's frames are in each.
        target: a file name with the output's suffix.

    Raises:
        AmsaError: segments do not fit together, or the file cannot be written.
    """
    container_format = CONTAINERS[target.suffix.lower()]
    options = {"movflags": "+faststart"} if container_format in _MP4 else {}
    try:
        with (
            open_clip(clip.path) as source,
            av.open(str(segments[0][0])) as first,
            av.open(str(target), "w", format=container_format, options=options) as result,
        ):
            template = first.streams.video[0]
            video = result.add_stream_from_template(template, opaque=True)
            video.time_base = clip.time_base
            if container_format in _MP4:
                video.codec_context.codec_tag = CODECS[codec].tag
            if clip.aspect is not None:
                video.sample_aspect_ratio = clip.aspect
            _describe(video, source.streams[clip.stream])
            copies = {index: _add(result, source.streams[index]) for index in copied.streams}
            result.metadata.update({k: v for k, v in source.metadata.items() if k.lower() not in _OF_THE_FILE})
            if container_format in _MP4:
                video.metadata.pop("timecode", None)
                result.metadata.pop("timecode", None)
            if chapters := source.chapters():
                result.set_chapters(chapters)
            _mux(result, _video_packets(clip, segments, video), _copied_packets(clip, source, copies))
    except (OSError, av.error.FFmpegError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise AmsaError(f"{target} cannot be written ({reason}); what is done is kept: the same command goes on") from error
    _tell_lost_metadata(clip.path, target)


def _comes_anyway(stream: Stream, chapters: int) -> bool:
    """Whether it is the track that MP4's muxer makes itself of chapters."""
    return stream.type == "data" and stream.name == "bin_data" and 0 < chapters == stream.frames


def _takes(container_format: str, stream: Stream) -> bool:
    """Whether a container has a place for a stream. MP4's muxer makes time codes itself, at a frame rate that PyAV cannot set."""
    if container_format in _MP4 and "timecode" in stream.metadata and stream.type == "data":
        return False
    trial = av.open(io.BytesIO(), "w", format=container_format)
    try:
        _add(trial, stream)
        trial.start_encoding()
    except _REFUSED:
        return False
    return True


def _add(container: OutputContainer, stream: Stream) -> Stream:
    """A stream like it, to copy packets into."""
    if isinstance(stream, AttachmentStream):
        return container.add_attachment(stream.metadata.get("filename", "attachment"), stream.mimetype or "", stream.data)
    copy = container.add_stream_from_template(stream)
    _describe(copy, stream)
    return copy


def _describe(copy: Stream, stream: Stream) -> None:
    copy.metadata.update({k: v for k, v in stream.metadata.items() if not k.lower().startswith(_OF_THE_STREAM)})
    copy.disposition = stream.disposition


def _video_packets(clip: Clip, segments: Sequence[tuple[Path, range]], video: VideoStream) -> Iterator[Packet[Any]]:
    """All segments' packets, with the clip's own times.

    The decoding time of the n-th packet is the time of the
    frame shown n - d-th, where d is by how many places any packet comes early: ascending, and never after its own frame.
    """
    orders = [_order(path, frames) for path, frames in segments]
    early = max(max((n - i for n, i in enumerate(order)), default=0) for order in orders)
    step = clip.times[1] - clip.times[0] if len(clip.times) > 1 else clip.last
    headers: bytes | None = None
    for (path, frames), order in zip(segments, orders, strict=True):
        with av.open(str(path)) as segment:
            stream = segment.streams.video[0]
            extradata = bytes(stream.codec_context.extradata or b"")
            if headers is not None and extradata != headers:
                raise AmsaError(f"{path} was encoded in another way than those before it; delete {path.parent} and start again")
            headers = extradata
            packets = (packet for packet in segment.demux(stream) if packet.size)
            for n, (packet, place) in enumerate(zip(packets, order, strict=True)):
                index, before = frames[place], frames[n] - early
                following = clip.times[index + 1] if index + 1 < len(clip.times) else clip.times[index] + clip.last
                packet.time_base = clip.time_base
                packet.pts = clip.times[index]
                packet.dts = clip.times[before] if before >= 0 else clip.times[0] + before * step
                packet.duration = following - packet.pts
                packet.stream = video
                yield packet


def _order(path: Path, frames: range) -> list[int]:
    """Of each packet in the file: which of the segment's frames it is, by its place among their times."""
    times = segment_times(path)
    if len(set(times)) != len(frames):
        raise AmsaError(f"{path} holds {len(times)} frames of {len(frames)}; delete {path.parent} and start again")
    place = {time: i for i, time in enumerate(sorted(times))}
    return [place[time] for time in times]


def segment_times(path: Path) -> list[int]:
    """The packets' times, as they lie in a segment's file; as many as can be read."""
    try:
        with av.open(str(path)) as segment:
            return [packet.pts for packet in segment.demux(video=0) if packet.size and packet.pts is not None]
    except av.error.FFmpegError:
        return []


def _copied_packets(clip: Clip, source: InputContainer, copies: dict[int, Stream]) -> Iterator[Packet[Any]]:
    wanted = [source.streams[index] for index, copy in copies.items() if not isinstance(copy, AttachmentStream)]
    if not wanted:
        return
    try:
        for packet in source.demux(*wanted):
            if packet.size and packet.stream.disposition & Disposition.attached_pic:
                packet.pts = packet.dts = 0  # a cover picture has no time
            if packet.size and packet.dts is not None:
                packet.stream = copies[packet.stream.index]
                yield packet
    except av.error.FFmpegError as error:
        warnings.warn(f"{clip.path}: sound and other streams end early ({error.strerror})", stacklevel=2)


def _mux(result: OutputContainer, video: Iterator[Packet[Any]], others: Iterator[Packet[Any]]) -> None:
    """Every packet in the order of its decoding time; of a broken source's copied streams those that the container takes."""

    def seconds(packet: Packet[Any]) -> Fraction:
        return (packet.dts or 0) * packet.time_base

    refused = 0
    waiting = next(video, None)
    for packet in others:
        while waiting is not None and seconds(waiting) <= seconds(packet):
            result.mux(waiting)
            waiting = next(video, None)
        try:
            result.mux(packet)
        except (ValueError, av.error.ArgumentError, av.error.InvalidDataError):
            refused += 1
    while waiting is not None:
        result.mux(waiting)
        waiting = next(video, None)
    if refused:
        warnings.warn(f"{refused} damaged packets of sound or other streams are left out", stacklevel=3)


def _tell_lost_metadata(source: Path, target: Path) -> None:
    with open_clip(source) as a, open_clip(target) as b:
        # Muxers write names in capitals, or with a language, as in "location-eng".
        was, is_ = ({k.split("-")[0].lower() for k in container.metadata} for container in (a, b))
        lost = sorted(was - is_ - {*_OF_THE_FILE, "duration"})
        if lost:
            warnings.warn(f"{target.suffix} files have no place for the metadata {', '.join(lost)}; left out", stacklevel=3)
