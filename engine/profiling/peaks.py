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
    """An ONNX file with the one node c = a @ b."""
    from onnx import TensorProto, helper

    a, b, c = (helper.make_tensor_value_info(name, TensorProto.FLOAT, (None, None)) for name in "abc")
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["c"])], "peak", [a, b], [c])
    opset = helper.make_opsetid("", _OPSET)
    return bytes(helper.make_model(graph, ir_version=8, opset_imports=[opset]).SerializeToString())
