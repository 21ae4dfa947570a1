"""What a device reaches at best, measured where the pictures were made: float32 matrix products, and copies."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..backends import open_session

if TYPE_CHECKING:
    from ..gpu.backend import TensorRTBackend
    from ..gpu.lane import Lane

SIDE = 1536
"""Of the square matrices: 7 GFLOP a product, enough for tens of threads, a fifth of a second on a slow core."""
COPIED = 1 << 27
"""Bytes of a copy: more than caches hold."""
SECONDS = 1.5
"""Everything is repeated for so long, and the best counts: other work may be running."""

_FLOAT = 1  # TensorProto.FLOAT
_OPSET = 17


def matmul_gflops(threads: int | None) -> float:
    """10^9 floating-point operations per second, two for a multiply-accumulate, of ONNX Runtime's float32 MatMul."""
    session = open_session(Path("MatMul"), "MatMul", _matmul_graph(), threads)
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((SIDE, SIDE), np.float32) for _ in range(2))
    return 2 * SIDE**3 / 1e9 / _best(lambda: session.run(None, {"a": a, "b": b}))


def copy_gbs(threads: int | None) -> float:
    """10^9 bytes per second that are read and written together when memory is copied by so many threads; None: one per core."""
    count = threads or os.cpu_count() or 1
    source, target = np.ones(COPIED, np.uint8), np.zeros(COPIED, np.uint8)
    parts = list(zip(np.array_split(target, count), np.array_split(source, count), strict=True))
    with ThreadPoolExecutor(count) as pool:
        return 2 * COPIED / 1e9 / _best(lambda: list(pool.map(lambda part: np.copyto(*part), parts)))


def device_copy_gbs(backend: TensorRTBackend) -> float:
    """The same of a GPU's own memory."""
    with backend.call() as lane:
        return 2 * COPIED / 1e9 / _best(_device_copy(lane))


def _device_copy(lane: Lane) -> Callable[[], None]:
    source, target = (lane.empty((1, 1, 1024, COPIED // 4096), np.float32) for _ in range(2))

    def copy() -> None:
        lane.copy(target, source)
        lane.synchronize()

    return copy


def _best(work: Callable[[], object]) -> float:
    """Seconds."""
    work()
    best, end = float("inf"), time.perf_counter() + SECONDS
    while (begin := time.perf_counter()) < end:
        work()
        best = min(best, time.perf_counter() - begin)
    return best


def _matmul_graph() -> bytes:
    """An ONNX file with the one node c = a @ b: the runtime has no onnx to write it with. Field numbers are onnx.proto's."""

    def field(number: int, value: int | bytes) -> bytes:  # numbers and lengths below 128, which take a byte
        if isinstance(value, int):
            return bytes((number << 3, value))
        return bytes((number << 3 | 2, len(value))) + value

    def tensor(name: bytes) -> bytes:  # ValueInfoProto: name, type.tensor_type: elem_type, shape of two free dimensions
        return field(1, name) + field(2, field(1, field(1, _FLOAT) + field(2, 2 * field(1, b""))))

    node = field(1, b"a") + field(1, b"b") + field(2, b"c") + field(4, b"MatMul")
    graph = field(1, node) + field(2, b"g") + field(11, tensor(b"a")) + field(11, tensor(b"b")) + field(12, tensor(b"c"))
    return field(1, 8) + field(7, graph) + field(8, field(2, _OPSET))
