"""A network small enough to be calibrated in seconds, and photos."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from amsa.config import AMSAConfig
from amsa.engine.demo import load_pair
from amsa.engine.images import write_photo
from amsa.export import export_folder
from amsa.model import AMSA

TINY = replace(AMSAConfig.small(), channels=(16, 8, 4), blocks=(2, 1, 1, 1), ref_scales=1)


def tiny_network() -> AMSA:
    """Weights of a seed that are nowhere zero and keep activations near 1."""
    model = AMSA(TINY)
    model.reset_parameters(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            gain = 0.1 if any(word in name for word in ("mask", "flow", "finish.conv2", "body")) else 0.7
            if p.ndim > 1 and p.numel() > 1:
                p.copy_(torch.randn(p.shape, generator=generator) * (gain * (2 / p[0].numel()) ** 0.5))
    return model.eval()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own. Kernels that were compiled before are found all the same: they are loaded already."""
    from amsa.plugins.cpu_library import cpu_library

    cpu_library()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its export."""
    path = tmp_path_factory.mktemp("tiny") / "tiny"
    export_folder(tiny_network(), True, path)
    return path


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV file of two views of a scene, in both directions."""
    folder = tmp_path_factory.mktemp("pairs")
    for name, photo in zip(("left", "right"), load_pair(), strict=True):
        write_photo(folder / f"{name}.png", photo)
    path = folder / "pairs.csv"
    path.write_text("hr,ref\nleft.png,right.png\nright.png,left.png\n")
    return path


def save(path: Path, height: int, width: int, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8))
    small.resize((width, height), Image.Resampling.BICUBIC).save(path)
    return path
