"""Profiling the TensorRT backend on a CUDA driver and a TensorRT that work on the CPU: layers, stages, copies, memory, peaks.

Run by test_tensorrt_layers.py in a process of its own.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amsa.engine.backends import SHIPPED_MODEL
from amsa.engine.profiling import peaks, sensors
from amsa.engine.profiling.pictures import make_pictures
from amsa.engine.profiling.worker import Runner
from amsa.manifest import FILE_NAME

from ....cuda.cpu_driver import Control
from ...on_driver import tensorrt_on_cpu as stand_in

control = Control()


@pytest.fixture(params=["rtx", "tensorrt"])
def runner(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runner]:
    """Opened on engines of the shipped model, at two scales of a reference."""
    control.reset()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = Path(shutil.copytree(SHIPPED_MODEL, tmp_path / "small"))
    values = json.loads((model / FILE_NAME).read_text())
    values["config"]["ref_scales"] = 2
    (model / FILE_NAME).write_text(json.dumps(values))
    runtime: str = request.param
    stand_in.build(model, stand_in.install(monkeypatch, runtime), runtime)
    lr, refs = make_pictures((24, 20), [(96, 80)])
    np.savez(tmp_path / "pictures.npz", lr=lr.rgb, ref0=refs[0].rgb)
    contender = {"model": str(model), "backend": "tensorrt", "skip": 0.0}
    opened = Runner()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sensors, below
        about = opened.open(contender, str(tmp_path / "pictures.npz"))
    assert (about["backend"], about["on_gpu"]) == ("tensorrt", True)
    yield opened
    assert stand_in.problems == []


def test_layers_are_told_and_graphs_left_out(runner: Runner) -> None:
    for _ in range(3):
        runner.picture(stages=False)
    before = control.calls("cuGraphLaunch")
    layers = {(layer["stage"], layer["name"]): layer for layer in runner.layers(2)["layers"]}
    # 2 layers a stage, as often as the stage is called: one reference at two scales, one tile
    assert {key: layer["calls"] for key, layer in layers.items() if key[1] == "node_conv2d + relu"} == {
        ("encode_ref", "node_conv2d + relu"): 2,
        ("encode_lr", "node_conv2d + relu"): 1,
        ("match", "node_conv2d + relu"): 2,
        ("restore", "node_conv2d + relu"): 2,
        ("finish", "node_conv2d + relu"): 1,
    }
    assert layers["match", "node_conv2d + relu"]["milliseconds"] == 2 * 0.5
    assert {layer["op"] for layer in layers.values()} == {"Conv", "other"}
    assert control.calls("cuGraphLaunch") == before
    engines = list(runner._upscaler.backend_in_use._engines._loaded.values())
    if engines[0]._runtime_config is not None:
        assert {engine.engine.graph_strategy for engine in engines} == {"disabled"}


def test_stages_and_copies_come_from_pictures_that_wait(runner: Runner) -> None:
    quick = runner.picture(stages=False)
    assert quick["stats"] is None
    waited = runner.picture(stages=True)
    stats = waited["stats"]
    assert set(stats["seconds"]) == {"prepare", "copies", "encode_ref", "encode_lr", "match", "fusion", "restore", "finish"}
    # in: LR, and for two scales the picture, its valid size, a seed and a weight; out: two relevances and the picture
    assert stats["calls"]["copies"] == 1 + 2 * 4 + 2 + 1
    assert sum(stats["seconds"].values()) < waited["ms"] / 1e3
    held: Any = runner._upscaler.backend_in_use
    assert waited["peak_device_mb"] == held.budget.peak / 1e6 > 0


def test_what_the_device_reaches(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peaks, "COPIED", 1 << 20)
    found = runner.peaks()
    assert found["gflops"] is None
    assert found["gbs"] > 0


def test_sensors_that_are_not_there_are_told(runner: Runner) -> None:
    assert runner.sensors() == {"sensors": {}}
    assert sensors.Sensors().missing.startswith("no clocks, temperature and power: ")
