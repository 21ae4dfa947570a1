"""Measuring: turns, processes of their own, what fails, and what the numbers are made of."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amsa import AmsaError
from amsa.config import AMSAConfig
from amsa.engine.backends import SHIPPED_ENGINE_MODEL, SHIPPED_MODEL
from amsa.engine.images import Photo
from amsa.engine.profiling.contenders import Contender, opponents
from amsa.engine.profiling.entrants import stage_times
from amsa.engine.profiling.measure import Effort, measure
from amsa.engine.profiling.pictures import make_pictures
from amsa.engine.profiling.processes import Failed, Worker
from amsa.model import AMSA, save_checkpoint

FIRST = Contender(None, threads=1)
QUICK = Effort(runs=2, seconds=60, layers=False)


@pytest.fixture(scope="module")
def photos() -> tuple[Photo, list[Photo]]:
    return make_pictures((20, 16), [(80, 64)])


@pytest.fixture(autouse=True)
def _no_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the device reaches takes seconds, and is measured in `test_device.py`."""
    ask = Worker.ask

    def without(self: Worker, do: str, **request: Any) -> dict[str, Any]:
        return {"gflops": 50.0, "gbs": 5.0, "notes": []} if do == "peaks" else ask(self, do, **request)

    monkeypatch.setattr(Worker, "ask", without)


# ------------------------------------------------------------------------------------------------ the whole


def test_two_models_and_pytorch(photos: tuple[Photo, list[Photo]]) -> None:
    others = opponents(FIRST, [str(SHIPPED_ENGINE_MODEL), "torch"], None)
    said: list[str] = []
    profile, failures = measure([FIRST, *others], *photos, Effort(2), model="small", notes=["As told."], say=said.append)
    assert failures == []
    assert said == profile.notes
    assert said[0] == "As told."
    assert (profile.model, profile.variant, profile.lr, profile.refs) == ("small", "small", (20, 16), [(80, 64)])
    assert (profile.ref_scales, profile.trained, profile.machine["threads"]) == (5, True, "1")
    assert 1 <= profile.restored <= 5
    exported, half, torch = profile.measured
    assert [m.label for m in profile.measured] == ["onnxruntime fp32", "onnxruntime fp16", "torch eager fp32"]
    for m in profile.measured:
        assert len(m.latency.milliseconds) == 2
        assert m.latency.percentile(50) <= m.latency.percentile(99) <= max(m.latency.milliseconds)
        assert m.cpu_ms > 0
        assert m.first_ms > 0 < m.open_ms
        assert (m.peak_device_mb, m.sensors, m.device, m.peak_gflops) == (None, {}, "CPU", 50.0)
        assert {s.name for s in m.stages} == {*AMSA_STAGES, "prepare", "fusion", "other"}
        calls = {s.name: s.calls for s in m.stages}
        assert (calls["encode_ref"], calls["encode_lr"], calls["match"], calls["restore"]) == (5, 1, 5, profile.restored)
        # the stages of a picture add up to it; medians of two pictures are their means
        assert sum(s.milliseconds for s in m.stages) == pytest.approx(np.mean(m.latency.milliseconds))
        assert {layer.stage for layer in m.layers} >= set(AMSA_STAGES)
    assert exported.psnr_to_first is None
    assert half.psnr_to_first is not None
    assert torch.psnr_to_first is not None
    assert 40 < half.psnr_to_first < torch.psnr_to_first
    # a process that has imported torch holds more than one that has not
    assert 50 < exported.peak_host_mb < torch.peak_host_mb - 50


AMSA_STAGES = ("encode_ref", "encode_lr", "match", "restore", "finish")


def test_contenders_take_turns(photos: tuple[Photo, list[Photo]], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Worker, str]] = []
    ask = Worker.ask
    monkeypatch.setattr(Worker, "ask", lambda self, do, **request: asked.append((self, do)) or ask(self, do, **request))
    profile, _ = measure([FIRST, FIRST], *photos, Effort(3, layers=False), model="small")
    assert [m.label for m in profile.measured] == ["onnxruntime fp32", "onnxruntime fp32, small"]
    assert profile.measured[1].psnr_to_first == float("inf")
    a, b = dict.fromkeys(worker for worker, _ in asked)
    assert a is not b
    pictures = [worker for worker, do in asked if do == "picture"]
    assert pictures == [a, a, b, b, *(a, b), *(b, a), *(a, b)]  # two to warm up each, then in turns, each first in turn


def test_seconds_are_a_limit(photos: tuple[Photo, list[Photo]]) -> None:
    profile, failures = measure([FIRST], *photos, Effort(runs=50, seconds=0, layers=False), model="small")
    assert failures == []
    assert len(profile.measured[0].latency.milliseconds) == 1  # one there must be
    assert profile.notes[-1] == "onnxruntime fp32: 1 of 50 pictures, as many as 0 s allow."


# ------------------------------------------------------------------------------------------------ what fails


def test_one_that_is_killed_does_not_lose_the_others(photos: tuple[Photo, list[Photo]], monkeypatch: pytest.MonkeyPatch) -> None:
    ask = Worker.ask

    def killing(self: Worker, do: str, **request: Any) -> dict[str, Any]:
        if do == "picture" and request["keep"] is None and request["stages"] and self.kill:  # type: ignore[attr-defined]
            os.kill(self._process.pid, signal.SIGKILL)
        if do == "open":
            self.kill = request["contender"]["seed"] == 7  # type: ignore[attr-defined]
        return ask(self, do, **request)

    monkeypatch.setattr(Worker, "ask", killing)
    killed = Contender(None, threads=1, seed=7)
    profile, failures = measure([FIRST, killed], *photos, QUICK, model="small")
    assert [m.label for m in profile.measured] == ["onnxruntime fp32"]
    assert len(failures) == 1
    assert failures[0].startswith("onnxruntime fp32, small: its process was killed, as by the system when memory is short")
    assert failures[0] in profile.notes


