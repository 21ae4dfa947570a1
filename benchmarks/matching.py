"""What PatchMatch costs and finds on the CPU: `python benchmarks/matching.py [SECTION ..] [--data FOLDER] [--quick]`.

Sections (all of them if none is named): speed, exact, and on photos of one scene in --data schedules, search, int8.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import THREADS, Cost, Report, compare, cost_of, exponent, in_new_process, parser, peak_memory, ratio
from schedules import int8_section, schedules_section, search_section
from search import (
    Problem,
    coarse_to_fine,
    exact,
    random_problem,
    reference_patches,
    smooth_problem,
    unfolded_exact,
)
from torch import Tensor

from amsa.engine.upscaler import EXACT_UP_TO
from amsa.errors import AmsaError
from amsa.model.matching import initial_matches
from amsa.plugins import torch_ops as _register_ops  # noqa: F401  (imported for torch.ops.amsa)
from amsa.plugins.patch_match.reference import patch_match
from amsa.plugins.patch_match.spec import ARITHMETICS

FAST, PAPER, PUBLISHED = (1, 1, 1, 2), (1, 1, 2, 6), (1, 1, 1, 4)
_PROBLEMS: dict[str, Callable[..., Problem]] = {"random": random_problem, "smooth": smooth_problem}

# ---------------------------------------------------------------------------------------------------------------- speed


def one_level(report: Report, quick: bool) -> None:
    """The C++ kernel against the PyTorch definition, whose time depends on neither features nor iteration."""
    side, iterations, channels = (16, 2, 16) if quick else (80, 6, 256)
    attributes: dict[str, Any] = {"schedule": "paper", "level": 1, "pad": 1, "init_scale": 1}
    init = initial_matches(torch.tensor([0], dtype=torch.int32), side, side, torch.tensor([[side, side]]))
    rows, slow = [], None
    for kind, make in _PROBLEMS.items():
        p = make(channels, 2 * side)
        inputs = (p.queries[1], p.keys[1], p.valid, init)
        op = partial(torch.ops.amsa.patch_match, *inputs, **attributes, iterations=iterations)
        if slow is None:
            one = cost_of(partial(patch_match, *inputs, **attributes, iterations=1))
            slow = Cost(iterations * one.wall, iterations * one.cpu)
            rows.append({"features": "any", "": "PyTorch", "wall s": slow.wall, "CPU s": slow.cpu, "times faster": 1.0})
        for arithmetic, cost in compare({a: partial(op, arithmetic=a) for a in ARITHMETICS}).items():
            name, times = f"C++ {arithmetic}", ratio(slow, cost)
            rows.append({"features": kind, "": name, "wall s": cost.wall, "CPU s": cost.cpu, "times faster": times})
            report.bar(f"one level, {kind} features: {name} against PyTorch", times, at_least=50)
    report.table(
        f"one level, {side}x{side}, {channels} channels, paper, {iterations} iterations",
        rows,
        f"Times faster: the smaller of the ratios of wall and CPU time. PyTorch: one iteration, times {iterations}.",
    )


def published_search(report: Report, quick: bool) -> None:
    """The published network's search for a small picture."""
    side = 16 if quick else 40
    p = random_problem(256, side)
    costs = compare({a: partial(coarse_to_fine, p, "published", PUBLISHED, a) for a in ARITHMETICS}, 9)
    report.table(
        f"coarse to fine, LR {side}x{side}, 256 channels, published, {PUBLISHED}, random features",
        [{"arithmetic": a, "wall s": c.wall, "CPU s": c.cpu} for a, c in costs.items()],
    )
    report.bar(f"published search, {side}x{side}, CPU seconds", costs["float"].cpu, at_most=0.25)


def _memory_of_search(kind: str, side: int, arithmetic: str) -> tuple[int, int, Cost]:
    p = _PROBLEMS[kind](256, side)
    coarse_to_fine(_PROBLEMS[kind](256, 16), "paper", PAPER, arithmetic)
    costs: list[Cost] = []
    before, peak = peak_memory(lambda: costs.append(cost_of(partial(coarse_to_fine, p, "paper", PAPER, arithmetic))))
    return before, peak, costs[0]


