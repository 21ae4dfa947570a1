"""CSV files that say which references serve which picture: for `amsa upscale FOLDER --pairs`, and for evaluation sets."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import AmsaError


@dataclass(frozen=True)
class Row:
    """A line: its number, a picture and its references; or what is wrong with the line."""

    line: int
    picture: Path
    refs: tuple[Path, ...]
    problem: str = ""


def read_pairs(path: Path, first: str) -> Iterator[Row]:
    """The lines of a CSV file that are not empty.

    Args:
        path: the file. Its header is `first`,ref or `first`,ref,ref2,..; paths are relative to it.
        first: "lr" or "hr".

    Raises:
        AmsaError: the file cannot be read, or has another header.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise AmsaError(f"{path} cannot be read as CSV ({e}); save it as comma-separated UTF-8 text") from e
    header = [field.strip().lower() for field in rows[0]] if rows else []
    if header[:2] != [first, "ref"] or not all(field.startswith("ref") for field in header[1:]):
        wanted, found = f"{first},ref or {first},ref,ref2,..", ",".join(header)[:60] or "empty"
        raise AmsaError(f"{path}: the first line must be {wanted} and is {found}")
    for number, row in enumerate(rows[1:], 2):
        fields = [field.strip() for field in row]
        if not any(fields):
            continue
        picture, *refs = [path.parent / field for field in fields if field]
        problem = ""
        if not fields[0] or not refs or len(fields) > len(header):
            problem = f"needs a picture and 1 to {len(header) - 1} references, has {','.join(row)[:60]}"
        yield Row(number, picture, tuple(refs), problem)
