"""What a run is to do: the pictures below a folder, their references, and where the results go. Files are listed, not opened."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ...errors import AmsaError
from ..candidates import candidates_below
from ..images import FORMATS, PICTURES
from .pairing import by_csv, by_rule, for_all


@dataclass(frozen=True)
class Job:
    """A picture to make: `name` is the result's path below the output folder, with slashes."""

    name: str
    lr: Path
    refs: tuple[Path, ...]
    target: Path


@dataclass(frozen=True)
class Failure:
    """A picture (or a line of a CSV file, or a folder) that gave no result, and why, with how to mend it.

    `trace`: for a fault of ours, where it was.
    """

    path: str
    reason: str
    trace: str = ""

    def as_dict(self) -> dict[str, str]:
        """As JSON holds it."""
        return {k: v for k, v in asdict(self).items() if v}

    def __str__(self) -> str:
        path = shown(self.path)
        return self.reason if path in self.reason else f"{path}: {self.reason}"


@dataclass
class Plan:
    """Jobs in the order of their names, what cannot become one, and a line for each kind of file that is passed over."""

    jobs: list[Job] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def shown(path: str | Path) -> str:
    """A path as one line that every terminal can print."""
    text = str(path)
    return text if text.isprintable() else repr(text)


def make_plan(
    folder: Path,
    output: Path,
    refs: Sequence[Path] = (),
    ref_folder: Path | None = None,
    pairs: Path | None = None,
    ref_rule: str | None = None,
    format: str | None = None,
    explain: Path | None = None,
) -> Plan:
    """Find the pictures below a folder and their references. See `upscale_folder` for the arguments.

    Raises:
        AmsaError: folders that cannot be those of a run, not exactly one kind of references, a format that is not written,
            a CSV file or rule that cannot be read, or no picture at all.
    """
    if not folder.is_dir():
        raise AmsaError(f"{shown(folder)} is not a folder; give the folder that holds the pictures")
    _check_output(folder, output)
    if explain is not None:
        _check_explain(explain, output, [folder] if ref_folder is None else [folder, ref_folder])
    suffix = None if format is None else f".{format.lower().removeprefix('.')}"
    if suffix is not None and suffix not in FORMATS:
        raise AmsaError(f"format {format} is not written; choose one of {', '.join(f.removeprefix('.') for f in FORMATS)}")
    if sum(map(bool, (refs or ref_folder, pairs, ref_rule))) != 1:
        raise AmsaError("give references in one way: photos that serve all pictures, and --refs; --pairs; or --ref-rule")
    if ref_folder is not None:
        refs = candidates_below(ref_folder, refs, leave_out=[output])

    plan = Plan()
    pictures = sorted(_pictures(folder, output, plan))
    if pairs is not None:
        pairing = by_csv(folder, pictures, pairs)
    elif ref_rule is not None:
        pairing = by_rule(folder, pictures, ref_rule)
    else:
        pairing = for_all(pictures, refs)
    plan.failures += [Failure(path, reason) for path, reason in pairing.problems]
    if pairing.left_out:
        plan.notes.append(f"pictures passed over: {pairing.left_out}; {pairing.why}")

    for lr, references in pairing.refs.items():
        name = lr.relative_to(folder)
        name = name if suffix is None else name.with_suffix(suffix)
        plan.jobs.append(Job(name.as_posix(), lr, references, output / name))
    names = Counter(job.name for job in plan.jobs)
    for job in plan.jobs:
        if names[job.name] > 1:
            others = ", ".join(shown(other.lr) for other in plan.jobs if other.name == job.name and other is not job)
            plan.failures.append(Failure(str(job.lr), f"would be written to {shown(job.target)} as {others}; rename one"))
        elif job.target.suffix.lower() not in FORMATS:
            plan.failures.append(Failure(str(job.lr), f"{job.target.suffix} is read, but not written; add --format png"))
    failed = {failure.path for failure in plan.failures}
    plan.jobs = [job for job in plan.jobs if str(job.lr) not in failed]
    if not plan.jobs and not plan.failures:
        passed_over = f" ({'; '.join(plan.notes)})" if plan.notes else ""
        raise AmsaError(f"{shown(folder)}: no picture to upscale{passed_over}; pictures end in {', '.join(PICTURES)}")
    return plan


def _check_output(folder: Path, output: Path) -> None:
    if output.exists() and output.samefile(folder):
        raise AmsaError(f"{shown(output)} is also the folder of the pictures; choose another output folder")
    if output.exists() and not output.is_dir():
        raise AmsaError(f"{shown(folder)} is a folder: its results need a folder, and {shown(output)} is a file")
    if not output.exists() and output.suffix.lower() in PICTURES:
        raise AmsaError(f"{shown(folder)} is a folder: its results need a folder, and {shown(output)} is a picture's name")


def _check_explain(explain: Path, output: Path, read: Sequence[Path]) -> None:
    """The maps are pictures: where they lay among the others, the next run would take them for such."""
    mine, results = Path(os.path.realpath(explain)), Path(os.path.realpath(output))
    for folder in read:
        if mine.is_relative_to(os.path.realpath(folder)) and results not in mine.parents:
            raise AmsaError(
                f"{shown(explain)} lies in {shown(folder)}, whose pictures are read; choose another folder for --explain"
            )
    if mine == results:
        raise AmsaError(f"{shown(explain)} is also the folder of the results; choose another folder for --explain")


def _pictures(folder: Path, output: Path, plan: Plan) -> Iterator[Path]:
    """Walk the folder without its output; what is passed over is counted into the plan's notes."""
    others: Counter[str] = Counter()
    hidden, links = 0, 0

    def unreadable(e: OSError) -> None:
        plan.failures.append(Failure(str(e.filename), f"cannot be read ({e.strerror}); change its permissions"))

    mine = os.path.realpath(output)
    for place, folders, files in os.walk(folder, onerror=unreadable):
        here = Path(place)
        for name in sorted(files):
            if name.startswith("."):  # macOS leaves ._NAME beside every file that it packs
                hidden += 1
            elif (suffix := Path(name).suffix.lower()) in PICTURES:
                yield here / name
            else:
                others[suffix or "no suffix"] += 1
        for name in list(folders):
            path = here / name
            if name.startswith(".") or path.is_symlink() or os.path.realpath(path) == mine:
                folders.remove(name)
                hidden, links = hidden + name.startswith("."), links + path.is_symlink()
            elif path.suffix.lower() in PICTURES and os.access(path, os.R_OK) and not any(path.iterdir()):
                plan.failures.append(Failure(str(path), f"{shown(path)} is a folder; give a picture file"))
    if others:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(5))
        plan.notes.append(f"files passed over: {others.total()}, no pictures by their suffix ({kinds})")
    if hidden:
        plan.notes.append(f"hidden files and folders passed over: {hidden}")
    if links:
        plan.notes.append(f"links to folders passed over: {links}; give the folders themselves")
