"""The engine warns of what it leaves out (`warnings.warn`); here such a line goes to whom it concerns, by thread."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

_here = threading.local()


@contextmanager
def gathered(notes: list[str]) -> Iterator[None]:
    """What this thread warns of meanwhile is added to `notes`, each line once, where `routed` is active."""
    _here.notes = notes
    try:
        yield
    finally:
        del _here.notes


@contextmanager
def routed() -> Iterator[None]:
    """Meanwhile every warning goes to the list of its thread; one of another thread is shown as before."""
    shown = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        notes: list[str] | None = getattr(_here, "notes", None)
        text = " ".join(str(message).split())
        if notes is None:
            shown(message, category, filename, lineno, file, line)
        elif text not in notes:
            notes.append(text)

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)  # else a second picture's is dropped as a repetition
        warnings.showwarning = show
        yield
