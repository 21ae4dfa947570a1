"""Every number of the published network that the golden files hold.

AMSA_GOLDEN_DIR names the folder; without it, the subset in tests/golden is used, which has no network weights. Files and the
cases in them are found by pattern: further files of the same kinds are tested as they are.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from amsa.engine.metrics import compare_pictures
from amsa.model import AMSA, AMSAConfig, convert_published
from amsa.model.checkpoints import published_from_state, rename_published
from amsa.model.matching import fusion_weights
from amsa.model.resample import upscale_bilinear, upscale_nearest
from amsa.plugins.deformable_sample.reference import tap_positions
from amsa.plugins.patch_match.reference import Patches, candidates, hand_over, propagate
from amsa.plugins.patch_match.schedule import Step, level_valid, steps

pytestmark = pytest.mark.golden

COMMITTED = Path(__file__).parent / "golden"
GOLDEN = Path(os.environ.get("AMSA_GOLDEN_DIR") or COMMITTED)
WEIGHTS = "golden_weights.safetensors"
# What conversion calls the three published files, and their prefixes in the golden weights.
PARTS = {"extractor": "net_extractor.", "values": "net_map.", "restoration": "net_g."}

RELEVANCE = {"rtol": 0, "atol": 2e-5}
OPERATOR = {"rtol": 0, "atol": 1e-5}
RESTORATION = {"rtol": 0, "atol": 1e-4}
PICTURE = {"rtol": 0, "atol": 1e-3}


class Golden:
    """One golden file, or the keys of it that begin with a prefix."""

    def __init__(self, path: Path, prefix: str = "") -> None:
        self.prefix = prefix
        with np.load(path) as file:
            self.arrays = {k.removeprefix(prefix): file[k] for k in file.files if k.startswith(prefix)}

    def __getitem__(self, key: str) -> Tensor:
        """Floating-point arrays as float32, whole numbers as int64."""
        array = self.arrays[key]
        return torch.from_numpy(array.astype(np.float32 if array.dtype.kind == "f" else np.int64))

    def picture(self, key: str) -> Tensor:
        """A uint8 RGB picture as the networks take it."""
        return self[key].float().permute(2, 0, 1)[None] / 255

    def matching(self, pattern: str) -> list[re.Match[str]]:
        """The keys that match a pattern as a whole."""
        found = [m for k in self.arrays if (m := re.fullmatch(pattern, k))]
        assert found, f"no key like {pattern}"
        return found

    def pair(self, key: str, first: str = "y", second: str = "x") -> tuple[Tensor, Tensor]:
        return self[f"{key}{first}"], self[f"{key}{second}"]


def cases(files: str, marker: str = "") -> list[Any]:
    """(file, prefix) for every file, or for every prefix that stands before the key `marker` in it."""
    found: list[Any] = []
    for path in sorted(GOLDEN.glob(files)):
        with np.load(path) as file:
            prefixes = [k.removesuffix(marker) for k in file.files if k.endswith(marker)] if marker else [""]
        found += [pytest.param(path, p, id=f"{path.stem}-{p.rstrip('_')}".rstrip("-")) for p in prefixes]
    return found or [pytest.param(None, "", marks=pytest.mark.skip(f"no {files} in the golden folder"))]


@cache
def golden_weights() -> dict[str, Tensor] | None:
    """The network's weights: beside the golden files, else in a folder beside theirs, else in tests/golden."""
    from safetensors.torch import load_file

    for folder in (GOLDEN, *sorted(p.parent for p in GOLDEN.parent.glob(f"*/{WEIGHTS}")), COMMITTED):
        if (folder / WEIGHTS).is_file():
            return dict(load_file(folder / WEIGHTS))
    return None


@pytest.fixture(scope="module")
def network() -> AMSA:
    weights = golden_weights()
    if weights is None:
        pytest.skip(f"no {WEIGHTS} in the golden folder (11 MB, not in the repository): set AMSA_GOLDEN_DIR")
    state: dict[str, Tensor] = {}
    for kind, prefix in PARTS.items():
        part = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        state |= rename_published(part, kind, WEIGHTS)
    return published_from_state(state, WEIGHTS)


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def assert_close(actual: Tensor, expected: Tensor, bound: dict[str, float], what: str) -> None:
    torch.testing.assert_close(actual.float(), expected.float(), **bound, msg=lambda m: f"{what}: {m}")


def assert_indices(actual: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], what: str) -> None:
    """Every (y, x) equal."""
    assert actual[0].numel() == expected[0].numel(), what
    for a, e in zip(actual, expected, strict=True):
        a = a.reshape(e.shape)
        assert torch.equal(a, e), f"{what}: {int((a != e).sum())} of {e.numel()} differ"


