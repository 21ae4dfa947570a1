"""`amsa build` and `amsa inspect`: engines and models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from .options import AsJson
from .terminal import out, print_engines, print_json, progress_bar


def build(
    model: Annotated[Path, typer.Argument(help="Exported model folder or .amsa file.")],
    target: Annotated[
        list[str],
        typer.Option(
            "--target",
            help="sm75 (RTX 20), sm80, sm86, sm89, sm120, sm121; several in one engine, as sm86+sm89+sm120; or native. "
            "May be repeated.",
        ),
    ],
    runtime: Annotated[
        str, typer.Option("--runtime", help="rtx: TensorRT-RTX, builds with no GPU; tensorrt: classic, for this machine's GPU.")
    ] = "rtx",
    precision: Annotated[
        str | None, typer.Option("--precision", help="fp32 or fp16, to insist on; a model is what it was exported as.")
    ] = None,
    shapes: Annotated[
        str | None,
        typer.Option("--shapes", help="Smallest/usual/largest LR picture, multiples of 8; default: 16x16/128x128/512x512."),
    ] = None,
    ref_shapes: Annotated[
        str | None,
        typer.Option("--ref-shapes", help="The same of a reference's matching grid (photo / 4); default: 8x8/128x128/512x512."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for a folder of engines per target; default: MODEL.engines.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Build TensorRT engines of a model, and check that each is what was asked for. Those up to date are left alone."""
    from ..engine.engine_shapes import LR_SIZES, REF_SIZES
    from ..engine.tensorrt_build import build_engines

    with progress_bar(as_json) as progress:
        built = build_engines(
            model,
            target,
            runtime=runtime,
            precision=precision,
            lr_sizes=shapes or LR_SIZES,
            ref_sizes=ref_shapes or REF_SIZES,
            output=output,
            progress=progress,
        )
    if as_json:
        print_json({"engines": [engine.as_dict() for engine in built]})
        return
    print_engines(built)
    for engine in built:
        if engine.reason:
            out.print(f"{engine.path}: {engine.reason}")


def inspect(
    path: Annotated[Path, typer.Argument(help="Model folder, .amsa file, checkpoint, engine, or folder of engines.")],
    as_json: AsJson = False,
) -> None:
    """Say what a model or an engine contains and what it needs."""
    from ..engine.inspection import inspect_path

    report = inspect_path(path)
    if as_json:
        print_json(report.as_dict())
        return
    out.print(report.title)
    table = Table("graph", "MB", "tensors")
    for row in report.graphs:
        table.add_row(row.name, f"{row.bytes / 1e6:.2f}", row.signature)
    if report.graphs:
        out.print(table)
    for line in report.needs:
        out.print(line)
    for key, value in report.config.items():
        out.print(f"  {key} = {value}")
