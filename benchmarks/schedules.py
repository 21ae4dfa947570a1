"""What the schedules find on photos, for `matching.py`: relevance against evaluations."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from measure import Report, compare
from search import LEVELS, Found, Iterations, Problem, coarse_to_fine, coarsest_matches, exact, photo_problems
from torch import Tensor

from amsa.plugins.patch_match.cpu import patch_match
from amsa.plugins.patch_match.reference import Patches, candidates, hand_over, propagate, relevance_of
from amsa.plugins.patch_match.schedule import TAPS, Step, paper_reach, steps
from amsa.plugins.patch_match.spec import ARITHMETICS

WEIGHTS = Path(__file__).resolve().parent.parent / "weights" / "small.safetensors"
SEEDS = (0, 1, 2)

SCHEDULES: tuple[tuple[str, Iterations], ...] = (
    ("published", (1, 1, 1, 4)),
    ("paper", (1, 1, 2, 6)),
    ("fast", (1, 1, 1, 2)),
    ("fast", (1, 1, 2, 6)),
)
PAPER, FAST = SCHEDULES[1:3]


@dataclass(frozen=True)
class Scene:
    """A problem with what exact search finds there."""

    problem: Problem

    @cached_property
    def best(self) -> Tensor:
        """The highest relevance of every position."""
        return self.relevance(exact(self.problem).match)

    def relevance(self, match: Tensor) -> Tensor:
        """Cosine (Eq. 1) of matches in float, whatever arithmetic found them; computed one way, so that equals are equal."""
        p = self.problem
        return relevance_of(p.queries[0], p.keys[0], p.valid, match, level=0, pad=0) / 3


@dataclass(frozen=True)
class Quality:
    """Means over scenes and seeds."""

    relevance: float
    share_best: float
    evaluations: float

    @classmethod
    def of(cls, scenes: Sequence[Scene], search: Callable[[Problem, int], Found], seeds: Sequence[int] = SEEDS) -> Quality:
        figures = []
        for scene, seed in itertools.product(scenes, seeds):
            found = search(scene.problem, seed)
            relevance = scene.relevance(found.match)
            equal = (relevance >= scene.best - 1e-6).double().mean()
            figures.append((float(relevance.double().mean()), float(equal), found.evaluations / scene.problem.positions))
        return cls(*(mean(column) for column in zip(*figures, strict=True)))


def read_scenes(data: Path, quick: bool) -> dict[int, list[Scene]]:
    """Scenes by side of the matching grid."""
    sides = (24,) if quick else (40, 80, 160)
    return {side: [Scene(p) for p in photo_problems(data, WEIGHTS, side)] for side in sides}


def best_relevance(scenes: Sequence[Scene]) -> float:
    """What nothing can be better than."""
    return mean(float(s.best.double().mean()) for s in scenes)


def nominal(p: Problem, schedule: str, iterations: Iterations) -> float:
    """Nine evaluations per position and step, of all levels, per position of the finest."""
    total, (_, _, *valid) = 0, p.keys[0].shape
    for level in range(LEVELS):
        rows, cols = p.queries[level].shape[2:]
        path = steps(schedule, iterations[LEVELS - 1 - level], level, (rows, cols), (valid[0], valid[1]))
        total += len(TAPS) * len(path) * (rows * cols if level else p.positions)
    return total / p.positions


def _searcher(schedule: str, iterations: Iterations) -> Callable[[Problem, int], Found]:
    return lambda p, seed: coarse_to_fine(p, schedule, iterations, seed=seed)


# ------------------------------------------------------------------------------------------------------------ schedules


def compare_schedules(report: Report, scenes: Mapping[int, list[Scene]]) -> None:
    """The schedules with their usual iterations, and the goals of `fast`."""
    rows = []
    for side, there in scenes.items():
        p, best = there[0].problem, best_relevance(there)
        found = {setting: Quality.of(there, _searcher(*setting)) for setting in SCHEDULES}
        for setting, q in found.items():
            row = {"grid": f"{side}x{side}", "schedule": setting[0], "iterations": setting[1], "mean relevance": q.relevance}
            row |= {"share best": q.share_best, "evaluations": q.evaluations, "nominal": nominal(p, *setting)}
            rows.append({**row, "below exact": best - q.relevance})
        row = {"grid": f"{side}x{side}", "schedule": "exact", "iterations": "-", "mean relevance": best, "share best": 1.0}
        rows.append({**row, "evaluations": p.positions, "nominal": p.positions, "below exact": 0.0})
        paper, cheap, dear = (found[s] for s in SCHEDULES[1:])
        if side >= 80:
            report.bar(f"{side}: fast (1, 1, 1, 2), relevance above paper's", cheap.relevance - paper.relevance, at_least=0)
            share = cheap.evaluations / paper.evaluations
            report.bar(f"{side}: fast (1, 1, 1, 2), share of paper's evaluations", share, at_most=0.2)
        report.bar(f"{side}: fast (1, 1, 2, 6), times closer to exact than paper", closer(best, dear, paper), at_least=2)
    report.table("schedules on photos", rows, f"Evaluations: per position of the finest level. Means of seeds {SEEDS}.")


def closer(best: float, one: Quality, other: Quality) -> float:
    """How many times closer to the best relevance one search comes than another."""
    return (best - other.relevance) / max(best - one.relevance, 1e-9)


def convergence(report: Report, scene: Scene, iterations: int) -> None:
    """Mean squared error of the score against exact search, by iterations of the finest level (the paper's Figure 5)."""
    p, curves = scene.problem, {}
    for schedule, start in itertools.product(("paper", "fast"), ("coarse to fine", "from random")):
        init, scale = coarse_to_fine(p, schedule, (1, 1, 2, 1), until=1).match, 2
        if start == "from random":
            limit = torch.tensor([2, *p.queries[0].shape[2:]])
            generator = torch.Generator().manual_seed(0)
            rows, cols = p.keys[0].shape[2] - 2, p.keys[0].shape[3] - 2
            draws = torch.rand((1, 2, int(limit[1]) - 2, int(limit[2]) - 2), generator=generator)
            init, scale = (draws * torch.tensor([rows, cols]).view(1, 2, 1, 1)).int(), 1
        curve = []
        for m in range(1, iterations + 1):
            match, _ = patch_match(
                p.queries[0], p.keys[0], p.valid, init, iterations=m, schedule=schedule, level=0, pad=0, init_scale=scale
            )
            curve.append(float((scene.relevance(match) - scene.best).double().square().mean()))
        curves[f"{schedule}, {start}"] = curve
    side = p.queries[0].shape[2]
    rows_of_table = [{"": name, **{str(m + 1): value for m, value in enumerate(curve)}} for name, curve in curves.items()]
    report.table(f"mean squared error of the score by iteration of the finest level, {side}x{side}", rows_of_table)
    if report.plots:
        with report.plot("convergence") as (axes,):
            for name, curve in curves.items():
                axes.semilogy(range(1, iterations + 1), curve, "o-" if "fine" in name else "s--", label=name)
            axes.set(xlabel="iterations", ylabel="mean squared error of the score", title=f"against exact search, {side}x{side}")
            axes.legend()


def schedules_section(output: Path, data: Path, quick: bool) -> None:
    """Schedules with the iterations that the variants use."""
    report = Report("matching-schedules", output)
    scenes = read_scenes(data, quick)
    compare_schedules(report, scenes)
    convergence(report, scenes[80 if 80 in scenes else min(scenes)][0], 3 if quick else 10)
    report.write()


# --------------------------------------------------------------------------------------------------------------- search


def trade_offs(report: Report, scenes: Mapping[int, list[Scene]], grid: Sequence[Iterations]) -> None:
    """`fast` with many iteration counts: those that nothing beats in both relevance and evaluations."""
    papers = {side: Quality.of(there, _searcher(*PAPER), SEEDS[:1]) for side, there in scenes.items()}
    bests = {side: best_relevance(there) for side, there in scenes.items()}
    found = []
    for iterations in grid:
        quality = {side: Quality.of(there, _searcher("fast", iterations), SEEDS[:1]) for side, there in scenes.items()}
        large = [side for side in scenes if side >= 80] or list(scenes)
        row: dict[str, Any] = {"iterations": iterations}
        for side in scenes:
            row[f"{side}: relevance - paper's"] = quality[side].relevance - papers[side].relevance
            row[f"{side}: of its evaluations"] = quality[side].evaluations / papers[side].evaluations
            row[f"{side}: times closer"] = closer(bests[side], quality[side], papers[side])
        cost = max(row[f"{side}: of its evaluations"] for side in large)
        gain = min(row[f"{side}: times closer"] for side in large)
        found.append((cost, gain, row))
    found.sort(key=lambda f: f[:2])
    front = [f for f in found if not any(o[0] <= f[0] and o[1] > f[1] for o in found)]
    report.table(
        "best trade-offs of fast",
        [row for _, _, row in front],
        "Ordered by the share of paper's (1, 1, 2, 6) evaluations; kept where no other is cheaper and closer to exact, in the "
        f"worse of the grids from 80. {len(grid)} iteration counts, means of {len(next(iter(scenes.values())))} pairs, one "
        "seed.",
    )
    share = min((cost for cost, gain, _ in found if gain >= 1), default=math.inf)
    gain = max((gain for cost, gain, _ in found if cost <= 1), default=-math.inf)
    report.bar("fast as relevant as paper: share of its evaluations", share, at_most=0.2)
    report.bar("fast with at most paper's evaluations: times closer to exact", gain, at_least=2)


Order = Callable[[int, int], list[Step]]
"""(iterations, reach) -> the steps of a level."""


def _rounds(one: Callable[[int], list[Step]]) -> Order:
    return lambda iterations, reach: one(reach) * iterations


def _lr(t: int) -> Step:
    return Step(True, 2**t, shifted=True)


def _ref(t: int) -> Step:
    return Step(False, 2**t)


ORDERS: dict[str, Order] = {
    "fast: falling, LR then Ref of 1 each": _rounds(lambda n: [s for t in reversed(range(n)) for s in (_lr(t), _ref(0))]),
    "rising, LR then Ref": _rounds(lambda n: [s for t in range(n) for s in (_lr(t), _ref(t))]),
    "falling, LR then Ref": _rounds(lambda n: [s for t in reversed(range(n)) for s in (_lr(t), _ref(t))]),
    "rising, Ref then LR": _rounds(lambda n: [s for t in range(n) for s in (_ref(t), _lr(t))]),
    "rising, all LR, then all Ref": _rounds(lambda n: [*map(_lr, range(n)), *map(_ref, range(n))]),
    "rising LR, Ref of 1": _rounds(lambda n: [*map(_lr, range(n)), _ref(0)]),
    "falling LR, Ref of 1": _rounds(lambda n: [*map(_lr, reversed(range(n))), _ref(0)]),
    "falling LR, Ref of 2, 1": _rounds(lambda n: [*map(_lr, reversed(range(n))), _ref(1), _ref(0)]),
    "LR of 1, Ref of 1": _rounds(lambda n: [_lr(0), _ref(0)]),
}


def scores_of(step: Step, patches: Patches, y: Tensor, x: Tensor, first: bool) -> Tensor:
    """How many scores a step needs, by position [N, H, W]: each different candidate once, one's own only in a first step."""
    cy, cx = candidates(step, y, x, patches.count, False)
    keys = (cy * int(patches.count[0, 1]) + cx).sort(0).values
    return (keys[1:] != keys[:-1]).sum(0) + int(first)


class Counter:
    """Counts a level's scores as the kernel does: a Ref step that changed nothing is left out until the match changes."""

    def __init__(self) -> None:
        self.total = 0
        self._settled: dict[int, Tensor] = {}

    def take(self, step: Step, patches: Patches, y: Tensor, x: Tensor, first: bool) -> tuple[Tensor, Tensor]:
        """One step: the matches after it."""
        scores = scores_of(step, patches, y, x, first)
        if not step.lr and step.dilation in self._settled:
            scores = scores * ~self._settled[step.dilation]
        self.total += int(scores.sum())
        new_y, new_x, _ = propagate(patches, step, y, x, False)
        stays = (new_y == y) & (new_x == x)
        self._settled = {dilation: settled & stays for dilation, settled in self._settled.items()}
        if not step.lr:
            self._settled[step.dilation] = stays
        return new_y, new_x


def in_order(p: Problem, seed: int, order: Order, iterations: Iterations) -> Found:
    """Coarse to fine by the PyTorch definition, with any steps."""
    match, evaluations = coarsest_matches(p, seed).long(), 0
    y, x = match[:, 0], match[:, 1]
    for level in reversed(range(LEVELS)):
        query, key, pad = p.queries[level], p.keys[level], int(level > 0)
        patches = Patches(query, key, torch.tensor([key.shape[2:]]), pad)
        if level < LEVELS - 1:
            coarse = torch.tensor([p.keys[level + 1].shape[2:]])
            y, x = hand_over(torch.stack((y, x), 1), False, pad, coarse, patches.count)
        counter = Counter()
        for i, step in enumerate(order(iterations[LEVELS - 1 - level], paper_reach(*query.shape[2:]))):
            y, x = counter.take(step, patches, y, x, i == 0)
        evaluations += counter.total
    return Found(torch.stack((y, x), 1).int(), evaluations)


def compare_orders(report: Report, scenes: Mapping[int, list[Scene]], orders: Mapping[str, Order]) -> None:
    """Other orders of the steps, with the schedule's own neighbours."""
    rows = []
    for side, all_there in scenes.items():
        there, seeds = all_there[:1], SEEDS[:1]
        best, paper = best_relevance(there), Quality.of(there, _searcher(*PAPER), seeds)
        for (name, order), iterations in itertools.product(orders.items(), ((1, 1, 1, 1), FAST[1])):
            q = Quality.of(there, partial(in_order, order=order, iterations=iterations), seeds)
            row = {"grid": f"{side}x{side}", "order": name, "iterations": iterations, "mean relevance": q.relevance}
            row |= {"evaluations": q.evaluations, "of paper's": q.evaluations / paper.evaluations}
            rows.append({**row, "times closer": closer(best, q, paper)})
    report.table("orders of fast's steps", rows, "The first pair, one seed, by the PyTorch definition.")


def search_section(output: Path, data: Path, quick: bool) -> None:
    """Which iterations, and which order, serve `fast` best."""
    report = Report("matching-search", output)
    scenes = read_scenes(data, quick)
    coarse = ((1, 1), (2, 2), (4, 2), (8, 4))
    grid = [(a, b, c, d) for (a, b), c, d in itertools.product(coarse, (1, 2, 3), (1, 2, 4, 6))]
    trade_offs(report, scenes, grid[:2] if quick else grid)
    compare_orders(report, scenes, dict(list(ORDERS.items())[:2]) if quick else ORDERS)
    report.write()


# ----------------------------------------------------------------------------------------------------------------- int8


def int8_section(output: Path, data: Path, quick: bool) -> None:
    """What int8 arithmetic changes."""
    report = Report("matching-int8", output)
    rows = []
    for side, there in read_scenes(data, quick).items():
        searches: dict[str, Callable[[Problem, str], Found]] = {
            "exact": exact,
            "fast (1, 1, 1, 2)": lambda p, arithmetic: coarse_to_fine(p, "fast", (1, 1, 1, 2), arithmetic),
        }
        for name, search in searches.items():
            matches = [[search(s.problem, a).match for a in ARITHMETICS] for s in there]
            relevance = [mean(float(s.relevance(m[k]).mean()) for s, m in zip(there, matches, strict=True)) for k in (0, 1)]
            equal = mean(float((m[0] == m[1]).all(1).double().mean()) for m in matches)
            costs = compare({a: partial(search, there[0].problem, a) for a in ARITHMETICS})
            row: dict[str, Any] = {"grid": f"{side}x{side}", "search": name, "float": relevance[0], "int8": relevance[1]}
            row |= {"difference": relevance[1] - relevance[0], "equal matches": equal}
            rows.append(row | {f"{a} CPU s": costs[a].cpu for a in ARITHMETICS})
    report.table("mean relevance with int8 and float arithmetic, features of photos, 16 channels", rows)
    report.write()
