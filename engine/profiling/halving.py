"""What would have to improve to halve an estimated time: computed from its kernels, the largest gain first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...plugins import DEFORMABLE_SAMPLE
from ...plugins.gpus import Gpu
from ..engine_shapes import TILED
from ..tiling import TILE
from .graph_kernels import FLOAT_MATCHING, FLOAT_PRODUCT, INT8_MATCHING, Kernel
from .picture_work import COPY, WEIGHT_COPY
from .roofline import LAUNCH_US, Cost, cost

_SMALL = 0.02
"""Share of the whole below which a gain is not worth a sentence."""


@dataclass(frozen=True)
class Priced:
    """Work for a picture (see picture_work.py), and what it costs once."""

    stage: str
    kernel: Kernel
    times: int
    cost: Cost

    @property
    def low(self) -> float:
        return self.times * self.cost.low

    @property
    def high(self) -> float:
        return self.times * self.cost.high


@dataclass(frozen=True)
class _Gain:
    """Milliseconds that a change saves, at the highest and the lowest efficiency."""

    what: str
    low: float
    high: float

    @property
    def middle(self) -> float:
        return (self.low + self.high) / 2


def to_halve(work: Sequence[Priced], larger: Sequence[Priced], gpu: Gpu) -> list[str]:
    """A sentence each.

    Args:
        work: of a picture.
        larger: of the same in tiles of twice the side.
        gpu: that it was priced for.
    """
    low, high = _sum(work)
    whole = (low + high) / 2
    gains = [
        _fused(work, gpu),
        _without(work, "Transpose", "exchanging features channels-last between engines"),
        _without(work, "Concat", "letting layers write into their part of what is concatenated"),
        _in_half(work, gpu),
        _matched_in_int8(work, gpu),
        _kept_references(work),
        _fewer_restored(work),
        _larger_tiles(work, larger),
        _bytes_over_pcie(work, gpu),
        _fewer_kernels(work),
    ]
    told = sorted((gain for gain in gains if gain.middle > _SMALL * whole), key=lambda gain: -gain.middle)
    lines = [_largest(work, whole), _all_faster(work, whole)]
    lines += [f"{gain.what}: saves {_ms(gain.low, gain.high)}." for gain in told]
    saved = sum(gain.middle for gain in told) / whole
    verdict = "enough to halve it, if none gained from what another did" if saved >= 0.5 else "not enough to halve it"
    return [*lines, f"Together {saved:.0%} of the time: {verdict}."]


def _sum(work: Iterable[Priced]) -> tuple[float, float]:
    """Milliseconds at the highest and the lowest efficiency, time between kernels included."""
    items = list(work)
    between = sum(item.times * item.kernel.launches for item in items) * LAUNCH_US / 1e3
    return sum(item.low for item in items) + between, sum(item.high for item in items) + between


def _ms(low: float, high: float) -> str:
    a, b = sorted((f"{low:.2f}", f"{high:.2f}"), key=float)
    return f"{a} ms" if a == b else f"{a} to {b} ms"


def _largest(work: Sequence[Priced], whole: float) -> str:
    layers: dict[tuple[str, str, str], float] = {}
    for item in work:
        key = item.stage, item.kernel.name, item.kernel.op
        layers[key] = layers.get(key, 0) + sum(_sum([item])) / 2
    ranked = sorted(layers, key=lambda key: -layers[key])
    taken, time = [], 0.0
    for key in ranked:
        if time >= whole / 2:
            break
        taken.append(key)
        time += layers[key]
    named = ", ".join(f"{key[1]} of {key[0]} ({layers[key]:.2f} ms)" for key in taken[:3])
    half = f"Half of the {whole:.2f} ms that are the middle of the estimate"
    return f"{half} is in {len(taken)} of {len(ranked)} layers, first {named}."


def _all_faster(work: Sequence[Priced], whole: float) -> str:
    at_peak = sum(item.times * item.cost.roofline for item in work)
    between = sum(item.times * item.kernel.launches for item in work) * LAUNCH_US / 1e3
    left = whole / 2 - between
    if left <= at_peak:
        return f"At the peak rates all kernels take {at_peak:.2f} ms, with {between:.2f} ms between: no efficiency halves it."
    return (
        f"To halve it by efficiency alone all kernels would have to reach {at_peak / left:.0%} of the roofline, and are taken to "
        f"reach {at_peak / (whole - between):.0%} in the middle."
    )


def _fused(work: Sequence[Priced], gpu: Gpu) -> _Gain:
    """DeformableSample and the convolution that reads its samples as one kernel, without these in memory."""
    made: dict[str, Priced] = {}
    low = high = moved = 0.0
    for item in work:
        if item.kernel.kind == DEFORMABLE_SAMPLE.name:
            made.update(dict.fromkeys(item.kernel.written, item))
            continue
        for name in item.kernel.read.keys() & made.keys():
            sampling, samples = made.pop(name), item.kernel.read[name]
            apart = _sum([sampling, item])
            less = [_changed(one, gpu, bytes=one.kernel.bytes - samples) for one in (sampling, item)]
            together = _sum(less)
            low, high = low + apart[0] - together[0], high + apart[1] - together[1]
            moved += item.times * samples / 1e6
    what = f"Fusing DeformableSample with the convolution behind it, which reads back the {moved:.0f} MB that it writes"
    return _Gain(what, low, high)


def _changed(item: Priced, gpu: Gpu, **values: Any) -> Priced:
    kernel = replace(item.kernel, **values)
    return replace(item, kernel=kernel, cost=cost(kernel, gpu))


def _without(work: Sequence[Priced], op: str, what: str) -> _Gain:
    """Kernels that do nothing but move data, gone."""
    items = [item for item in work if item.kernel.op == op]
    moved = sum(item.times * item.kernel.bytes for item in items) / 1e6
    return _Gain(f"{what[0].upper()}{what[1:]}, {moved:.0f} MB of traffic in {op} kernels", *_sum(items))


def _in_half(work: Sequence[Priced], gpu: Gpu) -> _Gain:
    items = [item for item in work if item.kernel.kind == FLOAT_PRODUCT]
    less = [_changed(item, gpu, kind="narrow half product", bytes=item.kernel.bytes / 2) for item in items]
    (low, high), (then_low, then_high) = _sum(items), _sum(less)
    what = "Computing in FP16 what is convolved in FP32 (keys and queries, where matching allows)"
    return _Gain(what, low - then_low, high - then_high)


def _matched_in_int8(work: Sequence[Priced], gpu: Gpu) -> _Gain:
    """Steps alone: that int8 features have to be made is as much as their norms cost now."""
    items = [item for item in work if item.kernel.kind == FLOAT_MATCHING and "_step_" in item.kernel.op]
    less = [_changed(item, gpu, kind=INT8_MATCHING) for item in items]
    (low, high), (then_low, then_high) = _sum(items), _sum(less)
    return _Gain("Matching in int8 instead of float", low - then_low, high - then_high)


def _kept_references(work: Sequence[Priced]) -> _Gain:
    return _Gain("Encoding a reference once for many pictures", *_sum(item for item in work if item.stage == "encode_ref"))


def _fewer_restored(work: Sequence[Priced]) -> _Gain:
    """One reference at a scale less, of the average size."""
    count = sum(item.times for item in work if item.kernel.name == WEIGHT_COPY)
    low, high = _sum(item for item in work if item.stage == "restore")
    share = 1 / count if count > 1 else 0
    return _Gain(f"Restoring from {count - 1} references at a scale instead of {count}", low * share, high * share)


def _larger_tiles(work: Sequence[Priced], larger: Sequence[Priced]) -> _Gain:
    (low, high), (then_low, then_high) = (_sum(i for i in tiles if i.stage in TILED) for tiles in (work, larger))
    what = f"Restoring in tiles of {2 * TILE} LR pixels instead of {TILE}, with about four times the scratch memory"
    return _Gain(what, low - then_low, high - then_high)


def _bytes_over_pcie(work: Sequence[Priced], gpu: Gpu) -> _Gain:
    items = [item for item in work if item.kernel.kind == COPY]
    less = [_changed(item, gpu, bytes=item.kernel.bytes / 4) for item in items]
    (low, high), (then_low, then_high) = _sum(items), _sum(less)
    return _Gain("Copying 8-bit values over PCIe instead of float32", low - then_low, high - then_high)


def _fewer_kernels(work: Sequence[Priced]) -> _Gain:
    launches = sum(item.times * item.kernel.launches for item in work)
    saved = launches * LAUNCH_US / 2e3
    return _Gain(f"Halving the number of kernels, {launches} with {LAUNCH_US:g} us between two", saved, saved)
