"""The published network, from its weights: the restoration with given matches, and a pair of photos to the picture."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from amsa.engine.metrics import compare_pictures
from amsa.model import AMSA, AMSAConfig, convert_published
from amsa.model.checkpoints import published_from_state, rename_published
from amsa.model.features import unit
from amsa.model.matching import fusion_weights
from amsa.model.resample import upscale_bilinear, upscale_nearest
from amsa.stages import KEY_LEVELS, SCALE

WEIGHTS = "golden_weights.safetensors"
# What conversion calls the three published files, and their prefixes in the golden weights.
PARTS = {"extractor": "net_extractor.", "values": "net_map.", "restoration": "net_g."}

RELEVANCE = {"rtol": 0, "atol": 2e-5}
RESTORATION = {"rtol": 0, "atol": 1e-4}
PICTURE = {"rtol": 0, "atol": 1e-3}


def golden_weights(folder: Path) -> dict[str, Tensor] | None:
    """The network's weights: with the golden files, else in a folder beside theirs, else in tests/golden."""
    from safetensors.torch import load_file

    beside = sorted(p.parent for p in folder.parent.glob(f"*/{WEIGHTS}"))
    for place in (folder, *beside, Path(__file__).parent / "golden"):
        if (place / WEIGHTS).is_file():
            return dict(load_file(place / WEIGHTS))
    return None


@pytest.fixture(scope="module")
def network(golden_dir: Path) -> AMSA:
    weights = golden_weights(golden_dir)
    if weights is None:
        pytest.skip(f"no {WEIGHTS} (11 MB, not in the repository) in the golden folder: set AMSA_GOLDEN_DIR")
    state: dict[str, Tensor] = {}
    for kind, prefix in PARTS.items():
        part = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        state |= rename_published(part, kind, WEIGHTS)
    return published_from_state(state, WEIGHTS)


def assert_relative(actual: Tensor, expected: Tensor, what: str) -> None:
    """Within 1e-4 of the largest value."""
    bound = 1e-4 * expected.abs().max().item()
    torch.testing.assert_close(actual, expected, rtol=0, atol=bound, msg=lambda m: f"{what}: {m}")


@pytest.mark.golden
def test_config_is_read_off_the_weights(network: AMSA) -> None:
    assert network.config == AMSAConfig.published(16, 2, 4)


@pytest.mark.golden("net_*.npz")
@torch.no_grad()
def test_restoration(golden: Any, network: AMSA) -> None:
    lr = golden["x"]
    content = network.encode_lr.content(lr)
    torch.testing.assert_close(content, golden["content_feat"], **RESTORATION)
    torch.testing.assert_close(upscale_bilinear(lr), golden["base"], **RESTORATION)
    numbers = sorted(int(m[1]) for m in golden.find(r"ref(\d+)_max_idx"))
    relevances = [torch.nn.functional.pad(golden[f"ref{i}_relevance"][None, None], (1, 1, 1, 1)) for i in numbers]
    weights = fusion_weights(relevances, network.config.sharpness)
    torch.testing.assert_close(upscale_nearest(torch.cat(weights, 1)), golden["weights"], **RESTORATION)
    accumulator = torch.zeros(1, content.shape[1], SCALE * lr.shape[2], SCALE * lr.shape[3])
    for i, weight in zip(numbers, weights, strict=True):
        owner = i if f"ref{i}_relu3_1" in golden else 0  # the published values are those of the first reference
        values = tuple(golden[f"ref{owner}_relu{n}_1"] for n in (3, 2, 1))
        masks = tuple(conv(v) for conv, v in zip(network.encode_ref.warp_masks, values, strict=True))
        accumulator = network.restore(content, golden.match(f"ref{i}_max_idx"), weight, values, masks, accumulator)
    torch.testing.assert_close(network.finish(accumulator, lr), golden["y"], **RESTORATION)


