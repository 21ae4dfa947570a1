"""One worker's work: a picture after the other through one `Upscaler`, references that come again encoded once."""

from __future__ import annotations

import os
import platform
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import AmsaError
from ...stages import SCALE
from ..images import Photo, check_format, read_photo, write_photo
from ..memory import parse_bytes
from ..references import EncodedReference
from ..upscaler import Upscaler

KEPT_BYTES = 1_000_000_000
"""Features of references that are kept for the pictures to come. A reference of 1920x1080 has 870 MB of them (420 bytes a pixel);
what one picture needs is in memory at once anyway, and stays until it is in the way."""
_FOR_DEVELOPERS = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)


@dataclass(frozen=True)
class Task:
    """Paths: the LR photo, its references, where to write the result, and what it will be called then."""

    lr: str
    refs: Sequence[str]
    result: str
    target: str


@dataclass(frozen=True)
class Opened:
    """A worker is ready, and on what; or the model is refused for a reason that holds for every worker."""

    backend: str = ""
    device: str = ""
    kernels: str = ""
    trained: bool = True
    refused: str = ""
    warnings: Sequence[str] = ()


@dataclass(frozen=True)
class Outcome:
    """What became of a task: a result, or a reason why there is none, and what was warned of.

    Attributes:
        reason: empty where there is a result.
        seconds: that it took.
        worker: who did it, as "host:process".
        trace: for a fault of ours, where it was.
    """

    reason: str = ""
    seconds: float = 0.0
    warnings: Sequence[str] = ()
    worker: str = ""
    trace: str = ""


class PictureWorker:
    """Upscales pictures, with one `Upscaler`.

    Args:
        upscaler: arguments of `Upscaler`.
        seed: of the initial matches.
    """

    def __init__(self, upscaler: Mapping[str, Any], seed: int) -> None:
        self._arguments, self._seed = upscaler, seed
        cap = upscaler.get("max_memory")
        self._kept = EncodedReferences(KEPT_BYTES if cap is None else min(KEPT_BYTES, parse_bytes(cap) // 4))

    def open(self) -> Opened:
        """Open the model."""
        with _heard() as said:
            try:
                self._upscaler = opened = Upscaler(**self._arguments)
            except AmsaError as e:
                return Opened(refused=str(e))
        return Opened(opened.backend, opened.device, opened.kernels, opened.trained, warnings=said)

    def make(self, task: Task) -> Outcome:
        """Make a picture. Whatever is wrong with it is told by the outcome: nothing is raised."""
        begin, reason, trace = time.perf_counter(), "", ""
        with _heard() as told:
            try:
                self._make(task)
            except AmsaError as e:
                reason = str(e)
            except MemoryError:
                reason = "not enough memory for pictures of this size; use smaller photos, or fewer workers"
            except Exception as e:  # the other pictures are none the worse for it
                reason, trace = f"{type(e).__name__}: {e}; this is a fault of amsa: please report it", traceback.format_exc()
        said = [text.replace(task.result, task.target) for text in told]
        seconds = time.perf_counter() - begin
        return Outcome(reason.replace(task.result, task.target), seconds, said, f"{platform.node()}:{os.getpid()}", trace)

    def _make(self, task: Task) -> None:
        lr = read_photo(task.lr)
        check_format(task.target, lr, SCALE)
        refs: list[Photo | EncodedReference]
        if self._upscaler.config.published_protocol:  # features hold for one LR size only
            refs = [read_photo(path) for path in task.refs]
        else:
            refs = list(self._kept.get(task.refs, self._upscaler))
        write_photo(task.result, self._upscaler.upscale_photo(lr, refs, seed=self._seed, names=[task.lr, *task.refs]))


class EncodedReferences:
    """The encoded references used last, up to `limit` bytes of features; those of the picture in work stay beyond it."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._kept: dict[tuple[str, int, int], tuple[EncodedReference, int]] = {}

    @property
    def bytes(self) -> int:
        """That the features kept take."""
        return sum(size for _, size in self._kept.values())

    def get(self, paths: Sequence[str], upscaler: Upscaler) -> Sequence[EncodedReference]:
        """The references of one picture, read and encoded where they are not kept. Raises AmsaError as `read_photo` does."""
        keys = [_file_key(path) for path in paths]
        for path, key in zip(paths, keys, strict=True):
            found = self._kept.pop(key, None)
            if found is None:
                encoded = upscaler.encode_reference(read_photo(path), name=path)
                found = encoded, _features_bytes(encoded)
            self._kept[key] = found  # now the last one used
            for old in list(self._kept):
                if self.bytes > self.limit and old not in keys:
                    del self._kept[old]
        return [self._kept[key][0] for key in keys]


@contextmanager
def _heard() -> Iterator[list[str]]:
    """What is warned of meanwhile, complete at the end; without what is meant for developers."""
    said: list[str] = []
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        yield said
    said += [str(warning.message) for warning in told if not issubclass(warning.category, _FOR_DEVELOPERS)]


def _file_key(path: str) -> tuple[str, int, int]:
    """A file as it is now. One that is not there is left for the reader to refuse."""
    try:
        found = Path(path).stat()
    except OSError:
        return path, 0, 0
    return path, found.st_size, found.st_mtime_ns


def _features_bytes(encoded: EncodedReference) -> int:
    tensors = (tensor for scale in encoded.scales for tensor in scale.tensors.values())
    features = sum(prod(tensor.shape) * np.dtype(tensor.dtype).itemsize for tensor in tensors)
    return int(features) + (0 if encoded.photo is None else encoded.photo.nbytes)
