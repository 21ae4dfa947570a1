"""A clip's frames upscaled one after the other, in segments that survive whatever ends the process."""

from __future__ import annotations

import os
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ...errors import AmsaError
from ...stages import REF_MIN, SCALE
from ..images import Photo, from_array, read_photo, require_size
from ..references import EncodedReference
from ..upscaler import Picture, Upscaler
from .choosing import FrameSample, choose_for_clip
from .clip import Clip, read_clip
from .encoding import CONTAINERS, Encoding, SegmentWriter
from .history import FrameHistory
from .joining import choose_streams, join
from .pixels import to_frame
from .work_folder import WorkFolder, made_from

SEGMENT = 48
"""Frames that are saved at a time: what is lost at most when the process ends, and how often a picture stands alone."""

Progress: TypeAlias = "Callable[[int, int, str], None]"
"""Called with (frames done, frames in all, what there is to say)."""
Chosen: TypeAlias = "Callable[[list[str]], None]"
"""Called with the names of the references that serve."""


@dataclass(frozen=True)
class VideoReport:
    """What was done: sizes, frames in all, those found done by an earlier run, those equal to the one before, references that
    served, of how many, and seconds."""

    output: str
    width: int
    height: int
    frames: int
    resumed: int
    repeated: int
    references: list[str]
    candidates: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def upscale_video(
    upscaler: Upscaler,
    path: str | os.PathLike[str],
    refs: Sequence[Picture | str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    codec: str = "h264",
    crf: int | None = None,
    seed: int = 0,
    segment: int = SEGMENT,
    max_refs: int | None = None,
    progress: Progress | None = None,
    chosen: Chosen | None = None,
) -> VideoReport:
    """Upscale a clip x4: every frame, at its time; sound, subtitles, data, chapters and metadata are copied.

    Work is saved in a folder beside the output (`out.mp4.amsa`), which is deleted at the end. After an interruption the same
    call goes on from the last whole segment, and the result is the same as without one.

    Args:
        upscaler: the model.
        path: the clip, any that FFmpeg decodes; frames from 16 pixels a side.
        refs: pictures, or paths of picture files, sides >= 64; encoded once.
        output: .mp4, .m4v, .mov, .mkv or .webm.
        codec: "h264", "hevc" or "av1".
        crf: quality, 0 the best; None: visually lossless.
        seed: of the initial matches of every frame.
        segment: frames saved at a time.
        max_refs: so many of the references serve, those that serve the clip as a whole best (see `choose_for_clip`); None: all.
            Of files the others are read as thumbnails only, and those that are broken or too small are left out with a warning.
        progress: called before every frame, and at the end; before every reference that is ranked.
        chosen: with `max_refs`, called once before the first frame.

    Warns of all that the result lacks: frames that could not be decoded, streams and tags that the container does not hold.

    Raises:
        AmsaError: a clip, reference or output that cannot be used.
    """
    begin = time.perf_counter()
    source, target = Path(path), Path(output)
    _check_output(target, source)
    if segment < 1:
        raise AmsaError(f"segment is {segment}; it must be at least 1 frame")
    if not refs:
        raise AmsaError("no reference photo; give at least one")
    if max_refs is not None and max_refs < 1:
        raise AmsaError(f"max_refs is {max_refs}; it must be at least 1")
    names = [str(r) if isinstance(r, str | os.PathLike) else f"reference {i + 1}" for i, r in enumerate(refs)]
    candidates = [Path(r) if isinstance(r, str | os.PathLike) else from_array(r, n) for r, n in zip(refs, names, strict=True)]
    photos = [c if isinstance(c, Photo) else read_photo(c) for c in candidates] if max_refs is None else []
    for photo, name in zip(photos, names, strict=False):
        require_size(photo, name, REF_MIN)
    sample = FrameSample()
    clip = read_clip(source, sample if max_refs is not None and max_refs < len(refs) else None)
    encoding = Encoding.of(clip, target, codec, crf)
    copied = choose_streams(clip, target)
    for note in (*encoding.notes, *copied.notes):
        warnings.warn(f"{source}: {note}", stacklevel=2)

    count = len(clip.times)
    if max_refs is not None:
        ranking = None if progress is None else _ranking(progress, count)
        places, photos = choose_for_clip(upscaler.backend_in_use, sample.frames, candidates, max_refs, progress=ranking)
        names = [names[i] for i in places]
        if chosen is not None:
            chosen(names)
    segments = [range(first, min(first + segment, count)) for first in range(0, count, segment)]
    key = made_from(upscaler, source, photos, seed, codec, encoding.crf, segment)
    with WorkFolder(target, key, segments) as folder:
        result = folder.path / f"result{target.suffix}"
        resumed = segments[folder.done].start if folder.done < len(segments) else count
        repeated = 0
        if resumed < count:
            encoded = _encode(upscaler, photos, names, (clip.height, clip.width))
            steps = _Steps(progress, count, resumed)
            frames = _Frames(upscaler, clip, encoded, folder.history(), [str(source), *names], seed)
            pictures = islice(clip.photos(), resumed, None)
            for index in range(folder.done, len(segments)):
                writer = SegmentWriter(folder.unfinished(index), clip, encoding, segment)
                frames.begin_segment()
                for i, photo in zip(segments[index], pictures, strict=False):
                    steps.next(i)
                    writer.add(to_frame(frames.upscale(photo), clip.pixels, encoding.format))
                writer.close()
                folder.keep(index, frames.history)
                if index == 0:  # what the container refuses shows now, not after hours
                    with warnings.catch_warnings(action="ignore"):
                        join(clip, copied, codec, [(folder.segment(0), segments[0])], result)
                    result.unlink()
            repeated = frames.repeated
        if progress is not None:
            progress(count, count, "joining the segments")
        join(clip, copied, codec, [(folder.segment(i), part) for i, part in enumerate(segments)], result)
        result.replace(target)
        folder.remove()
    seconds = time.perf_counter() - begin
    size = SCALE * clip.width, SCALE * clip.height
    return VideoReport(str(target), *size, count, resumed, repeated, names, len(refs), seconds)


class _Frames:
    """Upscales a clip's frames in turn."""

    def __init__(
        self,
        upscaler: Upscaler,
        clip: Clip,
        refs: Sequence[Photo | EncodedReference],
        history: FrameHistory,
        names: Sequence[str],
        seed: int,
    ) -> None:
        self._upscaler, self._refs, self._names, self._seed = upscaler, refs, names, seed
        self.history = history
        self.repeated = 0
        self._last: tuple[Photo, Photo] | None = None

    def begin_segment(self) -> None:
        """A segment's first frame is computed whatever it equals: a run that begins there has no frame before it."""
        self._last = None

    def upscale(self, photo: Photo) -> Any:
        """RGB float32 [4*h, 4*w, 3] of a frame; of one equal to the last, the last's."""
        if self._last is not None and np.array_equal(self._last[0].rgb, photo.rgb):
            self.repeated += 1
            return self._last[1].rgb
        sr = self._upscaler.upscale_photo(photo, self._refs, seed=self._seed, names=self._names, history=self.history)
        self._last = photo, sr
        return sr.rgb


class _Steps:
    """Tells progress, with the time that is left by the mean of the frames so far."""

    def __init__(self, progress: Progress | None, total: int, resumed: int) -> None:
        self._progress, self._total, self._resumed, self._begin = progress, total, resumed, time.perf_counter()

    def next(self, index: int) -> None:
        if self._progress is None:
            return
        done = index - self._resumed
        left = (time.perf_counter() - self._begin) / done * (self._total - index) if done else None
        when = "" if left is None else f", {_duration(left)} left"
        self._progress(index, self._total, f"frame {index + 1} of {self._total}{when}")


def _ranking(progress: Progress, frames: int) -> Progress:
    """Tells progress while references are ranked and no frame is done."""
    return lambda done, total, what: progress(0, frames, f"{what}: {done + 1} of {total}")


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _encode(
    upscaler: Upscaler, photos: Sequence[Photo], names: Sequence[str], size: tuple[int, int]
) -> list[Photo | EncodedReference]:
    """References, encoded once for frames of this size."""
    encoded = [upscaler.encode_reference(photo, size, name) for photo, name in zip(photos, names, strict=True)]
    if len({reference.canvas for reference in encoded}) > 1:
        warnings.warn(
            "published models pad references to one size, and these differ: they are encoded again for every frame; "
            "give them one size",
            stacklevel=3,
        )
        return list(photos)
    return list(encoded)


def _check_output(target: Path, source: Path) -> None:
    if target.suffix.lower() not in CONTAINERS:
        raise AmsaError(f"{target} names no video format that is written; end it in one of {', '.join(CONTAINERS)}")
    if target.exists() and not target.is_file():
        raise AmsaError(f"{target} is a folder; give a file name")
    if not target.parent.exists():
        raise AmsaError(f"{target} cannot be written: the folder {target.parent} does not exist; create it first")
    if target.exists() and source.exists() and target.samefile(source):
        raise AmsaError(f"{target} is also an input; choose another output")
    try:
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise AmsaError(f"{target} cannot be written ({error.strerror}); choose another folder") from error
