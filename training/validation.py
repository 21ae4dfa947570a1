"""What decides which weights are kept: PSNR on fixed pairs of photos that are not trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image

from ..engine.metrics import luma, psnr
from ..model.network import AMSA
from .data import to_tensor
from .restoration import restore_batch
from .synthetic import no_flow
from .views import Views


def validator(views: Sequence[Views], crop: int, ref: int, pairs: int) -> Callable[[AMSA], float]:
    """A function network -> mean PSNR-Y over `pairs` fixed pairs per scene, at scale 1 of the reference."""
    batches = []
    for scene in views:
        rng = np.random.default_rng(0)
        for _ in range(pairs):
            hr, reference = scene.pair(rng, crop, ref)
            lr = np.asarray(Image.fromarray(hr).resize((crop // 4, crop // 4), Image.Resampling.BICUBIC))
            position, known = map(torch.from_numpy, no_flow(crop))
            batches.append(
                {
                    "lr": to_tensor(lr)[None],
                    "hr": to_tensor(hr)[None],
                    "ref": to_tensor(reference)[None],
                    "position": position[None],
                    "known": known[None],
                }
            )

    def validate(model: AMSA) -> float:
        scores = []
        for batch in batches:
            sr, _ = restore_batch(model, batch, [0])
            found, truth = (luma(np.clip(t[0].permute(1, 2, 0).numpy(), 0, 1) * 255) for t in (sr, batch["hr"]))
            scores.append(psnr(found, truth))
        return float(np.mean(scores))

    return validate
