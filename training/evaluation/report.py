"""A report as JSON (everything), Markdown (tables) and plots. Files are written beside and renamed."""

from __future__ import annotations

import io
import json
import math
import secrets
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

from ...errors import AmsaError
from ...stages import REF_MULTIPLE

Report: TypeAlias = dict[str, Any]
"""What report.json holds; `run.evaluate` makes it."""


def prepare_folder(folder: Path) -> None:
    """Make a folder and try that it takes files. Raises AmsaError if not: better now than after hours."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as e:
        raise AmsaError(f"{folder}: files cannot be written there ({e.strerror}); choose another folder with --output") from e


def require_matplotlib() -> None:
    """Raise AmsaError unless plots can be drawn."""
    if find_spec("matplotlib") is None:
        raise AmsaError("--plots needs matplotlib; install it with: pip install 'amsa[evaluate]'")


def write_report(report: Report, folder: Path, plots: bool) -> None:
    """Write report.json, report.md and, with `plots`, gains.png and curve.png."""
    files = {"report.json": to_json(report).encode(), "report.md": to_markdown(report).encode()}
    if plots:
        files |= _plots(report)
    for name, data in files.items():
        part = folder / f".amsa-{secrets.token_hex(8)}"
        try:
            try:
                part.write_bytes(data)
                part.replace(folder / name)
            finally:
                part.unlink(missing_ok=True)
        except OSError as e:
            raise AmsaError(f"{folder / name} cannot be written ({e.strerror}); check the folder and the free space") from e


def to_json(report: Report) -> str:
    """Strict JSON: an infinite PSNR, of pictures that are equal, is null."""
    return json.dumps(finite(report), indent=1) + "\n"


def finite(value: Any) -> Any:
    """The value with None for numbers that strict JSON cannot hold."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_markdown(report: Report) -> str:
    """Tables of means with the paper's numbers beside, and every problem and failure."""
    state = "trained" if report["trained"] else "UNTRAINED weights"
    lines = [f"# {report['title']}", ""]
    lines += [f"{report['model']} ({report['variant']}, {state}), {report['backend']}, seed {report['seed']}.", ""]
    lines += [f"Protocol: {report['protocol']}.", ""]
    if report["interrupted"]:
        lines += ["**Interrupted: rows are missing.**", ""]
    rows = report["rows"]
    columns = ["data", "setting", "pictures", "bicubic", "AMSA", "gain, dB", "worst gain, dB", "below bicubic"]
    shown = [c for c in ("lpips",) if report["lpips"]] + [c for c in ("paper",) if any(row["paper"] for row in rows)]
    titles = {"lpips": "LPIPS bicubic, AMSA", "paper": "paper, AMSA-rec"}
    lines += [_line(columns + [titles[c] for c in shown]), _line(["---"] * (len(columns) + len(shown)))]
    lines += [_line(_cells(row) + [_extra(row, c) for c in shown]) for row in rows]
    lines += ["", "PSNR in dB / SSIM, means over pictures. Per-picture numbers: report.json."]
    if any(row["gamma"] for row in rows):
        lines += ["The pictures were halved first, so that the reference as it is has gamma 8."]
    if any(row["paper"] for row in rows) and report["crop"] != REF_MULTIPLE:
        lines += ["The paper's code crops pictures to multiples of 32: its numbers are of slightly smaller pictures."]
    kinds = sorted({r["reference"] for row in rows for r in row["results"]} - {"given", "irrelevant"})
    if kinds:
        lines += [f"LR as reference: {', '.join(kinds)} (as it is from 64 pixels a side, else enlarged x4, bicubic)."]
    for dataset in report["datasets"]:
        if dataset["problems"]:
            lines += ["", f"## Problems of {dataset['name']} ({dataset['kind']})", ""]
            lines += [f"- {problem}" for problem in dataset["problems"]]
    if report["failures"]:
        lines += ["", "## Pictures that failed", ""]
        lines += [f"- {f['dataset']}, {f['setting']}, {f['name']}: {f['reason']}" for f in report["failures"]]
    return "\n".join(lines) + "\n"


def checked(datasets: list[dict[str, Any]]) -> str:
    """What `--check` found, in lines."""
    lines = []
    for d in datasets:
        fewest, most = d["references"]["fewest"], d["references"]["most"]
        many = f"{most}" if fewest == most else f"{fewest} to {most}"
        lines.append(f"{d['name']}: {d['kind']}, {d['pictures']} pictures with {many} references each")
        lines += [f"  {problem}" for problem in d["problems"]] or ["  no problems"]
    return "\n".join(lines)


def _cells(row: dict[str, Any]) -> list[str]:
    failed = f", {row['failed']} failed" if row["failed"] else ""
    worst = f"{row['worst']['gain']:+.2f} ({row['worst']['name']})" if row["worst"] else "-"
    gain = "-" if row["gain"] is None else f"{row['gain']:+.2f}"
    numbers = [_score(row["bicubic"]), _score(row["amsa"]), gain, worst, str(row["below_bicubic"])]
    return [row["dataset"], row["setting"], f"{row['pictures']}{failed}", *numbers]


def _extra(row: dict[str, Any], column: str) -> str:
    if column == "paper":
        return _score(row["paper"])
    return f"{row['bicubic']['lpips']:.4f}, {row['amsa']['lpips']:.4f}" if row["amsa"] else "-"


def _score(score: dict[str, Any] | None) -> str:
    return f"{score['psnr']:.2f} / {score['ssim']:.3f}" if score else "-"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _plots(report: Report) -> dict[str, bytes]:
    """Gains over bicubic of all pictures, sorted; and where rows are points of a curve, their means."""
    from matplotlib.figure import Figure  # not pyplot: no display is needed

    rows = [row for row in report["rows"] if row["pictures"]]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        gains = sorted(r["gain"] for r in row["results"])
        axes.plot(range(1, len(gains) + 1), gains, marker=".", label=f"{row['dataset']}, {row['setting']}")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(xlabel="pictures, worst first", ylabel="PSNR-Y over bicubic, dB", title=report["title"])
    figures = {"gains.png": figure}
    if report["experiment"] != "table1":
        figures["curve.png"] = _curve(report, rows)
    drawn = {}
    for name, each in figures.items():
        for part in each.axes:
            if part.get_legend_handles_labels()[0]:
                part.legend()
        file = io.BytesIO()
        each.savefig(file, format="png", dpi=120)
        drawn[name] = file.getvalue()
    return drawn


def _curve(report: Report, rows: list[dict[str, Any]]) -> Any:
    """Mean PSNR by setting, or by gamma."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(row["dataset"] for row in rows):
        mine = [row for row in rows if row["dataset"] == name]
        x = [row["setting"] if row["gamma"] is None else row["gamma"] for row in mine]
        axes.plot(x, [row["amsa"]["psnr"] for row in mine], marker="o", label=f"{name}, AMSA")
        axes.plot(x, [row["bicubic"]["psnr"] for row in mine], linestyle="--", label=f"{name}, bicubic")
        if published := [(a, row["paper"]["psnr"]) for a, row in zip(x, mine, strict=True) if row["paper"]]:
            axes.plot(*zip(*published, strict=True), marker="s", linestyle=":", label="paper, AMSA-rec")
    by_scale = any(row["gamma"] for row in rows)
    axes.set(xlabel="scale of the reference against LR" if by_scale else "", ylabel="PSNR-Y, dB", title=report["title"])
    return figure