def test_a_mode_that_cannot_run_is_told(photos: tuple[Photo, list[Photo]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "")
    monkeypatch.setenv("PATH", "/nonexistent")
    (compiled,) = opponents(FIRST, ["torch-compile"], None)
    profile, failures = measure([FIRST, compiled], *photos, QUICK, model="small")
    assert len(profile.measured) == 1
    assert failures == ["torch-compile: torch.compile needs a C++ compiler, and there is none; install g++, or leave it out"]
    assert failures[0] in profile.notes


def test_layers_that_fail_leave_the_rest(photos: tuple[Photo, list[Photo]], monkeypatch: pytest.MonkeyPatch) -> None:
    ask = Worker.ask

    def failing(self: Worker, do: str, **request: Any) -> dict[str, Any]:
        if do == "layers":
            raise Failed("its profiler broke", refused=False)
        return ask(self, do, **request)

    monkeypatch.setattr(Worker, "ask", failing)
    profile, failures = measure([FIRST], *photos, Effort(1), model="small")
    assert failures == ["onnxruntime fp32: its profiler broke"]
    assert len(profile.measured[0].latency.milliseconds) == 1
    assert list(profile.measured[0].layers) == []


def test_a_first_one_that_cannot_be_opened_ends_it(photos: tuple[Photo, list[Photo]]) -> None:
    with pytest.raises(AmsaError, match="gone: no such model"):
        measure([Contender("gone"), FIRST], *photos, QUICK, model="gone")


def test_a_checkpoint_of_another_network(photos: tuple[Photo, list[Photo]], tmp_path: Path) -> None:
    path = checkpoint(tmp_path, AMSAConfig.paper(8, 1, 4))
    (other,) = opponents(FIRST, ["torch"], str(path))
    with pytest.raises(AmsaError, match=r"is a checkpoint of another network than .*small; give the one it was exported from"):
        measure([FIRST, other], *photos, QUICK, model="small")


def test_a_worker_that_ends_says_why() -> None:
    with Worker() as worker:
        os.kill(worker._process.pid, signal.SIGTERM)
        with pytest.raises(Failed, match="its process was ended by SIGTERM"):
            worker.ask("peaks_")
    with Worker() as worker:
        with pytest.raises(Failed, match="AttributeError: 'Runner' object has no attribute 'nonsense'"):
            worker.ask("nonsense")
        assert worker.ask("sensors")["sensors"] == {}  # it goes on
    assert worker._process.returncode == 0


# ------------------------------------------------------------------------------------------------ parts


def checkpoint(folder: Path, config: AMSAConfig) -> Path:
    model = AMSA(config)
    model.reset_parameters(0)
    save_checkpoint(folder / "m.safetensors", model, {"trained": False})
    return folder / "m.safetensors"


def test_where_a_checkpoint_is_found(tmp_path: Path) -> None:
    shipped = str(SHIPPED_MODEL.with_suffix(".safetensors"))
    for model in (None, str(SHIPPED_MODEL), str(SHIPPED_ENGINE_MODEL)):
        (found,) = opponents(Contender(model, threads=2, skip=0.5, seed=3), ["torch-fp16"], None)
        assert found == Contender(shipped, mode="torch-fp16", threads=2, skip=0.5, seed=3)
    folder = tmp_path / "v1.2"
    with pytest.raises(AmsaError, match=r"v1\.2\.safetensors is not there; add --checkpoint"):
        opponents(Contender(str(folder)), ["torch"], None)
    beside = tmp_path / "v1.2.safetensors"
    beside.touch()
    assert opponents(Contender(str(folder)), ["torch"], None)[0].model == str(beside)
    assert opponents(Contender(f"{folder}.amsa"), ["torch"], None)[0].model == str(beside)
    assert opponents(Contender(str(beside)), ["torch"], None)[0].model == str(beside)
    assert opponents(Contender(None), ["torch"], str(beside))[0].model == str(beside)
    # PyTorch computes where the first one does
    assert opponents(Contender(None, "tensorrt"), ["torch"], None)[0].on_gpu


@pytest.mark.parametrize(
    ("against", "given", "message"),
    [
        (["gone"], None, "gone: neither a model nor one of torch, torch-compile, torch-fp16"),
        (["torch"], "gone.safetensors", r"gone\.safetensors: no checkpoint; --checkpoint takes the \.safetensors file"),
        ([], "x.safetensors", "--checkpoint is for --against torch"),
    ],
)
def test_opponents_that_are_none(against: list[str], given: str | None, message: str) -> None:
    with pytest.raises(AmsaError, match=message):
        opponents(FIRST, against, given)


def test_the_rest_of_a_picture_is_other() -> None:
    def picture(ms: float, *seconds: float) -> dict[str, Any]:
        return {"ms": ms, "stats": {"seconds": dict(zip("ab", seconds, strict=True)), "calls": {"a": 1, "b": 5}}}

    a, b, other = stage_times([picture(10, 0.001, 0.002), picture(30, 0.003, 0.004), picture(11, 0.002, 0.003)])
    assert (a.name, a.calls, a.milliseconds) == ("a", 1, 2)
    assert (b.name, b.calls, b.milliseconds) == ("b", 5, 3)
    assert (other.name, other.milliseconds) == ("other", 7)
    assert stage_times([]) == []
