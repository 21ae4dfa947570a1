"""`amsa evaluate`: from datasets and an experiment to a report. One broken picture never stops the rest."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..._version import __version__
from ...engine.images import Photo, read_photo, write_photo
from ...engine.upscaler import Progress, Upscaler
from ...errors import AmsaError
from ..layouts import Case, Layout, read_layout, unique_names
from .experiments import EXPERIMENTS, paper, settings
from .lpips import load_lpips
from .protocol import BORDER, Keep, Protocol, Result, Score, Setting
from .report import Report, prepare_folder, require_matplotlib, write_report


def check(data: Sequence[Path], kind: str = "auto", progress: Progress | None = None) -> list[dict[str, Any]]:
    """Read every picture of every dataset: name, kind, counts and problems of each.

    Raises:
        AmsaError: as `read_layout`.
    """
    layouts = _layouts(data, kind)
    total, done, found = sum(len(layout.files()) for layout in layouts.values()), 0, []
    for name, layout in layouts.items():
        broken = []
        for path in layout.files():
            if progress is not None:
                progress(done, total, path.name)
            done += 1
            try:
                read_photo(path)
            except AmsaError as e:
                broken.append(str(e))
        dataset = _dataset(name, layout)
        found.append(dataset | {"problems": dataset["problems"] + broken})
    return found


def evaluate(
    data: Sequence[Path],
    output: Path,
    *,
    model: Path | None = None,
    backend: str = "auto",
    threads: int | None = None,
    kind: str = "auto",
    experiment: str = "table1",
    refs: int = 1,
    limit: int | None = None,
    seed: int = 0,
    lpips: Path | None = None,
    plots: bool = False,
    save_pictures: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Run an experiment on datasets and write report.json, report.md, and where asked for plots and pictures.

    Args:
        data: folders or CSV files, see `read_layout`.
        output: folder for the report; made where it is missing.
        model, backend, threads: as `Upscaler` takes them.
        kind: of all datasets; "auto": told from the names.
        experiment: one of `EXPERIMENTS`.
        refs: references of a case that are used at once, where it has as many.
        limit: only the first pictures of each dataset.
        seed: of the initial matches and of irrelevant references.
        lpips: a distance network, see `lpips.py`.
        progress: called before every picture.

    Returns:
        What report.json holds. "failures" and the datasets' "problems" are empty if all went well; "interrupted" tells
        of a keyboard interrupt, after which the rows so far are written all the same.

    Raises:
        AmsaError: before anything is scored, for what no picture could be scored with.
    """
    if not 0 <= seed < 2**31:  # or every picture would fail with it
        raise AmsaError(f"seed is {seed}; it must be from 0 to {2**31 - 1}")
    layouts = _layouts(data, kind)
    plan = [(name, s) for name, layout in layouts.items() for s in settings(experiment, layout, refs)]
    prepare_folder(output)
    if plots:
        require_matplotlib()
    upscaler = Upscaler(model, backend, threads)
    protocol = Protocol(upscaler, seed, load_lpips(lpips) if lpips else None)
    report: Report = {
        "amsa": __version__,
        "experiment": experiment,
        "title": EXPERIMENTS[experiment],
        "model": str(model) if model else "the shipped model",
        "variant": upscaler.config.variant,
        "trained": upscaler.trained,
        "backend": upscaler.backend,
        "seed": seed,
        "lpips": lpips.name if lpips else None,
        "crop": protocol.crop,
        "protocol": f"pictures cropped to multiples of {protocol.crop}, LR bicubic / 4 in 8 bits, result in 8 bits, "
        f"PSNR and SSIM on Y with a border of {BORDER}",
        "datasets": [_dataset(name, layout) for name, layout in layouts.items()],
        "rows": [],
        "failures": [],
        "interrupted": False,
    }
    chosen = [(name, setting, _indices(layouts[name].cases, setting, limit)) for name, setting in plan]
    step = _countdown(sum(len(indices) for *_, indices in chosen), progress)
    try:
        for name, setting, indices in chosen:
            keep = _keeper(output, name, setting) if save_pictures else None
            results = []
            for index in indices:
                case = layouts[name].cases[index]
                step(f"{name}, {setting.label}: {case.name}")
                try:
                    results.append(protocol.run(layouts[name].cases, index, setting, keep))
                except Exception as e:  # whatever a backend raises, for instance for lack of memory
                    reason = " ".join(str(e).split())
                    reason = reason if isinstance(e, AmsaError) else f"{type(e).__name__}: {reason}"
                    failure = {"dataset": name, "setting": setting.label, "name": case.name, "reason": reason}
                    report["failures"].append(failure)
            published = paper(experiment, layouts[name].kind, setting)
            report["rows"].append(_row(name, setting, results, len(indices) - len(results), published))
    except KeyboardInterrupt:
        report["interrupted"] = True
    write_report(report, output, plots)
    return report


