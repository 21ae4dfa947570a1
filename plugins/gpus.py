"""Cards and what NVIDIA publishes of them: `gpus.toml`, in SI units."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Gpu:
    """A card at the boost clock of its reference design; real cards run faster or slower, and slower when they are hot.

    Attributes:
        name: without the maker's, and without "GeForce".
        sm: compute capability, as "sm75".
        sms, cores: multiprocessors, and their single-precision lanes together.
        boost_ghz: clock that the rates are given for.
        memory_gb, memory_gbs: size of its memory, and bandwidth in 10^9 bytes/s.
        l2_mb: last cache before the memory, in 2^20 bytes.
        fp32_tflops: single precision, as published: 2 operations a core and cycle (`fp32`, which is not rounded).
        fp16_tensor_tflops, fp16_tensor_fp32_tflops: dense half-precision matrix products, summed in half and in single precision.
        int8_tensor_tops: dense products of 8-bit integers.
        pcie_gbs: of its slot in one direction, in 10^9 bytes/s.
        source: where the figures are published.
    """

    name: str
    sm: str
    sms: int
    cores: int
    boost_ghz: float
    memory_gb: float
    memory_gbs: float
    l2_mb: float
    fp32_tflops: float
    fp16_tensor_tflops: float
    fp16_tensor_fp32_tflops: float
    int8_tensor_tops: float
    pcie_gbs: float
    source: str

    @property
    def fp32(self) -> float:
        """Single-precision operations per second; a multiply-add counts two."""
        return self.cores * 2 * self.boost_ghz * 1e9

    @property
    def bandwidth(self) -> float:
        """Bytes per second to and from its memory."""
        return self.memory_gbs * 1e9


GPUS = tuple(Gpu(**row) for row in tomllib.loads(Path(__file__).with_name("gpus.toml").read_text())["gpu"])
"""All that are known, by generation."""
RTX_2080_TI = next(gpu for gpu in GPUS if gpu.name == "RTX 2080 Ti")
