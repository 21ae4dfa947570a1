"""PatchMatch and the deformable operators against every number of the published code that the golden files hold.

Files and the cases in them are found by pattern (see conftest.py): further files of the same kinds are tested as they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import amsa.plugins.torch_ops  # noqa: F401
from amsa.model.resample import upscale_nearest
from amsa.plugins.deformable_sample.reference import tap_positions
from amsa.plugins.patch_match.reference import Patches, candidates, hand_over, patch_match, propagate
from amsa.plugins.patch_match.schedule import Step, level_valid, steps

from .cuda import ops
from .cuda.harness import missing

RELEVANCE = {"rtol": 0, "atol": 2e-5}
OPERATOR = {"rtol": 0, "atol": 1e-5}


def assert_close(actual: Tensor, expected: Tensor, bound: dict[str, float], what: str) -> None:
    torch.testing.assert_close(actual.float(), expected.float(), **bound, msg=lambda m: f"{what}: {m}")


def assert_indices(actual: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], what: str) -> None:
    """Every (y, x) equal."""
    assert actual[0].numel() == expected[0].numel(), what
    for a, e in zip(actual, expected, strict=True):
        a = a.reshape(e.shape)
        assert torch.equal(a, e), f"{what}: {int((a != e).sum())} of {e.numel()} differ"


@pytest.mark.golden
def test_the_golden_folder_holds_data(golden_dir: Path) -> None:
    assert list(golden_dir.glob("*.npz")), f"no golden files in {golden_dir}"


@pytest.mark.golden
def test_the_committed_subset_is_whole() -> None:
    files = {p.name: p.stat().st_size for p in (Path(__file__).parent / "golden").iterdir()}
    assert {"metrics.npz", "pm_steps.npz", "pm_full.npz", "flow.npz", "dcn.npz"} <= set(files)
    assert sum(files.values()) < 2_000_000


# ------------------------------------------------------------------------------------------------ PatchMatch


@pytest.mark.golden("pm_steps*.npz", "_feat_in")
def test_steps(golden: Any) -> None:
    ref = golden["feat_ref"][None]
    patches = Patches(golden["feat_in"][None], ref, torch.tensor([ref.shape[2:]]), int(golden["pad"]))
    y, x = (i[None] for i in golden.yx("init_"))
    assert_close(patches.score(y, x)[0], golden["S_init"], RELEVANCE, "S_init")
    for m in golden.find(r"((prop|ref)_k(\d+)(?:_i(\d+))?)_candx"):
        name, kind, dilation, iteration = m[1], m[2], int(m[3]), int(m[4] or 0)
        step = Step(kind == "prop", dilation, 0 if kind == "prop" else iteration % dilation)
        assert_indices(candidates(step, y, x, patches.count, wrap=True), golden.yx(f"{name}_cand"), f"{name} candidates")
        *best, score = propagate(patches, step, y, x, wrap=True)
        assert_indices((best[0], best[1]), golden.yx(f"{name}_"), name)
        assert_close(score[0], golden[f"{name}_S"], RELEVANCE, f"{name}_S")


@pytest.mark.golden("pm_steps*.npz", "_feat_in")
def test_steps_in_a_row(golden: Any) -> None:
    ref = golden["feat_ref"][None]
    patches = Patches(golden["feat_in"][None], ref, torch.tensor([ref.shape[2:]]), int(golden["pad"]))
    for m in golden.find(r"(level_n(\d+)_in(\d+)_ref(\d+))_idx"):
        name, iterations, lr_max, ref_max = m[1], *map(int, m.groups()[1:])
        y, x = (i[None] for i in golden.yx("init_"))
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


def full_levels(golden: Any) -> dict[int, tuple[Tensor, Tensor]]:
    """Query and reference by level (0 is the finest), as the matcher takes them."""
    found = {}
    for m in golden.find(r"in(\d+)"):
        pair = golden[f"in{m[1]}"][None], golden[f"ref{m[1]}"][None]
        found[int(m[1]).bit_length() - 1] = tuple(F.normalize(t, dim=1) for t in pair) if m[1] == "1" else pair
    return dict(sorted(found.items(), reverse=True))


def cuda_kernels(*tensors: Tensor, **attributes: Any) -> tuple[Tensor, Tensor]:
    """The CUDA kernels, executed on the CPU."""
    if reason := missing():
        pytest.skip(reason)
    return ops.patch_match(ops.device("patch_match"), *tensors, **attributes)


@pytest.mark.golden("pm_full*.npz", "_rand_x")
@pytest.mark.parametrize("match", [torch.ops.amsa.patch_match, patch_match, cuda_kernels], ids=["op", "reference", "cuda"])
def test_coarse_to_fine(golden: Any, match: Any) -> None:
    levels = full_levels(golden)
    valid = torch.tensor([golden["ref1"].shape[1:]], dtype=torch.int32)
    size = [level_valid(int(v), max(levels)) for v in valid[0]]
    init = torch.stack([(r * (n - 1)).round() for r, n in zip(golden.yx("rand_"), size, strict=True)])[None].int()
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
        assert_indices(start, golden.yx(f"{name}_init_"), f"{name}_init")
        a = {"iterations": iterations, "schedule": "published", "level": level, "pad": pad, "init_scale": 2 if number else 1}
        init, relevance = match(query, ref, valid, init, **a)
        assert_indices((init[:, 0], init[:, 1]), golden.yx(f"{name}_out_"), f"{name}_out")
    width = int(valid[0, 1]) - 2
    assert torch.equal((init[0, 0] * width + init[0, 1]).long(), golden["max_idx"])
    assert_close(relevance[0, 0], golden["relevance"], RELEVANCE, "relevance")


@pytest.mark.golden("pm_full*.npz", "_exh_idx")
def test_exhaustive_search(golden: Any) -> None:
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


@pytest.mark.golden("flow*.npz", "_max_idx")
def test_flow(golden: Any) -> None:
    match = golden.match("max_idx")
    rows, cols = golden["flow"].shape[1:3]
    own = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij"))
    assert torch.equal((match[:, :, 2:, 2:] - own).permute(0, 2, 3, 1).flip(-1), golden["flow"])
    tap_rows, tap_cols = (torch.arange(9) // 3 - 1).view(9, 1, 1), (torch.arange(9) % 3 - 1).view(9, 1, 1)
    for m in golden.find(r"relu(\d)_1"):
        scale = 2 ** (3 - int(m[1]))
        positions = tap_positions(match, scale)
        y = positions[:, 0] - torch.arange(scale * rows).view(-1, 1) - tap_rows
        x = positions[:, 1] - torch.arange(scale * cols) - tap_cols
        assert torch.equal(torch.stack((x, y), -1), golden[m[0]]), m[0]
    padded = F.pad(golden["relevance"][None, None], (1, 1, 1, 1))
    assert torch.equal(upscale_nearest(padded), golden["max_val"])


@pytest.mark.golden("dcn*.npz", "_pre_offset")
def test_deformable_operators(golden: Any) -> None:
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
    own = torch.stack(torch.meshgrid(torch.arange(-2, rows), torch.arange(-2, cols), indexing="ij"))  # no flow
    own = own.int().expand(batch, -1, -1, -1)
    samples = torch.ops.amsa.deformable_sample(x, own, torch.cat((offset, logits), 1), scale=1, groups=groups)
    weight = golden["weight"].permute(0, 2, 3, 1).reshape(-1, 9 * channels, 1, 1)
    assert_close(F.conv2d(samples, weight, golden["bias"]), golden["y"], OPERATOR, "y")
