"""Windows cover a picture once, are equal and within bounds; and what is made in windows is what is made at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from amsa import Upscaler
from amsa.config import AMSAConfig
from amsa.engine.backends import open_backend
from amsa.engine.features import LRFeatures, encode_in_parts
from amsa.engine.images import from_array
from amsa.engine.metrics import psnr
from amsa.engine.tiling import Window, cut, in_windows
from amsa.model import AMSA, save_checkpoint


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """A smooth random picture with detail."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float64)
    return np.asarray(np.clip(smooth + rng.normal(0, 6, smooth.shape), 0, 255), np.uint8)


# ------------------------------------------------------------------------------------------------ windows


def check_windows(windows: list[Window], height: int, width: int, halo: int) -> None:
    covered = np.zeros((height, width), int)
    for w in windows:
        covered[w.own_rows, w.own_cols] += 1
        for seen, own, whole in ((w.rows, w.own_rows, height), (w.cols, w.own_cols, width)):
            assert 0 <= seen.start <= own.start < own.stop <= seen.stop <= whole
            assert seen.start == 0 or own.start - seen.start >= halo
            assert seen.stop == whole or seen.stop - own.stop >= halo
    assert (covered == 1).all()
    assert len({w.area for w in windows}) == 1


@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 9), st.integers(0, 60), st.sampled_from([1, 8]), st.booleans())
def test_windows_cover_a_picture_once(height: int, width: int, halo: int, more: int, multiple: int, by_area: bool) -> None:
    height, width, halo = height * multiple, width * multiple, halo * multiple
    side = 2 * halo + multiple + more
    windows = cut(height, width, halo, multiple=multiple, **({"area": side**2} if by_area else {"side": side}))
    check_windows(windows, height, width, halo)
    assert windows[0].area <= side**2
    for w in windows:
        for part in (w.rows, w.cols, w.own_rows, w.own_cols):
            assert part.start % multiple == part.stop % multiple == 0
        if not by_area:
            assert max(w.rows.stop - w.rows.start, w.cols.stop - w.cols.start) <= side


def test_as_few_positions_as_can_be() -> None:
    # two rows of four, not three of four as tiles of 128 counted from the corner, nor one window too large
    windows = cut(270, 480, 28, side=184)
    assert [len(windows), windows[0].area] == [8, 163 * 162]
    assert len(cut(184, 184, 28, side=184)) == 1
    assert len(cut(185, 184, 28, side=184)) == 2
    assert [w.rows for w in cut(64, 16, 4, area=16 * 24)] == [slice(0, 22), slice(14, 36), slice(28, 50), slice(42, 64)]


def test_windows_that_keep_nothing() -> None:
    with pytest.raises(ValueError, match="keep nothing"):
        cut(100, 100, 28, side=56)
    with pytest.raises(ValueError, match="keep nothing"):
        cut(100, 100, 28, area=55 * 55)


def test_outputs_of_windows_are_put_together() -> None:
    rng = np.random.default_rng(0)
    whole = rng.random((1, 3, 64, 96), dtype=np.float32)
    kinds = {"same": (1, 1), "larger": (4, 1), "smaller": (1, 8)}

    def run(window: Window) -> dict[str, Any]:
        part = whole[:, :, window.rows, window.cols]
        made = {name: part.repeat(n, 2).repeat(n, 3)[:, :, ::m, ::m] for name, (n, m) in kinds.items()}
        return made | {"last": np.ascontiguousarray(part.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)}

    once = run(Window(slice(0, 64), slice(0, 96), slice(0, 64), slice(0, 96)))
    parts = in_windows(cut(64, 96, 8, area=40 * 40, multiple=8), run)
    assert all(np.array_equal(parts[name], once[name]) for name in (*kinds, "last"))
    assert parts["last"].transpose(0, 2, 3, 1).flags.c_contiguous  # laid out as the parts are


# ------------------------------------------------------------------------------------------------ what is encoded in parts


