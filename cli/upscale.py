"""`amsa upscale`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from .options import AsJson, BackendName, Matching, Model, Seed, Threads
from .terminal import check_not_an_input, out, peak_memory_mb, print_json, print_stats, progress_bar, say_backend


def upscale(
    lr: Annotated[Path, typer.Argument(help="The low-resolution photo, at least 16 pixels a side.")],
    refs: Annotated[list[Path], typer.Argument(help="Sharp photos of something similar, at least 64 pixels a side.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the x4 picture; the suffix chooses the format.")],
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
    max_device_memory: Annotated[
        int | None,
        typer.Option("--max-device-memory", min=1, help="tensorrt: megabytes that pictures, features and scratch may take."),
    ] = None,
    stats: Annotated[bool, typer.Option("--stats", help="Print seconds per stage and peak memory.")] = False,
    as_json: AsJson = False,
) -> None:
    """Upscale a photo x4 with the texture of reference photos."""
    from ..engine.images import check_format, check_writable, read_photo, write_photo
    from ..engine.upscaler import Stats, Upscaler

    check_writable(output)
    check_not_an_input(output, lr, *refs)
    begin = time.perf_counter()
    lr_photo = read_photo(lr)
    check_format(output, lr_photo, 4)
    ref_photos = [read_photo(r) for r in refs]
    cap = None if max_device_memory is None else max_device_memory * 1_000_000
    upscaler = Upscaler(model, backend, threads, matching=matching, skip=skip, engines=engines, max_device_memory=cap)
    if not as_json:
        say_backend(upscaler)
    measured = Stats()
    wanted = measured if stats or as_json else None  # measuring makes a GPU wait after every stage
    with progress_bar(as_json) as progress:
        sr = upscaler.upscale_photo(
            lr_photo, ref_photos, seed=seed, names=[str(p) for p in (lr, *refs)], progress=progress, stats=wanted
        )
    write_photo(output, sr)
    total = time.perf_counter() - begin
    if as_json:
        print_json(
            {
                "output": str(output),
                "width": sr.width,
                "height": sr.height,
                "backend": upscaler.backend,
                "trained": upscaler.trained,
                "seconds": {**measured.seconds, "total": total},
                "peak_memory_mb": peak_memory_mb(),
            }
        )
        return
    out.print(f"{output}: {sr.width}x{sr.height} from {lr_photo.width}x{lr_photo.height} in {total:.1f} s")
    if stats:
        print_stats(measured, total)
