"""`amsa profile`."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import AmsaError
from .options import AsJson, BackendName, Matching, Seed, Threads
from .terminal import check_not_an_input, err, out, progress_bar, require_extra

if TYPE_CHECKING:
    from ..engine.images import Photo
    from ..engine.profiling.results import Profile


def profile(
    photos: Annotated[list[Path] | None, typer.Argument(help="LR photo and reference photos; or give sizes.")] = None,
    lr: Annotated[str | None, typer.Option("--lr", help="Instead of a photo: size of the LR picture, WIDTHxHEIGHT.")] = None,
    ref: Annotated[list[str] | None, typer.Option("--ref", help="Size of a reference; may be repeated.")] = None,
    model: Annotated[
        Path | None,
        typer.Option("--model", "-m", help="Model folder, .amsa file or checkpoint; or small, paper, published: untrained."),
    ] = None,
    backend: BackendName = "auto",
    threads: Threads = None,
    against: Annotated[
        list[str] | None,
        typer.Option("--against", help="torch, torch-compile, torch-fp16, or another model; in turns with it; may be repeated."),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option("--checkpoint", help="For --against torch: what MODEL was exported from; default: MODEL.safetensors."),
    ] = None,
    runs: Annotated[
        int, typer.Option("--runs", min=0, help="Pictures that are timed, after 2 that are not; 0: none, with --gpu.")
    ] = 10,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0, help="Of timed pictures, per contender; after them no further one is begun.")
    ] = 60,
    layers: Annotated[bool, typer.Option("--layers/--no-layers", help="Time every layer, in a run of its own.")] = True,
    matching: Matching = "patchmatch",
    skip: Annotated[
        float | None,
        typer.Option("--skip", help="Weight that references may have together and still not be restored, 0 to 1."),
    ] = None,
    engines: Annotated[
        Path | None,
        typer.Option("--engines", help="tensorrt, --gpu: folder that `amsa build -o` wrote to; default: MODEL.engines."),
    ] = None,
    gpu: Annotated[
        list[str] | None,
        typer.Option("--gpu", help="Estimate the times on this card, as rtx2080ti; it need not be here; may be repeated."),
    ] = None,
    seed: Seed = 0,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for profile.json and profile.html.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure where time and memory go, against PyTorch or other models. Exit code 1: one of them could not be measured."""
    from ..config import VARIANTS
    from ..engine.profiling.contenders import Contender, opponents, write_untrained
    from ..engine.profiling.estimate import estimate, only_estimates
    from ..engine.profiling.files import FILE, prepare_folder
    from ..engine.profiling.measure import Effort, measure
    from ..engine.profiling.torch_modes import MODES

    if output is not None:
        check_not_an_input(output / FILE, *(photos or ()))
        prepare_folder(output)
    lr_photo, refs, notes = _pictures(photos or [], lr, ref or [], seed)
    sizes = (lr_photo.width, lr_photo.height), [(photo.width, photo.height) for photo in refs]
    if runs == 0 and (against or not gpu):
        raise AmsaError("--runs 0 measures nothing, so it goes without --against, and with a card: --gpu rtx2080ti")
    if gpu:
        alone = only_estimates(model, gpu, *sizes, engines)  # now, so that what is wrong is told before minutes of measuring
        if runs == 0:
            _report(alone, output, as_json)
            return
    untrained = str(model) if model is not None and str(model) in VARIANTS and not model.exists() else None
    if untrained or any(name in MODES for name in against or ()):
        require_extra("export", "torch", "safetensors")
    with tempfile.TemporaryDirectory() as scratch:
        if untrained:
            if backend not in ("auto", "torch"):
                mend = f"for {backend} export it first: amsa export {untrained} -o {untrained}"
                raise AmsaError(f"{untrained}, untrained, runs under PyTorch; {mend}")
            model = write_untrained(untrained, Path(scratch))
        path = None if model is None else str(model)
        folder = None if engines is None or (gpu and backend != "tensorrt") else str(engines)
        first = Contender(path, backend, threads=threads, matching=matching, skip=skip, engines=folder, seed=seed)
        others = opponents(first, against or [], None if checkpoint is None else str(checkpoint))
        with progress_bar(as_json) as progress:
            result, failures = measure(
                [first, *others],
                lr_photo,
                refs,
                Effort(runs, seconds, layers),
                model=untrained or str(first.path),
                notes=notes,
                say=lambda note: err.print(f"note: {note}"),
                progress=progress,
            )
    if gpu:
        estimates = [estimate(model, name, *sizes, restored=result.restored, engines=engines) for name in gpu]
        result = replace(result, estimates=estimates)
    _report(result, output, as_json)
    if failures:
        raise typer.Exit(1)


def _report(result: Profile, output: Path | None, as_json: bool) -> None:
    from ..engine.profiling import html
    from ..engine.profiling.files import FILE, to_json, write_file
    from ..engine.profiling.tables import tables

    if output is not None:
        written = write_file(output, FILE, to_json(result)), write_file(output, html.FILE, html.make_page(result))
    if as_json:
        sys.stdout.write(to_json(result))
    else:
        for part in tables(result):
            out.print(part)
        if output is not None:
            out.print(f"{written[0]} and, to look at, {written[1]}: all of it, every layer of every contender")


def _pictures(photos: list[Path], lr: str | None, refs: list[str], seed: int) -> tuple[Photo, list[Photo], list[str]]:
    """LR, references, and what must be said of them."""
    from ..engine.images import read_photo, require_size
    from ..engine.profiling.pictures import NOTE, make_pictures
    from ..stages import LR_MIN, REF_MIN
    from ..training.evaluation.complexity import parse_size

    if photos and (lr is not None or refs):
        raise AmsaError("give either photos or sizes (--lr and --ref), not both")
    for path in photos:
        if path.is_dir() or path.suffix in (".safetensors", ".amsa"):
            raise AmsaError(f"{path} is a model; give it with --model, and photos or sizes (--lr and --ref) to run it on")
    if photos:
        if len(photos) < 2:
            raise AmsaError("give a reference photo behind the LR photo, or sizes instead: --lr 480x270 --ref 1920x1080")
        read = [read_photo(path) for path in photos]
        for i, (photo, path) in enumerate(zip(read, photos, strict=True)):
            require_size(photo, path, REF_MIN if i else LR_MIN)
        return read[0], read[1:], []
    if lr is None or not refs:
        raise AmsaError("give an LR photo and reference photos, or sizes: --lr 480x270 --ref 1920x1080")
    sizes = []
    for i, text in enumerate((lr, *refs)):
        height, width = parse_size(text)
        name, least = ("--ref", REF_MIN) if i else ("--lr", LR_MIN)
        if min(height, width) < least:
            raise AmsaError(f"{name} {text}: at least {least} pixels on each side are needed; choose a larger size")
        sizes.append((width, height))
    return *make_pictures(sizes[0], sizes[1:], seed), [NOTE]
