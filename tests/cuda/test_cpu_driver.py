"""The CUDA driver on the CPU, and on it what launches our kernels; all in child processes, as this one must stay without."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from .cpu_driver import run_on_driver

CHECKS = Path(__file__).parent / "on_driver"


@pytest.mark.parametrize("order", ["forward", "reversed"])
def test_driver(order: str) -> None:
    run_on_driver(CHECKS / "check_driver.py", AMSA_TEST_ORDER=order)


@pytest.mark.parametrize("capability", ["7.5", "6.1", "8.9"])
def test_start_and_modules(capability: str) -> None:
    run_on_driver(CHECKS / "check_start.py", AMSA_TEST_COMPUTE_CAPABILITY=capability)


@pytest.mark.parametrize("order", ["forward", "reversed"])
def test_plugins(order: str) -> None:
    run_on_driver(CHECKS / "check_plugins.py", AMSA_TEST_ORDER=order)


@pytest.mark.skipif(find_spec("pycuda") is None, reason="pycuda is not installed")
def test_pycuda() -> None:
    run_on_driver(CHECKS / "check_pycuda.py")
