"""PatchMatch's function body in ONNX Runtime against the PyTorch reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import amsa.plugins.torch_ops  # noqa: F401
from amsa.plugins.patch_match.reference import relevance_of

Inputs = Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]
Run = Callable[..., list[Tensor]]

# (iterations, schedule, level, pad, init_scale); few, because every one is a graph to compile
ATTRIBUTES = [
    {"iterations": i, "schedule": s, "level": level, "pad": pad, "init_scale": scale}
    for s in ("paper", "published", "fast")
    for i, level, pad, scale in [(1, 3, 1, 1), (2, 1, 1, 2), (4, 0, 0, 2), (2, 0, 0, 1), (3, 2, 0, 2)]
]
ATTRIBUTES += [
    {"iterations": 1, "schedule": "exact", "level": level, "pad": pad, "init_scale": 1} for level, pad in [(0, 0), (1, 1)]
]
INT8 = [{**a, "arithmetic": "int8"} for a in ATTRIBUTES]


def both(run_onnx: Run, inputs: tuple[Tensor, ...], **attributes: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(match, relevance) of the function body, then of the reference."""
    match, relevance = run_onnx("PatchMatch", inputs, **attributes)
    return match, relevance, *torch.ops.amsa.patch_match(*inputs, **attributes)


def assert_equal(run_onnx: Run, inputs: tuple[Tensor, ...], **attributes: Any) -> None:
    match, relevance, expected_match, expected_relevance = both(run_onnx, inputs, **attributes)
    assert match.dtype == torch.int32
    assert torch.equal(match, expected_match)
    torch.testing.assert_close(relevance, expected_relevance, rtol=1e-5, atol=1e-3)  # features are up to 50


@pytest.mark.parametrize("a", ATTRIBUTES, ids=lambda a: "-".join(map(str, a.values())))
@pytest.mark.parametrize(
    ("query", "ref", "valid"),
    [
        ((12, 9), (11, 19), (11, 19)),
        ((13, 17), (11, 19), (8, 19)),
        ((5, 40), (40, 5), (33, 3)),
        ((34, 36), (24, 50), (24, 41)),
        ((3, 3), (3, 3), (3, 3)),
    ],
)
def test_odd_sizes(patch_match_inputs: Inputs, run_onnx: Run, query: Any, ref: Any, valid: Any, a: dict[str, Any]) -> None:
    if a["init_scale"] == 2:  # the coarser grid has half the rows and columns
        query = tuple(n + n % 2 for n in query)
    assert_equal(run_onnx, patch_match_inputs(1, query, ref, valid, **a), **a)


@given(
    seed=st.integers(0, 2**32 - 1),
    half=st.tuples(st.integers(2, 12), st.integers(2, 12)),
    odd=st.tuples(st.integers(0, 1), st.integers(0, 1)),
    ref=st.tuples(st.integers(3, 24), st.integers(3, 24)),
    batch=st.integers(1, 3),
    data=st.data(),
    a=st.sampled_from(ATTRIBUTES),
)
def test_any_size(
    patch_match_inputs: Inputs,
    run_onnx: Run,
    seed: int,
    half: Any,
    odd: Any,
    ref: Any,
    batch: int,
    data: Any,
    a: dict[str, Any],
) -> None:
    query = [2 * n + (o if a["init_scale"] == 1 else 0) for n, o in zip(half, odd, strict=True)]
    valid = data.draw(st.tuples(*(st.integers(3, n) for n in ref)), "valid")
    query_batch = data.draw(st.sampled_from([1, batch]), "query_batch")
    assert_equal(run_onnx, patch_match_inputs(seed, query, ref, valid, batch, query_batch, 4, **a), **a)


@pytest.mark.parametrize("schedule", ["paper", "published", "fast"])
def test_batch_1_is_shared(patch_match_inputs: Inputs, run_onnx: Run, schedule: str) -> None:
    a = {"iterations": 2, "schedule": schedule, "level": 1, "pad": 1, "init_scale": 2}
    q, r, valid, init = patch_match_inputs(2, (12, 10), (9, 15), (7, 11), batch=2, **a)
    assert_equal(run_onnx, (q, r, valid, init[:1]), **a)
    assert_equal(run_onnx, (q.expand(2, -1, -1, -1).contiguous(), r, valid.expand(2, -1).contiguous(), init), **a)


def test_a_batch_may_have_several_valid_sizes(patch_match_inputs: Inputs, run_onnx: Run) -> None:
    a = {"iterations": 2, "schedule": "paper", "level": 1, "pad": 1, "init_scale": 2}
    q, r, _, init = patch_match_inputs(3, (12, 10), (20, 15), (8, 6), batch=2, **a)
    assert_equal(run_onnx, (q, r, torch.tensor([[40, 30], [15, 12]], dtype=torch.int32), init), **a)


