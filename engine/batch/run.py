"""A folder of pictures, from the plan to the report."""

from __future__ import annotations

import inspect
import json
import secrets
import shutil
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...errors import AmsaError
from ...stages import REF_MIN
from ..backends import SHIPPED_ENGINE_MODEL, SHIPPED_MODEL
from ..candidates import MAX_REFS
from ..explain import PAGE
from ..images import read_photo, require_size
from ..upscaler import Progress, Upscaler
from .journal import DONE, DONE_AND_EDITED, Journal
from .on_ray import RayPool
from .plan import Failure, Job, make_plan, shown
from .pool import Pool, Work
from .processes import ProcessPool
from .worker import Opened, Outcome, Task

FAILURES = "failures.json"
PARTS = ".amsa-parts"
"""Where results are until they are whole. What a killed run left there goes when the next begins."""
_NOT_IN_THE_PICTURE = ("path", "backend", "threads", "tile", "engines", "max_memory")
"""Arguments of `Upscaler` that do not change a picture, or are told otherwise."""


@dataclass
class FolderReport:
    """What a run did.

    Attributes:
        output: the folder of the results.
        done: pictures made by this run.
        references: of each of these, by its name below the output folder: files that served, and their shares of the picture.
        skipped: that were made before, by the same model and settings from the same photos.
        failed: what gave no result, in the order of their paths.
        left: pictures that an interrupted run did not come to.
        seconds: it took.
        opened: on what it ran; None where there was nothing to do.
    """

    output: str
    done: int = 0
    references: dict[str, list[dict[str, str | float]]] = field(default_factory=dict)
    skipped: int = 0
    failed: list[Failure] = field(default_factory=list)
    left: int = 0
    seconds: float = 0.0
    opened: Opened | None = None

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        opened = None if self.opened is None else {k: getattr(self.opened, k) for k in ("backend", "device", "trained")}
        failed = [failure.as_dict() for failure in self.failed]
        return {**asdict(self), "failed": failed, "opened": opened}


class Interrupted(KeyboardInterrupt):
    """Ctrl-C came. Whatever was done is kept; the same call again does the rest."""

    def __init__(self, report: FolderReport) -> None:
        super().__init__(f"{report.done} pictures done, {report.left} left")
        self.report = report


