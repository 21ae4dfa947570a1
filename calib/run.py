"""`amsa calibrate`: from a model and photos to a precision file."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import AmsaError
from ..export.layer_precision import LayerPrecision, identity
from ..manifest import ModelFolder
from .histograms import collect
from .layers import blocks, candidates, layer_macs, model_graphs
from .ranges import METHODS, find_range
from .samples import read_samples
from .sensitivity import Bench, BlockCost, Measured, block_costs, search

Say = Callable[[str], None]

FP16_LIMIT = 65504 / 4
"""Layers whose input, output or weights were seen beyond this stay float32 in a float16 model: a quarter of what float16 holds,
since other photos have larger values."""
LEAST = 8
"""Fewer crops than this say nothing about ranges."""
HELD_OUT = 12
"""Crops that the search measures on, unless told otherwise."""
LR_SIZE, REF_SIZE = (270, 480), (1080, 1920)
"""(rows, columns) of the picture and of the reference whose multiply-accumulates are counted."""


@dataclass(frozen=True)
class Calibration:
    """What `calibrate` found.

    Attributes:
        precision: as written.
        blocks: in the order in which they were tried.
        model: the float32 model on the held-out crops.
        int8: the same with the chosen layers in int8; the picture's `seconds` are not of whole pictures.
        share: of the multiply-accumulates that are int8.
    """

    precision: LayerPrecision
    blocks: list[BlockCost]
    model: float
    int8: Measured
    share: float

    @property
    def drop(self) -> float:
        """dB of PSNR-Y lost against the truth."""
        return self.model - self.int8.truth


def calibrate(
    model: str | Path,
    data: Sequence[str | Path],
    output: str | Path,
    *,
    held_out: Sequence[str | Path] = (),
    method: str = "mse",
    max_drop: float = 0.05,
    crops: int = 200,
    held_out_crops: int = HELD_OUT,
    threads: int | None = None,
    say: Say = lambda _: None,
) -> Calibration:
    """Find the layers that can be int8 and those that float16 cannot hold, and write both into a precision file.

    Args:
        model: a float32 model folder or `.amsa` file.
        data: photos or pairs to take ranges from, as `read_samples` reads them.
        output: the file; written beside, then renamed.
        held_out: photos or pairs to measure accuracy on; none: other crops of `data`.
        method: how ranges are found, of `METHODS`.
        max_drop: dB of PSNR-Y against the truth that int8 may cost on average.
        crops, held_out_crops: how many.
        threads: of ONNX Runtime.
        say: is told what is being done.

    Raises:
        AmsaError: what cannot be read, calibrated or written.
    """
    output = Path(output)
    _check(output, method, max_drop)
    if min(crops, held_out_crops) < 1 or crops < LEAST:
        raise AmsaError(
            f"{min(crops, held_out_crops)} crops are too few; take at least {LEAST} to calibrate with, and 1 to measure on"
        )
    folder = ModelFolder.open(model)
    samples = read_samples(data, crops)
    # Another seed: other places in the same photos, where there are no photos of their own.
    bench_samples = read_samples(held_out or data, held_out_crops, seed=1)
    activations = collect(folder, samples, threads, say)
    graphs = model_graphs(folder)
    largest = activations.largest()
    kept = tuple(layer for layer, values in largest.items() if max(values) > FP16_LIMIT)
    layers = [layer for layer in candidates(graphs) if layer not in kept]
    ranges = {layer: float(f"{find_range(activations.inputs[layer], method):.6g}") for layer in layers}
    macs = layer_macs(folder.manifest.config, LR_SIZE, REF_SIZE)
    say("the float32 model on held-out crops")
    bench = Bench(folder, bench_samples, threads)
    costs = block_costs(bench, ranges, blocks(layers), macs, say)
    found, tried = search(bench, ranges, costs, max_drop, say)
    measured = bench.measure(found)
    share = sum(macs[layer] for layer in found.int8) / sum(macs.values())
    figures: dict[str, Any] = {
        "crops": len(samples),
        "held_out_crops": len(bench_samples),
        "max_drop": max_drop,
        "psnr_y": round(bench.own, 4),
        "drop": round(bench.own - measured.truth, 4),
        "worst_drop": round(measured.worst, 4),
        "parity": _finite(measured.parity),
        "int8_share_of_macs": round(share, 4),
        "blocks": [_plain(cost) for cost in tried],
        "largest": {layer: [_finite(v) for v in values] for layer, values in largest.items()},
    }
    precision = replace(found, model=identity(graphs.values()), float32=kept, method=method, figures=figures)
    _write(output, precision.to_json())
    return Calibration(precision, tried, bench.own, measured, share)


def _plain(cost: BlockCost) -> dict[str, Any]:
    values = {k: _finite(v) if isinstance(v, float) else v for k, v in asdict(cost).items()}
    return values | {"layers": list(cost.layers)}


def _finite(value: float) -> float | None:
    """Six digits; JSON has no infinity."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _check(output: Path, method: str, max_drop: float) -> None:
    if method not in METHODS:
        raise AmsaError(f"--method {method} does not exist; choose {', '.join(METHODS)}")
    if not 0 <= max_drop < math.inf:
        raise AmsaError(f"--max-drop {max_drop} must be a number of dB from 0")
    if output.suffix != ".json":
        raise AmsaError(f"{output}: a precision file's name must end in .json")
    if not output.parent.is_dir():
        raise AmsaError(f"{output.parent}: no such folder; create it first")
    if output.is_dir() or not os.access(output.parent, os.W_OK):  # now, not after minutes of work
        raise AmsaError(f"{output} cannot be written; choose another name or folder")


def _write(path: Path, text: str) -> None:
    temporary = None
    try:
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
            temporary = Path(file.name)
            file.write(text)
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as e:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise AmsaError(f"cannot write {path}: {e.strerror or e}; free some space or choose another folder") from e
