"""PyTorch's modes make the picture that the torch backend makes; and what is around stages and copies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from amsa import AmsaError
from amsa.engine.backends import SHIPPED_MODEL, Execution, TorchBackend
from amsa.engine.images import Photo
from amsa.engine.metrics import compare_pictures
from amsa.engine.profiling import torch_modes
from amsa.engine.profiling.contenders import write_untrained
from amsa.engine.profiling.pictures import make_pictures
from amsa.engine.profiling.torch_modes import MODES, TorchMode, TorchOnGpu
from amsa.engine.profiling.watching import COPIES, WatchedBackend
from amsa.engine.upscaler import Upscaler

CHECKPOINT = SHIPPED_MODEL.with_suffix(".safetensors")


@pytest.fixture(scope="module")
def photos() -> tuple[Photo, list[Photo]]:
    return make_pictures((18, 17), [(70, 66)])


@pytest.fixture(scope="module")
def expected(photos: tuple[Photo, list[Photo]]) -> Photo:
    return Upscaler.on(TorchBackend(CHECKPOINT, 1)).upscale_photo(*photos)


def test_tensors_that_stay_on_a_device_make_the_same_picture(photos: tuple[Photo, list[Photo]], expected: Photo) -> None:
    backend = TorchOnGpu(CHECKPOINT, 1, "torch", "cpu")
    found = Upscaler.on(backend).upscale_photo(*photos)
    assert np.array_equal(found.rgb, expected.rgb)
    with backend.call() as on:
        made = on.run("encode_lr", {"lr": on.to_device(np.zeros((1, 3, 16, 16), np.float32))})
        assert {type(tensor).__name__ for tensor in made.values()} == {"Tensor"}
        assert on.to_host(on.zeros((2, 3), np.float16)).dtype == np.float16


def test_half_precision(photos: tuple[Photo, list[Photo]], expected: Photo) -> None:
    backend = TorchMode(CHECKPOINT, 1, "torch-fp16")
    assert backend.precision == "fp16"
    found = Upscaler.on(backend).upscale_photo(*photos)
    assert 45 < compare_pictures(found.rgb, expected.rgb).psnr_rgb < 120


def test_what_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """The modules are handed to torch.compile, each; compiling takes minutes."""
    backend = TorchMode(CHECKPOINT, 1, "torch-compile")
    assert {type(module).__name__ for _, module in backend._stages.values()} == {"OptimizedModule"}
    monkeypatch.setattr(torch_modes, "find_compiler", lambda: None)
    with pytest.raises(AmsaError, match=r"torch\.compile needs a C\+\+ compiler, and there is none"):
        TorchMode(CHECKPOINT, 1, "torch-compile")


def test_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for mode in MODES:
        with pytest.raises(AmsaError, match="finds no GPU; install one that is built for CUDA"):
            TorchOnGpu(CHECKPOINT, 1, mode)


def test_an_untrained_network(tmp_path: Path) -> None:
    path = write_untrained("small", tmp_path)
    backend = TorchBackend(path, 1)
    assert (backend.config.variant, backend.trained) == ("small", False)


def test_stages_and_copies_are_seen(photos: tuple[Photo, list[Photo]], expected: Photo) -> None:
    seen: Counter[str] = Counter()

    @contextmanager
    def around(what: str, on: Execution) -> Iterator[None]:
        on.synchronize()
        yield
        seen[what] += 1

    watched = WatchedBackend(TorchBackend(CHECKPOINT, 1), around)
    assert np.array_equal(Upscaler.on(watched).upscale_photo(*photos).rgb, expected.rgb)
    assert (seen["encode_ref"], seen["match"], seen["encode_lr"], seen["finish"]) == (5, 5, 1, 1)
    assert seen[COPIES] > 5
