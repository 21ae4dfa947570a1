"""The work of a job: checks, the picture, the page about it."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

import numpy as np
from PIL import Image

from ..engine.details import Details
from ..engine.explain.maps import make_maps, matched_picture
from ..engine.explain.web_page import make_page
from ..engine.images import FORMATS, Photo, check_format, encode_photo, resize_bicubic
from ..engine.upscaler import Progress, Stats, Upscaler
from ..errors import AmsaError
from ..stages import LR_MIN, REF_MIN, SCALE
from .jobs import File
from .limits import Limits, Refusal
from .metrics import Metrics
from .uploads import Upload, check_count, decode

PICTURE_FORMATS = tuple(suffix.removeprefix(".") for suffix in FORMATS)


@dataclass(frozen=True)
class Order:
    """What a request asks for: the LR photo, references, seed, format of the result, and whether a bicubic enlargement and a
    page about the matches are wanted beside it."""

    lr: Upload
    refs: Sequence[Upload]
    seed: int
    format: str
    bicubic: bool = False
    explanation: bool = False


class Studio:
    """Fills orders with one upscaler."""

    def __init__(self, upscaler: Upscaler, limits: Limits, metrics: Metrics) -> None:
        self.upscaler, self.limits = upscaler, limits
        self._metrics = metrics
        # Requests come on many threads; pixels, 12 bytes each, are held for one order at a time beside the running one.
        self._decoding = threading.Lock()

    def warm_up(self) -> None:
        """A tiny picture: the first order is not slower than the next, and a model that cannot run is told at the start."""
        self.upscaler.upscale(np.zeros((LR_MIN, LR_MIN, 3), np.uint8), [np.zeros((REF_MIN, REF_MIN, 3), np.uint8)])

    def check(self, order: Order) -> None:
        """Decode everything and let it go again, so that a wrong picture is told at once and not after the queue.

        Raises:
            Refusal: 400; 413 where memory does not suffice.
        """
        if order.format not in PICTURE_FORMATS:
            raise Refusal(400, f"format is {order.format!r}; give one of {', '.join(PICTURE_FORMATS)}")
        try:
            with self._decoding:
                self._decode(order)
        except AmsaError as e:
            raise Refusal(400, str(e)) from e
        except MemoryError as e:
            raise Refusal(413, "not enough memory for pictures of this size; use smaller photos") from e

    def fill(self, order: Order, progress: Progress) -> Mapping[str, File]:
        """Make the files: `result` and, if asked for, `bicubic` and `explanation`."""
        with self._decoding:
            lr, refs = self._decode(order)
        stats, details = Stats(), Details()
        names = [upload.name for upload in (order.lr, *order.refs)]
        sr = self.upscaler.upscale_photo(lr, refs, seed=order.seed, names=names, progress=progress, stats=stats, details=details)
        stem = file_stem(order.lr.name)
        files = {"result": _file(f"{stem}_x{SCALE}.{order.format}", sr)}
        if order.bicubic:
            enlarged = bicubic(lr)
            files["bicubic"] = _file(f"{stem}_bicubic.{_light_format(enlarged)}", enlarged)
        if order.explanation:
            page = self._explain(lr, refs, sr, details, names)
            files["explanation"] = File(
                page.encode("utf-8", "backslashreplace"), "text/html; charset=utf-8", f"{stem}_explained.html"
            )
        self._metrics.picture(stats, sr.width * sr.height)
        return files

    def _explain(self, lr: Photo, refs: Sequence[Photo], sr: Photo, details: Details, names: Sequence[str]) -> str:
        maps = make_maps(details, refs, self.upscaler.config)
        title = f"{names[0]}, enlarged {lr.width}x{lr.height} to {sr.width}x{sr.height}"
        return make_page(maps, names[1:], lr, sr, matched_picture(maps), title, self.upscaler.description)

    def _decode(self, order: Order) -> tuple[Photo, list[Photo]]:
        check_count(order.refs)
        lr, refs = decode(order.lr, order.refs, self.limits.pixels)
        check_format(f"the result.{order.format}", lr, SCALE)
        return lr, refs


def bicubic(lr: Photo) -> Photo:
    """The photo enlarged as any program would, 8 bits a sample: to compare with."""
    height, width = SCALE * lr.height, SCALE * lr.width
    alpha = None if lr.alpha is None else np.clip(resize_bicubic(lr.alpha, height, width), 0, 1)
    return replace(lr, rgb=np.clip(resize_bicubic(lr.rgb, height, width), 0, 1), alpha=alpha, bits=8, exif=None)


def file_stem(name: str) -> str:
    """A name that every system takes, from whatever a client sent: its last part without suffix, at most 80 characters."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    kept = "".join(c if c.isprintable() and c not in '<>:"|?*' else "_" for c in PurePosixPath(last).stem)
    return kept.strip(". ")[:80] or "picture"


def _light_format(photo: Photo) -> str:
    try:
        check_format("photo.jpg", photo)
        return "jpg"  # 16 megapixels are encoded in 0.2 s, as PNG in 8 s
    except AmsaError:
        return "png"  # has transparency, or is longer than a JPEG can be


def _file(name: str, photo: Photo) -> File:
    suffix = PurePosixPath(name).suffix
    return File(encode_photo(name, photo), Image.MIME[FORMATS[suffix]], name)
