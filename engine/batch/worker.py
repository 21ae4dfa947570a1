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
from ..candidates import choose
from ..details import Details
from ..explain import check_folder, write_explanation
from ..images import Photo, check_format, read_photo, write_photo
from ..memory import parse_bytes
from ..ranking import Thumbnails
from ..references import EncodedReference, file_key
from ..upscaler import Upscaler

KEPT_BYTES = 1_000_000_000
"""Features of references that are kept for the pictures to come. A reference of 1920x1080 has 870 MB of them (420 bytes a pixel);
what one picture needs is in memory at once anyway, and stays until it is in the way. Beside them a quarter as much is kept of
candidates' thumbnails: 2900 in the small model."""
_FOR_DEVELOPERS = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)


@dataclass(frozen=True)
class Task:
    """A picture to make; all paths.

    Attributes:
        lr: the LR photo.
        refs: its references, or candidates for them.
        result: where to write the result.
        target: what it will be called then.
        most: so many of the candidates serve, the most relevant; None: all.
        explanation: folder to explain the result in; empty: it is not explained.
    """

    lr: str
    refs: Sequence[str]
    result: str
    target: str
    most: int | None = None
    explanation: str = ""


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
        served: the place of each reference that served in the task's list, and its share of the picture, 0 to 1.
        worker: who did it, as "host:process".
        trace: for a fault of ours, where it was.
    """

    reason: str = ""
    seconds: float = 0.0
    served: Sequence[tuple[int, float]] = ()
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
        share = KEPT_BYTES if cap is None else min(KEPT_BYTES, parse_bytes(cap) // 4)
        self._kept, self._thumbnails = EncodedReferences(share), Thumbnails(share // 4)

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
        served: list[tuple[int, float]] = []
        with _heard() as told:
            try:
                served = self._make(task)
            except AmsaError as e:
                reason = str(e)
            except MemoryError:
                reason = "not enough memory for pictures of this size; use smaller photos, or fewer workers"
            except Exception as e:  # the other pictures are none the worse for it
                reason, trace = f"{type(e).__name__}: {e}; this is a fault of amsa: please report it", traceback.format_exc()
        said = [text.replace(task.result, task.target) for text in told]
        seconds = time.perf_counter() - begin
        reason = reason.replace(task.result, task.target)
        return Outcome(reason, seconds, served, said, f"{platform.node()}:{os.getpid()}", trace)

    def _make(self, task: Task) -> list[tuple[int, float]]:
        """Returns what served."""
        lr = read_photo(task.lr)
        check_format(task.target, lr, SCALE)
        if task.explanation:
            check_folder(Path(task.explanation))
        places, refs = self._references(task, lr)
        names = [task.lr, *(task.refs[place] for place in places)]
        upscaler, details = self._upscaler, Details()
        sr = upscaler.upscale_photo(lr, refs, seed=self._seed, names=names, details=details)
        if task.explanation:
            photos = [ref if isinstance(ref, Photo) else read_photo(name) for ref, name in zip(refs, names[1:], strict=True)]
            write_explanation(
                Path(task.explanation), lr, photos, sr, details, upscaler.config, names=names, model=upscaler.description
            )
        write_photo(task.result, sr)
        return list(zip(places, details.served(), strict=True))

    def _references(self, task: Task, lr: Photo) -> tuple[list[int], list[Photo | EncodedReference]]:
        """Those that serve: places in the task's list, and the references, encoded where that holds for any LR."""
        chosen: list[str] = []

        def load(path: str | Path) -> Photo | EncodedReference:
            if self._upscaler.config.published_protocol:  # features hold for one LR size only
                return read_photo(path)
            *_, last = self._kept.get([*chosen, str(path)], self._upscaler)
            chosen.append(str(path))
            return last

        if task.most is None:
            return list(range(len(task.refs))), [load(path) for path in task.refs]
        files = [Path(path) for path in task.refs]
        return choose(self._upscaler.backend_in_use, lr, files, task.most, load, kept=self._thumbnails)


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
        keys = [file_key(path) for path in paths]
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


def _features_bytes(encoded: EncodedReference) -> int:
    tensors = (tensor for scale in encoded.scales for tensor in scale.tensors.values())
    features = sum(prod(tensor.shape) * np.dtype(tensor.dtype).itemsize for tensor in tensors)
    return int(features) + (0 if encoded.photo is None else encoded.photo.nbytes)
