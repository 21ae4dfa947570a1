"""What a calibration found, for people: table, summary, plot."""

from __future__ import annotations

import math
from pathlib import Path

from ..errors import AmsaError
from .run import FP16_LIMIT, LR_SIZE, REF_SIZE, Calibration

HEADINGS = ("block", "MACs", "alone: dB lost", "PSNR to fp32", "total dB lost", "")


def rows(found: Calibration) -> list[tuple[str, ...]]:
    """One for every block, as tried."""
    return [
        (
            cost.name,
            f"{cost.share:.1%}",
            f"{cost.drop:+.4f}",
            "equal" if math.isinf(cost.parity) else f"{cost.parity:.1f}",
            f"{cost.total:+.4f}",
            "int8" if cost.chosen else "refused",
        )
        for cost in found.blocks
    ]


def summary(found: Calibration) -> list[str]:
    """A line for everything that was decided."""
    p, lr, ref = found.precision, LR_SIZE, REF_SIZE
    size = f"LR {lr[1]}x{lr[0]}, one reference {ref[1]}x{ref[0]} at all scales"
    lines = [
        f"{len(p.int8)} layers in int8: {found.share:.1%} of the convolutions' multiply-accumulates ({size})",
        f"residual sums: {'of quantized tensors' if p.int8_sums else 'of the tensors themselves'}",
        f"PSNR-Y of held-out crops: {found.model:.3f} dB in float32, {found.int8.truth:.3f} in int8: {found.drop:+.4f} lost, "
        f"{found.int8.worst:+.4f} at worst; {found.int8.parity:.1f} dB between the pictures",
    ]
    if p.float32:
        lines.append(f"kept in float32, since values beyond {FP16_LIMIT:.0f} were seen: {', '.join(p.float32)}")
    else:
        lines.append(f"float16 holds every layer: no value beyond {FP16_LIMIT:.0f} was seen")
    return lines


def check_plot(path: Path) -> None:
    """AmsaError unless a plot can be written there."""
    if path.suffix != ".png":
        raise AmsaError(f"{path}: a plot's name must end in .png")
    if not path.parent.is_dir():
        raise AmsaError(f"{path.parent}: no such folder; create it first")


def write_plot(found: Calibration, path: Path) -> None:
    """Bars of what every block costs alone, and the total along the search; refused blocks are gray. Needs matplotlib."""
    from matplotlib.figure import Figure

    names = [cost.name for cost in found.blocks]
    figure = Figure(figsize=(9, 1 + 0.22 * len(names)), layout="constrained")
    bars, line = figure.subplots(1, 2, sharey=True)
    places = range(len(names))
    colours = ["tab:blue" if cost.chosen else "lightgray" for cost in found.blocks]
    bars.barh(places, [max(cost.error, 1e-9) for cost in found.blocks], color=colours)
    bars.set_xscale("log")
    bars.set_yticks(places, names, fontsize=7)
    bars.invert_yaxis()
    bars.set_xlabel("alone: mean squared difference of Y (0..255)")
    line.plot([cost.total for cost in found.blocks], places, marker=".")
    line.set_xlabel("dB of PSNR-Y lost with all above")
    try:
        figure.savefig(path, dpi=120)
    except OSError as e:
        raise AmsaError(f"cannot write {path}: {e.strerror or e}; choose another folder") from e
