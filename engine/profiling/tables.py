"""A profile as tables for the terminal: contenders side by side, their stages, and the layers of the first."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from statistics import median

from rich.table import Table

from .estimate_tables import estimate_tables
from .results import LayerTime, Measured, Profile

TOP = 15
"""Layers that are shown."""
KINDS = 8
"""Kinds of operators that are shown; the others are summed up."""


def tables(profile: Profile) -> Iterator[Table | str]:
    """What the terminal shows, from top to bottom."""
    yield _heading(profile)
    if profile.measured:
        yield from _measured(profile.measured)
    yield from estimate_tables(profile.estimates)


def _measured(measured: Sequence[Measured]) -> Iterator[Table | str]:
    yield contenders(measured)
    yield stages(measured)
    first = measured[0]
    if first.layers:
        yield kinds(first)
        yield layers(first)
        yield from _distance(first)


def _heading(profile: Profile) -> str:
    references = ", ".join(f"{width}x{height}" for width, height in profile.refs)
    trained = "" if profile.trained else ", untrained"
    matched = profile.ref_scales * len(profile.refs)
    machine = profile.machine
    return (
        f"{profile.model} ({profile.variant}{trained}): LR {profile.lr[0]}x{profile.lr[1]} to "
        f"{4 * profile.lr[0]}x{4 * profile.lr[1]}, {'references' if len(profile.refs) > 1 else 'reference'} {references}; "
        f"restored from {profile.restored} of {matched} references at a scale"
        + (f"\n{machine['processor']}, {machine['threads']} of {machine['cores']} cores" if profile.measured else "")
    )


def contenders(measured: Sequence[Measured]) -> Table:
    """A column each; times in milliseconds."""
    first = measured[0]
    rows: list[tuple[str, Callable[[Measured], str]]] = [
        ("device", lambda m: m.device),
        ("time, p50 ms", lambda m: _ms(m.latency.percentile(50))),
        ("p90 ms", lambda m: _ms(m.latency.percentile(90))),
        ("p99 ms", lambda m: _ms(m.latency.percentile(99))),
        ("pictures timed", lambda m: f"{len(m.latency.milliseconds)}"),
        ("pictures per second", lambda m: f"{m.latency.per_second:.3g}"),
        ("CPU ms, all threads", lambda m: _ms(m.cpu_ms)),
        ("first picture ms", lambda m: _ms(m.first_ms)),
        ("opening ms", lambda m: _ms(m.open_ms)),
        ("peak memory MB", lambda m: f"{m.peak_host_mb:.0f}"),
    ]
    if any(m.peak_device_mb is not None for m in measured):
        rows.append(("on the GPU MB", lambda m: "-" if m.peak_device_mb is None else f"{m.peak_device_mb:.0f}"))
    for name in dict.fromkeys(name for m in measured for name in m.sensors):
        rows.append((name, lambda m, name=name: _range(m.sensors.get(name))))  # type: ignore[misc]
    if len(measured) > 1:
        rows.append(("PSNR to the first dB", _psnr))
        rows.append(("time, of the first's", lambda m: "" if m is first else f"{speed_up(first, m):.2f} x"))
        rows.append(("CPU time, of the first's", lambda m: "" if m is first else f"{m.cpu_ms / first.cpu_ms:.2f} x"))
    table = Table("", *(m.label for m in measured), title="pictures, in turns", title_justify="left")
    for name, value in rows:
        table.add_row(name, *(value(m) for m in measured))
    return table


def speed_up(first: Measured, other: Measured) -> float:
    """How many times as long the other takes: the ratio of medians over the rounds that both took part in."""
    a, b = first.latency.milliseconds, other.latency.milliseconds
    both = min(len(a), len(b))
    return median(b[:both]) / median(a[:both])


def stages(measured: Sequence[Measured]) -> Table:
    """Milliseconds and share of each stage, contenders side by side."""
    table = Table("stage", "calls", title="stages, ms of a picture", title_justify="left")
    for m in measured:
        table.add_column(m.label, justify="right")
    names = list(dict.fromkeys(stage.name for m in measured for stage in m.stages if stage.name != "other"))
    times = [{stage.name: stage for stage in m.stages} for m in measured]
    sums = [sum(stage.milliseconds for stage in m.stages) for m in measured]
    for name in (*names, "other"):
        calls = next((f"{found[name].calls:g}" for found in times if name in found), "")
        cells = []
        for found, total in zip(times, sums, strict=True):
            share = found[name].milliseconds / total if name in found and total else 0
            cells.append(f"{_ms(found[name].milliseconds)} {share:4.0%}" if name in found else "-")
        table.add_row(name, calls if name != "other" else "", *cells)
    return table


def kinds(run: Measured) -> Table:
    """The layers by kind."""
    sums: dict[str, list[LayerTime]] = defaultdict(list)
    for layer in run.layers:
        sums[layer.op].append(layer)
    ranked = sorted(sums.items(), key=lambda item: -_time(item[1]))
    rows = ranked[:KINDS]
    if rest := [layer for _, found in ranked[KINDS:] for layer in found]:
        rows.append((f"{len(ranked) - KINDS} others", rest))
    total = _time(run.layers)
    table = Table("kind", title=f"{run.label}: layers by kind, profiled in a run of their own", title_justify="left")
    for column in ("layers", "ms", "share", "GMACs", "GFLOP/s"):
        table.add_column(column, justify="right")
    for op, found in rows:
        macs = sum(layer.macs or 0 for layer in found)
        cells = f"{macs / 1e9:.3f}" if macs else "-", _gflops(macs, _time(found))
        table.add_row(op, f"{len(found)}", _ms(_time(found)), f"{_time(found) / total:.0%}", *cells)
    return table


def layers(run: Measured) -> Table:
    """The layers that take longest."""
    total = _time(run.layers)
    ranked = sorted(run.layers, key=lambda layer: -layer.milliseconds)[:TOP]
    title = f"{run.label}: the {len(ranked)} layers of {len(run.layers)} that take longest"
    table = Table(title=title, title_justify="left")
    table.add_column("layer", overflow="fold")
    for column in ("calls", "ms", "share", "GFLOP/s", "GB/s"):
        table.add_column(column, justify="right")
    for layer in ranked:
        rates = _gflops(layer.macs or 0, layer.milliseconds), _gbs(layer)
        share = f"{layer.milliseconds / total:.1%}"
        table.add_row(f"{layer.stage}/{layer.name}", f"{layer.calls:g}", _ms(layer.milliseconds), share, *rates)
    return table


def _distance(run: Measured) -> Iterator[str]:
    """How far the whole is from what the device reaches."""
    macs = sum(layer.macs or 0 for layer in run.layers)
    taken = run.latency.percentile(50)
    if run.peak_gflops and macs:
        reached = 2 * macs / taken / 1e6
        yield (
            f"{macs / 1e9:.2f} GMACs in {_ms(taken)} ms are {reached:.1f} GFLOP/s: {reached / run.peak_gflops:.0%} of the "
            f"{run.peak_gflops:.0f} GFLOP/s that float32 matrix products reach here; at that rate they would take "
            f"{_ms(2 * macs / run.peak_gflops / 1e6)} ms"
        )
    moved = sum(layer.bytes or 0 for layer in run.layers)
    if run.peak_gbs and moved:
        yield (
            f"the layers read and write {moved / 1e9:.2f} GB, most of it in caches; copying as much from memory to memory takes "
            f"{_ms(moved / run.peak_gbs / 1e6)} ms here ({run.peak_gbs:.1f} GB/s)"
        )


def _time(found: Sequence[LayerTime]) -> float:
    return sum(layer.milliseconds for layer in found)


def _ms(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def _gflops(macs: float, milliseconds: float) -> str:
    return f"{2 * macs / milliseconds / 1e6:.1f}" if macs and milliseconds else "-"


def _gbs(layer: LayerTime) -> str:
    return f"{layer.bytes / layer.milliseconds / 1e6:.1f}" if layer.bytes and layer.milliseconds else "-"


def _range(values: tuple[float, float, float] | None) -> str:
    return "-" if values is None else f"{values[1]:.0f} ({values[0]:.0f} to {values[2]:.0f})"


def _psnr(run: Measured) -> str:
    if run.psnr_to_first is None:
        return ""
    return f"{run.psnr_to_first:.1f}" if math.isfinite(run.psnr_to_first) else "equal"
