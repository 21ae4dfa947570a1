"""PatchMatch in PyTorch: against a naive implementation of its declaration, and what must follow from it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor

import amsa.plugins.torch_ops  # noqa: F401
from amsa.plugins.patch_match.reference import reflect, relevance_of
from amsa.plugins.patch_match.schedule import Step, level_valid, paper_reach, published_reach, steps

Inputs = Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]
BASE: dict[str, Any] = {"iterations": 2, "schedule": "paper", "level": 0, "pad": 1, "init_scale": 1}

attributes = st.fixed_dictionaries(
    {
        "iterations": st.integers(1, 3),
        "schedule": st.sampled_from(["paper", "published", "fast", "exact"]),
        "level": st.integers(0, 3),
        "pad": st.integers(0, 1),
        "init_scale": st.integers(1, 2),
    }
)
even_sizes = st.tuples(st.integers(2, 10), st.integers(2, 10)).map(lambda s: (2 * s[0], 2 * s[1]))
sizes = st.tuples(st.integers(3, 19), st.integers(3, 19))
seeds = st.integers(0, 2**32 - 1)


def run(*inputs: Tensor, **attributes: Any) -> tuple[Tensor, Tensor]:
    match, relevance = torch.ops.amsa.patch_match(*inputs, **attributes)
    return match, relevance


# ------------------------------------------------------------------------------------------------ a naive one


def naive_scores(query: NDArray[Any], ref: NDArray[Any], pad: int) -> NDArray[np.float64]:
    """Every query patch against every reference patch: [C, Hq, Wq] and [C, Hr, Wr] -> [H, W, Y, X]."""
    border = ((0, 0), (pad, pad), (pad, pad))
    q, r = (sliding_window_view(np.pad(x.astype(float), border), (3, 3), (1, 2)) for x in (query, ref))
    norm = np.maximum(np.sqrt((r**2).sum((0, 3, 4))), 1e-12)
    return np.einsum("chwij,cyxij->hwyx", q, r) / norm


def naive_int8(query: NDArray[Any], ref: NDArray[Any], pad: int) -> tuple[NDArray[np.float32], np.float32]:
    """The same in int8 arithmetic, and what turns its scores into float scores. Numpy rounds every operation correctly."""
    one, whole, largest = np.float32(1), [], []
    for x in (query, ref):
        x = np.where(np.isfinite(x), x, 0).astype(np.float32)
        largest.append(np.abs(x).max())
        scale = np.float32(127) / largest[-1] if largest[-1] >= 1e-30 else np.float32(0)
        whole.append(np.pad(np.rint(x * scale).astype(np.int64), ((0, 0), (pad, pad), (pad, pad))))
    q, r = (sliding_window_view(x, (3, 3), (1, 2)) for x in whole)
    inverse = one / np.sqrt(np.maximum((r**2).sum((0, 3, 4)), 1).astype(np.float32))
    unit = largest[0] / np.float32(127) if largest[0] >= 1e-30 else np.float32(0)
    return np.einsum("chwij,cyxij->hwyx", q, r).astype(np.float32) * inverse, unit


def naive(
    query: NDArray[Any], ref: NDArray[Any], valid: list[int], init: NDArray[Any], **a: Any
) -> tuple[NDArray[Any], NDArray[Any]]:
    """PatchMatch of one batch element, position by position."""
    stride, pad = 2 ** a["level"], a["pad"]
    inside = ref[:, : math.ceil(valid[0] / stride), : math.ceil(valid[1] / stride)]
    table: NDArray[Any]
    table, unit = (naive_scores(query, inside, pad), 1.0)
    if a.get("arithmetic") == "int8":
        table, unit = naive_int8(query, inside, pad)
    height, width, *limits = table.shape
    if a["schedule"] == "exact":
        flat = table.reshape(height, width, -1)
        return np.stack(np.unravel_index(flat.argmax(2), limits)), flat.max(2) * unit
    field = np.empty((height, width, 2), int)
    for r in range(height):
        for c in range(width):
            field[r, c] = init[:, r, c] if a["init_scale"] == 1 else naive_start((r, c), init, limits, valid, **a)

    def neighbour(i: int, size: int) -> int:
        while not 0 <= i < size:
            i = (-i if i < 0 else 2 * (size - 1) - i) if size > 1 else 0
        return i

    for iteration in range(a["iterations"]):
        for lr, dilation in naive_steps(query.shape[1:], valid, a["schedule"], stride):
            before = field.copy()
            for r in range(height):
                for c in range(width):
                    found = []
                    for n in range(9):
                        dy, dx = dilation * (n // 3 - 1), dilation * (n % 3 - 1)
                        if lr:
                            place = neighbour(r + dy, height), neighbour(c + dx, width)
                            y, x = before[place]
                            if a["schedule"] == "fast":  # a neighbour's match, as far from it as the position is
                                moved = (y + r - place[0], x + c - place[1])
                                y, x = (min(max(p, 0), m - 1) for p, m in zip(moved, limits, strict=True))
                        elif a["schedule"] != "published":
                            y, x = (min(max(p + d, 0), m - 1) for p, d, m in zip(before[r, c], (dy, dx), limits, strict=True))
                        else:
                            jy = (1, 0, 0, 1, 0, -1, 0, 0, -1)[n] * (iteration % dilation)
                            jx = (0, -1, -1, 0, 0, 0, 1, 1, 0)[n] * (iteration % dilation)
                            y, x = (before[r, c, 0] + dy + jy) % limits[0], (before[r, c, 1] + dx + jx) % limits[1]
                        found.append((int(y), int(x)))
                    field[r, c] = max(found, key=lambda p: table[r, c, p[0], p[1]])  # the first of equals
    rows, cols = np.indices((height, width))
    return field.transpose(2, 0, 1), table[rows, cols, field[..., 0], field[..., 1]] * unit


def naive_start(p: tuple[int, int], init: NDArray[Any], limits: list[int], valid: list[int], **a: Any) -> list[int]:
    """Where position `p` starts, given the coarser level's matches: patches there are centred."""
    centre = [i + 1 - a["pad"] for i in p]
    parent = init[:, centre[0] // 2, centre[1] // 2]
    if a["schedule"] == "published":
        coarse = [math.ceil(v / 2 ** (a["level"] + 1)) for v in valid]
        return [round(int(m) * (n - 1) / max(k - 1, 1)) for m, n, k in zip(parent, limits, coarse, strict=True)]
    start = (2 * int(m) + c % 2 - (1 - a["pad"]) for m, c in zip(parent, centre, strict=True))
    return [min(max(m, 0), n - 1) for m, n in zip(start, limits, strict=True)]


def naive_steps(query: tuple[int, ...], valid: list[int], schedule: str, stride: int) -> list[tuple[bool, int]]:
    """(is LR propagation, dilation) of one iteration."""
    if schedule != "published":
        count = max(1, math.ceil(math.log2(math.sqrt(query[0] * query[1]) / 8)))
        if schedule == "fast":
            return [step for t in range(count) for step in ((True, 2 ** (count - 1 - t)), (False, 1))]
        return [(lr, 2**t) for t in range(count) for lr in (True, False)]

    def dilations(side: int) -> list[int]:
        return [2**t for t in range(int(math.log2((side - 3) // 8)) + 1)] if side >= 11 else [1]

    return [(True, d) for d in dilations(min(query) * stride)] + [(False, d) for d in dilations(min(valid))]


@given(seed=seeds, query=even_sizes, ref=sizes, data=st.data(), a=attributes)
def test_equals_the_naive_one(patch_match_inputs: Inputs, seed: int, query: Any, ref: Any, data: Any, a: dict[str, Any]) -> None:
    valid = data.draw(st.tuples(*(st.integers(3, n) for n in ref)))
    inputs = patch_match_inputs(seed, query, ref, valid, channels=4, **a)
    match, relevance = run(*inputs, **a)
    expected, scores = naive(*(t[0].numpy() for t in inputs[:2]), inputs[2][0].tolist(), inputs[3][0].numpy(), **a)
    np.testing.assert_array_equal(match[0].numpy(), expected)
    np.testing.assert_allclose(relevance[0, 0].numpy(), scores, rtol=1e-5, atol=1e-3)  # features are up to 50


@given(seed=seeds, query=even_sizes, ref=sizes, data=st.data(), a=attributes)
def test_int8_equals_the_naive_one_bit_by_bit(
    patch_match_inputs: Inputs, seed: int, query: Any, ref: Any, data: Any, a: dict[str, Any]
) -> None:
    valid, a = data.draw(st.tuples(*(st.integers(3, n) for n in ref))), {**a, "arithmetic": "int8"}
    inputs = patch_match_inputs(seed, query, ref, valid, channels=4, integers=False, **a)
    match, relevance = run(*inputs, **a)
    expected, scores = naive(*(t[0].numpy() for t in inputs[:2]), inputs[2][0].tolist(), inputs[3][0].numpy(), **a)
    np.testing.assert_array_equal(match[0].numpy(), expected)
    np.testing.assert_array_equal(relevance[0, 0].numpy(), scores)


def test_int8_is_near_float(patch_match_inputs: Inputs) -> None:
    a = {**BASE, "pad": 0, "schedule": "exact"}  # on noise, propagation goes astray after any small difference
    q, r, valid, init = patch_match_inputs(6, (24, 24), (30, 30), channels=16, integers=False, **a)
    q, r = (F.normalize(t, dim=1) for t in (q, r))
    match, relevance = run(q, r, valid, init, **a, arithmetic="int8")
    expected_match, expected = run(q, r, valid, init, **a)
    same = (match == expected_match).all(1, keepdim=True)
    assert same.float().mean() > 0.9
    assert (relevance - expected)[same].abs().max() < 2e-2
    assert (relevance - expected).mean().abs() < 2e-3


# ------------------------------------------------------------------------------------------------ the schedule


def test_reaches() -> None:
    for side in range(11, 600):
        assert published_reach(side, 700) == published_reach(900, side) == math.floor(math.log2((side - 3) // 8)) + 1
    assert {published_reach(side, 99) for side in range(1, 11)} == {1}  # the published code fails there
    assert [paper_reach(n, n) for n in (1, 8, 16, 17, 32, 33, 64, 250)] == [1, 1, 1, 2, 2, 3, 3, 5]
    assert paper_reach(4, 64) == paper_reach(64, 4) == 1
    assert [level_valid(37, level) for level in range(4)] == [37, 19, 10, 5]


def test_steps_of_both_schedules() -> None:
    lr, ref = (lambda d: Step(True, d)), (lambda d, j=0: Step(False, d, j))
    assert steps("paper", 2, 1, (17, 17), (5, 5)) == [lr(1), ref(1), lr(2), ref(2)] * 2
    # Level 1 of a 20x24 query is 40x48 at level 0: dilations 1, 2, 4; a reference of 19x90: 1, 2.
    published = steps("published", 2, 1, (20, 24), (19, 90))
    assert published == [lr(1), lr(2), lr(4), ref(1), ref(2), lr(1), lr(2), lr(4), ref(1), ref(2, 1)]


@given(size=st.integers(1, 20), beyond=st.integers(0, 70))
def test_reflection_is_numpys(size: int, beyond: int) -> None:
    expected = np.pad(np.arange(size), beyond, mode="reflect")
    np.testing.assert_array_equal(reflect(torch.arange(-beyond, size + beyond), size).numpy(), expected)


# ------------------------------------------------------------------------------------------------ what must hold


@given(seed=seeds, query=even_sizes, ref=sizes, data=st.data(), a=attributes)
def test_valid_equals_a_cropped_reference(
    patch_match_inputs: Inputs, seed: int, query: Any, ref: Any, data: Any, a: dict[str, Any]
) -> None:
    valid = data.draw(st.tuples(*(st.integers(3, n) for n in ref)))
    q, r, v, init = patch_match_inputs(seed, query, ref, valid, **a)
    match, relevance = run(q, r, v, init, **a)
    cropped_match, cropped_relevance = run(q, r[:, :, : valid[0], : valid[1]], v, init, **a)
    assert torch.equal(match, cropped_match)
    assert torch.equal(relevance, cropped_relevance)
    limits = torch.tensor(valid).view(1, 2, 1, 1) - 2 + 2 * a["pad"]
    assert (match >= 0).all()
    assert (match < limits).all()
    assert torch.equal(relevance, relevance_of(q, r, v, match, level=a["level"], pad=a["pad"]))


@pytest.mark.parametrize("schedule", ["paper", "published", "fast"])
@pytest.mark.parametrize("query_batch", [1, 3])
def test_a_batch_equals_its_elements_alone(patch_match_inputs: Inputs, schedule: str, query_batch: int) -> None:
    a = {**BASE, "schedule": schedule, "level": 1, "init_scale": 2}
    q, r, _, init = patch_match_inputs(1, (12, 18), (21, 15), (9, 9), 3, query_batch, integers=False, **a)
    valid = torch.tensor([[42, 30], [17, 29], [25, 18]], dtype=torch.int32)
    match, relevance = run(q, r, valid, init, **a)
    for b in range(3):
        own = q[b : b + 1] if query_batch == 3 else q
        alone = run(own, r[b : b + 1], valid[b : b + 1], init[b : b + 1], **a)
        assert torch.equal(match[b : b + 1], alone[0])
        assert torch.equal(relevance[b : b + 1], alone[1])
    assert not torch.equal(match[0], match[1])


def test_batch_1_is_shared(patch_match_inputs: Inputs) -> None:
    q, r, valid, init = patch_match_inputs(2, (9, 12), (12, 9), batch=2, **BASE)
    shared = run(q, r, valid, init[:1], **BASE)
    repeated = run(q.expand(2, -1, -1, -1), r, valid.expand(2, -1), init[:1].expand(2, -1, -1, -1), **BASE)
    assert all(torch.equal(x, y) for x, y in zip(shared, repeated, strict=True))


@pytest.mark.parametrize("schedule", ["paper", "published", "fast"])
def test_ties_go_to_the_first_candidate(schedule: str) -> None:
    a = {**BASE, "schedule": schedule, "iterations": 1, "pad": 0}
    q, r = torch.ones(1, 4, 9, 11), torch.ones(1, 4, 10, 9)  # all patches are equal
    init = torch.randint(0, 7, (1, 2, 7, 9), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    match, _ = run(q, r, torch.tensor([[10, 9]], dtype=torch.int32), init, **a)
    # The first of nine is up and left: an LR step with dilation 1, then a Ref step.
    neighbours = F.pad(init.float(), (1, 1, 1, 1), mode="reflect")[:, :, :-2, :-2].int()
    limits = torch.tensor([8, 7], dtype=torch.int32).view(1, 2, 1, 1)
    if schedule == "fast":  # back by one row and column; at the border the reflected neighbour lies on the other side
        back = torch.ones_like(neighbours)
        back[:, 0, 0], back[:, 1, :, 0] = -1, -1
        neighbours = (neighbours + back).clamp_min(0).minimum(limits - 1)
    moved = neighbours - 1
    assert torch.equal(match, moved % limits if schedule == "published" else moved.clamp_min(0))


def test_finds_a_shifted_copy(patch_match_inputs: Inputs) -> None:
    a = {**BASE, "pad": 0}
    _, r, valid, _ = patch_match_inputs(3, (8, 8), (40, 40), integers=False, **a)
    rows, cols = torch.meshgrid(torch.arange(5, 27), torch.arange(9, 31), indexing="ij")
    truth = torch.stack((rows, cols))[None].int()
    beside = truth + torch.tensor([1, -1], dtype=torch.int32).view(1, 2, 1, 1)
    match, relevance = run(r[:, :, 5:29, 9:33], r, valid, beside, **a)
    inner = (..., slice(1, -1), slice(1, -1))  # a neighbour on every side
    assert torch.equal(match[inner], truth[inner])
    energy = F.avg_pool2d(r.square().sum(1, keepdim=True), 3, 1, divisor_override=1)
    torch.testing.assert_close(relevance[inner], energy[:, :, 6:26, 10:30].sqrt())  # the patch's own norm


def test_float16_features_are_matched_in_float32(patch_match_inputs: Inputs) -> None:
    q, r, valid, init = patch_match_inputs(4, (12, 10), (14, 16), integers=False, **BASE)
    match, relevance = run(q.half(), r.half(), valid, init, **BASE)
    expected = run(q.half().float(), r.half().float(), valid, init, **BASE)
    assert relevance.dtype == torch.float32
    assert torch.equal(match, expected[0])
    assert torch.equal(relevance, expected[1])


# ------------------------------------------------------------------------------------------------ gradients


def dense_relevance(query: Tensor, ref: Tensor, match: Tensor, pad: int) -> Tensor:
    """The scores of given matches by unfolding, in the inputs' precision: [1, C, H, W] each."""
    q = F.unfold(query, 3, padding=pad)
    r = F.normalize(F.unfold(ref, 3, padding=pad), dim=1)
    chosen = match[0, 0].long() * (ref.shape[3] - 2 + 2 * pad) + match[0, 1].long()
    return (q * r[:, :, chosen.flatten()]).sum(1).view(1, 1, *chosen.shape)


@pytest.mark.parametrize("pad", [0, 1])
def test_gradient_of_the_relevance(patch_match_inputs: Inputs, pad: int) -> None:
    a = {**BASE, "pad": pad}
    q, r, valid, init = patch_match_inputs(5, (9, 8), (8, 11), integers=False, **a)
    q, r = q.requires_grad_(), r.requires_grad_()
    match, relevance = run(q, r, valid, init, **a)
    assert not match.requires_grad
    factor = torch.linspace(-1, 2, relevance.numel()).view_as(relevance)
    q64, r64 = (t.detach().double().requires_grad_() for t in (q, r))
    expected = dense_relevance(q64, r64, match, pad)
    torch.testing.assert_close(relevance.double(), expected, rtol=1e-5, atol=1e-5)
    grads = torch.autograd.grad((relevance * factor).sum(), (q, r))
    expected_grads = torch.autograd.grad((expected * factor).sum(), (q64, r64))
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert grad.abs().max() > 0.1
        torch.testing.assert_close(grad.double(), expected_grad, rtol=1e-4, atol=1e-5)


def test_gradient_of_a_batch_and_a_crop(patch_match_inputs: Inputs) -> None:
    q, r, valid, init = patch_match_inputs(6, (8, 8), (12, 13), (7, 9), batch=2, integers=False, **BASE)
    q, r = q.requires_grad_(), r.requires_grad_()
    grad_q, grad_r = torch.autograd.grad(run(q, r, valid, init, **BASE)[1].sum(), (q, r))
    assert not grad_r[:, :, 7:].any()
    assert not grad_r[:, :, :, 9:].any()
    assert grad_r[:, :, :7, :9].any()
    alone = [torch.autograd.grad(run(q, r[b : b + 1], valid, init[b : b + 1], **BASE)[1].sum(), q)[0] for b in (0, 1)]
    torch.testing.assert_close(grad_q, alone[0] + alone[1])  # a shared query collects from all


@pytest.mark.parametrize("zero", ["query", "ref", "both", "part of ref"])
def test_zero_features(patch_match_inputs: Inputs, zero: str) -> None:
    q, r, valid, init = patch_match_inputs(7, (8, 8), (10, 10), **BASE)
    q = q * (zero not in ("query", "both"))
    r = r * (zero not in ("ref", "both"))
    r[:, :, :5] *= zero != "part of ref"
    q, r = q.requires_grad_(), r.requires_grad_()
    match, relevance = run(q, r, valid, init, **BASE)
    assert relevance.isfinite().all()
    assert (relevance == 0).all() == (zero != "part of ref")
    assert (match >= 0).all()
    for grad in torch.autograd.grad(relevance.sum(), (q, r)):
        assert grad.isfinite().all()
