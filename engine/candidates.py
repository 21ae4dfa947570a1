"""Photos that may be references: the files below a folder, of which the most relevant are read in full."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import AmsaError
from ..stages import REF_MIN
from .backends import Backend
from .batch.pairing import PICTURES
from .images import Photo, read_photo
from .ranking import Progress, rank

MAX_REFS = 4
"""How many serve where nobody says: each takes as long as the first."""


def choose(
    backend: Backend, lr: Photo, files: Sequence[Path], most: int, *, progress: Progress | None = None
) -> tuple[list[Path], list[Photo]]:
    """The most relevant of many files, the best first, and their photos. One that turns out to be broken makes room for the next.
    Where there are no more files than are wanted they stay as they are.

    Raises:
        AmsaError: none of the files can be a reference.
    """
    paths: list[Path] = []
    photos: list[Photo] = []
    order = [r.candidate for r in rank(backend, lr, files, progress=progress)] if len(files) > most else range(len(files))
    for i in order:
        try:
            photos.append(read_photo(files[i]))
        except AmsaError as e:  # a file may be broken behind what its thumbnail needs
            warnings.warn(f"left out of the references: {e}", stacklevel=2)
            continue
        paths.append(files[i])
        if len(paths) == most:
            break
    if not paths:
        raise AmsaError(f"none of {len(files)} files can be a reference; give photos of at least {REF_MIN} pixels a side")
    return paths, photos


def candidates_below(folder: Path, given: Sequence[Path] = (), leave_out: Sequence[Path] = ()) -> list[Path]:
    """The files given and all pictures below a folder, each once; without hidden files and folders.

    Args:
        folder: where to look, in the order of names.
        given: files that come first.
        leave_out: files that are no candidates wherever they are, as LR and the result.

    Raises:
        AmsaError: no such folder, or no candidate.
    """
    if not folder.is_dir():
        raise AmsaError(f"{folder} is not a folder; give the folder that holds the reference photos")
    others: Counter[str] = Counter()
    unwanted = {os.path.realpath(path) for path in leave_out}
    seen: set[str] = set()
    found: list[Path] = []
    for path in (*given, *_files(folder)):
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


def _files(folder: Path) -> Iterator[Path]:
    def unreadable(e: OSError) -> None:
        warnings.warn(f"{e.filename} cannot be read ({e.strerror}); its photos are left out", stacklevel=2)

    for place, folders, files in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place) / name for name in sorted(files) if not name.startswith("."))
