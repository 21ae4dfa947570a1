"""A contender while it is measured: its process, what it has answered so far, and what that comes to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from ..metrics import compare_pictures
from .contenders import Contender
from .processes import Worker
from .results import Latency, LayerTime, Measured, StageTime


@dataclass
class Entrant:
    """A contender and what is known of it.

    Attributes:
        kept: .npy file for its picture.
        label: what the reports call it.
        about: the answer to `open`.
        spent: seconds in pictures: to warm up, and then in those that count.
        first_ms: of the first picture.
        times: answers to `picture`, of those that count.
        staged: and of those that a GPU made once more, waiting after each stage.
        failure: why it cannot go on, in one line.
    """

    contender: Contender
    worker: Worker
    kept: Path
    label: str
    about: dict[str, Any] = field(default_factory=dict)
    spent: float = 0.0
    first_ms: float = 0.0
    times: list[dict[str, Any]] = field(default_factory=list)
    staged: list[dict[str, Any]] = field(default_factory=list)
    layers: list[LayerTime] = field(default_factory=list)
    sensors: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    gflops: float | None = None
    gbs: float | None = None
    failure: str | None = None

    @property
    def pictures_with_stages(self) -> list[dict[str, Any]]:
        return self.staged or [answer for answer in self.times if answer["stats"]]

    @property
    def restored(self) -> int:
        """References at a scale that a picture was restored from; 0 where it made none."""
        return int(next((answer["stats"]["restored"] for answer in self.pictures_with_stages), 0))

    def measured(self, first: Entrant) -> Measured:
        """What it comes to, against the first one's picture."""
        about, times = self.about, self.times
        psnr = None
        if self is not first and self.kept.exists() and first.kept.exists():
            psnr = compare_pictures(np.load(first.kept), np.load(self.kept)).psnr_rgb
        device = [answer["peak_device_mb"] for answer in times if answer["peak_device_mb"] is not None]
        return Measured(
            label=self.label,
            backend=about["backend"],
            device=about["device"],
            precision=about["precision"],
            kernels=about["kernels"],
            latency=Latency(tuple(answer["ms"] for answer in times)),
            cpu_ms=median(answer["cpu_ms"] for answer in times),
            first_ms=self.first_ms,
            open_ms=about["open_ms"],
            peak_host_mb=max(answer["peak_host_mb"] for answer in times),
            peak_device_mb=max(device) if device else None,
            psnr_to_first=psnr,
            stages=stage_times(self.pictures_with_stages),
            layers=self.layers,
            sensors=self.sensors,
            peak_gflops=self.gflops,
            peak_gbs=self.gbs,
        )


def stage_times(pictures: Sequence[Mapping[str, Any]]) -> list[StageTime]:
    """The stages in the order in which they first ran, and what is left of the pictures' times as "other".

    Args:
        pictures: of each "ms", and in "stats" a `Stats` as a dict.
    """
    times: dict[str, list[float]] = defaultdict(list)
    calls: dict[str, int] = {}
    for picture in pictures:
        stats = picture["stats"]
        for stage, seconds in stats["seconds"].items():
            times[stage].append(1e3 * seconds)
            calls[stage] = stats["calls"][stage]
        times["other"].append(max(0.0, picture["ms"] - 1e3 * sum(stats["seconds"].values())))
    other = times.pop("other", [])
    stages = [StageTime(stage, calls[stage], median(values)) for stage, values in times.items()]
    return [*stages, StageTime("other", 1, median(other))] if other else []
