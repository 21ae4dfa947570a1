"""The TensorRT backend with no GPU: on a CUDA driver that works on the CPU, in a process that finds no other."""

from __future__ import annotations

from pathlib import Path

from ..cuda.cpu_driver import run_on_driver


def test_on_the_cpu_driver() -> None:
    run_on_driver(Path(__file__).parent / "on_driver" / "check_tensorrt_backend.py")