@given(
    seed=st.integers(0, 2**32 - 1),
    half=st.tuples(st.integers(2, 12), st.integers(2, 12)),
    ref=st.tuples(st.integers(3, 24), st.integers(3, 24)),
    data=st.data(),
    a=st.sampled_from(INT8),
)
def test_int8_is_bit_equal(
    patch_match_inputs: Inputs, run_onnx: Run, seed: int, half: Any, ref: Any, data: Any, a: dict[str, Any]
) -> None:
    valid = data.draw(st.tuples(*(st.integers(3, n) for n in ref)), "valid")
    inputs = patch_match_inputs(seed, [2 * n for n in half], ref, valid, 2, 1, 12, False, **a)
    match, relevance, expected_match, expected_relevance = both(run_onnx, inputs, **a)
    assert torch.equal(match, expected_match)
    assert torch.equal(relevance, expected_relevance)


@pytest.mark.parametrize("a", ATTRIBUTES[2:4] + ATTRIBUTES[-4:-2], ids=lambda a: "-".join(map(str, a.values())))
def test_near_ties_are_rare_and_near(patch_match_inputs: Inputs, run_onnx: Run, a: dict[str, Any]) -> None:
    positions = different = 0
    for seed in range(3):
        q, r, valid, init = patch_match_inputs(seed, (48, 56), (60, 44), (57, 41), channels=16, integers=False, **a)
        q, r = (torch.nn.functional.normalize(t, dim=1) for t in (q, r))  # as the network's are
        match, relevance, expected_match, expected_relevance = both(run_onnx, (q, r, valid, init), **a)
        differs = (match != expected_match).any(1, keepdim=True)
        positions, different = positions + differs.numel(), different + int(differs.sum())
        assert (relevance - expected_relevance).abs().max() < 1e-4
        own = relevance_of(q, r, valid, match, level=a["level"], pad=a["pad"])
        torch.testing.assert_close(relevance, own, rtol=0, atol=2e-5)
    assert different <= 0.001 * positions


@pytest.mark.parametrize("schedule", ["paper", "published", "fast"])
def test_ties_go_to_the_first_candidate(run_onnx: Run, schedule: str) -> None:
    q, r = torch.ones(1, 4, 9, 11), torch.ones(1, 4, 10, 9)  # all patches are equal
    init = torch.randint(0, 7, (1, 2, 7, 9), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    inputs = q, r, torch.tensor([[10, 9]], dtype=torch.int32), init
    assert_equal(run_onnx, inputs, iterations=3, schedule=schedule, level=0, pad=0, init_scale=1)


@pytest.mark.parametrize("arithmetic", ["float", "int8"])
@pytest.mark.parametrize("schedule", ["paper", "published", "fast", "exact"])
def test_bad_numbers_and_positions(patch_match_inputs: Inputs, run_onnx: Run, schedule: str, arithmetic: str) -> None:
    """NaN, Inf, matches and valid sizes out of range have results, the same ones everywhere."""
    a = {"iterations": 2, "schedule": schedule, "level": 1, "pad": 1, "init_scale": 2, "arithmetic": arithmetic}
    q, r, _, init = patch_match_inputs(5, (6, 8), (7, 5), **a)
    q[0, 0, 0, 0], q[0, 0, 3, 3], r[0, 0, 1, 1], r[0, 0, 5, 2] = torch.nan, torch.inf, -torch.inf, torch.nan
    r[:, :, 2:5, 3:] = 0
    init[0, :, 0, 0], init[0, :, 1, 1], init[0, :, 2, 2] = -5, 2**31 - 1, -(2**31)
    for valid in ((14, 10), (0, -3), (2**31 - 1, 1)):
        inputs = q, r, torch.tensor([valid], dtype=torch.int32), init
        match, relevance, expected_match, expected_relevance = both(run_onnx, inputs, **a)
        assert torch.equal(match, expected_match)
        torch.testing.assert_close(relevance, expected_relevance, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("which", ["query", "ref", "both"])
def test_zero_features(patch_match_inputs: Inputs, run_onnx: Run, which: str) -> None:
    a = {"iterations": 1, "schedule": "paper", "level": 0, "pad": 1, "init_scale": 1}
    q, r, valid, init = patch_match_inputs(4, (8, 8), (9, 9), **a)
    inputs = q * (which == "ref"), r * (which == "query"), valid, init
    match, relevance, expected_match, expected_relevance = both(run_onnx, inputs, **a)
    assert torch.equal(match, expected_match)
    assert torch.equal(relevance, torch.zeros_like(expected_relevance))


@pytest.mark.parametrize("schedule", ["paper", "published", "fast"])
def test_float16_features(patch_match_inputs: Inputs, run_onnx: Run, schedule: str) -> None:
    a = {"iterations": 2, "schedule": schedule, "level": 0, "pad": 0, "init_scale": 2}
    q, r, valid, init = patch_match_inputs(5, (14, 16), (18, 15), **a)
    match, relevance, expected_match, expected_relevance = both(run_onnx, (q.half(), r.half(), valid, init), **a)
    assert relevance.dtype == torch.float32
    assert torch.equal(match, expected_match)
    torch.testing.assert_close(relevance, expected_relevance, rtol=1e-5, atol=1e-3)
