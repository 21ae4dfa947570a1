"""What the commands share: the terminal, progress, tables, and checks of what they were given."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from ..errors import AmsaError

if TYPE_CHECKING:
    from ..engine.batch.worker import Opened
    from ..engine.tensorrt_build import BuiltEngine
    from ..engine.upscaler import Progress, Stats, Upscaler

# What is piped into a file or a program has no 80 columns to fit into.
out = Console(highlight=False, soft_wrap=True, markup=False, width=None if sys.stdout.isatty() else 160)
err = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)


def check_not_an_input(output: Path, *inputs: Path | None) -> None:
    for path in inputs:
        if path is not None and output.exists() and path.exists() and output.samefile(path):
            raise AmsaError(f"{output} is also an input; choose another output")


def require_extra(extra: str, *modules: str) -> None:
    from importlib.util import find_spec

    if missing := [m for m in modules if find_spec(m) is None]:
        raise AmsaError(f"this command needs {', '.join(missing)}; install with: pip install 'amsa[{extra}]'")


def say_backend(upscaler: Upscaler | Opened) -> None:
    err.print(f"backend: {upscaler.backend} ({upscaler.device}; {upscaler.kernels})")
    if not upscaler.trained:
        err.print("note: these weights are untrained: the picture shows the pipeline at work, not added detail")


@contextmanager
def progress_bar(quiet: bool = False) -> Iterator[Progress | None]:
    """A progress bar on a terminal; nothing where output is piped or meant for machines."""
    if quiet or not err.is_terminal:
        yield None
        return
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    with Bar(BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"), console=err, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total, what: bar.update(task, completed=done, total=total, description=what)


def peak_memory_mb() -> float:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def print_stats(stats: Stats, total: float) -> None:
    table = Table("stage", "seconds")
    for stage, seconds in stats.seconds.items():
        table.add_row(stage, f"{seconds:.2f}")
    table.add_row("total", f"{total:.2f}")
    out.print(table)
    out.print(f"restored from {stats.restored} of {stats.matched} references at a scale; the others weigh little")
    out.print(f"peak memory: {peak_memory_mb():.0f} MB")


def print_engines(built: list[BuiltEngine]) -> None:
    """A table per folder of engines."""
    headings = ("stage", "layers", "plugins", "engine MB", "scratch MB", "build s", "")
    for folder in dict.fromkeys(engine.path.parent for engine in built):
        table = Table(*headings, title=str(folder), title_justify="left", pad_edge=False)
        for engine in built:
            if engine.path.parent == folder:
                s = engine.sidecar
                megabytes = f"{s.size / 1e6:.2f}", f"{s.scratch / 1e6:.0f}"
                state = "built" if engine.reason else "up to date"
                table.add_row(s.key.stage, str(s.layers), str(s.plugins), *megabytes, f"{s.seconds:.1f}", state)
        out.print(table)


def print_json(value: dict[str, Any]) -> None:
    finite = {k: None if isinstance(v, float) and v == float("inf") else v for k, v in value.items()}
    sys.stdout.write(json.dumps(finite) + "\n")
