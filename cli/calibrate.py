"""`amsa calibrate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from .options import AsJson, Threads
from .terminal import err, out, print_json, require_extra


def calibrate(
    model: Annotated[Path, typer.Argument(help="Model folder or .amsa file, exported as fp32.")],
    data: Annotated[
        list[Path], typer.Option("--data", help="Photos, or pairs as for `amsa evaluate`, to take ranges from; may be repeated.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Precision file to write (.json), for export --quantization.")],
    held_out: Annotated[
        list[Path] | None, typer.Option("--held-out", help="Photos or pairs to measure on; default: other crops of --data.")
    ] = None,
    method: Annotated[str, typer.Option("--method", help="How ranges are found: max, percentile, entropy or mse.")] = "mse",
    max_drop: Annotated[float, typer.Option("--max-drop", help="dB of PSNR-Y against the truth that int8 may cost.")] = 0.05,
    crops: Annotated[int, typer.Option("--crops", help="Crops of 160x160 to take ranges from.")] = 200,
    held_out_crops: Annotated[int, typer.Option("--held-out-crops", help="Crops to measure every block on.")] = 12,
    plot: Annotated[Path | None, typer.Option("--plot", help="Write a plot of the blocks' sensitivity (.png).")] = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Find the layers that can be int8, with their ranges, and those that float16 cannot hold. Minutes for the small model."""
    require_extra("export", "torch")
    from ..calib import report
    from ..calib.run import calibrate as run

    if plot is not None:
        require_extra("evaluate", "matplotlib")
        report.check_plot(plot)
    with err.status("calibrating") as status:
        found = run(
            model,
            data,
            output,
            held_out=held_out or (),
            method=method,
            max_drop=max_drop,
            crops=crops,
            held_out_crops=held_out_crops,
            threads=threads,
            say=status.update,
        )
    if plot is not None:
        report.write_plot(found, plot)
    if as_json:
        print_json(json.loads(found.precision.to_json()))
        return
    table = Table(*report.HEADINGS, title=f"{output}: blocks in the order in which they were tried", title_justify="left")
    for row in report.rows(found):
        table.add_row(*row)
    out.print(table)
    for line in report.summary(found):
        out.print(line)
