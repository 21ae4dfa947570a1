"""What a precision costs: `python -m amsa.training.evaluation.precision DATA MODEL OTHER`, two models of one network.

DATA is the model card's folder: crops of `castle/`, each with the window found for it in another photo, and `set14/`, each
picture with the next one. Every picture is scored as `amsa evaluate` does it, and the matches of both are compared from end
to end: each model matches features of its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...engine.backends import Arrays, Backend, HostExecution
from ...engine.stage_comparison import NEAR_SCORE
from ...engine.upscaler import Upscaler
from ...errors import AmsaError
from .model_card import TestSet, make_sets
from .protocol import Protocol

SETS = ("castle", "set14")

Floats = NDArray[np.float64]


class Watched(HostExecution):
    """A backend that keeps what its matching stage was given and found."""

    name = "watched"
    kernels = "another backend's"

    def __init__(self, backend: Backend) -> None:
        self.config, self.precision, self.trained = backend.config, backend.precision, backend.trained
        self._backend = backend
        self.calls: list[tuple[Mapping[str, Any], Arrays]] = []

    def run(self, stage: str, inputs: Mapping[str, Any]) -> Arrays:
        with self._backend.call() as on:
            outputs = {name: on.to_host(tensor) for name, tensor in on.run(stage, inputs).items()}
        if "match" in outputs:
            self.calls.append((inputs, outputs))
        return outputs


def cosines(query: NDArray[Any], key: NDArray[Any], match: NDArray[Any]) -> Floats:
    """Cosines of whole 3x3 patches and their matches: [1, C, h, w], [1, C, Hk, Wk], int [1, 2, h+2, w+2] -> [h-2, w-2]."""
    y, x = match[0, :, 2:-2, 2:-2]
    height, width = y.shape
    product, query_squares, key_squares = (np.zeros((height, width)) for _ in range(3))
    for i in range(3):
        for j in range(3):
            q = query[0, :, i : i + height, j : j + width].astype(np.float32)
            k = key[0][:, y + i, x + j].astype(np.float32)
            product += (q * k).sum(0)
            query_squares += np.square(q).sum(0)
            key_squares += np.square(k).sum(0)
    found: Floats = product / np.sqrt(np.maximum(query_squares * key_squares, 1e-24))
    return found


@dataclass(frozen=True)
class Matches:
    """Matches of one picture, over all scales of its reference.

    Attributes:
        positions: how many were compared.
        equal: how many are the same.
        near: how many are the same, or differ in score by at most NEAR_SCORE.
        worse: how many lose more than that; positions that are neither near nor worse gain.
        lost: score that is lost, summed.
    """

    positions: int
    equal: int
    near: int
    worse: int
    lost: float


def compare_matches(
    expected: Sequence[tuple[Mapping[str, Any], Arrays]], found: Sequence[tuple[Mapping[str, Any], Arrays]]
) -> Matches:
    """Matches of two models on one picture. The score of either's is the cosine of the first model's features: what the
    other one thinks of its matches does not count."""
    total = np.zeros(5)
    for (inputs, mine), (_, other) in zip(expected, found, strict=True):
        scores = [cosines(inputs["query_1"], inputs["key_1"], outputs["match"]) for outputs in (mine, other)]
        same = (mine["match"] == other["match"]).all(1)[0, 2:-2, 2:-2]
        loss = np.where(same, 0, scores[0] - scores[1])
        total += loss.size, same.sum(), (np.abs(loss) <= NEAR_SCORE).sum(), (loss > NEAR_SCORE).sum(), loss.sum()
    positions, equal, near, worse = (int(count) for count in total[:4])
    return Matches(positions, equal, near, worse, float(total[4]))


@dataclass(frozen=True)
class Loss:
    """A case, scored with both models: dB of PSNR-Y, and its matches."""

    name: str
    psnr: float
    other: float
    matches: Matches

    @property
    def lost(self) -> float:
        return self.psnr - self.other


def measure(models: tuple[Backend, Backend], test: TestSet, say: Callable[[str], None] = lambda _: None) -> list[Loss]:
    """Score every case of a set with both models, with the set's first kind of reference."""
    losses = []
    for i, case in enumerate(test.cases):
        watched = [Watched(model) for model in models]
        psnr, other = (Protocol(Upscaler.on(w)).run(test.cases, i, test.settings[0]).amsa.psnr for w in watched)
        losses.append(Loss(case.name, psnr, other, compare_matches(watched[0].calls, watched[1].calls)))
        say(f"{test.name} {case.name}: {psnr:.4f} dB, {other:.4f} dB, matches {_shares([losses[-1].matches])}")
    return losses


def _shares(matches: Sequence[Matches]) -> str:
    positions, equal, near, worse = (sum(getattr(m, name) for m in matches) for name in ("positions", "equal", "near", "worse"))
    lost = sum(m.lost for m in matches) / positions
    return f"equal {equal / positions:.2%}, equal or near {near / positions:.2%}, worse {worse / positions:.2%}, lost {lost:.1e}"


def summary(test: TestSet, losses: Sequence[Loss]) -> str:
    """One line."""
    first, second = (float(np.mean([getattr(loss, name) for loss in losses])) for name in ("psnr", "other"))
    most = max(losses, key=lambda loss: loss.lost)
    least = min(loss.matches.near / loss.matches.positions for loss in losses)
    return (
        f"{test.name}, {len(losses)} pictures, {test.settings[0].label} reference: {first:.4f} dB, {second:.4f} dB, "
        f"drop {first - second:+.4f}, largest {most.lost:+.4f} ({most.name}); "
        f"matches {_shares([loss.matches for loss in losses])}, least equal or near {least:.2%}"
    )


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        prog="python -m amsa.training.evaluation.precision", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("data", type=Path, help="folder with castle/ and set14/")
    parser.add_argument("models", type=Path, nargs=2, help="checkpoint or model folder; the second is compared with the first")
    options = parser.parse_args()
    upscalers = [Upscaler(model) for model in options.models]
    if upscalers[0].config != upscalers[1].config:
        raise AmsaError("these are two different networks; give two precisions or backends of one")
    lines = []
    with TemporaryDirectory() as folder:
        for test in make_sets(options.data, Path(folder)):
            if test.name in SETS:
                models = upscalers[0].backend_in_use, upscalers[1].backend_in_use
                lines.append(summary(test, measure(models, test, lambda line: print(line, flush=True))))
    print("\n".join(["", *lines]))


if __name__ == "__main__":
    try:
        main()
    except AmsaError as e:
        raise SystemExit(f"error: {e}") from None
