"""What it costs and gives to leave out the references that weigh little: `python benchmarks/skipping.py FOLDER [CROPS]`.

The folder is the model card's (`castle/` and `set14/`). Of crops: PSNR-Y with a relevant and with an unrelated reference, seconds
that restoring takes, and how many of the five scales are restored, for several limits; ratios are of one run, limits in turn.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

from amsa import Upscaler
from amsa.engine.demo import shrink
from amsa.engine.images import read_photo
from amsa.engine.metrics import compare_pictures
from amsa.engine.upscaler import Stats
from amsa.training.evaluation.model_card import castle
from amsa.training.layouts import read_layout

LIMITS = (0.0, 0.3, 0.4, 0.5, 0.6, 0.8)


def main() -> None:
    """Prints a table per kind of reference."""
    data, count = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 12
    photos, strangers = ([case.hr for case in read_layout(data / name, "photos").cases] for name in ("castle", "set14"))
    upscalers = {limit: Upscaler(skip=limit) for limit in LIMITS}
    with tempfile.TemporaryDirectory() as scratch:
        cases = castle(photos, strangers, Path(scratch)).cases
        cases = cases[:: max(1, len(cases) // count)][:count]
        for which, kind in enumerate(("relevant", "unrelated")):
            rows: dict[float, list[tuple[float, float, int]]] = {limit: [] for limit in LIMITS}
            for case in cases:
                truth, ref = read_photo(case.hr), read_photo(case.refs[which])
                lr, _ = shrink(truth)
                for limit, upscaler in upscalers.items():
                    stats = Stats()
                    sr = upscaler.upscale_photo(lr, [ref], stats=stats)
                    psnr = compare_pictures(sr.rgb, truth.rgb).psnr_y
                    rows[limit].append((psnr, stats.seconds["restore"], stats.restored))
            base = np.array(rows[0.0])
            print(f"{kind} reference, {len(cases)} crops\nlimit   PSNR-Y   change    worst  restored of 5  restore s   ratio")
            for limit, values in rows.items():
                v = np.array(values)
                change = v[:, 0] - base[:, 0]
                print(
                    f"{limit:5.1f} {v[:, 0].mean():8.3f} {change.mean():+8.3f} {change.min():+8.3f} {v[:, 2].mean():14.2f} "
                    f"{v[:, 1].mean():10.2f} {base[:, 1].sum() / v[:, 1].sum():7.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