@pytest.mark.golden("pipeline_*.npz")
@torch.no_grad()
def test_photos_to_picture(golden: Any, network: AMSA) -> None:
    lr = golden.picture("img_in_lq")
    queries, content = network.encode_lr(lr, golden.picture("img_in_up"))
    for m in golden.find(r"feat_in_(\d+)"):
        expected = golden[m[0]][None]
        level = KEY_LEVELS.index(int(m[1]))
        assert_relative(queries[level], unit(expected) if level == 0 else expected, m[0])

    found, relevances, first = [], [], None
    for i in sorted(int(m[1]) for m in golden.find(r"ref(\d+)_max_idx")):
        picture = golden.picture(f"img_ref{i}" if i else "img_ref")
        keys, values, masks = network.encode_ref(picture)
        for level, n in enumerate(KEY_LEVELS):
            if (name := f"ref{i}_feat_ref_{n}") in golden:
                expected = golden[name][None]
                assert_relative(keys[level], unit(expected) if level == 0 else expected, name)
        if first is None:
            first = values, masks
            assert_values(golden, values)
        init = [golden[f"ref{i}_init_{axis}"] for axis in "yx"]
        for start, axis, size in zip(init, "yx", keys[-1].shape[2:], strict=True):
            assert torch.equal((golden[f"ref{i}_rand_{axis}"] * (size - 1)).round().long(), start)
        valid = torch.tensor([keys[0].shape[2:]], dtype=torch.int32)
        seed = torch.zeros(1, dtype=torch.int32)
        match, relevance = network.match(queries, keys, valid, seed, torch.stack(init)[None].int())
        index = match[0, 0] * (valid[0, 1] - 2) + match[0, 1]
        assert torch.equal(index[2:-2, 2:-2].long(), golden[f"ref{i}_max_idx"]), f"ref{i}_max_idx"
        torch.testing.assert_close(relevance[0, 0, 1:-1, 1:-1], golden[f"ref{i}_relevance"], **RELEVANCE)
        found.append(match)
        relevances.append(relevance)

    assert first is not None
    accumulator = torch.zeros(1, content.shape[1], SCALE * lr.shape[2], SCALE * lr.shape[3])
    for match, weight in zip(found, fusion_weights(relevances, network.config.sharpness), strict=True):
        accumulator = network.restore(content, match, weight, *first, accumulator)
    sr = network.finish(accumulator, lr)[0]
    assert_picture(golden, sr)


def assert_values(golden: Any, values: tuple[Tensor, ...]) -> None:
    """VGG19's features of the first reference, in full or as mean, standard deviation and sum."""
    for m in golden.find(r"vgg_relu(\d)_1(_mean_std_sum)?"):
        value = values[3 - int(m[1])][0].double()
        if m[2]:
            expected = torch.from_numpy(golden.arrays[m[0]])
            actual = torch.stack((value.mean(), value.std(correction=0), value.sum()))
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=0)
        else:
            assert_relative(value.float(), golden[m[0]], m[0])


def assert_picture(golden: Any, sr: Tensor) -> None:
    """The picture, and its quality after rounding to 8 bits."""
    rows, cols = golden["sr"].shape[1:]
    torch.testing.assert_close(sr[:, :rows, :cols], golden["sr"], **PICTURE)
    rows, cols = golden["original_size"].tolist()
    sr8 = (sr[:, :rows, :cols].clamp(0, 1) * 255).round().permute(1, 2, 0).numpy()
    assert np.abs(sr8 - golden.arrays["sr_img_bgr"][..., ::-1].astype(np.float32)).max() <= 1
    truth = golden.arrays["gt_rgb"].astype(np.float32)
    quality = compare_pictures(sr8 / np.float32(255), truth / np.float32(255)).as_dict()
    for name in ("psnr_y", "ssim_y", "psnr_rgb"):
        assert quality[name] == pytest.approx(float(golden.arrays[name]), abs=5e-4), name


# ------------------------------------------------------------------------------------------------ full size


def published_names(path: Path) -> dict[str, dict[str, tuple[tuple[int, ...], torch.dtype]]]:
    """Shapes and types of the published files' tensors, by file and name."""
    files: dict[str, dict[str, tuple[tuple[int, ...], torch.dtype]]] = {}
    for line in path.read_text().splitlines():
        if line.startswith("#"):
            names = files.setdefault(re.split(r"[=:]", line[1:])[0].strip(), {})
        elif line.strip():
            name, shape, dtype = line.split("\t")
            names[name] = ast.literal_eval(shape), getattr(torch, dtype.removeprefix("torch."))
    return files


@pytest.mark.golden
def test_the_published_files_convert(golden_dir: Path, tmp_path: Path) -> None:
    if not (golden_dir / "keys.txt").is_file():
        pytest.skip("no keys.txt in the golden folder: set AMSA_GOLDEN_DIR")
    files = published_names(golden_dir / "keys.txt")
    number, expected = 0, set()
    for file in ("net_g", "net_map", "net_extractor"):
        state = {}
        for name, (shape, dtype) in files[file].items():
            number += 1  # every tensor is filled with its own number, stored once
            state[name] = torch.full((), number, dtype=dtype).expand(shape)
            if re.search(r"\.(weight|bias)$", name):
                expected.add(number)
        torch.save(state, tmp_path / f"{file}.pth")
    model = convert_published(sorted(tmp_path.iterdir()))
    assert model.config == AMSAConfig.published()
    found = [v.unique().tolist() for v in model.state_dict().values()]
    assert sorted(x for numbers in found for x in numbers) == sorted(expected)
