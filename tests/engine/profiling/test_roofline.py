"""Prices by hand, and what would halve a time."""

from __future__ import annotations

import re
from typing import Any

import pytest

from amsa.engine.backends import SHIPPED_ENGINE_MODEL
from amsa.engine.profiling.estimate import estimate, find_gpu
from amsa.engine.profiling.graph_kernels import Kernel
from amsa.engine.profiling.halving import Priced, to_halve
from amsa.engine.profiling.picture_work import Sizes, Workload
from amsa.engine.profiling.roofline import EFFICIENCIES, Cost, cost
from amsa.manifest import ModelFolder
from amsa.plugins.gpus import GPUS, RTX_2080_TI


@pytest.fixture(scope="module")
def small() -> ModelFolder:
    return ModelFolder.open(SHIPPED_ENGINE_MODEL)


# ------------------------------------------------------------------------------------------------ prices


def kernel(kind: str, macs: float = 0, size: float = 0, launches: int = 1) -> Kernel:
    return Kernel("k", "k", kind, macs, size, launches)


def test_prices_by_hand() -> None:
    compute = cost(kernel("half product", macs=107.6e9 / 2), RTX_2080_TI)
    assert compute.bound == "compute"
    assert (compute.roofline, compute.low, compute.high) == pytest.approx(
        (1, 1 / 0.7, 2 / 0.35)
    )  # sums in FP32 take twice as long
    memory = cost(kernel("memory", size=616e6), RTX_2080_TI)
    assert memory.bound == "memory"
    assert (memory.roofline, memory.low, memory.high) == pytest.approx((1, 1 / 0.85, 2))
    cached = cost(kernel("memory", size=616e6, launches=200), RTX_2080_TI)  # 3 MB a launch, and the cache has 5.5
    assert (cached.roofline, cached.low, cached.high) == pytest.approx((1 / 3, 1 / 3 / 0.85, 2))
    pcie = cost(kernel("PCIe copy", size=15.75e6), RTX_2080_TI)
    assert (pcie.roofline, pcie.high) == pytest.approx((1, 1 / 0.6))
    floats = cost(kernel("float32 product", macs=RTX_2080_TI.fp32 / 2e3), RTX_2080_TI)
    assert floats.roofline == pytest.approx(1)


def test_int8_is_half_on_turing_alone() -> None:
    work = kernel("int8 product", macs=1e9)
    half = kernel("half product", macs=1e9)
    a100 = find_gpu("A100")
    assert cost(work, RTX_2080_TI) == cost(half, RTX_2080_TI)
    assert cost(work, a100).roofline == pytest.approx(cost(half, a100).roofline / 2)


@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.name)
def test_no_efficiency_beats_the_roofline(gpu: Any, small: ModelFolder) -> None:
    for _, work, _ in Workload(small).of(Sizes((40, 32), [(128, 96)])):
        price = cost(work, gpu)
        assert price.roofline <= price.low <= price.high
    assert all(0 < low <= high <= 1 for e in EFFICIENCIES.values() for low, high in (e.compute, e.memory))


# ------------------------------------------------------------------------------------------------ what would halve it


def test_gains_are_computed() -> None:
    """1 GB of samples, written and read back, among other work on a card that moves 616 MB in a ms."""
    samples = 616_000_000
    sampling = Kernel("s", "deformable_sample_f16", "DeformableSample", 0, samples + 1e6, 1, {}, {"samples": samples})
    conv = Kernel("c", "Conv 1x1 144>16 half", "narrow half product", 0, samples + 1e6, 1, {"samples": samples}, {"y": 1})
    turned = Kernel("t", "Transpose", "memory", 0, 0.5 * samples)
    work = [Priced("restore", k, times, cost(k, RTX_2080_TI)) for k, times in ((sampling, 2), (conv, 2), (turned, 1))]
    lines = to_halve(work, work, RTX_2080_TI)
    low, high = 2 * (1 / 0.7 + 1 / 0.85), 2 * (1 / 0.3 + 1 / 0.5)
    fused = next(line for line in lines if "Fusing" in line)
    assert "1232 MB" in fused
    a, b = (float(x) for x in re.findall(r"saves (\S+) to (\S+) ms", fused)[0])
    assert (a, b) == pytest.approx((low, high), rel=0.01)
    assert any("channels-last between engines, 308 MB of traffic" in line and "0.59 to 1.00 ms" in line for line in lines)
    assert "layers, first s of restore (" in lines[0]
    assert lines[1] == "At the peak rates all kernels take 4.51 ms, with 0.01 ms between: no efficiency halves it."
    assert lines[-1].endswith("enough to halve it, if none gained from what another did.")


def test_what_efficiency_and_fewer_kernels_can_do() -> None:
    work = [Priced("match", kernel("memory", launches=1000), 1, Cost(1, 4, 12, "memory"))]
    lines = to_halve(work, work, RTX_2080_TI)
    assert lines[1].endswith("have to reach 33% of the roofline, and are taken to reach 12% in the middle.")
    assert lines[2:] == [  # 2 ms between and 8 of 10 in the kernels; halved, 3 are left for what takes 1 at the peak
        "Halving the number of kernels, 1000 with 2 us between two: saves 1.00 ms.",
        "Together 10% of the time: not enough to halve it.",
    ]
    only_between = [Priced("match", kernel("memory", launches=1000), 1, Cost(0, 0, 0, "memory"))]
    assert to_halve(only_between, only_between, RTX_2080_TI)[1].endswith("with 2.00 ms between: no efficiency halves it.")


def test_gains_of_the_shipped_model(small: ModelFolder) -> None:
    lines = estimate(small, "rtx2080ti", (300, 200), [(1280, 800)]).to_halve
    gains = {line.split(":")[0].split(",")[0]: line for line in lines}
    assert {"Fusing DeformableSample with the convolution behind it", "Encoding a reference once for many pictures"} <= set(gains)
    assert "Restoring in tiles of 256 LR pixels instead of 128" in gains
    assert any(name.startswith("Restoring from 4 references at a scale instead of 5") for name in gains)
