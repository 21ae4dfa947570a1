"""What the user put where: pictures to recover and their references, by the layouts that the public datasets come in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..engine.images import FORMATS
from ..engine.pairs import read_pairs
from ..errors import AmsaError

KINDS = {
    "cufed": "folders input/ and ref/ with equal names (the training set)",
    "cufed5": "NNN_0 and its references NNN_1, NNN_2, .. in one folder",
    "sun80": "a folder *groundtruth of pictures, a folder *scenematches with a folder of references for each",
    "wrsr": "folders input/ with NNN and ref/ with NNN_ref",
    "urban100": "a folder of pictures; the LR picture is the reference",
    "manga109": "a folder of pictures; another one is the reference",
    "pairs": "a CSV file with a header hr,ref or hr,ref,ref2,..; paths are relative to it",
    "photos": "a folder of pictures; the LR picture is the reference",
}
_LEVEL = re.compile(r"(.+)_(\d+)")  # CUFED5: name, relevance level


@dataclass(frozen=True)
class Case:
    """A picture to recover and its references, the most relevant one first; none where the layout has none."""

    name: str
    hr: Path
    refs: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Layout:
    """What was found: its kind (of `KINDS`), the cases with different names, and a line for each thing left out."""

    kind: str
    cases: list[Case]
    problems: list[str]

    def files(self) -> list[Path]:
        """Every picture file once, in order."""
        return list(dict.fromkeys(path for case in self.cases for path in (case.hr, *case.refs)))


def read_layout(path: str | Path, kind: str = "auto") -> Layout:
    """Find the cases in a folder or CSV file. Files are listed, not opened.

    Args:
        path: folder, or CSV file for `pairs`.
        kind: one of `KINDS`, or "auto": told from the names.

    Raises:
        AmsaError: no such folder, nothing of that kind in it (with the folder below it that was meant, where there is
            one), a kind that does not exist, or a CSV file without a proper header.
    """
    path = Path(path)
    if kind != "auto" and kind not in KINDS:
        raise AmsaError(f"--kind {kind} does not exist; choose auto, {', '.join(KINDS)}")
    if not path.exists():
        raise AmsaError(f"{path}: no such file or folder; check the path")
    kind = _recognise(path) if kind == "auto" else kind
    if kind != "pairs" and not path.is_dir():
        raise AmsaError(f"{path} is not a folder; {kind} is: {KINDS[kind]}")
    cases, problems = _read(path, kind)
    if not cases:
        first = f" ({problems[0]})" if problems else ""
        raise AmsaError(f"{path}: no usable picture{first}; {kind} is: {KINDS[kind]}{_hint(path, kind)}")
    names = unique_names(case.name for case in cases)
    return Layout(kind, [Case(n, c.hr, c.refs) for n, c in zip(names, cases, strict=True)], problems)


def unique_names(names: Iterable[str]) -> list[str]:
    """The names in order, with -2, -3, .. added to those that were there before."""
    used: dict[str, None] = {}  # in order; a list would take seconds for CUFED's 11,871 names
    for name in names:
        fresh, number = name, 1
        while fresh in used:
            number += 1
            fresh = f"{name}-{number}"
        used[fresh] = None
    return list(used)


def _recognise(path: Path) -> str:
    """The kind that fits the names. A folder of pictures with other names is `photos`."""
    if path.is_file():
        return "pairs"
    if _sun80_folders(path):
        return "sun80"
    if (path / "input").is_dir() and (path / "ref").is_dir():
        return "wrsr" if any(p.stem.endswith("_ref") for p in _pictures(path / "ref")) else "cufed"
    stems = {p.stem for p in _pictures(path)}
    levels = {m[1] for m in map(_LEVEL.fullmatch, stems) if m}
    if any(f"{name}_0" in stems and f"{name}_1" in stems for name in levels):
        return "cufed5"
    names = " ".join(path.resolve().parts[-2:]).lower()  # Urban100/HR is Urban100, too
    return next((kind for kind in ("urban100", "manga109") if kind in names), "photos")


def _read(path: Path, kind: str) -> tuple[list[Case], list[str]]:
    if kind == "pairs":
        return _read_pairs(path)
    if kind == "cufed5":
        return _read_levels(path)
    if kind == "sun80":
        return _read_sun80(path)
    if kind in ("cufed", "wrsr"):
        return _read_input_ref(path)
    return [Case(p.stem, p) for p in _high_resolution(_pictures(path))], []


def _read_levels(folder: Path) -> tuple[list[Case], list[str]]:
    """CUFED5. References after a missing level are left out: their place tells how relevant they are."""
    groups: dict[str, dict[int, Path]] = {}
    problems = []
    for path in _pictures(folder):
        if m := _LEVEL.fullmatch(path.stem):
            groups.setdefault(m[1], {})[int(m[2])] = path
        else:
            problems.append(f"{path.name}: no NNN_0 nor a reference NNN_1, NNN_2, ..; left out")
    cases = []
    for name, levels in groups.items():
        most = max(levels)
        refs = [levels[i] for i in range(1, next(i for i in range(1, most + 2) if i not in levels))]
        if 0 not in levels:
            problems.append(f"{name}: has references but no picture {name}_0")
        elif not refs:
            problems.append(f"{name}: has no reference {name}_1")
        else:
            cases.append(Case(name, levels[0], tuple(refs)))
            if len(refs) < most:
                problems.append(f"{name}: has no reference {name}_{len(refs) + 1}; those after it are left out")
    every = max((len(case.refs) for case in cases), default=0)
    problems += [
        f"{c.name}: has {len(c.refs)} references, others have {every}"
        for c in cases
        if len(c.refs) < every and not any(p.startswith(f"{c.name}: ") for p in problems)
    ]
    return cases, problems


def _read_input_ref(folder: Path) -> tuple[list[Case], list[str]]:
    """CUFED's training set and WR-SR: a reference has its picture's name, with or without _ref."""
    if missing := [name for name in ("input", "ref") if not (folder / name).is_dir()]:
        return [], [f"no folder {' nor '.join(missing)}"]
    refs = {p.stem: p for p in _pictures(folder / "ref")}
    cases, problems, used = [], [], set()
    for hr in _pictures(folder / "input"):
        stem = next((s for s in (hr.stem, f"{hr.stem}_ref") if s in refs), None)
        if stem is None:
            problems.append(f"input/{hr.name}: has no reference ref/{hr.name}")
        else:
            cases.append(Case(hr.stem, hr, (refs[stem],)))
            used.add(stem)
    problems += [f"ref/{path.name}: has no picture in input" for stem, path in refs.items() if stem not in used]
    return cases, problems


def _read_sun80(folder: Path) -> tuple[list[Case], list[str]]:
    """Sun80: the references of a.jpg lie in a folder that is called a.jpg, too (or a)."""
    found = _sun80_folders(folder)
    if found is None:
        return [], ["no folders *groundtruth and *scenematches"]
    truths, matches = found
    cases, problems, used = [], [], set()
    for hr in _pictures(truths):
        place = next((p for p in (matches / hr.name, matches / hr.stem) if p.is_dir()), None)
        refs = tuple(_pictures(place)) if place else ()
        if refs and place:
            cases.append(Case(hr.stem, hr, refs))
        else:
            problems.append(f"{truths.name}/{hr.name}: has no references in {matches.name}/{hr.name}")
        used.add(place)
    unused = [p for p in _folders(matches) if p not in used]
    return cases, problems + [f"{matches.name}/{p.name}: has no picture in {truths.name}" for p in unused]


def _sun80_folders(folder: Path) -> tuple[Path, Path] | None:
    ends = [[p for p in _folders(folder) if p.name.lower().endswith(end)] for end in ("groundtruth", "scenematches")]
    return (ends[0][0], ends[1][0]) if all(ends) else None


def _read_pairs(path: Path) -> tuple[list[Case], list[str]]:
    if not path.is_file():
        raise AmsaError(f"{path} is no CSV file; pairs is: {KINDS['pairs']}")
    cases, problems = [], []
    for row in read_pairs(path, "hr"):
        if row.problem:
            problems.append(f"line {row.line}: {row.problem}")
        elif gone := [p for p in (row.picture, *row.refs) if not p.is_file()]:
            problems.append(f"line {row.line}: {', '.join(map(str, gone))}: no such file")
        else:
            name = row.picture.relative_to(path.parent) if row.picture.is_relative_to(path.parent) else row.picture
            cases.append(Case("-".join(name.with_suffix("").parts[-2:]).strip("./"), row.picture, row.refs))
    return cases, problems


def _pictures(folder: Path) -> list[Path]:
    """The folder's picture files by name."""
    return [p for p in _entries(folder) if p.suffix.lower() in FORMATS and p.is_file()]


def _folders(folder: Path) -> list[Path]:
    return [p for p in _entries(folder) if p.is_dir()]


def _entries(folder: Path) -> list[Path]:
    """What is in a folder, by name, without hidden files (macOS leaves ._NAME beside every file it packs)."""
    try:
        return sorted((p for p in folder.iterdir() if not p.name.startswith(".")), key=lambda p: p.name)
    except FileNotFoundError:
        return []
    except OSError as e:
        raise AmsaError(f"{folder} cannot be read ({e.strerror}); change its permissions") from e


def _high_resolution(pictures: Sequence[Path]) -> Sequence[Path]:
    """Urban100 as first published has _LR pictures and other methods' results beside _HR: only _HR are cases."""
    return [p for p in pictures if p.stem.upper().endswith("_HR")] or pictures


def _hint(path: Path, kind: str) -> str:
    """The folder one or two below that has what was looked for: people give the parent."""
    if not path.is_dir():
        return ""
    below = [q for p in _folders(path) for q in (p, *_folders(p))]
    fitting = next((p for p in below if _read(p, kind)[0]), None)
    return f"; did you mean {fitting}?" if fitting else ""
