"""How long a kernel takes on a card: at its peak rates, and at efficiencies that are stated for its kind. Not measured."""

from __future__ import annotations

from dataclasses import dataclass

from ...plugins import DEFORMABLE_SAMPLE
from ...plugins.gpus import Gpu
from .graph_kernels import FLOAT_MATCHING, FLOAT_PRODUCT, INT8_MATCHING, MEMORY, WIDE, Kernel
from .picture_work import COPY

LAUNCH_US = 2.0
"""Microseconds between the work of a kernel and that of the next: launch from a CUDA graph, the first blocks' start, the last
one's end. Assumed."""
L2_FACTOR = 3.0
"""How much faster the L2 cache is than the memory. Assumed."""
_DP4A = 64 * 4 * 2
"""Operations on 8-bit integers of a multiprocessor and cycle: 64 times four multiply-adds. Assumed for all cards."""


@dataclass(frozen=True)
class Efficiency:
    """What share of a card's peak rates kernels of a kind reach, (lowest, highest): of its arithmetic, and of what moves data."""

    what: str
    compute: tuple[float, float]
    memory: tuple[float, float]


_STREAMING = (0.5, 0.85)

EFFICIENCIES = {
    "half product": Efficiency(f"FP16 convolutions with {WIDE} output channels or more", (0.35, 0.7), _STREAMING),
    "narrow half product": Efficiency("FP16 convolutions with fewer", (0.15, 0.5), _STREAMING),
    "int8 product": Efficiency(f"INT8 convolutions with {WIDE} output channels or more", (0.35, 0.7), _STREAMING),
    "narrow int8 product": Efficiency("INT8 convolutions with fewer", (0.15, 0.5), _STREAMING),
    FLOAT_PRODUCT: Efficiency("FP32 convolutions, no TF32", (0.2, 0.6), _STREAMING),
    MEMORY: Efficiency("everything else that is not ours", (1, 1), _STREAMING),
    FLOAT_MATCHING: Efficiency("PatchMatch, which gathers", (0.1, 0.4), (0.1, 0.4)),
    INT8_MATCHING: Efficiency("PatchMatch in int8, which gathers", (0.1, 0.4), (0.1, 0.4)),
    DEFORMABLE_SAMPLE.name: Efficiency("DeformableSample, which gathers and writes a stream", (0.1, 0.4), (0.3, 0.7)),
    COPY: Efficiency("copies between host and GPU", (1, 1), (0.6, 0.85)),
}
"""By kind of kernel."""


@dataclass(frozen=True)
class Cost:
    """Milliseconds: at the peak, and at the highest and lowest efficiency. `bound`: "compute" or "memory", at the peak."""

    roofline: float
    low: float
    high: float
    bound: str

    @property
    def middle(self) -> float:
        return (self.low + self.high) / 2


def cost(kernel: Kernel, gpu: Gpu) -> Cost:
    """Of a kernel's launches together, without `LAUNCH_US`. What fits into the L2 cache is taken to be read and written there,
    except at the lowest efficiency."""
    fast, slow = _arithmetic(kernel.kind, gpu)
    operations, efficiency = 2e3 * kernel.macs, EFFICIENCIES[kernel.kind]
    bandwidth = gpu.pcie_gbs * 1e9 if kernel.kind == COPY else gpu.bandwidth
    moved = 1e3 * kernel.bytes / bandwidth
    cached = kernel.kind != COPY and kernel.bytes / kernel.launches <= gpu.l2_mb * 2**20
    least = moved / L2_FACTOR if cached else moved
    compute = operations / fast
    return Cost(
        roofline=max(compute, least),
        low=max(compute / efficiency.compute[1], least / efficiency.memory[1]),
        high=max(operations / slow / efficiency.compute[0], moved / efficiency.memory[0]),
        bound="compute" if compute > least else "memory",
    )


def _arithmetic(kind: str, gpu: Gpu) -> tuple[float, float]:
    """Operations per second at the peak: with the faster and the slower kind of sums."""
    if kind.endswith("half product") or (kind.endswith("int8 product") and gpu.sm == "sm75"):
        return gpu.fp16_tensor_tflops * 1e12, gpu.fp16_tensor_fp32_tflops * 1e12
    if kind.endswith("int8 product"):
        return (gpu.int8_tensor_tops * 1e12,) * 2
    if kind == INT8_MATCHING:
        return (_DP4A * gpu.sms * gpu.boost_ghz * 1e9,) * 2
    return (gpu.fp32,) * 2


def assumptions(gpu: Gpu) -> list[str]:
    """Every number that was put in, in a sentence each."""
    return [
        f"{gpu.name} ({gpu.sm}): {gpu.sms} multiprocessors at {gpu.boost_ghz} GHz, {gpu.memory_gb:g} GB at {gpu.memory_gbs:g} "
        f"GB/s, L2 cache of {gpu.l2_mb:g} MB, PCIe {gpu.pcie_gbs:g} GB/s. Its TFLOPS are {gpu.fp32 / 1e12:.1f} in FP32, and on "
        f"tensor cores in FP16 {gpu.fp16_tensor_tflops:g} summed in FP16 and {gpu.fp16_tensor_fp32_tflops:g} summed in FP32; its "
        f"TOPS {gpu.int8_tensor_tops:g} in INT8. Source: {gpu.source}.",
        "The card holds its boost clock.",
        *(_share(kind) for kind in EFFICIENCIES),
        "FP16 products are summed in FP16 in the low figure and in FP32 in the high one: TensorRT chooses on the card.",
        *(["INT8 convolutions run as FP16, as TensorRT-RTX does on SM 7.5."] if gpu.sm == "sm75" else []),
        f"What fits into the L2 cache moves {L2_FACTOR:g} times as fast as memory does, but not in the high figure.",
        f"8-bit dot products of PatchMatch: {_DP4A} operations a multiprocessor and cycle, without tensor cores.",
        f"{LAUNCH_US:g} us are lost between one kernel and the next.",
        "Kernels run one after the other.",
        "Each byte is read and written once per kernel. What is computed element by element behind a convolution (bias, "
        "activation, residual sum) is in its kernel, as TensorRT fuses it; chains of other operators are one kernel.",
        "Features turn between NCHW and channels-last where a graph begins or ends.",
        "PatchMatch compares all nine candidates in every step, though equal ones are skipped.",
        "What the host computes (scaling, padding, fusion weights) and waits for is not in it.",
    ]


def _share(kind: str) -> str:
    def percent(of: tuple[float, float]) -> str:
        return f"{of[0]:.0%} to {of[1]:.0%}"

    e = EFFICIENCIES[kind]
    if kind in (MEMORY, COPY):
        return f"Of the bandwidth {percent(e.memory)}: {e.what}."
    return f"Of peak arithmetic {percent(e.compute)}, of bandwidth {percent(e.memory)}: {e.what}."
