"""A picture from end to end on the CPU: `python benchmarks/pipeline.py [published rewriting picture growth startup] [--quick]`.

published: the published network on ONNX Runtime against PyTorch, LR 40x40 and 80x80, a reference of four times that, five scales.
rewriting: what `engine/cpu_graphs.py` gives, the exported graphs beside the rewritten ones.
picture: the shipped model, LR 480x270 to 1920x1080, reference 1920x1080: seconds and peak memory, before the rewriting and after,
and in smaller tiles.
growth: seconds and peak memory by LR and by reference area.
startup: seconds from the start of the process `amsa upscale` to its first kernel.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from measure import THREADS, Report, Row, compare, cost_of, exponent, in_new_process, parser, peak_memory, ratio
from PIL import Image

from amsa import Upscaler
from amsa.engine.images import Photo
from amsa.engine.tiling import TILE
from amsa.engine.upscaler import Stats
from amsa.export import export_folder, load_network
from amsa.model.checkpoints import save_checkpoint
from amsa.plugins import torch_ops

PUBLISHED_PROGRAM = {40: 217.0, 80: 1220.0}
"""CPU seconds of the published PyTorch program, one inference at LR 40x40 and 80x80 with a reference of four times that at five
scales, on two threads of the same kind of processor; measured once: the larger takes ten minutes."""

_FIRST_KERNEL = """
import sys, time
begin = float(sys.argv[1])
from amsa.engine import backends
run = backends.OnnxRuntimeBackend.run
def first(self, *arguments):
    self._session(arguments[0])
    print(time.time() - begin)
    sys.stdout.flush()
    backends.OnnxRuntimeBackend.run = run
    return run(self, *arguments)
backends.OnnxRuntimeBackend.run = first
sys.argv = ["amsa", "upscale", *sys.argv[2:]]
from amsa.cli import main
main()
"""


def photo(width: int, height: int, seed: int = 0) -> Photo:
    """Smooth noise with structure at every size, as photos have."""
    rng = np.random.default_rng(seed)
    spectrum = np.fft.rfft2(rng.standard_normal((height, width, 3)), axes=(0, 1))
    rows, cols = np.fft.fftfreq(height)[:, None, None], np.fft.rfftfreq(width)[None, :, None]
    picture = np.fft.irfft2(spectrum / np.maximum(np.hypot(rows, cols), 1 / max(width, height)), (height, width), axes=(0, 1))
    spread = picture.std() * 6
    return Photo(np.clip(picture / spread + 0.5, 0, 1).astype(np.float32))


@contextmanager
def as_exported() -> Iterator[None]:
    """Graphs are run as they were exported, with our kernels, as before there was `engine/cpu_graphs.py`."""
    from amsa.engine.backends import OnnxRuntimeBackend

    made = OnnxRuntimeBackend.__init__

    def init(self: OnnxRuntimeBackend, *arguments: Any, **more: Any) -> None:
        made(self, *arguments, **more)
        self._rewritten = False

    with patch.object(OnnxRuntimeBackend, "__init__", init):
        yield


@contextmanager
def sampling_in_pytorch() -> Iterator[None]:
    """DeformableSample is its PyTorch definition; matching keeps the kernel."""
    with patch.object(torch_ops.sample_cpu, "deformable_sample", torch_ops.deformable_sample):
        yield


def upscale(upscaler: Upscaler, lr: Photo, ref: Photo, around: Callable[[], Any] = nullcontext) -> Photo:
    """One picture, within a context."""
    with around():
        return upscaler.upscale_photo(lr, [ref])


def gemm_peak() -> float:
    """GFLOP/s of PyTorch's matrix product: the most that convolutions can reach here."""
    a = torch.rand(1536, 1536)
    best = min(cost_of(lambda: a @ a, 4).wall for _ in range(8))
    return 2 * 1536**3 / best / 1e9


