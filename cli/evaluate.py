"""`amsa evaluate` and `amsa complexity`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import AsJson, BackendName, Model, Seed, Threads
from .terminal import out, print_json, progress_bar, require_extra


def evaluate(
    data: Annotated[list[Path], typer.Argument(help="Folders of pictures and references, or a CSV file; see docs/datasets.md.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the report.")] = Path("out/evaluation"),
    model: Model = None,
    backend: BackendName = "auto",
    kind: Annotated[
        str, typer.Option("--kind", help="auto, cufed, cufed5, sun80, wrsr, urban100, manga109, pairs or photos.")
    ] = "auto",
    experiment: Annotated[str, typer.Option("--experiment", help="table1, relevance, misalignment or robustness.")] = "table1",
    refs: Annotated[int, typer.Option("--refs", min=1, help="References of a picture to use, where it has as many.")] = 1,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the first pictures of each dataset.")] = None,
    seed: Seed = 0,
    threads: Threads = None,
    lpips: Annotated[
        Path | None, typer.Option("--lpips", help="Measure LPIPS, too, with this network; see training/evaluation/lpips.py.")
    ] = None,
    plots: Annotated[bool, typer.Option("--plots", help="Draw the gains and the curve.")] = False,
    save_pictures: Annotated[bool, typer.Option("--save-pictures", help="Keep the upscaled pictures.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Only read the data, and say what is wrong with it.")] = False,
    as_json: AsJson = False,
) -> None:
    """Shrink pictures, upscale them with references, and score them as the paper does. Exit code 1: a picture failed."""
    from ..training.evaluation import report as reports
    from ..training.evaluation import run

    with progress_bar(as_json) as progress:
        if check:
            datasets = run.check(data, kind, progress)
        else:
            report = run.evaluate(
                data,
                output,
                model=model,
                backend=backend,
                threads=threads,
                kind=kind,
                experiment=experiment,
                refs=refs,
                limit=limit,
                seed=seed,
                lpips=lpips,
                plots=plots,
                save_pictures=save_pictures,
                progress=progress,
            )
            datasets = report["datasets"]
    if as_json:
        print_json({"datasets": datasets} if check else reports.finite(report))
    elif check:
        out.print(reports.checked(datasets))
    else:
        out.print(f"{reports.to_markdown(report)}\n{output}/report.md, {output}/report.json")
    if not check and report["interrupted"]:
        raise typer.Exit(130)
    if any(d["problems"] for d in datasets) or (not check and report["failures"]):
        raise typer.Exit(1)


def complexity(
    model: Annotated[str, typer.Argument(help="Model folder, .amsa file or checkpoint; or small, paper, published.")],
    lr: Annotated[str, typer.Option("--lr", help="Size of the LR picture, WIDTHxHEIGHT.")],
    ref: Annotated[str, typer.Option("--ref", help="Size of the reference photo, WIDTHxHEIGHT.")],
) -> None:
    """Count the multiply-accumulates of every stage for these sizes, as a Markdown table. Nothing is computed."""
    require_extra("export", "torch")
    from ..config import VARIANTS, AMSAConfig
    from ..engine.inspection import inspect_model
    from ..training.evaluation.complexity import parse_size, table

    untrained = model in VARIANTS and not Path(model).is_file()
    config = VARIANTS[model]() if untrained else AMSAConfig.from_dict(inspect_model(model).config)
    out.print(table(config, parse_size(lr), parse_size(ref)))
