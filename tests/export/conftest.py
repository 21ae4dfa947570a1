"""Networks with random weights that are nowhere zero, exported once per session."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from amsa.config import AMSAConfig
from amsa.export import export_folder
from amsa.model import AMSA, save_checkpoint

CONFIGS = {
    "small": replace(AMSAConfig.small(), ref_scales=2),
    "paper": replace(AMSAConfig.paper(8, 1, 4), ref_scales=2),
    "reduced": replace(AMSAConfig.published(8, 1, 4), ref_scales=2),
    "published": replace(AMSAConfig.published(), ref_scales=2),
}


def random_network(config: AMSAConfig) -> AMSA:
    """Weights that keep activations near 1 and offsets within a few pixels, none of them zero."""
    model = AMSA(config)
    model.reset_parameters(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            fan_in = p[0].numel() if p.ndim > 1 else 1
            gain = 0.3 if any(word in name for word in ("mask", "flow", "finish.conv2", "body")) else 1.0
            p.copy_(torch.randn(p.shape, generator=generator) * (gain * (2 / fan_in) ** 0.5 if p.ndim > 1 else 0.05))
    return model.eval()


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[AMSA, Path, Path]]:
    """Name of a config -> network, model folder, checkpoint."""
    made: dict[str, tuple[AMSA, Path, Path]] = {}

    def export(name: str) -> tuple[AMSA, Path, Path]:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            model = random_network(CONFIGS[name])
            export_folder(model, True, folder / "model")
            save_checkpoint(folder / "m.safetensors", model, {"trained": True})
            made[name] = model, folder / "model", folder / "m.safetensors"
        return made[name]

    return export


@pytest.fixture(scope="session")
def picture() -> Callable[..., NDArray[np.uint8]]:
    """(height, width, seed) -> a smooth random uint8 picture with detail."""

    def make(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
        rng = np.random.default_rng(seed)
        coarse = Image.fromarray(rng.integers(0, 256, (height // 6 + 2, width // 6 + 2, 3), np.uint8))
        x = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float64)
        return np.clip(x + rng.normal(0, 8, x.shape), 0, 255).astype(np.uint8)

    return make
