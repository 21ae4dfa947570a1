"""An estimate for the terminal; every title says what it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.table import Table

from .estimate import stage_times
from .results import Estimate

TOP = 3
"""Layers that are shown."""


def estimate_tables(estimates: Sequence[Estimate]) -> Iterator[Table | str]:
    """What the terminal shows of estimates, from top to bottom; what was assumed for one card is not told again for the next."""
    told: set[str] = set()
    for estimate in estimates:
        yield from _tables(estimate)
        new = [f"- {line}" for line in estimate.assumptions if line not in told]
        yield "\n".join(("Assumptions:" if not told else "Other assumptions than before:", *new))
        told.update(estimate.assumptions)


def _tables(estimate: Estimate) -> Iterator[Table | str]:
    what = f"{estimate.gpu} ({estimate.sm}), {estimate.precision}: estimate, not measured"
    yield _stages(estimate, what)
    yield _layers(estimate, what)
    scratch = "not known: no engines" if estimate.scratch_mb is None else f"{estimate.scratch_mb:.0f} MB"
    yield f"{estimate.launches} kernels and copies, {estimate.launch_us:g} us between two; scratch memory {scratch}"
    yield "To halve it:\n" + "\n".join(f"- {line}" for line in estimate.to_halve)


def _stages(estimate: Estimate, what: str) -> Table:
    table = Table("stage", title=f"{what}; ms of a picture", title_justify="left")
    for column in ("at best", "at worst", "kernels"):
        table.add_column(column, justify="right")
    times = stage_times(estimate)
    for stage, (low, high, kernels) in times.items():
        table.add_row(stage, f"{low:.2f}", f"{high:.2f}", f"{kernels:g}", end_section=stage == list(times)[-1])
    low, high = estimate.low_ms, estimate.high_ms
    encoded = times.get("encode_ref", (0.0, 0.0, 0.0))
    table.add_row("a picture with its references", f"{low:.2f}", f"{high:.2f}", f"{estimate.launches}")
    kept = f"{low - encoded[0]:.2f}", f"{high - encoded[1]:.2f}", f"{estimate.launches - encoded[2]:g}"
    table.add_row("a picture with references encoded before", *kept)
    return table


def _layers(estimate: Estimate, what: str) -> Table:
    ranked = sorted(estimate.layers, key=lambda layer: -layer.low_ms - layer.high_ms)[:TOP]
    title = f"{what}; the {len(ranked)} layers of {len(estimate.layers)} that take longest"
    table = Table("stage", "layer", "kind", "limited by", title=title, title_justify="left")
    for column in ("calls", "GMACs", "MB", "roofline ms", "at best", "at worst"):
        table.add_column(column, justify="right")
    for layer in ranked:
        work = f"{layer.calls:g}", f"{layer.macs / 1e9:.2f}", f"{layer.bytes / 1e6:.0f}"
        times = f"{layer.roofline_ms:.2f}", f"{layer.low_ms:.2f}", f"{layer.high_ms:.2f}"
        table.add_row(layer.stage, layer.name, layer.op, layer.bound, *work, *times)
    return table
