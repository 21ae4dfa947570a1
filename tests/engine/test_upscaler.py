"""The pipeline: sizes, kinds, tiles, references, protocols, errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from amsa import AmsaError, Upscaler
from amsa.config import AMSAConfig
from amsa.engine.backends import SHIPPED_MODEL
from amsa.engine.demo import load_pair, shrink
from amsa.engine.images import Photo, from_array, resize_bicubic, to_array
from amsa.engine.metrics import psnr
from amsa.engine.references import common_canvas, prepare_lr, prepare_scales
from amsa.engine.upscaler import Stats
from amsa.model import AMSA, save_checkpoint

SMALL = replace(AMSAConfig.small(), ref_scales=2)
PUBLISHED = replace(AMSAConfig.published(8, 1, 4), ref_scales=2)


def picture(height: int, width: int, seed: int = 0, dtype: type = np.uint8) -> NDArray[Any]:
    """A smooth random picture with detail."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), np.uint8))
    x = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float64) + rng.normal(0, 6, (height, width, 3))
    return (np.clip(x / 255, 0, 1) * np.iinfo(dtype).max).astype(dtype)


def checkpoint(folder: Path, config: AMSAConfig) -> Path:
    """A network whose last convolution, offsets and masks are not zero."""
    model = AMSA(config)
    model.reset_parameters(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "mask" in name or "flow" in name or name.startswith("finish.conv2"):
                std = 0.01 if name.startswith("finish") else 0.03
                p.copy_(std * torch.randn(p.shape, generator=generator))
    path = folder / f"{config.variant}.safetensors"
    save_checkpoint(path, model, {"trained": True})
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("small"), SMALL)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("published"), PUBLISHED)


@pytest.fixture(scope="module")
def upscaler(small: Path) -> Upscaler:
    """Restores from all references: which ones weigh little is a matter of `test_fusion.py`."""
    return Upscaler(small, skip=0)


# ------------------------------------------------------------------------------------------------ sizes and kinds


@pytest.mark.parametrize(("lr", "ref"), [((16, 16), (64, 64)), ((17, 30), (65, 91)), ((33, 16), (64, 130))])
def test_any_size_is_enlarged_four_times(upscaler: Upscaler, lr: tuple[int, int], ref: tuple[int, int]) -> None:
    sr = upscaler.upscale(picture(*lr), [picture(*ref, seed=1)])
    assert isinstance(sr, np.ndarray)
    assert sr.shape == (4 * lr[0], 4 * lr[1], 3)
    # near the picture it came from: shrunk again, it resembles LR
    small = np.asarray(Image.fromarray(sr).resize(lr[::-1], Image.Resampling.BOX), np.float64)
    assert np.abs(small - picture(*lr)).mean() < 30


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [0, 2, 3, 4])
def test_the_same_kind_comes_out(upscaler: Upscaler, dtype: type, channels: int) -> None:
    rgb = picture(16, 18, dtype=dtype)
    alpha = np.full((16, 18, 1), np.iinfo(dtype).max, dtype)
    lr = {0: rgb[..., 0], 2: np.dstack((rgb[..., :1], alpha)), 3: rgb, 4: np.dstack((rgb, alpha))}[channels]
    sr = upscaler.upscale(lr, [picture(64, 64, 1)])
    assert isinstance(sr, np.ndarray)
    assert sr.dtype == dtype
    assert sr.shape == (64, 72, *lr.shape[2:])
    if channels in (2, 4):
        assert (sr[..., -1] == np.iinfo(dtype).max).all()
    if dtype == np.uint16:  # more than 8 bits times 257
        assert (sr.reshape(64, 72, -1)[..., 0] % 257 != 0).any()


def test_pillow_in_pillow_out(upscaler: Upscaler) -> None:
    lr = Image.fromarray(picture(16, 20))
    sr = upscaler.upscale(lr, [Image.fromarray(picture(64, 64, 1))])
    assert isinstance(sr, Image.Image)
    assert sr.size == (80, 64)
    again = upscaler.upscale(np.asarray(lr), [picture(64, 64, 1)])
    assert np.array_equal(np.asarray(sr), again)


