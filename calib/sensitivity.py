"""How much accuracy int8 costs, block by block, and which blocks are worth it."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engine.backends import Arrays, HostExecution, open_session
from ..engine.metrics import luma, psnr
from ..engine.upscaler import Upscaler
from ..errors import AmsaError
from ..export.layer_precision import LayerPrecision, conv_layers, set_precision
from ..manifest import ModelFolder
from .layers import model_graphs
from .samples import Sample

Say = Callable[[str], None]


@dataclass(frozen=True)
class Measured:
    """A model on the samples.

    Attributes:
        truth: mean PSNR-Y in dB against the truth, border 4, values not rounded.
        worst: the largest loss of a sample against the float32 model, in dB.
        error: mean squared difference from the float32 model's Y (0..255).
        parity: mean PSNR-Y in dB against the float32 model's picture; inf where equal.
        seconds: per sample, median.
        size: bytes of the graphs.
    """

    truth: float
    worst: float
    error: float
    parity: float
    seconds: float
    size: int


class _Execution(HostExecution):
    """Runs graphs of which some are changed; what the unchanged ones gave for the same inputs is remembered."""

    name = "onnxruntime"
    kernels = "amsa's"

    def __init__(self, folder: ModelFolder, threads: int | None) -> None:
        manifest = folder.manifest
        self.config, self.precision, self.trained = manifest.config, manifest.precision, manifest.trained
        self._folder, self._threads = folder, threads
        self._sessions: dict[str, Any] = {}
        self._known: dict[tuple[str, bytes], Arrays] = {}
        self.remember = True

    def change(self, graphs: Mapping[str, bytes]) -> None:
        """From now on these graphs instead of the folder's."""
        changed = {stage: open_session(self._folder.path, stage, content, self._threads) for stage, content in graphs.items()}
        self._changed = changed

    def run(self, stage: str, inputs: Mapping[str, Any]) -> Arrays:
        # restore and finish see another accumulator every time.
        keep = self.remember and stage not in self._changed and stage not in ("restore", "finish")
        key = stage, b""
        if keep:
            digest = hashlib.blake2b(digest_size=16)
            for name in sorted(inputs):
                digest.update(np.ascontiguousarray(inputs[name]).data)
            key = stage, digest.digest()
            if key in self._known:
                return dict(self._known[key])
        session = self._changed.get(stage) or self._sessions.get(stage)
        if session is None:
            session = open_session(self._folder.path, stage, self._folder.graphs[stage], self._threads)
            self._sessions[stage] = session
        names = [output.name for output in session.get_outputs()]
        found: Arrays = dict(zip(names, session.run(names, dict(inputs)), strict=True))
        if keep:
            self._known[key] = dict(found)
        return found


class Bench:
    """Measures a model with layers of other precision on held-out samples.

    Args:
        folder: the model.
        samples: what to measure on; reference features of all are kept, 12 MB each for the shipped model.
        threads: of ONNX Runtime.
        expected: Y of the float32 model's pictures; None: this model's own.
    """

    def __init__(
        self,
        folder: ModelFolder,
        samples: Sequence[Sample],
        threads: int | None = None,
        expected: Sequence[NDArray[np.float64]] | None = None,
    ) -> None:
        self._folder, self.samples = folder, samples
        self._graphs = model_graphs(folder)
        self._execution = _Execution(folder, threads)
        self._upscaler = Upscaler.on(self._execution)
        self._truth = [_luma(sample.truth.rgb) for sample in samples]
        if expected is None:
            self._execution.change({})
            expected = [self._picture(sample) for sample in samples]
        self.expected = expected
        self._own = [psnr(y, truth) for y, truth in zip(expected, self._truth, strict=True)]

    @property
    def own(self) -> float:
        """Mean PSNR-Y of the float32 model against the truth."""
        return float(np.mean(self._own))

    def graphs(self, precision: LayerPrecision | None) -> dict[str, bytes]:
        """The graphs that a precision changes."""
        if precision is None:
            return {}
        chosen = {*precision.int8, *precision.float32}
        changed = {stage: graph for stage, graph in self._graphs.items() if chosen & conv_layers(graph).keys()}
        return {stage: set_precision(graph, precision).SerializeToString() for stage, graph in changed.items()}

    def measure(self, precision: LayerPrecision | None, timed: bool = False) -> Measured:
        """Upscale all samples.

        Args:
            precision: the layers' precision; None: the model as it is.
            timed: run every stage for every sample, so that `seconds` is a picture's time.
        """
        changed = self.graphs(precision)
        self._execution.change(changed)
        self._execution.remember = not timed
        pictures, seconds = [], []
        for sample in self.samples:
            begin = time.perf_counter()
            pictures.append(self._picture(sample))
            seconds.append(time.perf_counter() - begin)
        scores = [psnr(y, truth) for y, truth in zip(pictures, self._truth, strict=True)]
        errors = [float(np.square(y - e)[4:-4, 4:-4].mean()) for y, e in zip(pictures, self.expected, strict=True)]
        parity = [psnr(y, e) for y, e in zip(pictures, self.expected, strict=True)]
        loss = max(own - score for own, score in zip(self._own, scores, strict=True))
        size = sum(len(changed.get(stage, content)) for stage, content in self._folder.graphs.items())
        return Measured(
            truth=float(np.mean(scores)),
            worst=loss,
            error=float(np.mean(errors)),
            parity=float(np.mean(parity)),
            seconds=float(np.median(seconds)),
            size=size,
        )

    def _picture(self, sample: Sample) -> NDArray[np.float64]:
        sr = self._upscaler.upscale_photo(sample.lr, [sample.ref]).rgb
        if not np.isfinite(sr).all():
            raise AmsaError(f"{self._folder.path} gives values that are no numbers on {sample.name}; check the model's weights")
        return _luma(sr)


