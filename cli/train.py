"""`amsa train`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import AmsaError
from .options import Threads
from .terminal import err, out, require_extra

if TYPE_CHECKING:
    from ..training.loop import Progress as StageProgress
    from ..training.recipe import Recipe


def train(
    recipe: Annotated[
        str, typer.Argument(help="small, paper, published, or a TOML file; see training/recipe.py for every field.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the run; where it has a state, the run goes on.")],
    photos: Annotated[
        list[Path] | None, typer.Option("--photos", help="Folder of photos; references are made from them.")
    ] = None,
    views: Annotated[list[Path] | None, typer.Option("--views", help="Folder of photos of one scene.")] = None,
    pairs: Annotated[list[Path] | None, typer.Option("--pairs", help="CUFED's layout, or a CSV file hr,ref; see docs.")] = None,
    validation: Annotated[list[Path] | None, typer.Option("--validation", help="Views or pairs that choose the weights.")] = None,
    init: Annotated[
        Path | None, typer.Option("--init", help="Checkpoint (.safetensors) that the first stage begins with.")
    ] = None,
    until: Annotated[int | None, typer.Option("--until", min=1, help="Stop at this step of the stage in progress.")] = None,
    workers: Annotated[int, typer.Option("--workers", min=0, help="Processes that make samples; 0: this one.")] = 0,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    threads: Threads = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also write TensorBoard events.")] = False,
) -> None:
    """Train a network by a recipe, stage by stage. Start it with torchrun to use several GPUs or machines."""
    require_extra("train", "torch", "torchvision", "safetensors")
    import torch

    from ..training import distributed
    from ..training.recipe import read_recipe
    from ..training.run import Sources
    from ..training.run import train as run

    if device not in ("auto", "cpu", "cuda"):
        raise AmsaError(f"--device {device} does not exist; choose auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise AmsaError("--device cuda: torch finds no GPU here; use --device cpu")
    if threads is not None:
        torch.set_num_threads(threads)
    stages = read_recipe(recipe)
    sources = Sources(photos or (), views or (), pairs or (), validation or ())
    with distributed.processes(device) as chosen, _training_progress() as report:
        kept = run(
            stages,
            sources,
            output,
            init=init,
            until=until,
            workers=workers,
            device=chosen,
            tensorboard=tensorboard,
            say=err.print,
            report=report if distributed.rank() == 0 else None,
        )
        if distributed.rank() == 0:
            out.print(f"weights: {kept}")


@contextmanager
def _training_progress() -> Iterator[Callable[[Recipe, StageProgress], None]]:
    """A bar with the time left on a terminal; otherwise a line whenever values are logged."""
    if err.is_terminal:
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        with Bar(BarColumn(), TextColumn("{task.description}"), console=err) as bar:
            task = bar.add_task("", total=None)
            yield lambda recipe, p: bar.update(task, completed=p.step, total=p.steps, description=_describe(recipe, p))
        return
    shown: dict[str, float] = {}

    def line(recipe: Recipe, p: StageProgress) -> None:
        nonlocal shown
        if p.values is not shown:
            shown = p.values
            err.print(_describe(recipe, p))

    yield line


def _describe(recipe: Recipe, p: StageProgress) -> str:
    hours, minutes = divmod(round(p.seconds_left / 60), 60)
    values = " ".join(f"{name} {value:.4g}" for name, value in p.values.items() if value)
    return f"{recipe.folder} {p.step}/{p.steps}, {hours}:{minutes:02d} h left {values}"
