"""What a picture takes of main memory: `python benchmarks/memory.py [growth] [stages] [large] [reference]`.

- growth: peak memory and CPU seconds by LR size, without a cap and with one.
- stages: bytes per position that each stage needs, by size; what `engine/planning.py` expects of them.
- large: LR 2000x1500 with a reference of 12 megapixels within 3 GB (about half an hour on 2 cores).
- reference: LR 128x96 with a reference of 50 megapixels within 8 GB.

Linux only. Every figure is `VmHWM` of a process of its own, with 2 threads. The pictures are two views of a random scene.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from amsa import AmsaError, Upscaler
from amsa.engine.images import from_array, to_array
from amsa.engine.memory import measure
from amsa.engine.planning import Planner
from amsa.engine.upscaler import Stats

THREADS = 2
Size = tuple[int, int]


def scene(width: int, height: int, shift: int) -> Any:
    """A photo-like view: smooth shapes with detail, which another shift shows from elsewhere."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8)).resize((512, 384), Image.Resampling.BICUBIC)
    fine = np.asarray(coarse, np.int16) + rng.integers(-40, 41, (384, 512, 3), np.int16)
    view = Image.fromarray(np.clip(fine, 0, 255).astype(np.uint8)[shift : shift + 352, shift : shift + 480])
    return np.asarray(view.resize((width, height), Image.Resampling.BICUBIC))


def peak() -> float:
    """Most megabytes that this process has held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM:"))


def upscale(lr: Size, ref: Size, cap: str | None) -> dict[str, Any]:
    """Upscale a picture in this process."""
    lr_photo, ref_photo = from_array(scene(*lr, 0)), from_array(scene(*ref, 16))
    stats = Stats()
    upscaler = Upscaler(threads=THREADS, max_memory=cap)
    wall, cpu = time.perf_counter(), time.process_time()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            to_array(upscaler.upscale_photo(lr_photo, [ref_photo], stats=stats))
            told = "; ".join(str(w.message) for w in caught)
        except AmsaError as e:
            told = f"refused: {e}"
    seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
    return {"peak": peak(), "seconds": seconds, "CPU seconds": cpu_seconds, "restored": stats.restored, "told": told}


def stage(name: str, side: int) -> float:
    """Bytes per position that a stage needs, measured as a plan does."""
    upscaler = Upscaler(threads=THREADS)
    planner = Planner(upscaler.backend_in_use, upscaler.tile, None)
    with upscaler.backend_in_use.call() as on:
        on.run(name, planner.zeros(name, max(16, side // 4)))
        return measure(lambda: on.run(name, planner.zeros(name, side))) / side**2


def apart(call: str, *arguments: object) -> Any:
    """A function of this file in a process of its own."""
    program = "import json, runpy, sys; print(json.dumps(runpy.run_path(sys.argv[1])[sys.argv[2]](*json.loads(sys.argv[3]))))"
    command = [sys.executable, "-c", program, __file__, call, json.dumps(arguments)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def table(sizes: list[tuple[Size, Size, str | None]]) -> None:
    print("LR         reference   cap     peak MB  seconds  CPU s  restored  told")
    for lr, ref, cap in sizes:
        r = apart("upscale", lr, ref, cap)
        sides = f"{lr[0]}x{lr[1]}", f"{ref[0]}x{ref[1]}"
        numbers = f"{r['peak']:7.0f} {r['seconds']:8.1f} {r['CPU seconds']:6.1f} {r['restored']:9d}"
        print(f"{sides[0]:10} {sides[1]:11} {cap or '-':7} {numbers}  {r['told']}", flush=True)


def main() -> None:
    """Prints a table per section."""
    sections = sys.argv[1:] or ["growth", "stages"]
    if "growth" in sections:
        sizes = [(64, 64), (128, 96), (240, 135), (480, 270), (960, 540)]
        table([(lr, (4 * lr[0], 4 * lr[1]), cap) for lr in sizes for cap in (None, "1GB")])
    if "stages" in sections:
        print("stage        side  bytes per position")
        for name, sides in (("encode_ref", (256, 512, 1024)), ("encode_lr", (64, 128, 256)), ("restore", (64, 96, 128, 184))):
            for side in sides:
                print(f"{name:12} {side:4d} {apart('stage', name, side):9.0f}", flush=True)
    if "large" in sections:
        table([((2000, 1500), (4000, 3000), "3GB")])
    if "reference" in sections:
        table([((128, 96), (8192, 6144), cap) for cap in ("8GB", "3GB")])


if __name__ == "__main__":
    main()
