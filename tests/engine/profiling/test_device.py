"""What is read of the machine: peaks, sensors, facts."""

from __future__ import annotations

import os
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from amsa.engine.backends import open_session
from amsa.engine.profiling import machine, peaks, sensors
from amsa.engine.profiling.sensors import Sensors


def test_the_matrix_product_is_one() -> None:
    graph = peaks._matmul_graph()
    onnx.checker.check_model(onnx.load_from_string(graph))
    a, b = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones((3, 4), np.float32)
    (found,) = open_session(machine.Path("m"), "MatMul", graph, 1).run(None, {"a": a, "b": b})
    np.testing.assert_array_equal(found, a @ b)


def test_rates_are_of_the_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that says what each call takes: 4 s, 2 s, then 3 s."""
    times = iter([0.0, 0.0, 4.0, 4.0, 6.0, 6.0, 9.0, 99.0])
    monkeypatch.setattr(peaks.time, "perf_counter", lambda: next(times))
    monkeypatch.setattr(peaks, "SECONDS", 50.0)
    monkeypatch.setattr(peaks, "SIDE", 100)
    assert peaks.matmul_gflops(1) == pytest.approx(2 * 100**3 / 1e9 / 2)


def test_all_is_copied_by_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peaks, "SECONDS", 0.01)
    monkeypatch.setattr(peaks, "COPIED", (1 << 20) + 1)
    copied: list[int] = []
    copyto = np.copyto
    monkeypatch.setattr(peaks.np, "copyto", lambda to, source: copied.append(to.size) or copyto(to, source))
    assert peaks.copy_gbs(3) > 0
    assert sum(copied[:3]) == (1 << 20) + 1


class Nvml(ModuleType):
    """pynvml as far as it is used; a card is a number."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    class NVMLError(Exception):
        pass

    def __init__(self, cards: int, mine: int | None = None) -> None:
        super().__init__("pynvml")
        self.cards, self.mine, self.clocks = cards, mine, iter(range(1000, 100_000))

    def nvmlInit(self) -> None:
        if not self.cards:
            raise self.NVMLError("Driver Not Loaded")

    def nvmlDeviceGetCount(self) -> int:
        return self.cards

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetComputeRunningProcesses(self, card: int) -> list[Any]:
        return [SimpleNamespace(pid=os.getpid() if card == self.mine else -1)]

    def nvmlDeviceGetClockInfo(self, card: int, which: int) -> int:
        return next(self.clocks) if which == self.NVML_CLOCK_SM else 7000 + card

    def nvmlDeviceGetTemperature(self, card: int, which: int) -> int:
        return 60 + card

    def nvmlDeviceGetPowerUsage(self, card: int) -> int:
        raise self.NVMLError("Not Supported")


@pytest.mark.parametrize(("cards", "mine", "card"), [(1, None, 0), (3, 2, 2)])
def test_sensors_of_the_card_in_use(cards: int, mine: int | None, card: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Nvml(cards, mine))
    monkeypatch.setattr(sensors, "INTERVAL", 0.001)
    found = Sensors()
    assert found.missing == ""
    for _ in range(2):
        with found.watch():
            while len(found.readings["clock MHz"]) < 3:
                pass
    clocks = found.readings["clock MHz"]
    summary = found.summary()
    assert summary["clock MHz"] == (1000, float(np.median(clocks)), clocks[-1])
    assert summary["memory clock MHz"] == (7000 + card,) * 3
    assert summary["temperature C"] == (60 + card,) * 3
    assert "power W" not in summary  # it has no such sensor


@pytest.mark.parametrize(
    ("nvml", "reason"),
    [
        (None, "pynvml is not installed; install it with: pip install 'amsa[profile]'"),
        (Nvml(0), "NVML says Driver Not Loaded"),
        (Nvml(2), "NVML knows several cards, and not which of them this process uses"),
    ],
)
def test_no_sensors(nvml: Nvml | None, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    found = Sensors()
    assert found.missing == f"no clocks, temperature and power: {reason}"
    with found.watch():
        pass
    assert found.summary() == {}


def test_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = machine.machine(3)
    assert facts["threads"] == "3"
    assert int(facts["cores"]) >= 1
    assert facts["numpy"] == np.__version__
    assert machine.machine(None)["threads"] == facts["cores"]
    assert machine.processor(["flags\t: a", "model name\t: A: B", "model name\t: C"]) == "A: B"
    assert machine.processor([]) != ""
    cores = int(facts["cores"])
    monkeypatch.setattr(os, "getloadavg", lambda: (cores + 0.5, 0, 0))
    note = machine.load_note()
    assert note is not None
    assert f"load average {cores + 0.5:.1f} on {cores} cores" in note
    monkeypatch.setattr(os, "getloadavg", lambda: (cores, 0, 0))
    assert machine.load_note() is None