def test_metadata_follow_the_lr_photo(upscaler: Upscaler) -> None:
    lr = replace(from_array(picture(16, 16)), icc=b"profile", exif=b"Exif\0\0x")
    sr = upscaler.upscale_photo(lr, [replace(from_array(picture(64, 64, 1)), icc=b"other")])
    assert (sr.icc, sr.exif, sr.bits) == (b"profile", b"Exif\0\0x", 8)


# ------------------------------------------------------------------------------------------------ references


def test_an_encoded_reference_equals_its_photo(upscaler: Upscaler) -> None:
    lr, ref = picture(20, 24), picture(80, 72, 1)
    assert np.array_equal(upscaler.upscale(lr, [ref]), upscaler.upscale(lr, [upscaler.encode_reference(ref)]))


def test_references_of_different_sizes_all_take_part(upscaler: Upscaler) -> None:
    lr, refs = picture(24, 24), [picture(64, 96, 1), picture(100, 70, 2)]
    both = upscaler.upscale(lr, refs)
    assert not np.array_equal(both, upscaler.upscale(lr, refs[:1]))
    assert not np.array_equal(both, upscaler.upscale(lr, refs[1:]))
    # in any order, but for the order of sums and the last bit of rounding
    assert np.abs(both.astype(int) - upscaler.upscale(lr, refs[::-1]).astype(int)).max() <= 1


