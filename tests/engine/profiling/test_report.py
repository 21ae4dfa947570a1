"""A profile as tables and as a file."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from amsa import AmsaError
from amsa.engine.profiling import files
from amsa.engine.profiling.files import to_json, write_file
from amsa.engine.profiling.results import Latency, LayerTime, Measured, Profile, StageTime
from amsa.engine.profiling.tables import speed_up, tables

LAYERS = [LayerTime("restore", f"conv_{i}", "Conv", 2, 10.0 - i / 10, 1e9, 4e6) for i in range(20)]
LAYERS += [LayerTime("match", "node_patch_match", "PatchMatch", 5, 30.0, 2e8, 1e6), LayerTime("finish", "cat", "Concat", 1, 0.5)]
OURS = Measured(
    label="onnxruntime fp32",
    backend="onnxruntime",
    device="CPU",
    precision="fp32",
    kernels="C++ kernels",
    latency=Latency((100.0, 120.0, 110.0)),
    cpu_ms=200.0,
    first_ms=500.0,
    open_ms=50.0,
    peak_host_mb=300.0,
    peak_device_mb=None,
    psnr_to_first=None,
    stages=[StageTime("match", 5, 40.0), StageTime("restore", 2, 50.0), StageTime("other", 1, 10.0)],
    layers=LAYERS,
    sensors={},
    peak_gflops=500.0,
    peak_gbs=10.0,
)
TORCH = replace(
    OURS,
    label="torch eager fp32",
    latency=Latency((330.0,)),
    cpu_ms=500.0,
    psnr_to_first=float("inf"),
    stages=[StageTime("match", 5, 120.0), StageTime("copies", 3, 1.0), StageTime("other", 1, 200.0)],
    layers=[],
    peak_device_mb=900.0,
    sensors={"clock MHz": (1000.0, 1500.0, 1600.0)},
)
PROFILE = Profile(
    version="1",
    made="2026-01-01T00:00:00+00:00",
    model="small",
    variant="small",
    trained=True,
    lr=(480, 270),
    refs=[(1920, 1080), (800, 600)],
    ref_scales=5,
    restored=3,
    machine={"processor": "A", "threads": "2", "cores": "2"},
    measured=[OURS, TORCH],
    estimates=(),
    notes=["Noise."],
)


def shown(profile: Profile) -> str:
    console = Console(file=io.StringIO(), width=110, soft_wrap=True)
    for part in tables(profile):
        console.print(part)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def row(text: str, begins: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if line.strip(" │").startswith(begins))
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_tables() -> None:
    text = shown(PROFILE)
    assert "LR 480x270 to 1920x1080, references 1920x1080, 800x600; restored from 3 of 10 references at a scale" in text
    assert row(text, "time, p50 ms")[1:] == ["110", "330"]
    assert row(text, "p90 ms")[1:] == ["118", "330"]
    assert row(text, "pictures per second")[1:] == ["9.09", "3.03"]
    assert row(text, "on the GPU MB")[1:] == ["-", "900"]
    assert row(text, "clock MHz")[1:] == ["-", "1500 (1000 to 1600)"]
    assert row(text, "PSNR to the first dB")[1:] == ["", "equal"]
    assert row(text, "time, of the first's")[1:] == ["", "3.30 x"]
    assert row(text, "CPU time, of the first's")[1:] == ["", "2.50 x"]
    assert speed_up(OURS, TORCH) == 3.3  # the first round: the other took part in no more
    assert speed_up(OURS, replace(TORCH, latency=Latency((330.0, 440.0, 450.0)))) == 4
    # stages side by side, with what only one has
    assert row(text, "match ") == ["match", "5", "40  40%", "120  37%"]
    assert row(text, "copies") == ["copies", "3", "-", "1   0%"]
    assert row(text, "other ")[2:] == ["10  10%", "200  62%"]
    # 20 convolutions of 10, 9.9, .. ms
    assert row(text, "Conv ") == ["Conv", "20", "181", "86%", "20.000", "221.0"]
    assert row(text, "match/node_patch_match") == ["match/node_patch_match", "5", "30", "14.2%", "13.3", "0.0"]
    layers = [line for line in text.splitlines() if "restore/conv_" in line]
    assert [line.split("│")[1].strip() for line in layers] == [f"restore/conv_{i}" for i in range(14)]
    assert "20.20 GMACs in 110 ms are 367.3 GFLOP/s: 73% of the 500 GFLOP/s" in text
    assert "at that rate they would take 80.8 ms" in text


def test_tables_without_layers_and_alone() -> None:
    text = shown(replace(PROFILE, measured=[TORCH], refs=[(64, 64)], trained=False))
    assert "small (small, untrained)" in text
    assert "reference 64x64" in text
    assert "GFLOP/s" not in text
    assert "of the first's" not in text


def test_json_is_strict() -> None:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    values = json.loads(to_json(PROFILE), parse_constant=refuse)
    assert values["measured"][1]["psnr_to_first"] is None
    assert values["measured"][0]["latency"]["p50"] == 110
    assert values["measured"][0]["layers"][0]["name"] == "conv_0"
    assert (values["format"], values["notes"]) == (1, ["Noise."])


def test_files_are_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert write_file(tmp_path, "profile.json", "old") == tmp_path / "profile.json"

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.Path, "write_text", full)
    with pytest.raises(AmsaError, match=r"profile\.json cannot be written \(No space left on device\)"):
        write_file(tmp_path, "profile.json", "new")
    assert (tmp_path / "profile.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["profile.json"]