def published(report: Report, quick: bool) -> None:
    """The published network: ONNX Runtime, PyTorch with our sampling kernel, PyTorch alone but for the matching."""
    sides = (16,) if quick else (40, 80)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        network, _ = load_network("published")
        export_folder(network, False, Path(scratch) / "model")
        save_checkpoint(Path(scratch) / "model.safetensors", network, {"trained": False})
        runtime = Upscaler(Path(scratch) / "model", threads=THREADS)
        reference = Upscaler(Path(scratch) / "model.safetensors", threads=THREADS)
        for side in sides:
            lr, ref = photo(side, side, 1), photo(4 * side, 4 * side, 2)

            contenders = {
                "ONNX Runtime": partial(upscale, runtime, lr, ref),
                "PyTorch, our kernels": partial(upscale, reference, lr, ref),
                "PyTorch, sampling in PyTorch": partial(upscale, reference, lr, ref, sampling_in_pytorch),
            }
            costs = compare(contenders, 1 if quick else 3)
            ours = costs["ONNX Runtime"]
            for name, cost in costs.items():
                rows.append(
                    {"LR": f"{side}x{side}", "by": name, "s": cost.wall, "CPU s": cost.cpu, "times ours": ratio(cost, ours)}
                )
            if side in PUBLISHED_PROGRAM:
                known = PUBLISHED_PROGRAM[side]
                rows.append(
                    {
                        "LR": f"{side}x{side}",
                        "by": "published program",
                        "s": float("nan"),
                        "CPU s": known,
                        "times ours": known / ours.cpu,
                    }
                )
                report.bar(f"{side}x{side}: times faster than the published program, CPU s", known / ours.cpu, at_least=10)
                report.bar(
                    f"{side}x{side}: times faster than PyTorch with our kernels",
                    ratio(costs["PyTorch, our kernels"], ours),
                    at_least=1.5,
                )
                report.bar(
                    f"{side}x{side}: times faster than PyTorch, fast matching",
                    ratio(costs["PyTorch, sampling in PyTorch"], ours),
                    at_least=1.5,
                )
            stages(report, f"published {side}x{side}: stages", runtime, lr, ref)
    report.table("published", rows, f"matrix products reach {gemm_peak():.0f} GFLOP/s here")


def stages(report: Report, title: str, upscaler: Upscaler, lr: Photo, ref: Photo) -> None:
    """Where one picture's time goes."""
    stats = Stats()
    upscaler.upscale_photo(lr, [ref], stats=stats)
    total = sum(stats.seconds.values())
    report.table(title, [{"stage": k, "s": v, "share": f"{v / total:.0%}"} for k, v in stats.seconds.items()])


def rewriting(report: Report, quick: bool) -> None:
    """The shipped model, graphs as exported and as rewritten, in turn."""
    side = 24 if quick else 128
    lr, ref = photo(side, side, 1), photo(4 * side, 4 * side, 2)
    with as_exported():
        before = Upscaler(threads=THREADS)
    after = Upscaler(threads=THREADS)
    costs = compare(
        {n: partial(upscale, u, lr, ref) for n, u in (("as exported", before), ("rewritten", after))},
        1 if quick else 5,
    )
    gain = ratio(costs["as exported"], costs["rewritten"])
    report.table(
        "rewriting",
        [{"graphs": n, "s": c.wall, "CPU s": c.cpu} for n, c in costs.items()],
        f"{gain:.2f} times as fast, LR {side}x{side}",
    )
    stages(report, "rewritten: stages", after, lr, ref)


def _picture(
    lr: tuple[int, int], ref: tuple[int, int], exported: bool = False, tile: int | None = None
) -> tuple[float, float, float]:
    """Seconds, CPU seconds and peak MB of one picture in a process that has done nothing else."""
    pair = photo(*lr, 1), photo(*ref, 2)
    with as_exported() if exported else nullcontext():
        upscaler = Upscaler(threads=THREADS, tile=tile)
    cost: list[Any] = []
    _, peak = peak_memory(lambda: cost.append(cost_of(lambda: upscaler.upscale_photo(pair[0], [pair[1]]))))
    return cost[0].wall, cost[0].cpu, peak / 1e6


