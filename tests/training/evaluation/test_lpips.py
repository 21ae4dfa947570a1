"""LPIPS: a network that the user gives. Here the mean absolute difference stands for it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from amsa import AmsaError
from amsa.training.evaluation.lpips import load_lpips
from amsa.training.evaluation.run import evaluate


class Network(torch.nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a - b).abs().mean((1, 2, 3), keepdim=True)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lpips") / "l.pt2"
    size = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    pair = torch.zeros(1, 3, 24, 32), torch.zeros(1, 3, 24, 32)
    torch.export.save(torch.export.export(Network(), pair, dynamic_shapes={"a": size, "b": size}), path)
    return path


def test_the_range_is_minus_one_to_one(network: Path) -> None:
    distance = load_lpips(network)
    black, white = np.zeros((17, 40, 3), np.uint8), np.full((17, 40, 3), 255, np.uint8)
    assert (distance(black, black), distance(black, white)) == (0, 2)
    with pytest.raises(AmsaError, match="fails on 40x17 pixels"):
        distance(black, white[:9])


def test_in_the_report(network: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for name in ("000_0", "000_1"):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    output = tmp_path / "out"
    report = evaluate([tmp_path], output, threads=1, lpips=network, save_pictures=True)
    row = report["rows"][0]
    sr = np.asarray(Image.open(next((output / "pictures").rglob("000.png"))), np.float64)
    assert row["amsa"]["lpips"] == pytest.approx(np.abs(sr - pixels).mean() / 127.5, rel=1e-5)
    assert row["amsa"]["lpips"] == row["results"][0]["amsa"]["lpips"]
    assert f"| {row['bicubic']['lpips']:.4f}, {row['amsa']['lpips']:.4f} |" in (output / "report.md").read_text()
    assert json.loads((output / "report.json").read_text())["lpips"] == "l.pt2"


@pytest.mark.parametrize("zipped", [False, True])
def test_refused(tmp_path: Path, zipped: bool, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.zeros(1)}, path) if zipped else path.write_text("x")
    with pytest.raises(AmsaError, match=r"not a program that torch\.export saved") as caught:
        load_lpips(path)
    assert "\n" not in str(caught.value)
    assert "Traceback" not in capfd.readouterr().err
