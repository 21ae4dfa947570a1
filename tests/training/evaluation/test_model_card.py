"""The sets that the shipped model's figures come from."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from amsa.engine.backends import SHIPPED_MODEL
from amsa.training.evaluation import model_card
from amsa.training.evaluation.scenes import find_window, grid_crops


def photo(size: int, seed: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    octaves = [cv2.resize(rng.random((n, n, 3)), (size, size), interpolation=cv2.INTER_CUBIC) for n in (6, 12, 24, 48)]
    return (np.clip(np.mean(octaves, 0), 0, 1) * 255).astype(np.uint8)


@pytest.mark.parametrize("scale", [1.0, 1.4])
def test_the_window_shows_what_lr_shows(scale: float) -> None:
    picture = photo(400, 0)
    hr = picture[100:228, 120:248]
    lr = np.asarray(Image.fromarray(hr).resize((32, 32), Image.Resampling.BICUBIC))
    side = round(400 * scale)
    other = cv2.resize(picture, (side, side), interpolation=cv2.INTER_CUBIC)
    other = (0.7 * other + 20).astype(np.uint8)  # another exposure
    found = find_window(lr, [photo(400, 1), other], 200)
    assert found.photo == 1
    assert found.fit > 0.9
    centre = np.array([100 + 64, 120 + 64]) * scale
    assert np.abs(np.array([found.top + 100, found.left + 100]) - centre).max() < 12


def test_a_window_lies_inside_the_photo() -> None:
    picture = photo(300, 0)
    lr = np.asarray(Image.fromarray(picture[:100, 200:]).resize((25, 25), Image.Resampling.BICUBIC))
    found = find_window(lr, [picture], 160)
    assert (found.photo, found.top, found.left) == (0, 0, 140)


def test_the_grid_covers_the_photo() -> None:
    corners = grid_crops(np.zeros((532, 708, 3), np.uint8), 320, 213)
    assert corners == [(y, x) for y in (0, 212) for x in (0, 194, 388)]
    assert grid_crops(np.zeros((320, 320, 3), np.uint8), 320, 213) == [(0, 0)]


def test_the_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in (("_CROP", 64), ("_STEP", 64), ("_WINDOW", 64), ("_SYNTHETIC_CROP", 64), ("_SYNTHETIC_REF", 64)):
        monkeypatch.setattr(model_card, name, value)
    for folder, seeds in (("castle", (0, 1)), ("set14", (2, 3))):
        (tmp_path / folder).mkdir()
        for seed in seeds:
            Image.fromarray(photo(128, seed)).save(tmp_path / folder / f"{seed}.png")
    model = SHIPPED_MODEL.with_suffix(".safetensors")
    monkeypatch.setattr(sys, "argv", ["", str(tmp_path), str(tmp_path / "out"), str(model)])
    model_card.main()
    out = capsys.readouterr().out
    rows = [line.split("|")[1:4] for line in out[out.index(str(model)) :].splitlines() if line.startswith("| ")][1:]
    assert [tuple(cell.strip() for cell in row) for row in rows] == [
        ("castle", "2", "relevant"),
        ("castle", "2", "irrelevant"),
        ("castle", "2", "LR itself"),
        ("synthetic", "4", "relevant"),
        ("synthetic", "4", "irrelevant"),
        ("synthetic", "4", "LR itself"),
        ("set14", "2", "irrelevant"),
        ("set14", "2", "LR itself"),
        ("whole", "2", "relevant"),
    ]
    assert "exhaustive matching instead of PatchMatch" in out
    assert {p.name for p in (tmp_path / "out").iterdir()} >= {"figures.json", "small-castle-relevant.png"}