def _strip_of_exhaustive(p: Problem, rows: int) -> Cost:
    """What unfold and matmul would take, from a strip of query rows: the reference's patches once, the strip for all rows."""
    made: list[Tensor] = []
    once = cost_of(lambda: made.append(reference_patches(p.keys[0])))
    strip = cost_of(partial(unfolded_exact, p.queries[0][:, :, : rows + 2], made[0]))
    times = (p.queries[0].shape[2] - 2) / rows
    return Cost(once.wall + times * strip.wall, once.cpu + times * strip.cpu)


def large_search(report: Report, quick: bool) -> None:
    """A large picture: seconds, memory, and what comparing with everything would take."""
    side, rows = (16, 2) if quick else (256, 4)
    table = []
    exhaustive = _strip_of_exhaustive(smooth_problem(256, side), rows)
    for kind in _PROBLEMS:
        for arithmetic in ARITHMETICS[: 1 if quick else None]:
            before, peak, cost = in_new_process(_memory_of_search, kind, side, arithmetic)
            times = ratio(exhaustive, cost)
            row = {"features": kind, "": f"C++ {arithmetic}", "wall s": cost.wall, "CPU s": cost.cpu, "peak GB": peak / 1e9}
            table.append({**row, "of it before": before / 1e9, "against exhaustive": times})
            name = f"{side}x{side}, {kind} features, {arithmetic}"
            report.bar(f"{name}: CPU seconds", cost.cpu, at_most=20)
            report.bar(f"{name}: peak memory, GB", peak / 1e9, at_most=1.5)
            report.bar(f"{name}: times faster than unfold and matmul", times, at_least=30)
    last = {"features": "any", "": "unfold + matmul", "wall s": exhaustive.wall, "CPU s": exhaustive.cpu}
    table.append({**last, "peak GB": math.nan, "of it before": math.nan, "against exhaustive": 1.0})
    report.table(
        f"coarse to fine, {side}x{side}, 256 channels, paper, {PAPER}",
        table,
        f"One run in a process of its own; before it: Python, torch and the features. Unfold + matmul: {rows} query rows were "
        f"run and scaled to all {side - 2}."
        + ("" if quick else " 256x256 is what the runtime pads 250x250 to: all of it is matched here."),
    )


def cost_by_size(report: Report, quick: bool) -> None:
    """How the time of the fast search grows."""
    sides = (16, 32) if quick else (40, 80, 160, 240, 320, 400)
    curves: dict[str, list[Cost]] = {}
    rows = []
    for channels in (16, 256):
        for side in sides:
            p = smooth_problem(channels, side)
            work = {f"{a}, {channels} channels": partial(coarse_to_fine, p, "fast", FAST, a) for a in ARITHMETICS}
            for name, cost in compare(work, 3).items():
                curves.setdefault(name, []).append(cost)
    areas = [side * side for side in sides]
    for name, costs in curves.items():
        row = {"": name, **{f"{s}x{s}": c.cpu for s, c in zip(sides, costs, strict=True)}}
        rows.append({**row, "exponent": exponent(areas, [c.cpu for c in costs])})
    report.table(
        f"CPU seconds by size, coarse to fine, fast, {FAST}, smooth features",
        rows,
        "Exponent: b of the fit CPU seconds = a * positions^b.",
    )
    if report.plots:
        with report.plot("size") as (axes,):
            for name, costs in curves.items():
                axes.loglog(areas, [c.cpu for c in costs], "o-", label=name)
            axes.set(xlabel="matching positions", ylabel="CPU seconds", title="fast search, coarse to fine")
            axes.legend()


def speed_section(output: Path, quick: bool) -> None:
    """Times and memory of the propagating searches."""
    report = Report("matching-speed", output)
    for part in (one_level, published_search, large_search, cost_by_size):
        part(report, quick)
    report.write()


# ---------------------------------------------------------------------------------------------------------------- exact


def unfolded_exact_of(p: Problem) -> tuple[Tensor, Tensor]:
    """Exhaustive search in torch, with what the reference needs for it."""
    return unfolded_exact(p.queries[0], reference_patches(p.keys[0]))


