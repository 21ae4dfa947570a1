"""Two backends or precisions of one network, stage by stage: where do they begin to differ, and by how much?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ..errors import AmsaError
from ..stages import PRECISIONS
from .backends import Arrays, Backend, HostExecution
from .images import Photo
from .upscaler import Progress, Upscaler

BOUNDS = {"fp32": 1e-3, "fp16": 2e-2}
"""How far a tensor may be from the reference's, as a share of the reference's largest value; of the coarser precision of both."""
EQUAL_MATCHES = 0.99
"""Share of matches that must be equal, or of nearly equal score."""
NEAR_SCORE = 1e-3
"""Scores (cosines) that differ by less count as a tie."""


@dataclass
class TensorDifference:
    """A stage's output over all calls of the stage: references, scales and tiles.

    Attributes:
        stage, tensor: names, as in `stages.py`.
        bound: what `largest` may be at most (for match: 1 - EQUAL_MATCHES).
        largest: the largest absolute difference as a share of the reference's largest absolute value; for match: the share of
            positions whose match differs and whose score differs by more than NEAR_SCORE. NaN where either has a NaN.
        mean: the mean absolute difference, as the same share; for match: how much score is lost on average over all positions.
        psnr: dB, with the reference's largest absolute value as the peak; inf where equal; NaN for match.
        equal: for match: the share of positions whose match is the same; else NaN.
    """

    stage: str
    tensor: str
    bound: float
    largest: float = 0.0
    mean: float = 0.0
    psnr: float = math.inf
    equal: float = math.nan
    _peak: float = field(default=0.0, repr=False)
    _sums: tuple[float, float, float, int] = field(default=(0.0, 0.0, 0.0, 0), repr=False)

    @property
    def holds(self) -> bool:
        return self.largest <= self.bound

    def as_dict(self) -> dict[str, Any]:
        return {k: v for k, v in asdict(self).items() if not k.startswith("_")} | {"holds": self.holds}

    def add(self, expected: np.ndarray[Any, Any], found: np.ndarray[Any, Any]) -> None:
        """One more call's tensors."""
        if expected.size == 0:
            return
        a, b = expected.astype(np.float64), found.astype(np.float64)
        difference = np.abs(a - b)
        largest, total, squares, count = self._sums
        self._peak = float(np.maximum(self._peak, np.abs(a).max()))  # np.maximum, not max: NaN must come through
        largest = float(np.maximum(largest, difference.max()))
        self._sums = largest, total + float(difference.sum()), squares + float(np.square(difference).sum()), count + a.size
        _, total, squares, count = self._sums
        peak = self._peak or 1.0
        self.largest, self.mean = largest / peak, total / count / peak
        self.psnr = math.inf if squares == 0 else 10 * math.log10(peak**2 * count / squares) if squares > 0 else math.nan

    def add_matches(self, expected: Arrays, found: Arrays) -> None:
        """One more call of `match`: positions where a patch exists, and their scores."""
        differs = _other_matches(expected, found)
        loss = (expected["relevance"] - found["relevance"])[0, 0, 1:-1, 1:-1].astype(np.float64)
        others, total, equal, count = self._sums
        others += float((differs & ~(np.abs(loss) <= NEAR_SCORE)).sum())
        self._sums = others, total + float(loss.sum()), equal + float((~differs).sum()), count + differs.size
        others, total, equal, count = self._sums
        self.largest, self.mean, self.equal, self.psnr = others / count, total / count, equal / count, math.nan


class BothBackends(HostExecution):
    """A backend that runs every stage on two others with the reference's inputs, so that a difference is the stage's own."""

    name = "both"
    kernels = "those of both"

    def __init__(self, reference: Backend, other: Backend) -> None:
        if reference.config != other.config:
            raise AmsaError("these are two different networks; stages can be compared between backends and precisions of one")
        self.config, self.precision, self.trained = reference.config, reference.precision, reference.trained
        self._reference, self._other = reference, other
        self._bound = max(BOUNDS[b.precision] for b in (reference, other))
        self._differences: dict[tuple[str, str], TensorDifference] = {}

    @property
    def differences(self) -> list[TensorDifference]:
        """In the order in which the stages run."""
        return list(self._differences.values())

    def run(self, stage: str, inputs: Mapping[str, Any]) -> Arrays:
        expected, found = _run(self._reference, stage, inputs), _run(self._other, stage, inputs)
        for name, tensor in expected.items():
            if tensor.shape != found[name].shape:
                raise AmsaError(f"{stage}: {name} is {tensor.shape} in one and {found[name].shape} in the other")
            is_match = name == "match"
            bound = 1 - EQUAL_MATCHES if is_match else self._bound
            difference = self._differences.setdefault((stage, name), TensorDifference(stage, name, bound))
            if is_match:
                difference.add_matches(expected, found)
            elif name == "relevance":  # another match has another score: that is the line above
                same = ~_other_matches(expected, found)
                difference.add(*(tensors["relevance"][0, 0, 1:-1, 1:-1][same] for tensors in (expected, found)))
            else:
                difference.add(tensor, found[name])
        return expected


def _other_matches(expected: Arrays, found: Arrays) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Where the matches differ, at positions whose whole patch is picture; [h-2, w-2]."""
    differs: np.ndarray[Any, np.dtype[np.bool_]] = (expected["match"] != found["match"]).any(1)[0, 2:-2, 2:-2]
    return differs


def _run(backend: Backend, stage: str, inputs: Mapping[str, Any]) -> Arrays:
    """Run a stage on arrays of the host; features in the backend's own precision."""
    declared = next(s for s in backend.config.stages(backend.precision) if s.name == stage)
    features = (*PRECISIONS.values(),)
    with backend.call() as on:
        given = {}
        for tensor in declared.inputs:
            array = np.ascontiguousarray(inputs[tensor.name])
            given[tensor.name] = on.to_device(array.astype(tensor.dtype) if tensor.dtype in features else array)
        return {name: on.to_host(array) for name, array in on.run(stage, given).items()}


def compare_stages(
    reference: Upscaler,
    other: Upscaler,
    lr: Photo,
    refs: Sequence[Photo],
    *,
    seed: int = 0,
    names: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> list[TensorDifference]:
    """Run a picture on one upscaler's backend and every stage of it on the other's, too, with the same inputs.

    Args:
        reference: what is compared with; its tensors are handed on.
        other: another backend or precision of the same network.
        lr, refs, seed, names, progress: as `Upscaler.upscale_photo` takes them.

    Returns:
        One entry per stage and output, in the order of the stages.

    Raises:
        AmsaError: two different networks, or what `upscale_photo` raises.
    """
    both = BothBackends(reference.backend_in_use, other.backend_in_use)
    Upscaler.on(both, reference.tile, reference.matching, reference.skip).upscale_photo(
        lr, refs, seed=seed, names=names, progress=progress
    )
    return both.differences
