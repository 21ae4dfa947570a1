"""All that the TensorRT backend has to do for a picture: which graph runs how often and at which sizes, and what is copied."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

import numpy as np

from ...config import AMSAConfig
from ...errors import AmsaError
from ...manifest import ModelFolder
from ...stages import SCALE, Stage
from ..engine_shapes import TILED, dimensions
from ..references import lr_and_scales
from ..tiling import TILE, cut
from .graph_kernels import MEMORY, Kernel, kernels
from .graph_shapes import Graph

Work: TypeAlias = "tuple[str, Kernel, int]"
"""The stage, what a kernel or copy does in it, and how often that is for a picture."""

COPIES = "copies"
"""The stage of what goes over PCIe, but for references: their copies belong to encode_ref."""
COPY = "PCIe copy"
"""The kind of such copies."""


WEIGHT_COPY = "fusion weight to the GPU"
"""Its name, as many as references at a scale are restored."""


@dataclass(frozen=True)
class Run:
    """A graph that runs `times` at one size: the values of its size words, as {"h": 80, "w": 120}."""

    stage: str
    sizes: Mapping[str, int]
    times: int


@dataclass(frozen=True)
class Sizes:
    """Of a picture and its references.

    Args:
        lr, refs: (width, height) in pixels.
        restored: how many of the references at all their scales are restored, the largest; None: all.
        tile: LR pixels on a side that are restored at a time, without halos.
    """

    lr: tuple[int, int]
    refs: Sequence[tuple[int, int]]
    restored: int | None = None
    tile: int = TILE

    def runs(self, config: AMSAConfig) -> list[Run]:
        """What the `Upscaler` runs, in order; equal runs together. AmsaError: a side or a count that it does not take."""
        if not self.refs:
            raise AmsaError("no reference; give the size of at least one")
        (height, width), scales = lr_and_scales(config, self.lr[::-1], *(ref[::-1] for ref in self.refs))
        count = len(scales) if self.restored is None else self.restored
        if not 1 <= count <= len(scales):
            raise AmsaError(f"{count} references at a scale cannot be restored; there are {len(scales)}")
        grids = [{"Hk": scale.picture[0] // SCALE, "Wk": scale.picture[1] // SCALE} for scale in scales]
        picture = {"h": height, "w": width}
        runs = [_counted("encode_ref", grids), [Run("encode_lr", picture, 1)]]
        runs.append(_counted("match", [{**picture, **grid} for grid in grids]))
        largest = sorted(grids, key=lambda grid: -grid["Hk"] * grid["Wk"])[:count]
        if config.published_protocol:  # takes the values of scale 0 for every scale; but all are of one size
            largest = grids[:count]
        windows = cut(self.lr[1], self.lr[0], config.halo, side=self.tile + 2 * config.halo)
        tiles = [{"h": w.rows.stop - w.rows.start, "w": w.cols.stop - w.cols.start} for w in windows]
        runs.append(_counted("restore", [{**tile, **grid} for tile in tiles for grid in largest]))
        runs.append(_counted("finish", tiles))
        return [run for stage in runs for run in stage]


def _counted(stage: str, sizes: Sequence[Mapping[str, int]]) -> list[Run]:
    counts = Counter(tuple(one.items()) for one in sizes)
    return [Run(stage, dict(one), times) for one, times in counts.items()]


class Workload:
    """The kernels of a model, counted once for every size that is asked for."""

    def __init__(self, folder: ModelFolder) -> None:
        self.config = folder.manifest.config
        self._stages = {stage.name: stage for stage in self.config.stages(folder.manifest.precision)}
        self._folder = folder
        self._graphs: dict[str, Graph] = {}
        self._kernels: dict[tuple[object, ...], list[Kernel]] = {}

    def of(self, sizes: Sizes) -> list[Work]:
        """Kernels and copies of one picture.

        Raises:
            AmsaError: sizes that the runtime does not take, or the package onnx is missing.
        """
        runs = sizes.runs(self.config)
        whole = next(run.sizes for run in runs if run.stage == "encode_lr")
        work: list[Work] = []
        for run in runs:
            work += [(run.stage, kernel, run.times) for kernel in self._kernels_of(run)]
            if run.stage in TILED:
                work += [(run.stage, kernel, run.times) for kernel in _tile_copies(self._stages[run.stage], run, whole)]
        return work + list(_picture_copies(runs, whole))

    def _kernels_of(self, run: Run) -> list[Kernel]:
        if run.stage not in self._graphs:
            self._graphs[run.stage] = Graph.load(self._stages[run.stage], self._folder.graphs[run.stage])
        key = (run.stage, *run.sizes.items())
        if key not in self._kernels:
            self._kernels[key] = kernels(self._graphs[run.stage], run.sizes)
        return self._kernels[key]


def _tile_copies(stage: Stage, run: Run, whole: Mapping[str, int]) -> Iterator[Kernel]:
    """What is copied on the GPU for a tile: its part of every map goes into memory of its own, unless it is all of it."""
    profile = {word: (size, size, size) for word, size in run.sizes.items()}
    for tensor in stage.inputs:
        size = prod(dimensions(tensor, profile)[0]) * np.dtype(tensor.dtype).itemsize
        if tensor.name == "accumulator":
            if stage.name == "finish":  # as often as it begins with zeros
                yield Kernel(tensor.name, "clear", MEMORY, 0, size)
        elif not tensor.name.startswith("value_") and (run.sizes["h"], run.sizes["w"]) != (whole["h"], whole["w"]):
            yield Kernel(f"{tensor.name}'s part", "copy", MEMORY, 0, 2 * size)


def _picture_copies(runs: Sequence[Run], whole: Mapping[str, int]) -> Iterator[Work]:
    """What goes over PCIe, all float32: pictures, SR tile by tile with its halo, and for the fusion weights every relevance down
    and every weight up."""
    for run in runs:
        if run.stage == "encode_ref":
            pixels = SCALE**2 * run.sizes["Hk"] * run.sizes["Wk"]
            yield run.stage, Kernel("reference to the GPU", "copy", COPY, 0, 4 * 3 * pixels), run.times
        if run.stage == "finish":
            pixels = SCALE**2 * run.sizes["h"] * run.sizes["w"]
            yield COPIES, Kernel("SR to the host", "copy", COPY, 0, 4 * 3 * pixels), run.times
    tiles, matched, restored = (sum(run.times for run in runs if run.stage == stage) for stage in ("finish", "match", "restore"))
    padded = 4 * whole["h"] * whole["w"]
    yield COPIES, Kernel("LR to the GPU", "copy", COPY, 0, 3 * padded), 1
    yield COPIES, Kernel("relevance to the host", "copy", COPY, 0, padded), matched
    yield COPIES, Kernel(WEIGHT_COPY, "copy", COPY, 0, padded), restored // tiles
