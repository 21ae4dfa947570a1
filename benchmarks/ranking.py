"""How well and how fast references are ranked: `python benchmarks/ranking.py FOLDER PHOTOS`.

FOLDER is the model card's (`castle/`, four views of a scene, and `set14/`), PHOTOS holds unrelated photos, of which 200 are
candidates beside the other views of the castle and the Set14 photos turned, enlarged and recoloured. Of LR pictures that show
all of a photo or a part: how often another view comes first, and among the first four. Then CPU and wall seconds to rank the
unrelated photos as files, and to upscale 128x96 with one of 512x384.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from amsa import Upscaler
from amsa.engine import ranking
from amsa.engine.demo import shrink
from amsa.engine.images import Photo, read_photo, resize_bicubic
from amsa.training.layouts import read_layout

SIDES = (64, 128, 256)
"""Thumbnails compared; 128 is `ranking.SIDE`."""


def turned(photo: Photo, rng: np.random.Generator) -> Photo:
    """Another view, made: turned by up to 15 degrees, enlarged 0.8 to 1.6 times, other gamma and colours."""
    height, width = photo.rgb.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), rng.uniform(-15, 15), rng.uniform(0.8, 1.6))
    view = cv2.warpAffine(photo.rgb, matrix, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
    return Photo(np.clip(np.clip(view, 0, 1) ** rng.uniform(0.7, 1.4) * rng.uniform(0.85, 1.15, 3), 0, 1).astype(np.float32))


def windows(photo: Photo, side: int, count: int, rng: np.random.Generator) -> Iterator[Photo]:
    """LR pictures of square parts."""
    for _ in range(count):
        top, left = (int(rng.integers(0, whole - side + 1)) for whole in photo.rgb.shape[:2])
        yield shrink(Photo(photo.rgb[top : top + side, left : left + side]))[0]


def main() -> None:
    """Prints a line per kind of LR picture and size of thumbnail, then seconds."""
    data, folder = Path(sys.argv[1]), Path(sys.argv[2])
    rng = np.random.default_rng(0)
    castle, set14 = ([read_photo(case.hr) for case in read_layout(data / name, "photos").cases] for name in ("castle", "set14"))
    unrelated = sorted(folder.iterdir())[:200]
    views = [turned(photo, rng) for photo in set14]
    candidates = [*unrelated, *castle, *views]
    first_castle, first_view = len(unrelated), len(unrelated) + len(castle)

    cases: dict[str, list[tuple[Photo, set[int], int]]] = {}  # LR, what should come first, what is the photo itself

    def add(kind: str, lr: Photo, right: set[int], itself: int = -1) -> None:
        cases.setdefault(kind, []).append((lr, right - {itself}, itself))

    for i, photo in enumerate(castle):
        right, itself = set(range(first_castle, first_view)), first_castle + i
        half = Photo(resize_bicubic(photo.rgb, photo.height // 2, photo.width // 2))
        add("castle, whole", shrink(photo)[0], right, itself)
        parts = {"a quarter": (half, 320), "a sixth": (photo, 512), "a fifteenth": (photo, 320)}
        for name, (of, side) in parts.items():
            for lr in windows(of, side, 2, rng):
                add(f"castle, {name}", lr, right, itself)
    for i, photo in enumerate(set14):
        add("Set14, whole", shrink(photo)[0], {first_view + i})
        for lr in windows(photo, min(256, photo.height, photo.width), 1, rng):
            add("Set14, part", lr, {first_view + i})

    backend = Upscaler().backend_in_use
    for side in SIDES:
        ranking.SIDE, ranking.LR_SIDES = side, (side // 4, side // 8)
        places = []
        for kind, of_kind in cases.items():
            mine = []
            for lr, right, itself in of_kind:
                order = [i for i, _ in ranking.rank(backend, lr, candidates) if i != itself]
                mine.append(min(order.index(i) for i in right))
            print(f"{side:4} {kind:20} {len(mine):3}  first {np.mean(np.array(mine) == 0):.2f}", flush=True)
            places += mine
        first, four = (float(np.mean(np.array(places) < n)) for n in (1, 4))
        print(f"{side:4} {'all':20} {len(places):3}  first {first:.2f}, among four {four:.2f}", flush=True)

    ranking.SIDE, ranking.LR_SIDES = 128, (32, 16)
    lr = Photo(resize_bicubic(castle[0].rgb, 96, 128))
    ref = Photo(resize_bicubic(castle[1].rgb, 384, 512))
    for what, do in (
        (f"rank {len(unrelated)} files", lambda: ranking.rank(backend, lr, unrelated)),
        ("upscale 128x96", lambda: Upscaler.on(backend).upscale_photo(lr, [ref])),
    ):
        do()
        wall, cpu = time.perf_counter(), time.process_time()
        do()
        print(f"{what}: {time.perf_counter() - wall:.2f} s, {time.process_time() - cpu:.2f} s of CPU time")


if __name__ == "__main__":
    main()
