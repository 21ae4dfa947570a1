"""How much a clip flickers, with and without what frames remember: `python benchmarks/flicker.py PHOTO REFERENCE [FRAMES]`.

Clips are made from a photo, so that the truth is known: a still, an object that moves over it, a slow drift (0.08 LR pixels a
frame), a pan (0.38) and a zoom, each with sensor noise (sigma 2 of 255) and as H.264 at CRF 23 gives it. REFERENCE: another photo
of the scene. Flicker is the mean of |(SR_t - SR_t-1) - (truth_t - truth_t-1)| over all pixels and frames, luma, in levels of 255:
what changes between frames and should not. PSNR-Y is the mean over frames.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from amsa import Upscaler
from amsa.engine.images import from_array, read_photo, resize_bicubic, to_array
from amsa.engine.metrics import luma, psnr
from amsa.engine.video.history import FrameHistory

HEIGHT, WIDTH = 216, 384
SCENES = ("still", "object", "drift", "pan", "zoom")
Pictures = list[NDArray[Any]]


def scene(photo: NDArray[np.uint8], kind: str, count: int) -> Pictures:
    """The true frames, uint8 [216, 384, 3], cut from the middle of a photo."""
    top, left = (photo.shape[0] - HEIGHT) // 2, (photo.shape[1] - WIDTH) // 2
    thing = photo[top - 60 : top, left - 80 : left]
    frames = []
    for t in range(count):
        scale = 1 - 0.006 * t if kind == "zoom" else 1.0
        x, y = {"drift": (0.3 * t, 0.1 * t), "pan": (1.48 * t, 0.4 * t)}.get(kind, (0.0, 0.0))
        x, y = left + x + WIDTH / 2 * (1 - scale), top + y + HEIGHT / 2 * (1 - scale)
        flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
        frame = cv2.warpAffine(photo, np.array([[scale, 0, x], [0, scale, y]]), (WIDTH, HEIGHT), flags=flags)
        if kind == "object":
            frame[80:140, 40 + 5 * t : 120 + 5 * t] = thing
        frames.append(frame)
    return frames


def recorded(truth: Pictures, compressed: bool) -> Pictures:
    """Frames a quarter as large with noise, and as H.264 gives them."""
    rng = np.random.default_rng(0)
    small = [resize_bicubic(f.astype(np.float32), HEIGHT // 4, WIDTH // 4) for f in truth]
    frames = [np.clip(np.round(f + rng.normal(0, 2, f.shape)), 0, 255).astype(np.uint8) for f in small]
    if not compressed:
        return frames
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "23"})
        stream.height, stream.width, stream.pix_fmt = HEIGHT // 4, WIDTH // 4, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode())
    file.seek(0)
    with av.open(file) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def scores(truth: Pictures, result: Pictures) -> tuple[float, float]:
    """PSNR-Y in dB and flicker in levels."""
    true, made = ([luma(f) for f in frames] for frames in (truth, result))
    wrong = [b - a for a, b in zip(true, made, strict=True)]
    flicker = [np.abs(b - a).mean() for a, b in pairwise(wrong)]
    return float(np.mean([psnr(a, b) for a, b in zip(true, made, strict=True)])), float(np.mean(flicker))


def main(arguments: Sequence[str]) -> None:
    """Prints a row per clip."""
    photo, reference = (to_array(read_photo(Path(name))) for name in arguments[:2])
    count = int(arguments[2]) if len(arguments) > 2 else 8
    upscaler = Upscaler()
    encoded = upscaler.encode_reference(reference)
    print(
        "                     bicubic            without             with           places   seconds\n"
        "clip               PSNR  flicker     PSNR  flicker     PSNR  flicker      reused  a frame"
    )
    for kind in SCENES:
        truth = scene(photo, kind, count)
        for compressed in (False, True):
            frames = recorded(truth, compressed)
            row = [scores(truth, [resize_bicubic(f.astype(np.float32), HEIGHT, WIDTH) for f in frames])]
            for history in (None, FrameHistory()):
                begin, made, reused = time.perf_counter(), [], []
                for frame in frames:
                    made.append(255 * upscaler.upscale_photo(from_array(frame), [encoded], history=history).rgb)
                    reused.append(history.reused if history else 0)
                row.append(scores(truth, made))
                seconds = (time.perf_counter() - begin) / count
            name = f"{kind}, {'H.264' if compressed else 'noise'}"
            cells = "   ".join(f"{quality:6.2f} {flicker:8.3f}" for quality, flicker in row)
            print(f"{name:16s} {cells}   {100 * np.mean(reused[1:]):6.0f} %   {seconds:6.2f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