@pytest.fixture(scope="module", params=["shipped", pytest.param("paper", marks=pytest.mark.slow)])
def backend(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    if request.param == "shipped":
        return open_backend()
    model = AMSA(getattr(AMSAConfig, request.param)(8, 1, 4))
    model.reset_parameters(0)
    path = tmp_path_factory.mktemp(request.param) / "m.safetensors"
    save_checkpoint(path, model, {})
    return open_backend(path)


def agree(found: dict[str, Any], expected: dict[str, Any], exact: bool) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].shape == tensor.shape
        # torch's convolutions round differently at other places of a picture
        np.testing.assert_allclose(found[name], tensor, rtol=0, atol=0 if exact else 1e-5 * np.abs(tensor).max(), err_msg=name)


def test_a_reference_in_parts_is_the_same(backend: Any) -> None:
    halo = backend.config.ref_halo
    size = 4 * halo + 96, 2 * halo + 64
    ref = np.random.default_rng(0).random((1, 3, *size), dtype=np.float32)
    seen: list[int] = []

    def run(rows: slice, cols: slice) -> Any:
        seen.append((rows.stop - rows.start) * (cols.stop - cols.start))
        return backend.run("encode_ref", {"ref": np.ascontiguousarray(ref[:, :, rows, cols])})

    windows = cut(*size, halo, area=(2 * halo + 32) * size[1], multiple=32)
    assert len(windows) > 2
    parts = in_windows(windows, lambda w: run(w.rows, w.cols))
    expected = encode_in_parts(size, halo, None, run)
    assert seen[-1] == size[0] * size[1]
    agree(parts, dict(expected), backend.name == "onnxruntime")


def test_lr_in_parts_is_the_same(backend: Any) -> None:
    lr = np.random.default_rng(0).random((1, 3, 320, 128), dtype=np.float32)
    runs: list[tuple[int, ...]] = []

    def run(part: Any) -> Any:
        runs.append(part.shape)
        return backend.run("encode_lr", {"lr": np.ascontiguousarray(part)})

    exact = backend.name == "onnxruntime"
    whole, parts = LRFeatures(lr, backend.config, run), LRFeatures(lr, backend.config, run, area=1)
    assert len(runs) > 2
    agree(dict(parts.queries), dict(whole.queries), exact)
    rows, cols = slice(101, 150), slice(3, 128)
    content = {"content": whole.content(rows, cols)}
    assert content["content"].shape[2:] == (49, 125)
    agree({"content": parts.content(rows, cols)}, content, exact)
    without = LRFeatures(lr, backend.config, run, keep_content=False)
    assert (whole.whole, parts.whole, without.whole) == (True, True, False)
    agree({"content": without.content(rows, cols)}, content, exact)


# ------------------------------------------------------------------------------------------------ pictures


@pytest.fixture(scope="module")
def untiled() -> tuple[Any, Any, NDArray[np.float32]]:
    lr, ref = from_array(picture(90, 100)), from_array(picture(128, 160, 1))
    return lr, ref, Upscaler(tile=1000).upscale_photo(lr, [ref]).rgb


@pytest.mark.parametrize("tile", [16, 24, 40])
def test_tiles_leave_no_seam(untiled: tuple[Any, Any, NDArray[np.float32]], tile: int) -> None:
    lr, ref, whole = untiled
    halo = AMSAConfig.small().halo
    windows = cut(90, 100, halo, side=tile + 2 * halo)
    assert len(windows) > 1
    tiled = Upscaler(tile=tile).upscale_photo(lr, [ref]).rgb
    difference = np.abs(tiled - whole)
    assert difference.max() <= 1e-5  # 106 dB below white, and so 0.01 dB at any quality
    assert psnr(*((255 * x).astype(np.uint8) for x in (tiled, whole))) > 70
    # where one tile ends and the next begins differs no more than elsewhere
    border = np.zeros(whole.shape[:2], bool)
    for w in windows:
        border[[4 * w.own_rows.start, 4 * w.own_rows.stop - 1]] = True
        border[:, [4 * w.own_cols.start, 4 * w.own_cols.stop - 1]] = True
    assert difference[border].mean() <= 2 * difference[~border].mean() + 1e-8


def test_without_the_halo_there_are_seams(
    untiled: tuple[Any, Any, NDArray[np.float32]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lr, ref, whole = untiled
    monkeypatch.setattr(AMSAConfig, "halo", property(lambda _: 2))
    tiled = Upscaler(tile=40).upscale_photo(lr, [ref]).rgb
    assert np.abs(tiled - whole).max() > 1e-3
