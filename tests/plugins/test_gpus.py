"""The table of cards agrees with itself: published rates follow from multiprocessors, clocks and what one does in a cycle."""

from __future__ import annotations

import re

import pytest

from amsa.plugins.gpus import GPUS, RTX_2080_TI, Gpu
from amsa.plugins.kernel_report import roofline

LANES = {"sm75": 64, "sm80": 64, "sm86": 128, "sm89": 128, "sm90": 128, "sm120": 128}
"""Single-precision lanes of a multiprocessor (CUDA programming guide, throughput of arithmetic instructions)."""
TENSOR = {"sm75": 1024, "sm80": 2048, "sm86": 1024, "sm89": 1024, "sm90": 4096, "sm120": 1024}
"""Dense FP16 operations of its tensor cores in a cycle (whitepapers)."""


@pytest.fixture(params=GPUS, ids=lambda gpu: gpu.name)
def gpu(request: pytest.FixtureRequest) -> Gpu:
    card: Gpu = request.param
    return card


def test_rates_follow_from_the_clock(gpu: Gpu) -> None:
    assert gpu.cores == gpu.sms * LANES[gpu.sm]
    assert gpu.fp32 / 1e12 == pytest.approx(gpu.fp32_tflops, rel=0.02)
    clock = 1.83 if gpu.name == "H100" else gpu.boost_ghz  # of its tensor rates, as its source says
    assert gpu.fp16_tensor_tflops == pytest.approx(gpu.sms * TENSOR[gpu.sm] * clock / 1e3, rel=0.02)
    assert gpu.int8_tensor_tops == pytest.approx(2 * gpu.fp16_tensor_tflops, rel=0.03)


def test_geforce_sums_in_fp32_at_half_the_rate(gpu: Gpu) -> None:
    share = 0.5 if gpu.name.startswith("RTX") else 1
    assert gpu.fp16_tensor_fp32_tflops == pytest.approx(share * gpu.fp16_tensor_tflops, rel=0.02)


def test_figures_are_in_their_units(gpu: Gpu) -> None:
    assert 1 < gpu.boost_ghz < 3
    assert 200 < gpu.memory_gbs < 5000
    assert 8 <= gpu.memory_gb <= 100
    assert 3 <= gpu.l2_mb <= 128
    assert gpu.pcie_gbs in (15.75, 31.5, 63)
    assert re.search(r"whitepaper|datasheet", gpu.source)


def test_every_card_once() -> None:
    assert len({gpu.name for gpu in GPUS}) == len(GPUS) >= 12


def test_the_kernel_report_uses_it() -> None:
    assert roofline(616e9, 68 * 64 * 2 * 1.545e9) == (1, 1, 0.5)
    assert roofline(1, 0, RTX_2080_TI) == roofline(1, 0)
