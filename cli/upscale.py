"""`amsa upscale`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import AmsaError
from .options import AsJson, BackendName, Matching, Model, Seed, Threads
from .terminal import check_not_an_input, err, out, peak_memory_mb, print_json, print_stats, progress_bar, say_backend
from .video import is_clip, upscale_clip

if TYPE_CHECKING:
    from ..engine.batch import FolderReport

_FOLDERS, _CLIPS = "Folders", "Clips"  # headings of the help


def upscale(
    lr: Annotated[
        Path, typer.Argument(help="The low-resolution photo, at least 16 pixels a side; or a folder of them; or a clip.")
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="Where to write the x4 picture or clip, the suffix chooses the format; a folder for a folder's.",
        ),
    ],
    refs: Annotated[
        list[Path] | None, typer.Argument(help="Sharp photos of something similar, at least 64 pixels a side.")
    ] = None,
    ref_folder: Annotated[
        Path | None,
        typer.Option("--refs", help="All photos below this folder are candidates too; the most relevant serve."),
    ] = None,
    max_refs: Annotated[
        int | None,
        typer.Option("--max-refs", min=1, help="So many of the references serve, the most relevant; with --refs: 4."),
    ] = None,
    explain: Annotated[
        Path | None,
        typer.Option("--explain", help="Folder for maps and a page that show what came from which reference; not for clips."),
    ] = None,
    model: Model = None,
    backend: BackendName = "auto",
    matching: Matching = "patchmatch",
    seed: Seed = 0,
    threads: Threads = None,
    skip: Annotated[
        float | None,
        typer.Option(
            "--skip", help="Weight that references may have together and still not be restored, 0 to 1; 0: restore all."
        ),
    ] = None,
    engines: Annotated[
        Path | None, typer.Option("--engines", help="tensorrt: folder that `amsa build -o` wrote to; default: MODEL.engines.")
    ] = None,
    max_memory: Annotated[
        str | None,
        typer.Option(
            "--max-memory",
            help="Most memory to take, as 2GB or 1500MB: of all workers together; tensorrt: on the GPU. Default: what is free.",
        ),
    ] = None,
    consistent: Annotated[
        bool, typer.Option("--consistent", help="Correct the result so that, shrunk again, it is the LR photo: no colour shifts.")
    ] = False,
    pairs: Annotated[
        Path | None,
        typer.Option("--pairs", help="CSV file lr,ref,ref2,.. with each picture's own references.", rich_help_panel=_FOLDERS),
    ] = None,
    ref_rule: Annotated[
        str | None,
        typer.Option(
            "--ref-rule", help="The same by names, as '{}_0.*:{}_[1-9].*' or '{}.*:../refs/{}.*'.", rich_help_panel=_FOLDERS
        ),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option("--format", help="Format of all results, as png; default: each picture's own.", rich_help_panel=_FOLDERS),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, help="Processes that share the threads; default: 1.", rich_help_panel=_FOLDERS),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray",
            help="Ray cluster to run the workers on: local, auto or host:port. Its machines must see the same files, "
            "under the same paths.",
            rich_help_panel=_FOLDERS,
        ),
    ] = None,
    codec: Annotated[
        str | None, typer.Option("--codec", help="h264, hevc or av1; default: h264.", rich_help_panel=_CLIPS)
    ] = None,
    crf: Annotated[
        int | None,
        typer.Option("--crf", help="Quality, 0 the best; default: no loss that is seen, 16 for h264.", rich_help_panel=_CLIPS),
    ] = None,
    stats: Annotated[bool, typer.Option("--stats", help="Print seconds per stage and peak memory; for one picture.")] = False,
    as_json: AsJson = False,
) -> None:
    """Upscale a photo x4 with the texture of reference photos; or every photo below a folder; or a clip.

    A folder's run that was ended goes on where it was when it is started again. Results that are there are skipped; to have one
    made again, delete it. What failed is listed in failures.json, and the exit code is 1.
    """
    from ..engine.memory import parse_bytes

    upscaler = {
        "path": model,
        "backend": backend,
        "threads": threads,
        "matching": matching,
        "skip": skip,
        "engines": engines,
        "max_memory": None if max_memory is None else parse_bytes(max_memory),
        "consistent": consistent,
    }
    for_clips = {"--codec": codec, "--crf": crf}
    if (given := [name for name, value in for_clips.items() if value is not None]) and not is_clip(lr):
        raise AmsaError(f"{', '.join(given)}: for a clip, and {lr} is none")
    for_folders = {"pairs": pairs, "ref_rule": ref_rule, "format": format, "workers": workers, "ray": ray}
    if lr.is_dir():
        if stats:
            raise AmsaError("--stats is for one picture; see `amsa profile`, or .amsa-run.jsonl for seconds per picture")
        settings = for_folders | {"ref_folder": ref_folder, "max_refs": max_refs, "explain": explain}
        _folder(lr, refs or [], output, seed, as_json, upscaler | {k: v for k, v in settings.items() if v is not None})
        return
    if given := [f"--{name.replace('_', '-')}" for name, value in for_folders.items() if value is not None]:
        raise AmsaError(f"{', '.join(given)}: for a folder of pictures, and {lr} is none")
    if is_clip(lr):
        others = {"--explain": explain, "--stats": stats or None}
        if given := [name for name, value in others.items() if value is not None]:
            raise AmsaError(f"{', '.join(given)}: for pictures; {lr} is a clip")
    if not refs and ref_folder is None:
        raise AmsaError("no reference photo; give at least one, or a folder of them with --refs")
    if is_clip(lr):
        upscale_clip(lr, refs or [], ref_folder, max_refs, output, codec, crf, seed, as_json, upscaler)
        return
    _one(lr, refs or [], ref_folder, max_refs, output, explain, seed, stats, as_json, upscaler)


def _one(
    lr: Path,
    refs: list[Path],
    ref_folder: Path | None,
    max_refs: int | None,
    output: Path,
    explain: Path | None,
    seed: int,
    stats: bool,
    as_json: bool,
    arguments: dict[str, Any],
) -> None:
    """Upscale one picture; `arguments`: of `Upscaler`."""
    from ..engine.candidates import MAX_REFS, candidates_below, choose
    from ..engine.details import Details, served_line, short_names
    from ..engine.explain import check_folder, write_explanation
    from ..engine.images import check_format, check_writable, read_photo, write_photo
    from ..engine.upscaler import Stats, Upscaler

    check_writable(output)
    check_not_an_input(output, lr, *refs)
    begin = time.perf_counter()
    lr_photo = read_photo(lr)
    check_format(output, lr_photo, 4)
    candidates = refs if ref_folder is None else candidates_below(ref_folder, refs, leave_out=(lr, output))
    ranked = ref_folder is not None or max_refs is not None
    ref_photos = [] if ranked else [read_photo(r) for r in refs]
    upscaler = Upscaler(**arguments)
    if explain is not None:
        check_folder(explain, (lr, output, *candidates))
    if not as_json:
        say_backend(upscaler)
    measured, details = Stats(), Details()
    wanted = measured if stats or as_json else None  # measuring makes a GPU wait after every stage
    with progress_bar(as_json) as progress:
        if ranked:
            ranking = time.perf_counter()
            most = MAX_REFS if max_refs is None else max_refs
            places, ref_photos = choose(upscaler.backend_in_use, lr_photo, candidates, most, read_photo, progress=progress)
            refs = [candidates[place] for place in places]
            measured.add("rank", time.perf_counter() - ranking)
        names = [str(p) for p in (lr, *refs)]
        sr = upscaler.upscale_photo(
            lr_photo, ref_photos, seed=seed, names=names, progress=progress, stats=wanted, details=details
        )
    write_photo(output, sr)
    if explain is not None:
        write_explanation(explain, lr_photo, ref_photos, sr, details, upscaler.config, names=names, model=upscaler.description)
    total = time.perf_counter() - begin
    served = details.served()
    if as_json:
        print_json(
            {
                "output": str(output),
                "width": sr.width,
                "height": sr.height,
                "backend": upscaler.backend,
                "trained": upscaler.trained,
                "references": [{"file": str(file), "weight": weight} for file, weight in zip(refs, served, strict=True)],
                "candidates": len(candidates),
                "seconds": {**measured.seconds, "total": total},
                "peak_memory_mb": peak_memory_mb(),
            }
        )
        return
    out.print(f"{output}: {sr.width}x{sr.height} from {lr_photo.width}x{lr_photo.height} in {total:.1f} s")
    if len(candidates) > 1:
        out.print(served_line(short_names(refs), served) + (f"; of {len(candidates)} candidates" if ranked else ""))
    if explain is not None:
        out.print(f"what came from which: {explain / 'explain.html'}")
    if stats:
        print_stats(measured, total)


def _folder(folder: Path, refs: list[Path], output: Path, seed: int, as_json: bool, arguments: dict[str, Any]) -> None:
    """Upscale a folder of pictures; `arguments`: the others of `upscale_folder`."""
    from ..engine.batch import Interrupted, upscale_folder

    def say(text: str) -> None:
        err.print(" ".join(text.split()))

    if not as_json:
        arguments |= {"say": say, "opened": say_backend}
    try:
        with progress_bar(as_json) as progress:
            report = upscale_folder(folder, refs, output, seed=seed, progress=progress, **arguments)
    except Interrupted as e:
        _print_report(e.report, as_json)
        sys.exit(130)
    _print_report(report, as_json)
    if report.failed:
        raise typer.Exit(1)


def _print_report(report: FolderReport, as_json: bool) -> None:
    if as_json:
        print_json(report.as_dict())
        return
    counts = f"{report.done} done, {report.skipped} skipped, {len(report.failed)} failed"
    out.print(f"{report.output}: {counts} in {report.seconds:.1f} s")
    if report.failed:
        err.print(f"what failed, and why: {Path(report.output) / 'failures.json'}")
    if report.left:
        err.print(f"interrupted: {report.left} pictures are left; the same command does them")
