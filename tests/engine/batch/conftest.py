"""Folders of small pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Touch = Callable[..., Path]


@pytest.fixture
def touch(tmp_path: Path) -> Touch:
    """Make empty files below tmp_path, and return that."""

    def make(*names: str) -> Path:
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return tmp_path

    return make


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with in/0.png .. in/5.png (16x16 to 16x21) and ref.png (64x64)."""
    (tmp_path / "in").mkdir()
    rng = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(rng.integers(0, 256, (16, 16 + i, 3), np.uint8)).save(tmp_path / "in" / f"{i}.png")
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(tmp_path / "ref.png")
    return tmp_path
