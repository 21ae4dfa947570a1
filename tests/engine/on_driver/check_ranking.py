"""Ranking with TensorRT engines gives what ONNX Runtime gives. Run by test_ranking.py in a process of its own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from amsa import Upscaler
from amsa.engine.images import Photo
from amsa.engine.ranking import rank

from .check_tensorrt_backend import exported, fresh_driver, model, on_cpu, opened, photos

__all__ = ["exported", "fresh_driver", "model", "on_cpu", "opened", "photos"]


def test_the_order_is_onnx_runtimes(
    opened: Callable[..., Upscaler],
    photos: tuple[Photo, Photo, Photo],
    on_cpu: Upscaler,
) -> None:
    lr, *refs = photos
    flat = Photo(np.full((70, 90, 3), 0.5, np.float32))
    candidates = [flat, *refs]
    assert rank(opened().backend_in_use, lr, candidates) == rank(on_cpu.backend_in_use, lr, candidates)
