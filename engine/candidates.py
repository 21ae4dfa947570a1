"""Photos that may be references: the files below a folder, of which the most relevant are read in full."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Set
from pathlib import Path
from typing import TypeVar

from ..errors import AmsaError
from ..stages import REF_MIN
from .backends import Backend
from .images import PICTURES, Photo
from .ranking import Progress, Thumbnails, rank

T = TypeVar("T")
MAX_REFS = 4
"""How many serve where nobody says: each takes as long as the first."""


def choose(
    backend: Backend,
    lr: Photo,
    files: Sequence[Path],
    most: int,
    load: Callable[[Path], T],
    *,
    kept: Thumbnails | None = None,
    progress: Progress | None = None,
) -> tuple[list[int], list[T]]:
    """The most relevant of many files, the best first: their places in the list, and what `load` makes of them. One that turns
    out to be broken makes room for the next. Where there are no more files than are wanted they stay as they are.

    Args:
        backend, lr, kept, progress: as `rank` takes them.
        files: candidates.
        most: how many are wanted.
        load: reads a file; AmsaError where it is broken.

    Raises:
        AmsaError: none of the files can be a reference.
    """
    places: list[int] = []
    loaded: list[T] = []
    order: Sequence[int] = range(len(files))
    if len(files) > most:
        order = [r.candidate for r in rank(backend, lr, files, kept=kept, progress=progress)]
    for place in order:
        try:
            loaded.append(load(files[place]))
        except AmsaError as e:  # a file may be broken behind what its thumbnail needs
            warnings.warn(f"left out of the references: {e}", stacklevel=2)
            continue
        places.append(place)
        if len(places) == most:
            break
    if not places:
        raise AmsaError(f"none of {len(files)} files can be a reference; give photos of at least {REF_MIN} pixels a side")
    return places, loaded


def candidates_below(folder: Path, given: Sequence[Path] = (), leave_out: Sequence[Path] = ()) -> list[Path]:
    """The files given and all pictures below a folder, each once; without hidden files and folders.

    Args:
        folder: where to look, in the order of names.
        given: files that come first.
        leave_out: files that are no candidates wherever they are, as LR and the result; and folders of such files.

    Raises:
        AmsaError: no such folder, or no candidate.
    """
    if not folder.is_dir():
        raise AmsaError(f"{folder} is not a folder; give the folder that holds the reference photos")
    others: Counter[str] = Counter()
    unwanted = {os.path.realpath(path) for path in leave_out}
    seen: set[str] = set()
    found: list[Path] = []
    for path in (*given, *_files(folder, unwanted)):
        real = os.path.realpath(path)
        if real in seen:
            continue
        seen.add(real)
        if real in unwanted:
            warnings.warn(f"left out of the references: {path} is the LR photo or the result itself", stacklevel=2)
        elif path in given or path.suffix.lower() in PICTURES:
            found.append(path)
        else:
            others[path.suffix.lower() or "no suffix"] += 1
    if others:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(5))
        warnings.warn(f"{folder}: files that are no pictures are passed over: {kinds}", stacklevel=2)
    if not found:
        raise AmsaError(f"{folder}: no picture below it that could be a reference; pictures end in {', '.join(PICTURES)}")
    return found


def _files(folder: Path, leave_out: Set[str]) -> Iterator[Path]:
    def unreadable(e: OSError) -> None:
        warnings.warn(f"{e.filename} cannot be read ({e.strerror}); its photos are left out", stacklevel=2)

    for place, folders, files in os.walk(folder, onerror=unreadable):
        wanted = (name for name in folders if not name.startswith(".") and os.path.realpath(Path(place) / name) not in leave_out)
        folders[:] = sorted(wanted)
        yield from (Path(place) / name for name in sorted(files) if not name.startswith("."))
