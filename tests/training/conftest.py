"""Photos and small networks to train on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from amsa.config import VARIANTS, AMSAConfig
from amsa.training.data import Mix, ReferencePairs
from amsa.training.synthetic import Warp

Make = Callable[..., NDArray[np.uint8]]


def make_photo(size: int = 160, seed: int = 0) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    octaves = [cv2.resize(rng.random((n, n, 3)), (size, size), interpolation=cv2.INTER_CUBIC) for n in (5, 10, 20, 40)]
    return (np.clip(np.mean(octaves, 0), 0, 1) * 255).astype(np.uint8)


@pytest.fixture
def photo() -> Make:
    """A function (size, seed) -> uint8 [size, size, 3] with detail at four scales."""
    return make_photo


@pytest.fixture
def pairs() -> Callable[..., ReferencePairs]:
    """A function (length, shares of the mix) -> samples of 64x64 with references of 64x64."""

    def make(length: int = 100, **mix: float) -> ReferencePairs:
        photos = [make_photo(seed=s) for s in range(3)]
        chosen = Mix(**{"views": 0.0, "irrelevant": 0.1, "lr": 0.1, "blurred": 0.0, **mix})
        return ReferencePairs(photos, crop=64, ref=64, length=length, seed=0, mix=chosen, warp=Warp())

    return make


@pytest.fixture
def photo_folder(tmp_path: Path) -> Path:
    """A folder with three photos."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(3):
        Image.fromarray(make_photo(seed=seed)).save(folder / f"{seed}.png")
    return folder


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The paper's and the published network with 16 channels and one block."""
    monkeypatch.setitem(VARIANTS, "paper", lambda: AMSAConfig.paper(16, 1, 4))
    monkeypatch.setitem(VARIANTS, "published", lambda: AMSAConfig.published(16, 1, 4))
