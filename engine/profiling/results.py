"""What a profile holds: the one declaration that the measurements fill, and the terminal, JSON and HTML reports read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

FORMAT = 1


@dataclass(frozen=True)
class Latency:
    """Wall times of the timed pictures, in milliseconds, in the order in which they were made; warm-up is not among them."""

    milliseconds: tuple[float, ...]

    def percentile(self, q: float) -> float:
        """The q-th percentile, 0 to 100, linear between values (numpy's default)."""
        return float(np.percentile(self.milliseconds, q))

    @property
    def per_second(self) -> float:
        """Pictures per second, one after the other."""
        return 1e3 * len(self.milliseconds) / sum(self.milliseconds)


@dataclass(frozen=True)
class StageTime:
    """A stage's share of one picture: median milliseconds over all its calls, and how often it is called.

    Stages are those of `stages.py`, and "copies" (host to device and back), "fusion" (weights, on the host), "prepare" (resizing
    and padding), "other" (what is left of the picture's time).
    """

    name: str
    calls: float
    milliseconds: float


@dataclass(frozen=True)
class LayerTime:
    """A layer's, node's or kernel's share of one picture, from a run of its own: profiling slows down what it measures.

    Attributes:
        stage: that it belongs to.
        name: the node's or layer's.
        op: its kind: ONNX operator, TensorRT layer type or ATen operator.
        calls: per picture.
        milliseconds: of all calls together.
        macs: multiply-accumulates of all calls together; None: unknown.
        bytes: that they must at least read and write; None: unknown.
    """

    stage: str
    name: str
    op: str
    calls: float
    milliseconds: float
    macs: float | None = None
    bytes: float | None = None


@dataclass(frozen=True)
class Measured:
    """One way to run the model, measured.

    Attributes:
        label: what the reports call it, as "onnxruntime fp32" or "torch eager fp32".
        backend, device, precision, kernels: as the Upscaler's.
        cpu_ms: CPU milliseconds of all threads together, per picture, in the median.
        first_ms: the first picture's wall time, with all that is made once (sessions, compilation).
        open_ms: opening the model.
        peak_host_mb: peak resident memory of the process that ran it; one process per run.
        peak_device_mb: None on the CPU.
        psnr_to_first: PSNR-RGB between its picture and the first run's, in dB; None: it is the first; infinity: equal.
        sensors: minimum, median and maximum of what NVML answered during the timed pictures, by name ("clock MHz",
            "memory clock MHz", "temperature C", "power W"); empty where there is no NVML.
        peak_gflops, peak_gbs: what this device was measured to reach in the same process, with float32 matrix products and with
            copies; None: not measured.
    """

    label: str
    backend: str
    device: str
    precision: str
    kernels: str
    latency: Latency
    cpu_ms: float
    first_ms: float
    open_ms: float
    peak_host_mb: float
    peak_device_mb: float | None
    psnr_to_first: float | None
    stages: Sequence[StageTime]
    layers: Sequence[LayerTime]
    sensors: dict[str, tuple[float, float, float]]
    peak_gflops: float | None
    peak_gbs: float | None


@dataclass(frozen=True)
class EstimatedLayer:
    """What a layer or kernel needs, and how long that takes at least on a card, at its peak rates.

    Attributes:
        bound: "compute" or "memory": what the roofline says limits it.
        roofline_ms: of all calls for a picture, at the peak.
        low_ms, high_ms: at the best and the worst efficiency that is stated for its kind.
    """

    stage: str
    name: str
    op: str
    calls: float
    macs: float
    bytes: float
    bound: str
    roofline_ms: float
    low_ms: float
    high_ms: float


@dataclass(frozen=True)
class Estimate:
    """Not a measurement: what the roofline of a card gives for the model at these sizes.

    Attributes:
        gpu: the card's full name, and its SM version as in "sm75".
        scratch_mb: device memory that the engines ask for, read from engines built for that card; None: not built.
        to_halve: what would have to improve to halve the time, in a sentence each.
        assumptions: every number that was put in, in a sentence each.
    """

    gpu: str
    sm: str
    precision: str
    layers: Sequence[EstimatedLayer]
    launches: int
    launch_us: float
    scratch_mb: float | None
    to_halve: Sequence[str]
    assumptions: Sequence[str]

    @property
    def low_ms(self) -> float:
        return sum(layer.low_ms for layer in self.layers) + self.launches * self.launch_us / 1e3

    @property
    def high_ms(self) -> float:
        return sum(layer.high_ms for layer in self.layers) + self.launches * self.launch_us / 1e3


@dataclass(frozen=True)
class Profile:
    """All of it.

    Attributes:
        lr, refs: (width, height) in pixels.
        machine: facts, by name: processor, cores, threads, memory, load, versions.
        notes: what the reader must know to read the numbers, a sentence each.
    """

    version: str
    made: str
    model: str
    variant: str
    trained: bool
    lr: tuple[int, int]
    refs: Sequence[tuple[int, int]]
    ref_scales: int
    restored: int
    machine: dict[str, str]
    measured: Sequence[Measured]
    estimates: Sequence[Estimate]
    notes: Sequence[str]

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the fields, and what is derived from them."""
        values = asdict(self) | {"format": FORMAT}
        for entry, run in zip(values["measured"], self.measured, strict=True):
            latency = run.latency
            entry["latency"] |= {f"p{q}": latency.percentile(q) for q in (50, 90, 99)} | {"per_second": latency.per_second}
        for entry, estimate in zip(values["estimates"], self.estimates, strict=True):
            entry |= {"low_ms": estimate.low_ms, "high_ms": estimate.high_ms}
        return values