def test_scales_of_a_reference() -> None:
    rgb = from_array(picture(101, 130)).rgb
    scales = prepare_scales(rgb, replace(SMALL, ref_scales=5), None)
    for i, (pixels, valid) in enumerate(scales):
        height, width = int(101 * 0.8**i), int(130 * 0.8**i)
        assert valid.tolist() == [[height // 4, width // 4]]
        assert valid.dtype == np.int32
        assert pixels.shape == (1, 3, -(-height // 32) * 32, -(-width // 32) * 32)
        # the padding repeats the last row and column
        picture_part = pixels[:, :, :height, :width]
        padding = ((0, 0), (0, 0), (0, pixels.shape[2] - height), (0, pixels.shape[3] - width))
        assert np.array_equal(pixels, np.pad(picture_part, padding, mode="edge"))
    assert np.array_equal(scales[0][0][0, :, :101, :130], rgb.transpose(2, 0, 1))


def test_padding_is_never_matched(upscaler: Upscaler) -> None:
    # a reference whose padding, repeated pixels, would be the best match of a flat LR picture
    lr = prepare_lr(np.full((16, 16, 3), 0.5, np.float32), None)
    photo = picture(70, 70, 1)
    photo[-1], photo[:, -1] = 128, 128
    backend = upscaler.backend_in_use
    pixels, valid = prepare_scales(from_array(photo).rgb, SMALL, None)[0]
    queries, keys = backend.run("encode_lr", {"lr": lr}), backend.run("encode_ref", {"ref": pixels})
    tensors = {k: v for k, v in {**queries, **keys}.items() if k.startswith(("query_", "key_"))}
    for seed in range(3):
        found = backend.run("match", {**tensors, "valid": valid, "seed": np.array([seed], np.int32)})
        match = found["match"][:, :, 2:-2, 2:-2]
        assert match.min() >= 0
        assert match.max() <= 70 // 4 - 3


# ------------------------------------------------------------------------------------------------ tiles, seeds, progress


def test_tiles_change_nothing(small: Path) -> None:
    # the halo is 28 pixels: the middle one of three tiles sees neither end
    lr, refs = from_array(picture(96, 16)), [from_array(picture(64, 64, 1))]
    whole = Upscaler(small, tile=128).upscale_photo(lr, refs).rgb
    tiled = Upscaler(small, tile=16).upscale_photo(lr, refs).rgb
    np.testing.assert_allclose(tiled, whole, atol=1e-5)


def test_equal_seeds_give_equal_pictures(upscaler: Upscaler) -> None:
    lr, refs = picture(40, 40), [picture(160, 160, 1)]
    first = upscaler.upscale(lr, refs, seed=3)
    assert np.array_equal(first, upscaler.upscale(lr, refs, seed=3))
    assert not np.array_equal(first, upscaler.upscale(lr, refs, seed=4))


def test_progress_counts_every_step_once(upscaler: Upscaler) -> None:
    calls: list[tuple[int, int, str]] = []
    stats = Stats()
    lr, refs = from_array(picture(20, 20)), [from_array(picture(64, 64, s)) for s in (1, 2)]
    upscaler.upscale_photo(lr, refs, progress=lambda *call: calls.append(call), stats=stats)
    # 1 LR, and for 2 photos at 2 scales: reading, matching, restoring
    assert [(done, total) for done, total, _ in calls] == [(i, 13) for i in range(13)]
    assert set(stats.seconds) == {"prepare", "encode_ref", "encode_lr", "match", "fusion", "restore", "finish"}
    assert all(s > 0 for s in stats.seconds.values())


# ------------------------------------------------------------------------------------------------ the published protocol


def test_the_published_canvas() -> None:
    assert common_canvas((16, 20), [(70, 200)]) == (64, 192)
    assert common_canvas((17, 20), [(70, 90), (250, 64)]) == (224, 96)


def test_the_published_scales_are_pils() -> None:
    photo = picture(70, 110)
    scales = prepare_scales(from_array(photo).rgb, PUBLISHED, (96, 128))
    image = Image.fromarray(photo[:64, :96])
    for i, (pixels, valid) in enumerate(scales):
        if i:
            image = image.resize((int(96 * 0.8), int(64 * 0.8)), Image.Resampling.BICUBIC)
        expected = np.asarray(image, np.float32)[: image.height // 4 * 4, : image.width // 4 * 4] / 255
        assert valid.tolist() == [[24, 32]]  # all of the canvas may be matched, zeros included
        np.testing.assert_allclose(pixels[0, :, : expected.shape[0], : expected.shape[1]], expected.transpose(2, 0, 1), atol=1e-7)
        assert not pixels[0, :, expected.shape[0] :].any()
        assert not pixels[0, :, :, expected.shape[1] :].any()


def test_published_models_take_other_sizes(published: Path) -> None:
    upscaler = Upscaler(published)
    lr, ref = picture(16, 20), picture(70, 100, 1)
    sr = upscaler.upscale(lr, [ref])
    assert isinstance(sr, np.ndarray)
    assert sr.shape == (64, 80, 3)
    encoded = upscaler.encode_reference(ref, lr_size=(16, 20))
    assert np.array_equal(sr, upscaler.upscale(lr, [encoded]))
    # values of scale 0 for every scale
    assert encoded.scales[1].tensors["value_4"] is encoded.scales[0].tensors["value_4"]
    with pytest.raises(AmsaError, match=r"encoded for \(64, 96\); this picture needs \(128, 96\): encode it again"):
        upscaler.upscale(picture(32, 20), [encoded])
    with pytest.raises(AmsaError, match="give lr_size"):
        upscaler.encode_reference(ref)


def test_published_tiles_change_nothing(published: Path) -> None:
    lr, refs = from_array(picture(48, 16)), [from_array(picture(64, 64, 1))]
    whole = Upscaler(published, tile=128).upscale_photo(lr, refs).rgb
    np.testing.assert_allclose(Upscaler(published, tile=16).upscale_photo(lr, refs).rgb, whole, atol=1e-5)


# ------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda u: u.upscale(picture(16, 16), []), "no reference photo; give at least one"),
        (lambda u: u.upscale(picture(15, 40), [picture(64, 64)]), "LR is 40x15 pixels; at least 16"),
        (lambda u: u.upscale(picture(16, 16), [picture(64, 64), picture(64, 63)]), "reference 2 is 63x64 pixels; at least 64"),
        (lambda u: u.encode_reference(picture(63, 64), name="r.png"), "r.png is 64x63"),
        (lambda u: u.upscale(picture(16, 16), [picture(64, 64)], seed=-1), "seed is -1"),
        (lambda u: u.upscale(picture(16, 16), [picture(64, 64)], seed=2**31), "seed is 2147483648"),
        (lambda u: u.upscale(picture(16, 16).astype(float), [picture(64, 64)]), "dtype float64"),
    ],
)
def test_errors_are_one_line(upscaler: Upscaler, call: Callable[[Upscaler], object], message: str) -> None:
    with pytest.raises(AmsaError, match=message) as caught:
        call(upscaler)
    assert "\n" not in str(caught.value)


def test_a_reference_of_another_protocol_is_refused(upscaler: Upscaler, published: Path) -> None:
    encoded = Upscaler(published).encode_reference(picture(64, 64), lr_size=(16, 16))
    with pytest.raises(AmsaError, match="encoded by a model of another config"):
        upscaler.upscale(picture(16, 16), [encoded])


def test_the_shipped_model_says_whether_it_is_trained() -> None:
    shipped = Upscaler()
    assert shipped.backend == "onnxruntime"
    assert shipped.config == AMSAConfig.small()
    assert isinstance(shipped.trained, bool)
    sr = shipped.upscale_photo(from_array(picture(16, 16)), [from_array(picture(64, 64, 1))])
    assert isinstance(sr, Photo)
    assert np.isfinite(sr.rgb).all()


# ------------------------------------------------------------------------------------------------ what follows the LR photo


def test_gray_is_the_mean_of_the_colours(upscaler: Upscaler) -> None:
    gray = picture(16, 20)[..., 0]
    lr, refs = from_array(gray), [from_array(picture(64, 64, 1))]
    sr = upscaler.upscale_photo(lr, refs)
    coloured = upscaler.upscale_photo(replace(lr, gray=False), refs)
    assert (sr.gray, coloured.gray) == (True, False)
    assert np.abs(coloured.rgb - coloured.rgb.mean(2, keepdims=True)).max() > 1e-3  # the reference's colours show
    np.testing.assert_allclose(sr.rgb, np.repeat(coloured.rgb.mean(2, keepdims=True), 3, 2), atol=1e-6)


def test_alpha_is_enlarged_by_pils_bicubic(upscaler: Upscaler) -> None:
    alpha = np.maximum(picture(16, 20, seed=3)[..., 0], 1)  # all of it can be seen
    lr, refs = picture(16, 20), [picture(64, 64, 1)]
    sr = upscaler.upscale(np.dstack((lr, alpha)), refs)
    assert isinstance(sr, np.ndarray)
    assert np.array_equal(sr[..., :3], upscaler.upscale(lr, refs))  # what lies under it does not change
    image = Image.fromarray(alpha.astype(np.float32)).resize((80, 64), Image.Resampling.BICUBIC)
    assert np.abs(sr[..., 3] - np.clip(np.asarray(image), 0, 255)).max() <= 0.51


def test_what_transparent_pixels_hide_does_not_show(upscaler: Upscaler) -> None:
    lr, ref = picture(24, 32), picture(80, 96, 1)
    alpha = np.zeros((24, 32, 1), np.uint8)
    alpha[5:20, 4:17] = 255
    ref_alpha = np.full((80, 96, 1), 255, np.uint8)
    ref_alpha[:, 60:] = 0
    found = []
    for hidden in (0, 255):
        rgba = np.dstack([np.where(alpha > 0, lr, np.uint8(hidden)), alpha])
        ref_rgba = np.dstack([np.where(ref_alpha > 0, ref, np.uint8(hidden)), ref_alpha])
        found.append(upscaler.upscale(rgba, [ref_rgba]))
        np.testing.assert_array_equal(upscaler.upscale(rgba, [upscaler.encode_reference(ref_rgba)]), found[-1])
    np.testing.assert_array_equal(*found)


def test_consistent_results_are_the_lr_photo_when_shrunk(small: Path) -> None:
    lr, ref = picture(40, 48), picture(96, 80, 1)
    off = {}
    for consistent in (False, True):
        sr = from_array(Upscaler(small, consistent=consistent).upscale(lr, [ref]))
        off[consistent] = np.abs(resize_bicubic(sr.rgb, 40, 48) - from_array(lr).rgb).mean()
    assert off[True] < off[False] / 2


def test_a_visible_references_alpha_and_depth_do_not_matter(upscaler: Upscaler) -> None:
    lr, ref = picture(16, 20), picture(64, 64, 1)
    expected = upscaler.upscale(lr, [ref])
    alpha = np.maximum(picture(64, 64, 2)[..., :1], 1)  # all of it can be seen
    for same in (np.dstack((ref, alpha)), ref.astype(np.uint16) * 257, Image.fromarray(ref)):
        assert np.array_equal(upscaler.upscale(lr, [same]), expected)
    gray = ref[..., 0]
    assert np.array_equal(upscaler.upscale(lr, [gray]), upscaler.upscale(lr, [np.dstack((gray,) * 3)]))


@pytest.mark.parametrize("metadata", [{"trained": False}, {}])
def test_untrained_weights_say_so(tmp_path: Path, upscaler: Upscaler, metadata: dict[str, bool]) -> None:
    assert upscaler.trained
    save_checkpoint(tmp_path / "m.safetensors", AMSA(SMALL), metadata)
    assert not Upscaler(tmp_path / "m.safetensors").trained


# ------------------------------------------------------------------------------------------------ tiles, exactly


HALO_CONFIGS = {
    "small": SMALL,
    "shallow": replace(SMALL, blocks=(1, 1, 1, 1)),
    "paper": AMSAConfig.paper(8, 2, 4),
    "published": PUBLISHED,
}


@pytest.mark.parametrize("name", HALO_CONFIGS)
def test_the_halo_is_as_far_as_a_pixel_sees(tmp_path: Path, name: str) -> None:
    """Everything beyond the halo is NaN, which no convolution forgives: the tile must not have seen it."""
    config = HALO_CONFIGS[name]
    upscaler = Upscaler(checkpoint(tmp_path, config))
    halo, width = upscaler.config.halo, 16
    tile, height = slice(halo + 4, halo + 8), 2 * halo + 12
    rng = np.random.default_rng(0)

    def tensor(channels: int, scale: int = 1) -> NDArray[np.float32]:
        return rng.normal(size=(1, channels, scale * height, scale * width)).astype(np.float32)

    scales = tuple(zip((1, 2, 4), config.value_channels, strict=True))
    inputs = {f"value_{s}": tensor(c, s) for s, c in scales}
    if config.warp_mask_from_ref:
        inputs |= {f"warp_mask_{s}": tensor(9, s) for s, _ in scales}
    inputs["match"] = np.stack(np.meshgrid(np.arange(-2, height), np.arange(-2, width), indexing="ij"))[None].astype(np.int32)
    inputs["weight"] = np.ones((1, 1, height, width), np.float32)
    inputs["accumulator"] = np.zeros((1, config.channels[-1], 4 * height, 4 * width), np.float32)
    content, lr = tensor(config.content_channels), tensor(3)

    def restored(seen: int) -> NDArray[np.float32]:
        """The tile, where only so many pixels above and below it are known."""
        unknown = np.ones(height, bool)
        unknown[max(0, tile.start - seen) : tile.stop + seen] = False
        known = {k: np.where(unknown[:, None], np.float32(np.nan), v) for k, v in (("content", content), ("lr", lr))}
        accumulator = upscaler.backend_in_use.run("restore", inputs | {"content": known["content"]})["accumulator_out"]
        sr = upscaler.backend_in_use.run("finish", {"accumulator": accumulator, "lr": known["lr"]})["sr"]
        return sr[:, :, 4 * tile.start : 4 * tile.stop]

    whole = restored(height)
    assert np.isfinite(whole).all()
    assert np.array_equal(restored(halo), whole)
    assert not np.isfinite(restored(halo - 8)).all()  # nor is it much larger than needed: by 5 to 7 pixels


@pytest.mark.parametrize("tile", [0, -1, -128])
def test_a_tile_has_pixels(small: Path, tile: int) -> None:
    with pytest.raises(AmsaError, match=f"tile is {tile}"):
        Upscaler(small, tile=tile)


def test_progress_counts_tiles_and_spares_encoded_references(small: Path) -> None:
    upscaler, calls = Upscaler(small, tile=10, skip=0), []
    refs = [upscaler.encode_reference(picture(64, 64, 1)), from_array(picture(64, 96, 2))]
    upscaler.upscale_photo(from_array(picture(70, 68)), refs, progress=lambda *call: calls.append(call))
    # 1 LR, 2 scales to read of the photo, 4 to match, and 4 tiles of each: a halo of 28 pixels on the inner sides
    assert [(done, total) for done, total, _ in calls] == [(i, 23) for i in range(23)]
    assert [sum(what in c[2] for c in calls) for what in ("reading a reference", "matching", "restoring")] == [2, 4, 16]


# ------------------------------------------------------------------------------------------------ encoded references


def test_a_published_reference_larger_than_the_picture_is_encoded_once(published: Path) -> None:
    upscaler = Upscaler(published)
    lr, ref = picture(16, 16), picture(128, 100, 1)
    encoded = upscaler.encode_reference(ref, lr_size=(16, 16))
    assert encoded.canvas == (128, 96)
    assert np.array_equal(upscaler.upscale(lr, [encoded]), upscaler.upscale(lr, [ref]))


def test_a_reference_encoded_by_another_network_is_refused(upscaler: Upscaler, tmp_path: Path) -> None:
    others = {"paper": replace(AMSAConfig.paper(8, 1, 4), ref_scales=2), "small": replace(SMALL, ref_scales=3)}
    for name, config in others.items():
        (tmp_path / name).mkdir()
        encoded = Upscaler(checkpoint(tmp_path / name, config)).encode_reference(picture(64, 64, 1))
        with pytest.raises(AmsaError, match="encode it again"):
            upscaler.upscale(picture(16, 16), [encoded])


# ------------------------------------------------------------------------------------------------ the smallest scale


@pytest.mark.parametrize(("ref_scales", "ref_factor"), [(9, 0.8), (50, 0.8), (2, 0.1)])
def test_scales_that_leave_nothing_to_match_are_refused(ref_scales: int, ref_factor: float) -> None:
    with pytest.raises(AmsaError, match="config: ref_scales"):
        replace(SMALL, ref_scales=ref_scales, ref_factor=ref_factor)


def test_the_smallest_scale_that_can_be_matched(tmp_path: Path) -> None:
    upscaler = Upscaler(checkpoint(tmp_path, replace(SMALL, ref_scales=8)))  # 64 * 0.8^7 = 13 pixels: 3 rows and columns
    assert np.shape(upscaler.upscale(picture(16, 16), [picture(64, 64, 1)])) == (64, 64, 3)


# ------------------------------------------------------------------------------------------------ the shipped model


def test_the_shipped_weights_are_the_checkpoints() -> None:
    import onnx
    from safetensors.numpy import load_file

    folder = SHIPPED_MODEL
    graphs = [onnx.load(path).graph for path in folder.glob("*.onnx")]
    exported = [onnx.numpy_helper.to_array(i) for graph in graphs for i in graph.initializer]
    known = {a.tobytes() for a in exported if a.dtype == np.float32}
    weights = load_file(folder.with_suffix(".safetensors"))
    assert len(weights) > 50
    weights = {name: w.astype(np.float32) for name, w in weights.items()}
    for name in weights:
        if name.endswith("softness"):  # exported as the factor that it is used as
            weights[name] = np.exp(weights[name])
    assert [name for name, w in weights.items() if w.tobytes() not in known] == []


@pytest.fixture(scope="module")
def motorcycle() -> tuple[Photo, NDArray[Any], NDArray[Any]]:
    """LR, truth and reference: a part of the demo's photos."""
    pytest.importorskip("skimage")
    left, right = (to_array(photo) for photo in load_pair())
    truth, ref = left[128:288, 200:360], right[128:288, 170:330]
    return shrink(from_array(truth.copy()))[0], truth, ref.copy()


def test_the_shipped_model_takes_detail_from_the_reference(motorcycle: tuple[Photo, NDArray[Any], NDArray[Any]]) -> None:
    lr, truth, ref = motorcycle
    shipped = Upscaler()

    def quality(reference: NDArray[Any]) -> float:
        return psnr(to_array(shipped.upscale_photo(lr, [from_array(reference)])), truth)

    bicubic = psnr(to_array(Photo(resize_bicubic(lr.rgb, 160, 160))), truth)
    nothing, second_view, itself = quality(np.full_like(truth, 128)), quality(ref), quality(truth.copy())
    assert bicubic + 0.5 < nothing + 0.5 < second_view < itself  # measured: 21.2, 22.1, 23.3, 23.8 dB


def test_another_seed_gives_nearly_the_same_picture(motorcycle: tuple[Photo, NDArray[Any], NDArray[Any]]) -> None:
    lr, _, ref = motorcycle
    shipped = Upscaler(skip=0)
    first, again, *others = (to_array(shipped.upscale_photo(lr, [from_array(ref)], seed=s)) for s in (0, 0, 1, 2**31 - 2))
    assert np.array_equal(first, again)
    for other in others:
        assert 35 < psnr(first, other) < np.inf  # measured: 44 to 52 dB; 40 to 42 on the whole photo