def upscale_folder(
    folder: str | Path,
    refs: Sequence[str | Path],
    output: str | Path,
    *,
    ref_folder: str | Path | None = None,
    max_refs: int | None = None,
    pairs: str | Path | None = None,
    ref_rule: str | None = None,
    format: str | None = None,
    explain: str | Path | None = None,
    workers: int = 1,
    ray: str | None = None,
    seed: int = 0,
    opened: Callable[[Opened], None] | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
    **upscaler: Any,
) -> FolderReport:
    """Upscale every picture below a folder x4 into a folder of the same shape.

    No picture stops the others: what failed is in the report, and in `failures.json` in the output folder. A run that was ended,
    however that was, goes on where it was when it is called again: results that are there, made by the same model and settings
    from the same photos, are skipped, others are made again. To have one made again, delete it.

    Args:
        folder: of the pictures; hidden files, links to folders, and the output folder in it are passed over.
        refs: reference photos for all pictures; empty with `pairs` or `ref_rule`.
        output: folder for the results; made where there is none.
        ref_folder: all photos below it are candidates, too, and each picture has the most relevant of all (see `ranking.rank`).
        max_refs: so many of its references serve a picture, the most relevant; None: `MAX_REFS` with `ref_folder`, else all.
            Those that are broken are left out.
        pairs: CSV file lr,ref,ref2,.. that says which references serve which picture; see `pairing.by_csv`.
        ref_rule: the same by names, as "{}_0.*:{}_[1-9].*"; see `pairing.by_rule`.
        format: suffix of all results, as "png"; None: each picture's own.
        explain: folder for pages and maps that show what came from which reference: a folder for each result, by its name.
        workers: processes, or actors on a cluster. A picture whose worker dies twice fails; the others go on.
        ray: address of a Ray cluster ("auto", "local", host:port) whose machines see the same files under the same paths;
            None: this machine.
        seed: of the initial matches, 0 .. 2^31 - 1.
        opened: called when the first worker is ready.
        progress: called with (pictures done, pictures in all, what comes next).
        say: told in a line of each failure as it happens, and of what is made again.
        **upscaler: arguments of `Upscaler`; `threads` and `max_memory` are for all workers together.

    Raises:
        AmsaError: nothing could be done for any picture: wrong folders, references, settings or model.
        Interrupted: by Ctrl-C; a KeyboardInterrupt with the report of what was done.
    """
    begin = time.perf_counter()
    most = MAX_REFS if max_refs is None and ref_folder is not None else max_refs
    if most is not None and most < 1:
        raise AmsaError(f"{most} references cannot serve anything; give at least 1")
    if workers < 1:
        raise AmsaError(f"{workers} workers cannot do anything; give at least 1")
    if not 0 <= seed < 2**31:
        raise AmsaError(f"seed is {seed}; it must be from 0 to {2**31 - 1}")
    upscaler = {k: str(v) if isinstance(v, Path) else v for k, v in upscaler.items()}
    settings = _settings(upscaler, seed) | ({} if most is None else {"max_refs": most})
    shared = [Path(ref) for ref in refs]
    paths = {"ref_folder": ref_folder, "pairs": pairs, "explain": explain}
    given = {name: Path(path) for name, path in paths.items() if path is not None}
    plan = make_plan(Path(folder), Path(output), shared, ref_rule=ref_rule, format=format, **given)
    with warnings.catch_warnings(action="ignore"):  # the worker that reads it to use it tells them
        for ref in shared if most is None else ():  # a bad one would spoil every picture
            require_size(read_photo(ref), ref, REF_MIN)
    for note in plan.notes:
        warnings.warn(note, stacklevel=2)

    run = _Run(Path(output), most, given.get("explain"), progress or (lambda *_: None), say or (lambda _: None))
    for failure in plan.failures:
        run.fail(failure)
    try:
        Path(output).mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise AmsaError(f"{shown(output)} cannot be made a folder ({e.strerror}); choose another output folder") from e
    with closing(Journal(Path(output), settings)) as journal:
        jobs = run.to_do(plan.jobs, journal)
        try:
            if jobs:
                run.work(jobs, journal, lambda: _pool(ray, workers, upscaler, seed), opened or (lambda _: None))
        except KeyboardInterrupt:
            raise Interrupted(run.finish(begin)) from None
        return run.finish(begin)


def _pool(ray: str | None, workers: int, upscaler: dict[str, Any], seed: int) -> Pool[Any]:
    return ProcessPool(workers, upscaler, seed) if ray is None else RayPool(ray, workers, upscaler, seed)


def _settings(upscaler: dict[str, Any], seed: int) -> dict[str, Any]:
    """All that a result depends on beside its photos."""
    arguments = inspect.signature(Upscaler).bind(**upscaler)
    arguments.apply_defaults()
    given = arguments.arguments
    tensorrt = given["backend"] == "tensorrt"
    model = Path(given["path"] or (SHIPPED_ENGINE_MODEL if tensorrt else SHIPPED_MODEL))
    # A file runs on one of the other two only, so that it says which.
    settings = {"model": _model_key(model), "backend": "tensorrt" if tensorrt else "cpu", "seed": seed}
    return {**settings, **{k: v for k, v in given.items() if k not in _NOT_IN_THE_PICTURE and v is not None}}


def _model_key(model: Path) -> str:
    """SHA-256 of a model's file, or of a folder's manifest, which has those of its files."""
    import hashlib

    try:
        with (model / "manifest.json" if model.is_dir() else model).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError:
        return ""  # the worker that cannot open it says why


