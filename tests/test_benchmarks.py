"""The benchmarks run from end to end at tiny sizes and write what they should; how fast things are is not tested."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from amsa.plugins.cpu_library import cpu_library

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"

pytestmark = pytest.mark.skipif(cpu_library() is None, reason="needs a C++ compiler")

Tables = dict[str, list[dict[str, Any]]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., str]]:
    """(script's name, arguments) -> what it prints. In this process: importing torch takes seconds."""
    threads = torch.get_num_threads()

    def call(script: str, *arguments: str | Path) -> str:
        monkeypatch.syspath_prepend(FOLDER)
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        importlib.import_module(script).main()
        return capsys.readouterr().out

    yield call
    torch.set_num_threads(threads)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two views of one texture, with noise."""
    rng = np.random.default_rng(0)
    texture = (cv2.GaussianBlur(rng.uniform(0, 255, (260, 260, 3)), (0, 0), 3) - 127.5) * 8 + 127.5
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(2):
        view = texture[2 * i : 250 + 2 * i, 3 * i : 250 + 3 * i] + rng.normal(0, 30, (250, 250, 3))
        Image.fromarray(view.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.png")
    return folder


def tables_of(path: Path, printed: str) -> Tables:
    """The tables of a JSON file, each of which was printed too; with the facts that figures depend on."""
    content = json.loads(path.read_text())
    assert content["machine"]["threads"] == 2
    assert "C++" in content["machine"]["kernels"]
    tables: Tables = content["tables"]
    for title, rows in tables.items():
        assert f"## {title}\n\n| {' | '.join(rows[0])} |" in printed
        for row in rows:
            assert list(row) == list(rows[0])
            assert all(v > 0 for k, v in row.items() if k.startswith(("wall", "CPU")))
    return tables


def find(tables: Tables, title: str) -> list[dict[str, Any]]:
    return next(rows for name, rows in tables.items() if name.startswith(title))


def check_photo_sections(tables: dict[str, Tables]) -> None:
    rows = find(tables["schedules"], "schedules on photos")
    assert [r["schedule"] for r in rows] == ["published", "paper", "fast", "fast", "exact"]
    for r in rows[:-1]:  # nothing is better than exact search
        assert 0 < r["mean relevance"] <= rows[-1]["mean relevance"] + 1e-6
        assert 0 < r["share best"] <= 1
        assert 1 < r["evaluations"] < r["nominal"]
    assert rows[-1]["evaluations"] == 22**2
    for r in find(tables["schedules"], "mean squared error"):
        first, *later = (v for k, v in r.items() if k)
        assert all(v <= first for v in later)
    assert len(find(tables["search"], "orders")) == 4
    for r in find(tables["int8"], "mean relevance"):
        assert abs(r["difference"]) < 1e-3
        assert r["equal matches"] > 0.9


def test_matching(photos: Path, tmp_path: Path, run: Callable[..., str]) -> None:
    printed = run("matching", "--quick", "--data", photos, "--output", tmp_path)
    names = ("speed", "exact", "schedules", "search", "int8")
    tables = {name: tables_of(tmp_path / f"matching-{name}.json", printed) for name in names}
    for row in find(tables["speed"], "coarse to fine, 16x16, 256 channels, paper")[:-1]:
        assert 0.05 < row["of it before"] <= row["peak GB"] < 4
    assert all(0.3 < r["exponent"] < 3 for r in find(tables["speed"], "CPU seconds by size"))
    assert all(isinstance(r["met"], bool) for r in find(tables["speed"], "goals"))
    check_photo_sections(tables)
    for name in ("matching-speed-size.png", "matching-schedules-convergence.png"):
        assert Image.open(tmp_path / name).size[0] > 300


def test_other_orders_are_counted_as_the_kernel_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the schedule's own order the PyTorch search finds and counts what the kernel does."""
    monkeypatch.syspath_prepend(FOLDER)
    schedules, search = map(importlib.import_module, ("schedules", "search"))
    problem = search.smooth_problem(16, 24)
    own = next(iter(schedules.ORDERS.values()))
    found = schedules.in_order(problem, 0, own, (1, 1, 1, 3))
    expected = search.coarse_to_fine(problem, "fast", (1, 1, 1, 3))
    assert torch.equal(found.match, expected.match)
    assert found.evaluations == expected.evaluations


def test_sections_that_need_photos_are_named_when_left_out(tmp_path: Path, run: Callable[..., str]) -> None:
    printed = run("matching", "schedules", "int8", "--output", tmp_path)
    assert printed.count("needs photos; give --data FOLDER") == 2


def test_sampling(tmp_path: Path, run: Callable[..., str]) -> None:
    printed = run("sampling", "--quick", "--output", tmp_path)
    rows = find(tables_of(tmp_path / "sampling.json", printed), "deformable convolution")
    assert [r["by"] for r in rows] == ["ours", "torchvision"]
    assert all(0 <= r["peak MB"] < 100 for r in rows)


def test_a_missing_folder_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, FOLDER / "matching.py", "schedules", "--data", tmp_path / "nowhere", "--output", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow  # a process per picture, the published network
def test_pipeline(tmp_path: Path, run: Callable[..., str]) -> None:
    printed = run("pipeline", "--quick", "--output", tmp_path)
    tables = tables_of(tmp_path / "pipeline.json", printed)
    names = ["ONNX Runtime", "PyTorch, our kernels", "PyTorch, sampling in PyTorch"]
    assert [r["by"] for r in tables["published"]] == names
    assert [(r["graphs"], r["tiles"]) for r in tables["picture"]] == [
        ("as exported", "largest"),
        ("rewritten", "largest"),
        ("rewritten", 128),
    ]
    assert all(r["peak MB"] > 50 for title, rows in tables.items() if title.startswith("growth") for r in rows)
    assert find(tables, "startup")[0]["slowest"] < 60
    assert Image.open(tmp_path / "pipeline-growth.png").size[0] > 300


def test_an_unknown_section_is_named(run: Callable[..., str]) -> None:
    with pytest.raises(SystemExit):
        run("pipeline", "speeed")


def test_clip(photos: Path, run: Callable[..., str]) -> None:
    lines = run("clip", photos / "0.png", photos / "1.png", "5", "32x24").splitlines()
    assert any("60 frames, 48 of them done before" in line for line in lines)
    assert lines[-2] == "60 frames, 60 at their times; sound equal; left beside the result: nothing"
    assert lines[-1].startswith("PSNR-Y ")
