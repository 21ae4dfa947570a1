"""The folder beside an unfinished result: whole segments, the history behind the last, and what they were made from."""

from __future__ import annotations

import fcntl
import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from ..._version import __version__
from ...errors import AmsaError
from ..images import Photo, from_array
from ..upscaler import Upscaler
from .history import FrameHistory
from .joining import segment_times

FORMAT = 1
SUFFIX = ".amsa"
_STATE, _LOCK = "state.json", "lock"


class WorkFolder:
    """`out.mp4.amsa` beside `out.mp4`. Every file in it is written beside and renamed; a segment appears after its history.

    Args:
        output: the result.
        made_from: all that a segment depends on, by a name that a person understands.
        segments: which frames each segment holds.

    Attributes:
        done: how many segments are whole.
    """

    def __init__(self, output: Path, made_from: Mapping[str, Any], segments: Sequence[range]) -> None:
        self.path = output.with_name(output.name + SUFFIX)
        self._output, self._made_from, self._segments = output, dict(made_from), segments
        self.done = 0

    def __enter__(self) -> WorkFolder:
        """Lock it and find what is done.

        Raises:
            AmsaError: another process works in it, or it cannot be written.
        """
        try:
            self.path.mkdir(exist_ok=True)
            self._lock = (self.path / _LOCK).open("w")
        except OSError as error:
            raise AmsaError(f"{self.path} cannot be written ({error.strerror}); choose another output") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise AmsaError(f"{self._output} is being made by another process; wait for it or choose another output") from None
        was = self._read_state()
        now = json.loads(json.dumps({"format": FORMAT, **self._made_from}))
        if was == now:
            self.done = self._count_whole()
        else:
            if was is not None:
                changed = ", ".join(name for name in now if now[name] != was.get(name))
                warnings.warn(f"{self.path} was made with another {changed or 'version'}; it begins anew", stacklevel=3)
            self._clear()
            self._write(self.path / _STATE, json.dumps(now, indent=1).encode())
        return self

    def __exit__(self, *_: object) -> None:
        """Unlock it; where no segment is whole, nothing of it stays."""
        if not self.segment(0).exists():  # rather than `done`: an interruption may come between the two
            self.remove()
        self._lock.close()

    def segment(self, index: int) -> Path:
        return self.path / f"segment_{index:04}.nut"

    def unfinished(self, index: int) -> Path:
        """Where to write a segment before `keep`."""
        return self.path / f"unfinished_{index:04}.nut"

    def history(self) -> FrameHistory:
        """What frames remember at the end of the last whole segment."""
        if self.done == 0:
            return FrameHistory()
        with np.load(self._history(self.done - 1)) as arrays:
            return FrameHistory.from_state(arrays)

    def keep(self, index: int, history: FrameHistory) -> None:
        """A segment is whole."""
        part = self.path / "unfinished.npz"
        with part.open("wb") as file:
            np.savez(file, **history.state())  # type: ignore[arg-type]
        part.replace(self._history(index))
        self.unfinished(index).replace(self.segment(index))
        self.done = index + 1
        if index:
            self._history(index - 1).unlink(missing_ok=True)

    def remove(self) -> None:
        """Nothing in it is needed any more."""
        self._clear()
        (self.path / _STATE).unlink(missing_ok=True)
        (self.path / _LOCK).unlink(missing_ok=True)
        with suppress(OSError):  # somebody put something into it
            self.path.rmdir()

    def _history(self, index: int) -> Path:
        return self.path / f"history_{index:04}.npz"

    def _read_state(self) -> dict[str, Any] | None:
        try:
            state = json.loads((self.path / _STATE).read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            return {}
        return state if isinstance(state, dict) else {}

    def _count_whole(self) -> int:
        done = 0
        for index, frames in enumerate(self._segments):
            if not self.segment(index).exists() or len(segment_times(self.segment(index))) != len(frames):
                break
            done = index + 1
        while done and not _is_readable(self._history(done - 1)):
            done -= 1
        return done

    def _clear(self) -> None:
        for pattern in ("segment_*.nut", "unfinished_*.nut", "history_*.npz", "unfinished.npz", "result.*"):
            for path in self.path.glob(pattern):
                path.unlink()

    def _write(self, path: Path, content: bytes) -> None:
        part = path.with_suffix(".part")
        part.write_bytes(content)
        part.replace(path)


def made_from(
    upscaler: Upscaler, path: Path, photos: Sequence[Photo], seed: int, codec: str, quality: int, segment: int
) -> dict[str, Any]:
    """All that the frames depend on. Of the model it is a picture that it makes: it tells weights, precision and kernels."""
    with path.open("rb") as file:
        clip = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "clip": clip,
        "references": [_digest(photo.rgb) for photo in photos],
        "model": _digest(_sample(upscaler)),
        "setting": [seed, upscaler.matching, upscaler.skip, upscaler.consistent],
        "codec": [codec, quality, segment],
        "version": [__version__, av.__version__, *(f"{name} {version}" for name, version in sorted(av.library_versions.items()))],
    }


def _sample(upscaler: Upscaler) -> NDArray[Any]:
    rng = np.random.default_rng(0)
    lr, ref = (from_array(rng.integers(0, 256, (side, side, 3), np.uint8)) for side in (16, 64))
    return upscaler.upscale_photo(lr, [ref]).rgb


def _digest(array: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes() + repr(array.shape).encode()).hexdigest()


def _is_readable(path: Path) -> bool:
    try:
        with np.load(path) as arrays:
            return all(arrays[name].size for name in arrays.files)
    except (OSError, ValueError, KeyError, EOFError):
        return False
