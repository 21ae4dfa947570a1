"""What decides which weights are kept: PSNR on fixed pairs that are not trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import starmap

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..engine.metrics import luma, psnr
from ..model.network import AMSA
from ..stages import SCALE
from .data import ReferencePairs, to_tensor
from .restoration import restore
from .synthetic import Image8
from .views import Views


def scene_pairs(scenes: Sequence[Views], crop: int, ref: int, pairs: int) -> list[tuple[Image8, Image8]]:
    """`pairs` fixed pairs of each scene: uint8 [crop, crop, 3] and the part of another photo that shows it, [ref, ref, 3]."""
    chosen = []
    for scene in scenes:
        rng = np.random.default_rng(0)
        chosen += [scene.pair(rng, crop, ref) for _ in range(pairs)]
    return chosen


def given_pairs(dataset: ReferencePairs, pairs: int) -> list[tuple[Image8, Image8]]:
    """`pairs` fixed pairs of a dataset that has given pairs only."""
    rng = np.random.default_rng(0)
    drawn = (dataset.pair(rng) for _ in range(pairs))
    return [(pair.hr, pair.ref) for pair in drawn]


def validator(pairs: Sequence[tuple[Image8, Image8]]) -> Callable[[AMSA], float]:
    """A function network -> mean PSNR-Y over (HR, reference) pairs, at scale 1 of the reference, border 4.

    Args:
        pairs: uint8 [H, W, 3] each, sides multiples of 32.
    """

    def batch(hr: Image8, ref: Image8) -> dict[str, Tensor]:
        size = (hr.shape[1] // SCALE, hr.shape[0] // SCALE)
        lr = np.asarray(Image.fromarray(hr).resize(size, Image.Resampling.BICUBIC))
        return {"lr": to_tensor(lr)[None], "hr": to_tensor(hr)[None], "ref": to_tensor(ref)[None]}

    batches = list(starmap(batch, pairs))

    def validate(model: AMSA) -> float:
        device = next(model.parameters()).device
        scores = []
        for cpu in batches:
            sr, _, _ = restore(model, {k: v.to(device) for k, v in cpu.items()}, [0])
            found, truth = (luma(np.clip(t[0].permute(1, 2, 0).cpu().numpy(), 0, 1) * 255) for t in (sr, cpu["hr"]))
            scores.append(psnr(found, truth))
        return float(torch.tensor(scores, dtype=torch.float64).mean())

    return validate
