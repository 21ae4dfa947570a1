"""What the benchmarks share: times, peak memory, facts about the machine, and the report."""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import os
import platform
import secrets
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch

from amsa.plugins.cpu_library import kernels
from amsa.training.evaluation.report import finite, prepare_folder

THREADS = 2
"""That everything is measured with."""

_P = ParamSpec("_P")
_T = TypeVar("_T")
Row = dict[str, Any]

# ---------------------------------------------------------------------------------------------------------------- times


@dataclass(frozen=True)
class Cost:
    """Seconds: on the clock, and of all threads together."""

    wall: float
    cpu: float


def cost_of(work: Callable[[], object], times: int = 1) -> Cost:
    """What a call takes: the mean of so many in a row."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(times):
        work()
    return Cost((time.perf_counter() - wall) / times, (time.process_time() - cpu) / times)


def compare(contenders: Mapping[str, Callable[[], object]], rounds: int = 5) -> dict[str, Cost]:
    """Median costs of several things that take turns, so that a change of load meets all; a first round does not count.

    What is fast is called often enough in each round to take about 20 ms.
    """
    for work in contenders.values():
        work()
    times = {name: min(50, math.ceil(0.02 / cost_of(work).wall)) for name, work in contenders.items()}
    costs: dict[str, list[Cost]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, work in contenders.items():
            costs[name].append(cost_of(work, times[name]))
    return {n: Cost(statistics.median(c.wall for c in cs), statistics.median(c.cpu for c in cs)) for n, cs in costs.items()}


def ratio(slow: Cost, fast: Cost) -> float:
    """How many times faster: the smaller of the ratios of wall and of CPU time."""
    return min(slow.wall / fast.wall, slow.cpu / fast.cpu)


# --------------------------------------------------------------------------------------------------------------- memory


def in_new_process(function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Call a module's function in a process that has imported what this one has, and done nothing else yet."""
    context = get_context("forkserver")
    context.set_forkserver_preload([m for m in ("torch", "torchvision.ops", "cv2") if m in sys.modules])
    with ProcessPoolExecutor(1, context, initializer=torch.set_num_threads, initargs=(THREADS,)) as pool:
        return pool.submit(function, *args, **kwargs).result()


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def peak_memory(work: Callable[[], object]) -> tuple[int, int]:
    """Bytes resident before a call and at its peak.

    Not `ru_maxrss`: that begins with the size of the process that started this one, and cannot be reset.
    """
    ctypes.CDLL(None).malloc_trim(0)  # else the call reuses what was freed before it and seems to need less
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = _resident("VmRSS")
    work()
    return before, _resident("VmHWM")


# --------------------------------------------------------------------------------------------------------------- report


def machine() -> dict[str, Any]:
    """Facts that times depend on."""
    info = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in info if line.startswith("model name")), platform.processor())
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "threads": THREADS,
        "kernels": kernels("no kernels: PyTorch references"),
        "torch": torch.__version__,
        "load average": os.getloadavg()[0],
        "niceness": os.nice(0),
    }


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, float):
        if math.isnan(value):
            return "-"
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return str(value)


def markdown(rows: Sequence[Row]) -> str:
    """A table; the first row's keys are the columns."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([_text(v) for v in row.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


class Report:
    """Tables that are printed as they come, and written with `write`: NAME.json and NAME-*.png in a folder."""

    def __init__(self, name: str, folder: Path) -> None:
        prepare_folder(folder)
        self.name, self.folder = name, folder
        self._machine = machine()
        self._tables: dict[str, list[Row]] = {}
        self._bars: list[Row] = []
        print(f"# {name}\n\n{'; '.join(f'{k}: {_text(v)}' for k, v in self._machine.items())}\n", flush=True)

    def table(self, title: str, rows: Sequence[Row], note: str = "") -> None:
        """Print a table and keep it."""
        self._tables[title] = list(rows)
        print(f"## {title}\n\n{markdown(rows)}\n" + (f"\n{note}\n" if note else ""), flush=True)

    def bar(self, what: str, figure: float, *, at_least: float | None = None, at_most: float | None = None) -> None:
        """Keep a figure that has a goal."""
        met = (at_least is None or figure >= at_least) and (at_most is None or figure <= at_most)
        goal = f"at least {at_least:g}" if at_least is not None else f"at most {at_most:g}"
        self._bars.append({"figure": what, "measured": figure, "goal": goal, "met": met})

    @contextmanager
    def plot(self, name: str, columns: int = 1) -> Iterator[list[Any]]:
        """Axes to draw on, side by side, saved on exit. Call it only if `plots` is true."""
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(1, columns, figsize=(6 * columns, 4.5), squeeze=False, layout="constrained")
        yield list(axes[0])
        figure.savefig(self.folder / f"{self.name}-{name}.png", dpi=120)
        pyplot.close(figure)

    @property
    def plots(self) -> bool:
        """Whether plots can be drawn; if not, it is said."""
        if find_spec("matplotlib") is None:
            print("no plot: matplotlib is missing; install it with: pip install 'amsa[evaluate]'\n", flush=True)
            return False
        return True

    def write(self) -> None:
        """Print the goals, write the JSON file."""
        if self._bars:
            self.table("goals", self._bars)
        content = {"machine": self._machine, "load average at the end": os.getloadavg()[0], "tables": self._tables}
        part = self.folder / f".amsa-{secrets.token_hex(8)}"
        part.write_text(json.dumps(finite(content), indent=1) + "\n")
        part.replace(self.folder / f"{self.name}.json")


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """b of the least-squares fit y = a * x^b."""
    slope, _ = statistics.linear_regression([math.log(v) for v in x], [math.log(v) for v in y])
    return slope


def parser(text: str) -> argparse.ArgumentParser:
    """The options of every benchmark."""
    result = argparse.ArgumentParser(description=text.splitlines()[0])
    result.add_argument("--quick", action="store_true", help="tiny sizes: only that everything runs")
    result.add_argument("--output", type=Path, default=Path("out/bench"), help="folder for JSON and plots (out/bench)")
    return result