def picture(report: Report, quick: bool) -> None:
    """480x270 to 1920x1080, before and after."""
    lr, ref = ((24, 16), (96, 64)) if quick else ((480, 270), (1920, 1080))
    rows = []
    for name, exported, tile in (("as exported", True, None), ("rewritten", False, None), ("rewritten", False, TILE)):
        wall, cpu, peak = in_new_process(_picture, lr, ref, exported, tile)
        rows.append({"graphs": name, "tiles": tile or "largest", "s": wall, "CPU s": cpu, "peak MB": peak})
    report.table(
        "picture", rows, f"LR {lr[0]}x{lr[1]}, reference {ref[0]}x{ref[1]}, shipped model, PyTorch's libraries (~200 MB) included"
    )


def growth(report: Report, quick: bool) -> None:
    """Time and memory by LR area, with a reference of fixed size, and by reference area, with an LR of fixed size."""
    lrs = [(16, 16), (24, 16)] if quick else [(64, 64), (120, 68), (240, 135), (480, 270), (960, 540)]
    refs = [(64, 64), (96, 64)] if quick else [(240, 136), (480, 270), (960, 540), (1920, 1080), (3840, 2160)]
    fixed_lr, fixed_ref = ((16, 16), (64, 64)) if quick else ((120, 68), (480, 270))
    fits = {}
    tables: dict[str, list[Row]] = {}
    for what, sizes in (("LR", lrs), ("reference", refs)):
        rows: list[Row] = []
        for size in sizes:
            wall, cpu, peak = in_new_process(_picture, *((size, fixed_ref) if what == "LR" else (fixed_lr, size)))
            rows.append(
                {what: f"{size[0]}x{size[1]}", "megapixels": size[0] * size[1] / 1e6, "s": wall, "CPU s": cpu, "peak MB": peak}
            )
        # From the second on: the smallest is a fixed cost.
        fits[what] = (
            exponent([r["megapixels"] for r in rows[1:]], [r["CPU s"] for r in rows[1:]]) if len(rows) > 2 else float("nan")
        )
        tables[what] = rows
        report.table(f"growth with the {what}'s area", rows, f"CPU seconds grow with area to the power of {fits[what]:.2f}")
        if not quick:
            report.bar(f"power of the {what}'s area", fits[what], at_most=1.1)
    if report.plots:
        with report.plot("growth", 2) as axes:
            for axis, (what, rows) in zip(axes, tables.items(), strict=True):
                axis.loglog([r["megapixels"] for r in rows], [r["CPU s"] for r in rows], "o-", label="CPU seconds")
                axis.loglog([r["megapixels"] for r in rows], [r["peak MB"] / 1000 for r in rows], "s--", label="peak memory, GB")
                axis.set_xlabel(f"{what}, megapixels")
                axis.legend()


def startup(report: Report, quick: bool) -> None:
    """Process start to the first kernel, sessions included."""
    with tempfile.TemporaryDirectory() as scratch:
        files = [Path(scratch) / name for name in ("lr.png", "ref.png", "sr.png")]
        for file, side in zip(files, (16, 64), strict=False):
            Image.fromarray((photo(side, side).rgb * 255).astype(np.uint8)).save(file)
        seconds = []
        for _ in range(1 if quick else 7):
            command = [sys.executable, "-c", _FIRST_KERNEL, str(time.time()), *map(str, files[:2]), "-o", str(files[2])]
            done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "TERM": "dumb"})
            seconds.append(float(done.stdout.splitlines()[0]))
    median = statistics.median(seconds)
    report.table("startup", [{"amsa upscale, s to the first kernel": median, "slowest": max(seconds)}])
    report.bar("seconds to the first kernel", median, at_most=1.5)


SECTIONS = {"published": published, "rewriting": rewriting, "picture": picture, "growth": growth, "startup": startup}


def main() -> None:
    """Run the sections that are named, or all."""
    options = parser(__doc__ or "")
    options.add_argument("sections", nargs="*", metavar="SECTION", help=f"{', '.join(SECTIONS)}; all if none is given")
    chosen = options.parse_args()
    if unknown := set(chosen.sections) - set(SECTIONS):
        options.error(f"unknown section {', '.join(sorted(unknown))}; choose from {', '.join(SECTIONS)}")
    torch.set_num_threads(THREADS)
    report = Report("pipeline", chosen.output)
    for name in chosen.sections or SECTIONS:
        SECTIONS[name](report, chosen.quick)
    report.write()


if __name__ == "__main__":
    main()