def _layouts(data: Sequence[Path], kind: str) -> dict[str, Layout]:
    """By a name for tables: the file's or folder's, with the folder above where that says nothing."""
    names = []
    for path in data:
        place = path.resolve()
        name = place.stem if place.is_file() else place.name
        names.append(f"{place.parent.name}-{name}" if name.lower() in ("hr", "test", "train", "images") else name)
    return dict(zip(unique_names(names), (read_layout(path, kind) for path in data), strict=True))


def _indices(cases: Sequence[Case], setting: Setting, limit: int | None) -> list[int]:
    """Cases that have the setting's reference. Irrelevant ones are drawn from all cases, so that a limit changes none."""
    most = len(cases) if limit is None else min(limit, len(cases))
    return [i for i in range(most) if setting.reference != "given" or len(cases[i].refs) > setting.first]


def _dataset(name: str, layout: Layout) -> dict[str, Any]:
    counts = [len(case.refs) for case in layout.cases]
    references = {"fewest": min(counts), "most": max(counts)}
    return {
        "name": name,
        "kind": layout.kind,
        "pictures": len(counts),
        "references": references,
        "problems": list(layout.problems),
    }


def _row(
    dataset: str, setting: Setting, results: Sequence[Result], failed: int, published: tuple[float, float] | None
) -> dict[str, Any]:
    worst = min(results, key=lambda r: r.gain, default=None)
    return {
        "dataset": dataset,
        "setting": setting.label,
        "gamma": setting.gamma,
        "pictures": len(results),
        "failed": failed,
        "bicubic": _mean([r.bicubic for r in results]),
        "amsa": _mean([r.amsa for r in results]),
        "gain": float(np.mean([r.gain for r in results])) if results else None,
        "worst": {"name": worst.name, "gain": worst.gain} if worst else None,
        "below_bicubic": sum(r.gain < 0 for r in results),
        "seconds": sum(r.seconds for r in results),
        "paper": {"psnr": published[0], "ssim": published[1]} if published else None,
        "results": [asdict(r) | {"gain": r.gain} for r in results],
    }


def _mean(scores: Sequence[Score]) -> dict[str, float | None] | None:
    if not scores:
        return None
    distances = [s.lpips for s in scores if s.lpips is not None]
    return {
        "psnr": float(np.mean([s.psnr for s in scores])),
        "ssim": float(np.mean([s.ssim for s in scores])),
        "lpips": float(np.mean(distances)) if distances else None,
    }


def _keeper(output: Path, dataset: str, setting: Setting) -> Keep:
    folder = output / "pictures" / dataset / setting.label.replace(" ", "-")
    prepare_folder(folder)

    def keep(name: str, sr: Photo) -> None:
        write_photo(folder / f"{name}.png", sr)

    return keep


def _countdown(total: int, progress: Progress | None) -> Callable[[str], None]:
    """Report each picture with the time that the rest will take at the pace so far."""
    begin, done = time.perf_counter(), 0

    def step(what: str) -> None:
        nonlocal done
        if progress is not None:
            left = (time.perf_counter() - begin) / done * (total - done) if done else 0
            progress(done, total, what + (f", {_duration(left)} left" if done else ""))
        done += 1

    return step


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 100 else f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