def _luma(rgb: NDArray[np.float32]) -> NDArray[np.float64]:
    return luma(255 * rgb.astype(np.float64))


@dataclass(frozen=True)
class BlockCost:
    """A block in int8 and all else in float32.

    Attributes:
        layers: its layers.
        drop: dB lost against the truth; negative where it happens to be better.
        parity: dB of PSNR against the float32 picture.
        error: the mean squared difference that `parity` is of.
        share: of all convolutions' multiply-accumulates.
        chosen: whether the search took it.
        total: dB lost against the truth with it and all that were taken before it; of "sums" with all of them.
    """

    name: str
    layers: tuple[str, ...]
    drop: float
    parity: float
    error: float
    share: float
    chosen: bool = False
    total: float = math.nan


def block_costs(
    bench: Bench,
    ranges: Mapping[str, float],
    blocks: Mapping[str, Sequence[str]],
    macs: Mapping[str, int],
    say: Say = lambda _: None,
) -> list[BlockCost]:
    """Measure every block alone."""
    whole = sum(macs.values())
    costs = []
    for i, (name, layers) in enumerate(blocks.items()):
        say(f"alone in int8: block {i + 1} of {len(blocks)}, {name}")
        m = bench.measure(LayerPrecision("", {layer: ranges[layer] for layer in layers}))
        share = sum(macs[layer] for layer in layers) / whole
        costs.append(BlockCost(name, tuple(layers), bench.own - m.truth, m.parity, m.error, share))
    return costs


def search(
    bench: Bench, ranges: Mapping[str, float], costs: Sequence[BlockCost], max_drop: float, say: Say = lambda _: None
) -> tuple[LayerPrecision, list[BlockCost]]:
    """Take blocks into int8, from the one with the least error per multiply-accumulate on, and leave out each with which the loss
    against the truth would be more than `max_drop` dB. At last residual sums, where that holds for them, too.

    Returns:
        The precision (of no particular model), and the blocks in the order in which they were tried.
    """
    precision = LayerPrecision("", {})
    tried: list[BlockCost] = []
    for i, cost in enumerate(sorted(costs, key=lambda c: c.error / max(c.share, 1e-9))):
        say(f"all in int8: block {i + 1} of {len(costs)}, {cost.name}")
        more = replace(precision, int8={**precision.int8, **{layer: ranges[layer] for layer in cost.layers}})
        total = bench.own - bench.measure(more).truth
        chosen = total <= max_drop
        precision = more if chosen else precision
        tried.append(replace(cost, chosen=chosen, total=total))
    if precision.int8:
        say("residual sums in int8")
        sums = replace(precision, int8_sums=True)
        if bench.own - bench.measure(sums).truth <= max_drop:
            precision = sums
    return precision, tried
