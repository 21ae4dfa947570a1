"""Which result was made from what, so that a run that was ended goes on where it was.

One JSON line per result in `.amsa-run.jsonl`, in the output folder. It is appended before the result is renamed into its place,
and holds the size and time of the file to come: whatever ends a run between the two, the next one knows what lies there.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..._version import __version__
from ...errors import AmsaError
from .plan import Job, shown
from .worker import Outcome

FILE_NAME = ".amsa-run.jsonl"
FORMAT = 1
DONE = "done"
DONE_AND_EDITED = "changed since by someone else, and left so"

Stamp = list[int]
"""A file's size in bytes and time of modification in nanoseconds."""


class Journal:
    """The journal of an output folder, locked against other runs as long as it is open.

    Args:
        output: the folder; exists.
        settings: what a result depends on beside its photos, by name, as JSON holds it.

    Raises:
        AmsaError: another run writes to the folder, or the journal cannot be read or written.
    """

    def __init__(self, output: Path, settings: Mapping[str, Any]) -> None:
        self.path = output / FILE_NAME
        self._settings: dict[str, Mapping[str, Any]] = {}
        self._made: dict[str, list[dict[str, Any]]] = {}
        self._stamps: dict[Path, Stamp | None] = {}
        try:
            self._file = self.path.open("a+b")
        except OSError as e:
            raise AmsaError(f"{shown(self.path)} cannot be written ({e.strerror}); choose another output folder") from e
        try:
            self._lock()
            self._read()
            self._key = _digest(settings)
            if self._key not in self._settings:
                self._settings[self._key] = settings
                header = {"format": FORMAT, "producer": f"amsa {__version__}", "key": self._key, "settings": settings}
                self._append(header)
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        """Let other runs write to the folder."""
        self._file.close()

    def state(self, job: Job) -> str:
        """`DONE`, `DONE_AND_EDITED`, or why the picture is made again; empty: it has not been made, or was deleted.

        Raises:
            AmsaError: another file lies where the result is to be.
        """
        if (found := _stamp(job.target)) is None:
            return ""
        made = self._made.get(job.name)
        if made is None:
            raise AmsaError(
                f"{shown(job.target)} exists, and no run that is in {FILE_NAME} wrote it; move it away, or choose another folder"
            )
        change = self._change(made[-1], job)
        if found == made[-1]["result"]:
            return change or DONE
        if any(found == entry["result"] for entry in made):
            return change or "ended before its new result was in place"
        if change:
            raise AmsaError(
                f"{shown(job.target)} was changed since it was written, and {change}; delete it to have it made again"
            )
        return DONE_AND_EDITED

    def add(self, job: Job, result: Path, outcome: Outcome) -> None:
        """Note that the file `result` is about to be renamed to the job's target."""
        entry = {"file": job.name, **self._sources(job), "settings": self._key, "result": _stamp(result)}
        served = [[str(job.refs[place]), round(share, 4)] for place, share in outcome.served]
        self._append({**entry, "seconds": round(outcome.seconds, 3), "worker": outcome.worker, "served": served})
        self._made.setdefault(job.name, []).append(entry)

    def _change(self, entry: Mapping[str, Any], job: Job) -> str:
        """What is no longer as it was when the entry was made, or nothing."""
        now = self._sources(job)
        if entry["lr"] != now["lr"]:
            return "the picture has changed"
        if entry["refs"] != now["refs"]:
            return "its references have changed"
        if entry["settings"] == self._key:
            return ""
        old, new = self._settings[entry["settings"]], self._settings[self._key]
        changes = (f"{k} was {old.get(k)}, is {new.get(k)}" for k in {**old, **new} if old.get(k) != new.get(k))
        return f"settings have changed ({', '.join(changes)})"

    def _sources(self, job: Job) -> dict[str, Any]:
        refs = _digest([[ref.name, self._input(ref)] for ref in job.refs])
        return {"lr": self._input(job.lr), "refs": refs}

    def _input(self, path: Path) -> Stamp | None:
        """The file's stamp as it was when first asked for: before it was read."""
        if path not in self._stamps:
            self._stamps[path] = _stamp(path)
        return self._stamps[path]

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            folder = shown(self.path.parent)
            raise AmsaError(f"another run writes to {folder}; wait for it, or choose another output folder") from e
        except OSError as e:
            warnings.warn(f"{shown(self.path)} cannot be locked ({e.strerror}): start no second run there", stacklevel=2)

    def _read(self) -> None:
        self._file.seek(0)
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]
        os.ftruncate(self._file.fileno(), len(whole))  # a killed run may have left half a line
        damaged = sum(not self._take(line) for line in whole.splitlines())
        if damaged:
            warnings.warn(f"{damaged} lines of {shown(self.path)} are damaged; what they told of is not known", stacklevel=3)

    def _take(self, line: bytes) -> bool:
        """Take over a line, if it is one of ours."""
        try:
            values = json.loads(line)
            if "format" in values:
                if values["format"] != FORMAT:
                    raise AmsaError(f"{shown(self.path)} is of {values['producer']}; choose another output folder")
                self._settings[values["key"]] = dict(values["settings"])
            elif values["settings"] in self._settings and {"lr", "refs", "result"} <= values.keys():
                self._made.setdefault(values["file"], []).append(values)
            else:
                return False
        except (ValueError, KeyError, TypeError):
            return False
        return True

    def _append(self, values: Mapping[str, Any]) -> None:
        try:
            self._file.write(json.dumps(values).encode() + b"\n")
            self._file.flush()
        except OSError as e:
            raise AmsaError(f"{shown(self.path)} cannot be written ({e.strerror}); free some space and start again") from e


def _stamp(path: Path) -> Stamp | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns]


def _digest(value: Mapping[str, Any] | Iterable[Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
