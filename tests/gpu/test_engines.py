"""Engines on a GPU: TensorRT against ONNX Runtime, stage by stage and as a picture; replay, threads, growth, latency.

Runs by itself on the first machine that has a GPU and a TensorRT; nothing here has run yet.
"""

from __future__ import annotations

import statistics
import threading
import time
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

from amsa import Upscaler
from amsa.engine.backends import SHIPPED_ENGINE_MODEL, SHIPPED_MODEL
from amsa.engine.demo import load_pair, shrink
from amsa.engine.gpu.cuda import open_cuda
from amsa.engine.images import Photo
from amsa.engine.metrics import psnr
from amsa.engine.stage_comparison import compare_stages
from amsa.engine.tensorrt_build import build_engines
from amsa.engine.tensorrt_module import RUNTIMES

from .device import is_real, missing

_why = missing() or ("" if is_real() else "no real GPU")
_runtimes = [runtime for runtime, module in RUNTIMES.items() if find_spec(module)]
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(_why) or not _runtimes, reason=_why or "no TensorRT")]

MODELS = {"fp32": SHIPPED_MODEL, "fp16": SHIPPED_ENGINE_MODEL}
PSNR = {"fp32": 55.0, "fp16": 48.0}


@pytest.fixture(scope="module", params=[(runtime, p) for runtime in _runtimes for p in MODELS], ids="-".join)
def on_gpu(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Upscaler]:
    """(precision, upscaler on engines built for this machine)."""
    runtime, precision = request.param
    folder = tmp_path_factory.mktemp(f"{runtime}-{precision}")
    build_engines(MODELS[precision], ["native"], runtime=runtime, output=folder)
    return precision, Upscaler(MODELS[precision], "tensorrt", engines=folder)


@pytest.fixture(scope="module")
def photos() -> tuple[Photo, Photo]:
    truth, ref = load_pair()
    return Photo(shrink(truth)[0].rgb[:75, :90]), Photo(ref.rgb[:300, :330])


def test_every_stage_is_onnx_runtimes(on_gpu: tuple[str, Upscaler], photos: tuple[Photo, Photo]) -> None:
    """Each stage gets what ONNX Runtime made of the one before, so that a difference is its own."""
    precision, upscaler = on_gpu
    lr, ref = photos
    differences = compare_stages(Upscaler(MODELS[precision], "onnxruntime", skip=0), upscaler, lr, [ref])
    for d in differences:
        print(f"{d.stage} {d.tensor}: largest {d.largest:.1e} of at most {d.bound:.1e}, mean {d.mean:.1e}, {d.psnr:.1f} dB")
    assert [d for d in differences if not d.holds] == []


def test_the_picture_is_onnx_runtimes(on_gpu: tuple[str, Upscaler], photos: tuple[Photo, Photo]) -> None:
    precision, upscaler = on_gpu
    lr, ref = photos
    expected = Upscaler(MODELS[precision], "onnxruntime").upscale_photo(lr, [ref])
    found = upscaler.upscale_photo(lr, [ref])
    print(f"{psnr(found.rgb, expected.rgb):.1f} dB between TensorRT and ONNX Runtime")
    assert psnr(found.rgb, expected.rgb) >= PSNR[precision]


def test_repeated_calls_are_equal(on_gpu: tuple[str, Upscaler], photos: tuple[Photo, Photo]) -> None:
    """Warm-up, capture and replay, with other pictures of the same size between."""
    _, upscaler = on_gpu
    lr, ref = photos
    other = Photo(np.ascontiguousarray(lr.rgb[::-1]))
    encoded = upscaler.encode_reference(ref)
    first, first_other = upscaler.upscale_photo(lr, [encoded]), upscaler.upscale_photo(other, [encoded])
    for _ in range(5):
        assert np.array_equal(upscaler.upscale_photo(lr, [encoded]).rgb, first.rgb)
        assert np.array_equal(upscaler.upscale_photo(other, [encoded]).rgb, first_other.rgb)


def test_two_threads(on_gpu: tuple[str, Upscaler], photos: tuple[Photo, Photo]) -> None:
    _, upscaler = on_gpu
    lr, ref = photos
    encoded = upscaler.encode_reference(ref)
    pictures = [lr, Photo(np.ascontiguousarray(lr.rgb[::-1]))]
    wanted = [upscaler.upscale_photo(p, [encoded]).rgb for p in pictures]
    wrong: list[Any] = []

    def work(i: int) -> None:
        try:
            wrong.extend(
                i for _ in range(10) if not np.array_equal(upscaler.upscale_photo(pictures[i], [encoded]).rgb, wanted[i])
            )
        except BaseException as e:
            wrong.append(e)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.slow
def test_nothing_grows(on_gpu: tuple[str, Upscaler], photos: tuple[Photo, Photo]) -> None:
    _, upscaler = on_gpu
    encoded = upscaler.encode_reference(Photo(photos[1].rgb[:64, :64]))
    lr = Photo(photos[0].rgb[:16, :16])
    cuda = open_cuda()
    with cuda.current():
        for _ in range(100):
            upscaler.upscale_photo(lr, [encoded])
        before, _ = cuda.memory()
        for _ in range(10_000):
            upscaler.upscale_photo(lr, [encoded])
        after, _ = cuda.memory()
    assert before - after <= 2 << 20  # what the driver takes in one piece


def test_latency(on_gpu: tuple[str, Upscaler], photos: tuple[Photo, Photo]) -> None:
    """Prints the figures (`pytest -s -m gpu`); the only bound known yet is the CPU of the same machine."""
    precision, upscaler = on_gpu
    lr, ref = photos
    cpu = Upscaler(MODELS[precision], "onnxruntime")
    on_cpu = cpu.encode_reference(ref)
    cpu.upscale_photo(lr, [on_cpu])
    begin = time.perf_counter()
    cpu.upscale_photo(lr, [on_cpu])
    bound = time.perf_counter() - begin
    encoded = upscaler.encode_reference(ref)
    seconds = []
    for _ in range(60):
        begin = time.perf_counter()
        upscaler.upscale_photo(lr, [encoded])
        seconds.append(time.perf_counter() - begin)
    late = sorted(seconds[10:])
    p50, p90 = statistics.median(late), late[int(0.9 * len(late))]
    print(f"{upscaler.device}, {upscaler.kernels}, {precision}: p50 {1e3 * p50:.1f} ms, p90 {1e3 * p90:.1f} ms")
    assert p50 < bound
