"""Estimates as a whole: sums, assumptions, cards by name, engines, errors, and the command."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from amsa import AmsaError, cli
from amsa.engine.backends import SHIPPED_ENGINE_MODEL
from amsa.engine.engine_cache import EngineKey, Sidecar, plugins_hash, store_engine
from amsa.engine.profiling.estimate import estimate, find_gpu, only_estimates, stage_times
from amsa.engine.profiling.roofline import EFFICIENCIES, LAUNCH_US
from amsa.engine.profiling.tables import tables
from amsa.manifest import ModelFolder
from amsa.plugins.gpus import GPUS

STAGES = ("encode_ref", "encode_lr", "match", "restore", "finish")


@pytest.fixture(scope="module")
def small() -> ModelFolder:
    return ModelFolder.open(SHIPPED_ENGINE_MODEL)


def test_sums_of_an_estimate(small: ModelFolder) -> None:
    found = estimate(small, "rtx2080ti", (120, 80), [(480, 320)])
    times = stage_times(found)
    assert set(times) == {*STAGES, "copies"}
    assert sum(low for low, _, _ in times.values()) == pytest.approx(found.low_ms)
    assert sum(high for _, high, _ in times.values()) == pytest.approx(found.high_ms)
    assert sum(launches for _, _, launches in times.values()) == found.launches
    assert (found.gpu, found.sm, found.precision, found.launch_us) == ("RTX 2080 Ti", "sm75", "fp16", LAUNCH_US)
    fewer = estimate(small, "rtx2080ti", (120, 80), [(480, 320)], restored=1)
    assert stage_times(fewer)["restore"][0] == pytest.approx(times["restore"][0] / 5, rel=0.1)
    assert stage_times(fewer)["match"] == times["match"]
    faster = estimate(small, "4090", (120, 80), [(480, 320)])
    assert faster.high_ms < 0.6 * found.high_ms


def test_every_number_is_an_assumption(small: ModelFolder) -> None:
    said = "\n".join(estimate(small, "T4", (120, 80), [(480, 320)]).assumptions)
    card = find_gpu("T4")
    for value in (card.sms, card.boost_ghz, card.memory_gbs, card.l2_mb, card.pcie_gbs, card.fp16_tensor_tflops, LAUNCH_US):
        assert f"{value:g}" in said
    for efficiency in EFFICIENCIES.values():
        assert efficiency.what in said
        assert f"{efficiency.memory[0]:.0%} to {efficiency.memory[1]:.0%}" in said
    assert card.source in said


# ------------------------------------------------------------------------------------------------ cards, engines, errors


@pytest.mark.parametrize("name", ["rtx2080ti", "RTX 2080 Ti", "2080ti", "NVIDIA GeForce RTX 2080 Ti", "GeForce-RTX-2080_Ti"])
def test_names_of_a_card(name: str) -> None:
    assert find_gpu(name).name == "RTX 2080 Ti"


def test_all_names_are_found() -> None:
    assert [find_gpu(gpu.name) for gpu in GPUS] == list(GPUS)
    assert find_gpu("tesla t4").name == "T4"
    with pytest.raises(AmsaError, match=r"^unknown GPU 'gtx 1080'; choose one of RTX 2080 Ti, .*RTX 5090$"):
        find_gpu("gtx 1080")
    with pytest.raises(AmsaError, match="unknown GPU ''"):
        find_gpu("")


def engines(model: Path, folder: Path, scratch: int = 0, target: str = "sm75", **key: Any) -> None:
    """What `amsa build` leaves, with nothing in it."""
    opened = ModelFolder.open(model)
    for i, stage in enumerate(STAGES):
        values = {"onnx": opened.manifest.graphs[stage].sha256, "plugins": plugins_hash(), **key}
        full = EngineKey(stage, runtime="tensorrt_rtx 1.7", target=target, precision="fp16", profile={}, **values)
        sidecar = Sidecar(full, 1, "", layers=10 + i, plugins=0, scratch=scratch * i, seconds=1)
        store_engine(folder / f"rtx-{target}-fp16" / f"{stage}.engine", b"x", sidecar)


SIZE: Any = ((64, 48), [(128, 96)])


def test_scratch_memory_is_read_from_engines(tmp_path: Path) -> None:
    model = Path(shutil.copytree(SHIPPED_ENGINE_MODEL, tmp_path / "small"))
    assert estimate(model, "rtx2080ti", *SIZE).scratch_mb is None
    assert not (tmp_path / "small.engines").exists()
    engines(model, tmp_path / "small.engines", scratch=100_000_000)
    engines(model, tmp_path / "elsewhere", scratch=200_000_000, target="sm86+sm89")
    found = estimate(model, "rtx2080ti", *SIZE)
    assert found.scratch_mb == 400
    assert "the engines have encode_ref 10, encode_lr 11, match 12, restore 13, finish 14 layers" in found.assumptions[-1]
    assert estimate(model, "3060", *SIZE).scratch_mb is None
    assert estimate(model, "3060", *SIZE, engines=tmp_path / "elsewhere").scratch_mb == 800
    with pytest.raises(AmsaError, match=r"elsewhere: no fp16 engines for sm75; build them with: amsa build .* -o .*elsewhere$"):
        estimate(model, "rtx2080ti", *SIZE, engines=tmp_path / "elsewhere")


def test_engines_of_another_model(tmp_path: Path) -> None:
    model = Path(shutil.copytree(SHIPPED_ENGINE_MODEL, tmp_path / "small"))
    engines(model, tmp_path / "small.engines", onnx="another")
    with pytest.warns(UserWarning, match="holds engines of another export or version of amsa; build them again with: amsa build"):
        assert estimate(model, "rtx2080ti", *SIZE).scratch_mb is None
    (tmp_path / "small.engines" / "rtx-sm75-fp16" / "match.json").unlink()
    with pytest.raises(AmsaError, match=r"match\.json is missing"):
        estimate(model, "rtx2080ti", *SIZE, engines=tmp_path / "small.engines")


@pytest.mark.parametrize(
    ("lr", "refs", "restored", "message"),
    [
        ((8, 32), [(64, 64)], None, "LR is 8x32; both sides must be at least 16"),
        ((32, 32), [(64, 20)], None, "the reference is 64x20; both sides must be at least 64"),
        ((32, 32), [], None, "no reference; give the size of at least one"),
        ((32, 32), [(64, 64)], 6, "6 references at a scale cannot be restored; there are 5"),
        ((32, 32), [(64, 64)], 0, "0 references at a scale cannot be restored; there are 5"),
    ],
)
def test_sizes_that_cannot_be(lr: tuple[int, int], refs: Any, restored: int | None, message: str, small: ModelFolder) -> None:
    with pytest.raises(AmsaError, match=f"^{message}$"):
        estimate(small, "t4", lr, refs, restored)


@pytest.mark.parametrize("model", ["published", "somewhere/my.safetensors"])
def test_a_model_without_graphs(model: str) -> None:
    message = f"{model}: estimates read an exported model; make one: amsa export {model} -o FOLDER --precision fp16"
    with pytest.raises(AmsaError, match=f"^{re.escape(message)}$"):
        estimate(model, "t4", *SIZE)


# ------------------------------------------------------------------------------------------------ the command


@contextmanager
def arguments(monkeypatch: pytest.MonkeyPatch, *given: str) -> Iterator[Callable[[], int]]:
    monkeypatch.setattr(sys, "argv", ["amsa", "profile", "--lr", "64x48", "--ref", "128x96", *given])

    def run() -> int:
        try:
            cli.main()
        except SystemExit as e:
            return int(e.code or 0)
        return 0

    yield run


def test_estimates_alone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    with arguments(monkeypatch, "--runs", "0", "--gpu", "rtx2080ti", "--gpu", "l40s") as run:
        assert run() == 0
    shown = capsys.readouterr().out
    for card in ("RTX 2080 Ti (sm75)", "L40S (sm89)"):
        assert shown.count(f"{card}, fp16: estimate, not measured") == 2
    assert "a picture with references encoded before" in shown
    assert shown.count("To halve it:") == 2
    assert shown.count("Kernels run one after the other.") == 1
    assert "Other assumptions than before:" in shown


def test_estimates_as_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with arguments(monkeypatch, "--runs", "0", "--gpu", "t4", "--json") as run:
        assert run() == 0
    values = json.loads(capsys.readouterr().out)
    (found,) = values["estimates"]
    expected = estimate(None, "t4", *SIZE)
    assert found["low_ms"] == pytest.approx(expected.low_ms)
    assert [layer["name"] for layer in found["layers"]] == [layer.name for layer in expected.layers]
    assert values["measured"] == []


def test_beside_a_measurement(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with arguments(monkeypatch, "--runs", "1", "--no-layers", "--gpu", "t4", "--json") as run:
        assert run() == 0
    values = json.loads(capsys.readouterr().out)
    assert len(values["measured"]) == 1
    expected = estimate(None, "t4", *SIZE, restored=values["restored"])
    assert values["estimates"][0]["high_ms"] == pytest.approx(expected.high_ms)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--runs", "0"), "--runs 0 measures nothing, so it goes without --against, and with a card: --gpu rtx2080ti"),
        (("--runs", "0", "--gpu", "t4", "--against", "torch"), "--runs 0 measures nothing, so it goes without --against"),
        (("--gpu", "voodoo"), "unknown GPU 'voodoo'; choose one of RTX 2080 Ti, "),
        (("--gpu", "t4", "-m", "small"), "small: estimates read an exported model"),
    ],
)
def test_errors_of_the_command(
    given: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with arguments(monkeypatch, *given) as run:
        assert run() == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_profile_of_estimates_has_no_machine_in_its_heading() -> None:
    heading = next(iter(tables(only_estimates(None, ["t4"], *SIZE))))
    assert isinstance(heading, str)
    assert heading.endswith("restored from 5 of 5 references at a scale")
