"""Precisions beside each other: `python -m amsa.calib.table FP32 FP16 FILE.json --held-out PHOTOS`.

All pictures in one run, every model after the other on each crop, so that the times can be compared.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..engine.backends import OnnxRuntimeBackend
from ..engine.images import to_array
from ..engine.metrics import luma, psnr
from ..engine.upscaler import Upscaler
from ..errors import AmsaError
from ..export.layer_precision import LayerPrecision, check_precision, conv_layers, read_precision, set_precision
from ..manifest import ModelFolder
from .layers import model_graphs
from .samples import Sample, read_samples

CROPS = 36


@dataclass(frozen=True)
class Row:
    """A precision.

    Attributes:
        psnr: mean PSNR-Y in dB against the truth, of pictures in 8 bits, border 4.
        worst: the most that a crop lost against FP32, in dB.
        parity: mean PSNR-Y against FP32's pictures; inf where all are equal.
        size: bytes of the graphs.
        seconds: median of a crop.
        ratio: median over crops of its time as a share of FP32's.
    """

    name: str
    psnr: float
    worst: float
    parity: float
    size: int
    seconds: float
    ratio: float


def naive(folder: ModelFolder, precision: LayerPrecision) -> LayerPrecision:
    """Every convolution in int8 with the largest value seen as its range: what tools do by default."""
    largest = precision.figures.get("largest")
    layers = [layer for graph in model_graphs(folder).values() for layer in conv_layers(graph)]
    if not isinstance(largest, dict) or not all(isinstance(largest.get(layer), list) for layer in layers):
        raise AmsaError("the precision file lacks the largest values seen; make it again with `amsa calibrate`")
    return replace(precision, int8={layer: float(largest[layer][0] or 1.0) for layer in layers}, float32=())


def with_layers(folder: ModelFolder, precision: LayerPrecision) -> ModelFolder:
    """The model with its graphs changed, in memory."""
    graphs = model_graphs(folder)
    check_precision(graphs, precision, "the precision file")
    changed = {stage: set_precision(graph, precision).SerializeToString() for stage, graph in graphs.items()}
    return replace(folder, graphs={**folder.graphs, **changed})


def measure(models: dict[str, ModelFolder], samples: Sequence[Sample], threads: int | None = None) -> list[Row]:
    """Upscale every sample with every model; the first is what the others are compared with."""
    upscalers = [Upscaler.on(OnnxRuntimeBackend(folder, threads)) for folder in models.values()]
    for upscaler in upscalers:
        upscaler.upscale_photo(samples[0].lr, [samples[0].ref])  # sessions are made, memory is taken
    seconds = np.empty((len(samples), len(models)))
    scores, parity = np.empty_like(seconds), np.empty_like(seconds)
    for i, sample in enumerate(samples):
        truth = luma(to_array(sample.truth))
        first = None
        for j, upscaler in enumerate(upscalers):
            begin = time.perf_counter()
            sr = upscaler.upscale_photo(sample.lr, [sample.ref])
            seconds[i, j] = time.perf_counter() - begin
            y = luma(to_array(sr))
            first = y if first is None else first
            scores[i, j], parity[i, j] = psnr(y, truth), psnr(y, first)
    return [
        Row(
            name=name,
            psnr=float(scores[:, j].mean()),
            worst=float((scores[:, 0] - scores[:, j]).max()),
            parity=float(parity[:, j].mean()),
            size=sum(map(len, folder.graphs.values())),
            seconds=float(np.median(seconds[:, j])),
            ratio=float(np.median(seconds[:, j] / seconds[:, 0])),
        )
        for j, (name, folder) in enumerate(models.items())
    ]


def to_markdown(rows: Sequence[Row]) -> str:
    """A table."""
    lines = ["| precision | PSNR-Y | against FP32 | worst crop | PSNR to FP32 | MB | CPU s | of FP32 |", "|---|" + "--:|" * 7]
    for r in rows:
        parity = "equal" if r.parity == float("inf") else f"{r.parity:.1f}"
        lines.append(
            f"| {r.name} | {r.psnr:.3f} | {r.psnr - rows[0].psnr:+.3f} | {-r.worst:+.3f} | {parity} | {r.size / 1e6:.2f} "
            f"| {r.seconds:.2f} | {r.ratio:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m amsa.calib.table", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("fp32", type=Path, help="model folder, exported as fp32")
    parser.add_argument("fp16", type=Path, help="the same model, exported as fp16")
    parser.add_argument("precision", type=Path, help="precision file of `amsa calibrate`")
    parser.add_argument("--held-out", type=Path, action="append", required=True, help="photos or pairs")
    parser.add_argument("--crops", type=int, default=CROPS)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    full, half = ModelFolder.open(options.fp32), ModelFolder.open(options.fp16)
    precision = read_precision(options.precision)
    models = {
        "FP32": full,
        "FP16": half,
        "INT8 layers in FP32": with_layers(full, precision),
        "INT8 layers in FP16": with_layers(half, precision),
        "all INT8, largest values": with_layers(full, naive(full, precision)),
    }
    samples = read_samples(options.held_out, options.crops, seed=1)
    print(to_markdown(measure(models, samples, options.threads)))


if __name__ == "__main__":
    try:
        main()
    except AmsaError as e:
        raise SystemExit(f"error: {e}") from None