def exact_against_torch(report: Report, quick: bool) -> None:
    """The exact kernel against the usual way to compute the same."""
    rows = []
    for side in (16,) if quick else (40, 80):
        for channels in (16, 256):
            p = smooth_problem(channels, side)
            work: dict[str, Callable[[], object]] = {f"C++ {a}": partial(exact, p, a) for a in ARITHMETICS}
            work["unfold + matmul + max"] = partial(unfolded_exact_of, p)
            costs = compare(work, 7)
            slow = costs["unfold + matmul + max"]
            for name, cost in costs.items():
                row = {"size": f"{side}x{side}", "channels": channels, "": name, "wall s": cost.wall, "CPU s": cost.cpu}
                rows.append({**row, "times faster": ratio(slow, cost)})
                if channels == 256 and cost is not slow:
                    report.bar(f"exact, {side}x{side}, 256 channels: {name} against torch", ratio(slow, cost), at_least=3)
    report.table("exact search", rows, "Times faster: the smaller of the ratios of wall and CPU time.")


def crossover(report: Report, quick: bool) -> None:
    """Up to how large a reference comparing with everything is as fast as the fast search."""
    query = 16 if quick else 80
    sides = (16, 24) if quick else tuple(range(16, 129, 16))
    rows = []
    for channels in (16, 256):
        for arithmetic in ARITHMETICS:
            quotients = []
            for side in sides:
                p = smooth_problem(channels, query, side)
                work = {"exact": partial(exact, p, arithmetic), "fast": partial(coarse_to_fine, p, "fast", FAST, arithmetic)}
                costs = compare(work, 7)
                quotients.append(costs["exact"].cpu / costs["fast"].cpu)
            row: dict[str, Any] = {"channels": channels, "arithmetic": arithmetic}
            row |= {f"{s}x{s}": q for s, q in zip(sides, quotients, strict=True)}
            rows.append({**row, "equal at": equal_at([s * s for s in sides], quotients)})
    report.table(
        f"CPU time of exact by that of fast {FAST}, LR {query}x{query}, by reference size",
        rows,
        f"Equal at: reference positions where both take the same time; upscaler.EXACT_UP_TO is {EXACT_UP_TO}.",
    )


def equal_at(positions: Sequence[int], quotients: Sequence[float]) -> str:
    """Where the quotient passes 1, interpolated on logarithmic scales."""
    if quotients[0] > 1:
        return f"below {positions[0]}"
    for i in range(1, len(positions)):
        if quotients[i] > 1:
            x, y = np.log(positions[i - 1 : i + 1]), np.log(quotients[i - 1 : i + 1])
            return str(round(math.exp(np.interp(0.0, y, x))))
    return f"above {positions[-1]}"


def exact_section(output: Path, quick: bool) -> None:
    """Times of the exact search."""
    report = Report("matching-exact", output)
    exact_against_torch(report, quick)
    crossover(report, quick)
    report.write()


# ----------------------------------------------------------------------------------------------------------------- main

SYNTHETIC = {"speed": speed_section, "exact": exact_section}
PHOTOS = {"schedules": schedules_section, "search": search_section, "int8": int8_section}
SECTIONS = [*SYNTHETIC, *PHOTOS]


def main() -> None:
    """Entry point."""
    options = parser(__doc__ or "")
    options.add_argument("sections", nargs="*", metavar="SECTION", help=f"{', '.join(SECTIONS)}; all if none is given")
    options.add_argument("--data", type=Path, help="folder of photos of one scene, neighbouring views side by side by name")
    chosen = options.parse_args()
    if unknown := set(chosen.sections) - set(SECTIONS):
        options.error(f"unknown section {', '.join(sorted(unknown))}; choose {', '.join(SECTIONS)}")
    sections = chosen.sections or SECTIONS
    torch.set_num_threads(THREADS)
    for name in sections:
        if name in SYNTHETIC:
            SYNTHETIC[name](chosen.output, chosen.quick)
        elif chosen.data is None:
            print(f"left out: {name} needs photos; give --data FOLDER\n", flush=True)
        else:
            PHOTOS[name](chosen.output, chosen.data, chosen.quick)


if __name__ == "__main__":
    try:
        main()
    except AmsaError as e:
        raise SystemExit(f"error: {e}") from None
