"""A GPU's clocks, temperature and power while it works, as NVML answers; nothing where there is no NVML."""

from __future__ import annotations

import importlib
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from statistics import median
from typing import Any

INTERVAL = 0.1
"""Seconds between two readings; NVML's own are about as old."""
_NONE = "no clocks, temperature and power"


class Sensors:
    """Readings of the card that this process computes on.

    Attributes:
        readings: all so far, by name and unit.
        missing: why there are none, in words; empty where there are.
    """

    def __init__(self) -> None:
        self.readings: dict[str, list[float]] = defaultdict(list)
        self.missing = ""
        self._read: dict[str, Callable[[], float]] = {}
        try:
            nvml: Any = importlib.import_module("pynvml")
        except ModuleNotFoundError:
            self.missing = f"{_NONE}: pynvml is not installed; install it with: pip install 'amsa[profile]'"
            return
        try:
            nvml.nvmlInit()
            card = _card(nvml)
        except nvml.NVMLError as e:
            self.missing = f"{_NONE}: NVML says {e}"
            return
        if card is None:
            self.missing = f"{_NONE}: NVML knows several cards, and not which of them this process uses"
            return
        self._error = nvml.NVMLError
        self._read = {
            "clock MHz": lambda: nvml.nvmlDeviceGetClockInfo(card, nvml.NVML_CLOCK_SM),
            "memory clock MHz": lambda: nvml.nvmlDeviceGetClockInfo(card, nvml.NVML_CLOCK_MEM),
            "temperature C": lambda: nvml.nvmlDeviceGetTemperature(card, nvml.NVML_TEMPERATURE_GPU),
            "power W": lambda: nvml.nvmlDeviceGetPowerUsage(card) / 1e3,
        }

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Read from time to time, beside the work; at least once."""
        if not self._read:
            yield
            return
        done = threading.Event()

        def read() -> None:
            while True:
                for name, sensor in self._read.items():
                    with suppress(self._error):  # a card need not have every sensor
                        value = float(sensor())
                        self.readings[name].append(value)
                if done.wait(INTERVAL):
                    return

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def summary(self) -> dict[str, tuple[float, float, float]]:
        """Minimum, median and maximum by name."""
        return {name: (min(values), median(values), max(values)) for name, values in self.readings.items()}


def _card(nvml: Any) -> Any:
    """The only one, or the one of several that this process has a context on; None: not known, as in a container."""
    cards = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
    if len(cards) == 1:
        return cards[0]
    mine = [card for card in cards if os.getpid() in [p.pid for p in nvml.nvmlDeviceGetComputeRunningProcesses(card)]]
    return mine[0] if len(mine) == 1 else None
