"""PatchMatch's CUDA kernels, executed on the CPU, against the PyTorch reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from amsa.plugins.patch_match.plan import Addresses, patch_match_plan
from amsa.plugins.patch_match.reference import patch_match as reference
from amsa.plugins.patch_match.reference import relevance_of

from . import ops
from .harness import Order, missing

pytestmark = pytest.mark.skipif(missing() is not None, reason=missing() or "")

BASE: dict[str, Any] = {"iterations": 2, "schedule": "fast", "level": 0, "pad": 0, "init_scale": 2, "arithmetic": "float"}
SCHEDULES = ("published", "paper", "fast")
SIZES = [((12, 10), (11, 19), (8, 19)), ((6, 40), (40, 5), (33, 3)), ((14, 18), (11, 19), (11, 19))]


def unit_features(seed: int, channels: int, query: tuple[int, int], ref: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Smooth features of norm 1, as the network's are: near-ties occur, large errors do not."""
    generator = torch.Generator().manual_seed(seed)

    def features(size: tuple[int, int]) -> Tensor:
        coarse = torch.randn(1, channels, size[0] // 2 + 1, size[1] // 2 + 1, generator=generator)
        smooth = torch.nn.functional.interpolate(coarse, size=size, mode="bilinear")
        return torch.nn.functional.normalize(smooth + 0.3 * torch.randn(smooth.shape, generator=generator), dim=1)

    return features(query), features(ref)


@pytest.fixture(scope="module")
def inputs() -> Callable[..., tuple[Tensor, ...]]:
    """Features, whole numbers where `integers`: their sums are exact in any order, so matches must be equal."""

    def make(
        seed: int,
        channels: int,
        query: Any,
        ref: Any,
        valid: Any,
        integers: bool,
        *,
        level: int,
        pad: int,
        init_scale: int,
        **_: Any,
    ) -> tuple[Tensor, ...]:
        rng = np.random.default_rng(seed)
        if integers:
            q, r = (torch.from_numpy(rng.integers(-9, 10, (1, channels, *s)).astype(np.float32)) for s in (query, ref))
        else:
            q, r = unit_features(seed, channels, query, ref)
        v = [n * 2**level - int(rng.integers(0, 2**level)) for n in valid]
        size = [n - 2 + 2 * pad for n in query] if init_scale == 1 else [n // 2 for n in query]
        limit = [n - 2 + 2 * pad for n in valid] if init_scale == 1 else [-(-n // 2 ** (level + 1)) for n in v]
        init = torch.from_numpy(np.stack([rng.integers(0, n, (1, *size)) for n in limit], 1)).int()
        return q, r, torch.tensor([v], dtype=torch.int32), init

    return make


Inputs = Callable[..., tuple[Tensor, ...]]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("query", "ref", "valid"), SIZES)
@pytest.mark.parametrize(("iterations", "level", "pad", "init_scale"), [(1, 3, 1, 1), (2, 1, 1, 2), (2, 0, 0, 2)])
def test_whole_numbers_give_equal_matches(
    inputs: Inputs, schedule: str, query: Any, ref: Any, valid: Any, iterations: int, level: int, pad: int, init_scale: int
) -> None:
    a = {"iterations": iterations, "schedule": schedule, "level": level, "pad": pad, "init_scale": init_scale}
    given = inputs(1, 8, query, ref, valid, True, **a)
    match, relevance = ops.patch_match(ops.device("patch_match"), *given, **a)
    expected_match, expected = reference(*given, **a)
    assert torch.equal(match, expected_match)
    torch.testing.assert_close(relevance, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ties_go_to_the_first_candidate(schedule: str) -> None:
    a = {**BASE, "schedule": schedule, "init_scale": 1}
    q, r = torch.ones(1, 8, 9, 11), torch.ones(1, 8, 10, 9)  # all patches are equal
    init = torch.randint(0, 7, (1, 2, 7, 9), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    given = q, r, torch.tensor([[10, 9]], dtype=torch.int32), init
    match, _ = ops.patch_match(ops.device("patch_match"), *given, **a)
    assert torch.equal(match, reference(*given, **a)[0])


# Every kernel: what one lane holds, what it does not hold, and channels that are no whole vectors.
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("channels", [1, 6, 8, 16, 44, 64, 136, 256, 264])
def test_any_number_of_channels(inputs: Inputs, channels: int, dtype: torch.dtype) -> None:
    q, r, valid, init = inputs(2, channels, (10, 8), (9, 11), (9, 10), True, **BASE)
    given = q.to(dtype), r.to(dtype), valid, init
    match, relevance = ops.patch_match(ops.device("patch_match"), *given, **BASE)
    expected_match, expected = reference(*given, **BASE)
    assert torch.equal(match, expected_match)
    torch.testing.assert_close(relevance, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("channels", [1, 16, 60, 256, 300])
def test_int8_is_bit_equal(inputs: Inputs, channels: int, dtype: torch.dtype) -> None:
    a = {**BASE, "arithmetic": "int8"}
    q, r, valid, init = inputs(3, channels, (10, 8), (9, 11), (9, 10), False, **a)
    given = q.to(dtype), r.to(dtype), valid, init
    match, relevance = ops.patch_match(ops.device("patch_match"), *given, **a)
    expected_match, expected = reference(*given, **a)
    assert torch.equal(match, expected_match)
    assert torch.equal(relevance, expected)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_near_ties_are_rare_and_near(inputs: Inputs, schedule: str, dtype: torch.dtype) -> None:
    a = {**BASE, "schedule": schedule}
    q, r, valid, init = inputs(4, 16, (24, 20), (23, 26), (23, 25), False, **a)
    match, relevance = ops.patch_match(ops.device("patch_match"), q.to(dtype), r.to(dtype), valid, init, **a)
    expected_match, expected = reference(q, r, valid, init, **a)
    differs = (match != expected_match).any(1, keepdim=True)
    own = relevance_of(q, r, valid, match, level=0, pad=0)  # in float32
    bound = 2e-3 if dtype == torch.float16 else 2e-5
    assert (relevance - own).abs().max() < bound
    # float16 may take another of two nearly equal candidates, and go on from there: few do, and what they find is as good.
    assert differs.float().mean() <= (0.05 if dtype == torch.float16 else 0.002)
    assert (expected - own).mean().abs() < bound


def test_a_batch_equals_its_elements_alone(inputs: Inputs) -> None:
    a = {**BASE, "level": 1, "pad": 1, "arithmetic": "int8"}
    first, second = (inputs(seed, 16, (12, 10), (15, 9), (13, 9), False, **a) for seed in (5, 6))
    valid = torch.tensor([[26, 17], [11, 18]], dtype=torch.int32)
    together = torch.cat((first[0], second[0])), torch.cat((first[1], second[1])), valid, torch.cat((first[3], second[3]))
    match, relevance = ops.patch_match(ops.device("patch_match"), *together, **a)
    shared = ops.patch_match(ops.device("patch_match"), first[0], together[1], valid, first[3], **a)
    for b, one in enumerate((first, second)):
        alone = ops.patch_match(ops.device("patch_match"), *one[:2], valid[b : b + 1], one[3], **a)
        assert torch.equal(match[b : b + 1], alone[0])
        assert torch.equal(relevance[b : b + 1], alone[1])
    expected = reference(first[0], together[1], valid, first[3], **a)
    assert torch.equal(shared[0], expected[0])
    assert torch.equal(shared[1], expected[1])


@pytest.mark.parametrize("order", ["reversed", "shuffled"])
@pytest.mark.parametrize("arithmetic", ["float", "int8"])
def test_the_order_of_threads_does_not_matter(inputs: Inputs, order: Order, arithmetic: str) -> None:
    a = {**BASE, "arithmetic": arithmetic}
    given = inputs(7, 16, (12, 10), (11, 19), (8, 19), False, **a)
    expected = ops.patch_match(ops.device("patch_match"), *given, **a)
    found = ops.patch_match(ops.device("patch_match", order=order), *given, **a)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize("arithmetic", ["float", "int8"])
@pytest.mark.parametrize(("channels", "dtype"), [(16, torch.float16), (6, torch.float32), (264, torch.float16)])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_no_undefined_behaviour(inputs: Inputs, schedule: str, channels: int, dtype: torch.dtype, arithmetic: str) -> None:
    """Address and undefined behaviour sanitizers, on bad input too: NaN, Inf, zero patches, positions out of range."""
    a = {**BASE, "schedule": schedule, "level": 1, "pad": 1, "arithmetic": arithmetic}
    q, r, _, init = inputs(8, channels, (6, 8), (7, 5), (7, 5), False, **a)
    q[0, 0, 0, 0], q[0, 0, 3, 3], r[0, 0, 1, 1], r[0, 0, 5, 2] = torch.nan, torch.inf, -torch.inf, torch.nan
    r[:, :, 2:5, 3:] = 0
    init[0, :, 0, 0], init[0, :, 1, 1], init[0, :, 2, 2] = -5, 2**31 - 1, -(2**31)
    for valid in ((14, 10), (0, -3), (2**31 - 1, 1)):
        given = q.to(dtype), r.to(dtype), torch.tensor([valid], dtype=torch.int32), init
        match, relevance = ops.patch_match(ops.device("patch_match", "asan"), *given, **a)
        expected_match, expected = reference(*given, **a)
        if arithmetic == "int8":
            assert torch.equal(match, expected_match)
            assert torch.equal(relevance, expected)
        limit = torch.tensor([min(max(-(-min(max(v, 1), 2 * n) // 2), 1), n) for v, n in zip(valid, (7, 5), strict=True)])
        assert (match >= 0).all()
        assert (match < limit.view(1, 2, 1, 1)).all()
        assert not relevance.isnan().any()


@pytest.mark.parametrize("arithmetic", ["float", "int8"])
def test_no_races(inputs: Inputs, arithmetic: str) -> None:
    a = {**BASE, "iterations": 1, "init_scale": 1, "arithmetic": arithmetic}
    given = inputs(9, 8, (5, 6), (4, 5), (4, 5), True, **a)
    match, _ = ops.patch_match(ops.device("patch_match", "tsan"), *given, **a)
    assert torch.equal(match, reference(*given, **a)[0])


def test_nothing_to_do_and_too_much() -> None:
    def plan(query: Any, ref: Any, schedule: str = "fast") -> Any:
        a = {**BASE, "init_scale": 1, "pad": 1, "schedule": schedule}
        return patch_match_plan(query, ref, (1, 2), (1, 2, *query[2:]), Addresses(*[0] * 7), dtype="float16", **a)

    assert plan((1, 8, 0, 4), (1, 8, 5, 5)) == []
    with pytest.raises(ValueError, match="ref is empty"):
        plan((1, 8, 4, 4), (1, 8, 0, 5))
    with pytest.raises(ValueError, match=r"ref has 64x8192x8192 elements; .* at most 2\^31 - 1: use smaller tiles"):
        plan((1, 64, 4, 4), (1, 64, 8192, 8192))
    with pytest.raises(ValueError, match="no CUDA kernel for schedule 'exact'"):
        plan((1, 8, 4, 4), (1, 8, 5, 5), "exact")
