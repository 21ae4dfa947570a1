"""That the tests for a GPU test something: those of the kernels, run on the CUDA driver that works on the CPU."""

from __future__ import annotations

from pathlib import Path

from ..cuda.cpu_driver import run_on_driver


def test_the_kernels_tests() -> None:
    run_on_driver(Path(__file__).with_name("test_kernels.py"))