class _Run:
    """A run in progress: counts, and the two files that it keeps beside the results."""

    def __init__(
        self, output: Path, most: int | None, explain: Path | None, progress: Progress, say: Callable[[str], None]
    ) -> None:
        self._output, self._most, self._explain, self._progress, self._say = output, most, explain, progress, say
        self._report = FolderReport(str(output))
        self._told: set[str] = set()

    def fail(self, failure: Failure) -> None:
        self._report.failed.append(failure)
        self._say(f"failed: {failure}")

    def to_do(self, jobs: Sequence[Job], journal: Journal) -> list[Job]:
        """The jobs that are not done yet; the others are counted."""
        left: list[Job] = []
        unexplained = 0
        told: dict[str, list[Job]] = defaultdict(list)
        for job in jobs:
            try:
                state = journal.state(job)
            except AmsaError as e:
                self.fail(Failure(str(job.lr), str(e)))
                continue
            if state in (DONE, DONE_AND_EDITED):
                self._report.skipped += 1
                unexplained += self._explain is not None and not (self._explain / job.name / PAGE).exists()
            else:
                left.append(job)
            if state not in (DONE, ""):
                told[state].append(job)
        if self._report.skipped:
            self._say(f"{self._report.skipped} of {len(jobs)} pictures are done already")
        if unexplained:
            self._say(f"not explained: {unexplained} of these; delete those results to have them made again, and explained")
        for reason, those in told.items():
            names = ", ".join(shown(job.name) for job in those[:3])
            names += f" and {len(those) - 3} more" if len(those) > 3 else ""
            self._say(f"{'' if reason == DONE_AND_EDITED else 'made again: '}{names}: {reason}")
        return left

    def work(
        self, jobs: list[Job], journal: Journal, make_pool: Callable[[], Pool[Any]], opened: Callable[[Opened], None]
    ) -> None:
        """Do the jobs."""
        # A worker that outlived a killed run finds that run's folder gone, and cannot write into ours.
        parts = self._output / PARTS / secrets.token_hex(4)
        tasks = []
        for number, job in enumerate(jobs):
            result = parts / f"{number}{job.target.suffix}"
            explanation = "" if self._explain is None else str(self._explain / job.name)
            paths = [str(ref) for ref in job.refs]
            tasks.append(Task(str(job.lr), paths, str(result), str(job.target), self._most, explanation))
        self._report.left = len(jobs)

        begin = 0.0

        def first(found: Opened) -> None:
            nonlocal begin
            if self._report.opened is None:
                self._report.opened, begin = found, time.perf_counter()
                for text in found.warnings:
                    warnings.warn(text, stacklevel=2)
                opened(found)

        shutil.rmtree(parts.parent, ignore_errors=True)
        try:
            parts.mkdir(parents=True)
        except OSError as e:
            raise AmsaError(f"{shown(parts)} cannot be made a folder ({e.strerror}); choose another output folder") from e
        try:
            self._progress(0, len(jobs), "starting workers")
            with closing(make_pool()) as pool, closing(Work(pool, tasks, first, self._say).outcomes()) as outcomes:
                for number, outcome in outcomes:
                    self._take(jobs[number], Path(tasks[number].result), outcome, journal)
                    self._report.left -= 1
                    ended = len(jobs) - self._report.left
                    seconds = (time.perf_counter() - begin) / ended * self._report.left
                    self._progress(ended, len(jobs), f"{ended} of {len(jobs)} pictures, {_time(seconds)} left")
        finally:
            shutil.rmtree(parts.parent, ignore_errors=True)

    def _take(self, job: Job, result: Path, outcome: Outcome, journal: Journal) -> None:
        """Put a result into its place, or note why there is none."""
        for text in outcome.warnings:
            if text not in self._told:  # of a reference for all, every worker warns
                self._told.add(text)
                named = any(str(path) in text for path in (job.lr, *job.refs))
                warnings.warn(text if named else f"{shown(job.lr)}: {text}", stacklevel=2)
        if outcome.reason:
            return self.fail(Failure(str(job.lr), outcome.reason, outcome.trace))
        try:
            job.target.parent.mkdir(parents=True, exist_ok=True)
            journal.add(job, result, outcome)
            result.replace(job.target)
        except OSError as e:
            return self.fail(Failure(str(job.lr), f"{shown(job.target)} cannot be written ({e.strerror}); check the folder"))
        self._report.done += 1
        self._report.references[job.name] = [{"file": str(job.refs[place]), "weight": share} for place, share in outcome.served]
        return None

    def finish(self, begin: float) -> FolderReport:
        """The report; the failures are written."""
        self._report.seconds = time.perf_counter() - begin
        self._report.failed.sort(key=lambda failure: failure.path)
        path = self._output / FAILURES
        try:
            if not self._report.failed:
                path.unlink(missing_ok=True)
                return self._report
            text = json.dumps([failure.as_dict() for failure in self._report.failed], indent=2, ensure_ascii=False)
            part = path.with_name(f".{FAILURES}")
            part.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")  # of a name that is no UTF-8: JSON's \udc80
            part.replace(path)
        except OSError as e:
            raise AmsaError(f"{shown(path)} cannot be written ({e.strerror}); check the folder") from e
        return self._report


def _time(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