def test_the_golden_folder_is_there() -> None:
    assert GOLDEN.is_dir(), f"AMSA_GOLDEN_DIR is {GOLDEN}, which is not a folder"
    assert list(GOLDEN.glob("*.npz")), f"no golden files in {GOLDEN}"
    if GOLDEN == COMMITTED:
        assert {"metrics", "pm_steps", "pm_full", "flow", "dcn"} <= {p.stem for p in GOLDEN.glob("*.npz")}


# ------------------------------------------------------------------------------------------------ PatchMatch


@pytest.mark.parametrize(("path", "prefix"), cases("pm_steps*.npz", "feat_in"))
def test_steps(path: Path, prefix: str) -> None:
    golden = Golden(path, prefix)
    ref = golden["feat_ref"][None]
    patches = Patches(golden["feat_in"][None], ref, torch.tensor([ref.shape[2:]]), int(golden["pad"]))
    y, x = (i[None] for i in golden.pair("init_"))
    assert_close(patches.score(y, x)[0], golden["S_init"], RELEVANCE, "S_init")
    for m in golden.matching(r"((prop|ref)_k(\d+)(?:_i(\d+))?)_candx"):
        name, kind, dilation, iteration = m[1], m[2], int(m[3]), int(m[4] or 0)
        step = Step(kind == "prop", dilation, 0 if kind == "prop" else iteration % dilation)
        assert_indices(candidates(step, y, x, patches.count, wrap=True), golden.pair(f"{name}_cand"), f"{name} candidates")
        *best, score = propagate(patches, step, y, x, wrap=True)
        assert_indices((best[0], best[1]), golden.pair(f"{name}_"), name)
        assert_close(score[0], golden[f"{name}_S"], RELEVANCE, f"{name}_S")


@pytest.mark.parametrize(("path", "prefix"), cases("pm_steps*.npz", "feat_in"))
def test_steps_in_a_row(path: Path, prefix: str) -> None:
    golden = Golden(path, prefix)
    ref = golden["feat_ref"][None]
    patches = Patches(golden["feat_in"][None], ref, torch.tensor([ref.shape[2:]]), int(golden["pad"]))
    for m in golden.matching(r"(level_n(\d+)_in(\d+)_ref(\d+))_idx"):
        name, iterations, lr_max, ref_max = m[1], *map(int, m.groups()[1:])
        y, x = (i[None] for i in golden.pair("init_"))
        score, done = torch.empty(0), 0
        for iteration in range(iterations):
            lr = [Step(True, 2**t) for t in range(lr_max.bit_length())]
            for step in lr + [Step(False, 2**t, iteration % 2**t) for t in range(ref_max.bit_length())]:
                y, x, score = propagate(patches, step, y, x, wrap=True)
                expected = golden[f"{name}_tracey"][done], golden[f"{name}_tracex"][done]
                assert_indices((y, x), expected, f"{name}, step {done}")
                done += 1
        assert done == len(golden[f"{name}_tracex"]), f"{name}: the trace has other steps"
        width = int(patches.count[0, 1])
        assert_indices((y, x), (golden[f"{name}_idx"] // width, golden[f"{name}_idx"] % width), f"{name}_idx")
        assert_close(score[0], golden[f"{name}_S"], RELEVANCE, f"{name}_S")


def full_levels(golden: Golden) -> dict[int, tuple[Tensor, Tensor]]:
    """Query and reference by level (0 is the finest), as the matcher takes them."""
    found = {}
    for m in golden.matching(r"in(\d+)"):
        pair = golden[f"in{m[1]}"][None], golden[f"ref{m[1]}"][None]
        found[int(m[1]).bit_length() - 1] = tuple(F.normalize(t, dim=1) for t in pair) if m[1] == "1" else pair
    return dict(sorted(found.items(), reverse=True))


@pytest.mark.parametrize(("path", "prefix"), cases("pm_full*.npz", "rand_x"))
def test_coarse_to_fine(path: Path, prefix: str) -> None:
    golden = Golden(path, prefix)
    levels = full_levels(golden)
    valid = torch.tensor([golden["ref1"].shape[1:]], dtype=torch.int32)
    size = [level_valid(int(v), max(levels)) for v in valid[0]]
    init = torch.stack([(r * (n - 1)).round() for r, n in zip(golden.pair("rand_"), size, strict=True)])[None].int()
    relevance = torch.empty(0)
    for number, (level, (query, ref)) in enumerate(levels.items()):
        name, pad = f"L{number}", int(level > 0)
        iterations, lr_max, ref_max = golden[f"{name}_params"][:3].tolist()
        path_of_level = steps("published", iterations, level, tuple(query.shape[2:]), tuple(valid[0].tolist()))
        assert max(s.dilation for s in path_of_level if s.lr) == lr_max, name
        assert max(s.dilation for s in path_of_level if not s.lr) == ref_max, name
        start = init[:, 0].long(), init[:, 1].long()
        if number:
            coarse, count = ([[level_valid(int(v), k) - 2 * (k == 0) for v in valid[0]]] for k in (level + 1, level))
            start = hand_over(init.long(), True, pad, torch.tensor(coarse), torch.tensor(count))
        assert_indices(start, golden.pair(f"{name}_init_"), f"{name}_init")
        a = {"iterations": iterations, "schedule": "published", "level": level, "pad": pad, "init_scale": 2 if number else 1}
        init, relevance = torch.ops.amsa.patch_match(query, ref, valid, init, **a)
        assert_indices((init[:, 0], init[:, 1]), golden.pair(f"{name}_out_"), f"{name}_out")
    width = int(valid[0, 1]) - 2
    assert torch.equal((init[0, 0] * width + init[0, 1]).long(), golden["max_idx"])
    assert_close(relevance[0, 0], golden["relevance"], RELEVANCE, "relevance")


@pytest.mark.parametrize(("path", "prefix"), cases("pm_full*.npz", "exh_idx"))
def test_exhaustive_search(path: Path, prefix: str) -> None:
    golden = Golden(path, prefix)
    query, ref = full_levels(golden)[0]
    patches = Patches(query, ref, torch.tensor([ref.shape[2:]]), 0)
    height, width = patches.count[0].tolist()
    place = torch.zeros(1, patches.height, patches.width, dtype=torch.int64)
    best = torch.full(place.shape, -torch.inf)
    index = place
    for i in range(height * width):
        score = patches.score(place + i // width, place + i % width)
        index = torch.where(score > best, i, index)
        best = torch.maximum(score, best)
    assert torch.equal(index[0], golden["exh_idx"])
    assert_close(best[0], golden["exh_relevance"], RELEVANCE, "exh_relevance")


# ------------------------------------------------------------------------------------------------ flow and sampling


def match_field(index: Tensor) -> Tensor:
    """A published index (its width is the field's own) as our match: anchors from -2 on, int32 [1, 2, h+2, w+2]."""
    rows, cols = index.shape
    grid = torch.meshgrid(torch.arange(-2, rows + 2), torch.arange(-2, cols + 2), indexing="ij")
    match = torch.stack(grid)
    match[:, 2:-2, 2:-2] = torch.stack((index // cols, index % cols))
    return match[None].int()


@pytest.mark.parametrize(("path", "prefix"), cases("flow*.npz", "max_idx"))
def test_flow(path: Path, prefix: str) -> None:
    golden = Golden(path, prefix)
    match = match_field(golden["max_idx"])
    rows, cols = golden["flow"].shape[1:3]
    own = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij"))
    assert torch.equal((match[:, :, 2:, 2:] - own).permute(0, 2, 3, 1).flip(-1), golden["flow"])
    tap_rows, tap_cols = (torch.arange(9) // 3 - 1).view(9, 1, 1), (torch.arange(9) % 3 - 1).view(9, 1, 1)
    for m in golden.matching(r"relu(\d)_1"):
        scale = 2 ** (3 - int(m[1]))
        positions = tap_positions(match, scale)
        y = positions[:, 0] - torch.arange(scale * rows).view(-1, 1) - tap_rows
        x = positions[:, 1] - torch.arange(scale * cols) - tap_cols
        assert torch.equal(torch.stack((x, y), -1), golden[m[0]]), m[0]
    padded = F.pad(golden["relevance"][None, None], (1, 1, 1, 1))
    assert torch.equal(upscale_nearest(padded), golden["max_val"])


@pytest.mark.parametrize(("path", "prefix"), cases("dcn*.npz", "pre_offset"))
def test_deformable_operators(path: Path, prefix: str) -> None:
    golden = Golden(path, prefix)
    x, groups = golden["x"], int(golden["groups"])
    feat = golden["feat"] if golden["feat"].numel() else x
    learned = F.conv2d(feat, golden["com_weight"], golden["com_bias"], padding=1)
    pre = golden["pre_offset"].float().permute(0, 1, 4, 2, 3).flip(2).flatten(1, 2)  # [N, 9 * (y, x), H, W]
    offset = pre.repeat(1, groups, 1, 1)
    if learned.shape[1] == 27 * groups:
        offset = offset + learned[:, : 18 * groups]
    logits = learned[:, -9 * groups :]
    assert_close(offset, golden["offset"], OPERATOR, "offset")
    assert_close(logits.sigmoid(), golden["mask"], OPERATOR, "mask")
    batch, channels, rows, cols = x.shape
    own = match_field(torch.arange((rows - 2) * (cols - 2)).view(rows - 2, cols - 2)).expand(batch, -1, -1, -1)
    samples = torch.ops.amsa.deformable_sample(x, own, torch.cat((offset, logits), 1), scale=1, groups=groups)
    weight = golden["weight"].permute(0, 2, 3, 1).reshape(-1, 9 * channels, 1, 1)
    assert_close(F.conv2d(samples, weight, golden["bias"]), golden["y"], OPERATOR, "y")
