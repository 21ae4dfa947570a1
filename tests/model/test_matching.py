"""Initial matches, the matcher's fields, fusion weights, and resampling."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from amsa.config import AMSAConfig
from amsa.model.features import VGGKeys, unit
from amsa.model.matching import Matcher, fusion_weights, initial_matches
from amsa.model.resample import halve, upscale_bicubic, upscale_bilinear, upscale_nearest

SEED = torch.zeros(1, dtype=torch.int32)
PRIME = 2**31 - 1


def seeded(seed: int, height: int, width: int, count: tuple[int, int]) -> Tensor:
    return initial_matches(torch.tensor([seed], dtype=torch.int32), height, width, torch.tensor([count]))


# ------------------------------------------------------------------------------------------------ initial matches


@given(
    seed=st.integers(0, PRIME),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    count=st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
)
def test_initial_matches_lie_in_range(seed: int, size: tuple[int, int], count: tuple[int, int]) -> None:
    match = seeded(seed, *size, count)
    assert (match.shape, match.dtype) == ((1, 2, *size), torch.int32)
    assert match.min() >= 0
    assert (match.amax((0, 2, 3)) < torch.tensor(count)).all()
    assert torch.equal(match, seeded(seed, *size, count))


def exact(seed: int, height: int, width: int, count: tuple[int, int]) -> list[int]:
    """The same in Python's integers, which never overflow."""
    draws = []
    for axis in (0, 1):
        for index in range(height * width):
            x = 2 * index + axis + seed * 1_000_003
            for multiplier, increment in ((48271, 1013904223), (1583458089, 374761393)):
                x = pow((x * multiplier + increment) % PRIME, 5, PRIME)
            draws.append(x * count[axis] // PRIME)
    return draws


@pytest.mark.parametrize("seed", [0, 1, 12345, 10**8, PRIME])
def test_initial_matches_are_exact_arithmetic(seed: int) -> None:
    # so that every backend, whatever it does on overflow, draws the same
    assert seeded(seed, 5, 7, (11, 300)).flatten().tolist() == exact(seed, 5, 7, (11, 300))


@pytest.mark.parametrize("seed", [0, 1, 2, 1000])
def test_initial_matches_are_roughly_uniform(seed: int) -> None:
    match = seeded(seed, 64, 64, (8, 10))[0]
    joint = torch.bincount((match[0] * 10 + match[1]).flatten(), minlength=80).double()
    expected = 64 * 64 / 80
    # 79 degrees of freedom: a chi-squared above 130 has a probability of about 0.0003.
    assert ((joint - expected) ** 2 / expected).sum() < 130
    neighbours = torch.stack((match[:, :, 1:].flatten(), match[:, :, :-1].flatten())).double()
    assert torch.corrcoef(neighbours)[0, 1].abs() < 0.06


def test_seeds_and_references_differ() -> None:
    first, second = seeded(0, 32, 32, (50, 50)), seeded(1, 32, 32, (50, 50))
    assert (first == second).float().mean() < 0.06  # 1 in 50 agree by chance
    both = initial_matches(SEED, 32, 32, torch.tensor([[50, 50], [7, 9]]))
    assert torch.equal(both[:1], first)
    assert torch.equal(both[1:], seeded(0, 32, 32, (7, 9)))


# ------------------------------------------------------------------------------------------------ the matcher


def pyramid(height: int, width: int, seed: int, batch: int = 1) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(unit(torch.randn(batch, 8, height // n, width // n, generator=generator)) for n in (1, 2, 4, 8))


def positions(height: int, width: int, first: int = 0) -> Tensor:
    axes = torch.arange(first, height), torch.arange(first, width)
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).int()


@pytest.mark.parametrize(("arithmetic", "bound"), [("float", 1e-5), ("int8", 5e-3)])
def test_a_picture_is_matched_with_itself(arithmetic: str, bound: float) -> None:
    features = pyramid(24, 32, 0)
    match, relevance = Matcher(replace(AMSAConfig.small(), arithmetic=arithmetic))(
        features, features, torch.tensor([[24, 32]]).int(), SEED, positions(3, 4)[None]
    )
    assert torch.equal(match[0], positions(24, 32, -2))
    torch.testing.assert_close(relevance[0, 0, 1:-1, 1:-1], torch.ones(22, 30), rtol=0, atol=bound)  # the cosine


@pytest.mark.parametrize("config", [AMSAConfig.small(), AMSAConfig.published()], ids=lambda c: c.variant)
def test_borders_have_no_flow_and_no_relevance(config: AMSAConfig) -> None:
    queries, keys = pyramid(16, 24, 1), pyramid(40, 32, 2, batch=2)
    match, relevance = Matcher(config)(queries, keys, torch.tensor([[37, 29]]).int(), SEED)
    assert (match.shape, match.dtype) == ((2, 2, 18, 26), torch.int32)
    assert (relevance.shape, relevance.dtype) == ((2, 1, 16, 24), torch.float32)
    own = positions(16, 24, -2)
    border = torch.ones(18, 26, dtype=torch.bool)
    border[2:-2, 2:-2] = False
    assert torch.equal(match[:, :, border], own[:, border].expand(2, -1, -1))
    inner = match[:, :, 2:-2, 2:-2]
    assert (inner >= 0).all()
    assert (inner.amax((0, 2, 3)) < torch.tensor([35, 27])).all()
    assert torch.equal(relevance != 0, torch.nn.functional.pad(torch.ones(2, 1, 14, 22), (1, 1, 1, 1)).bool())


def test_cosine_is_a_third() -> None:
    queries, keys, valid = pyramid(16, 16, 3), pyramid(16, 16, 4), torch.tensor([[16, 16]]).int()
    config = AMSAConfig.small()
    match, cosine = Matcher(config)(queries, keys, valid, SEED)
    same, published = Matcher(replace(config, cosine=False))(queries, keys, valid, SEED)
    assert torch.equal(match, same)
    torch.testing.assert_close(3 * cosine, published)
    assert cosine.abs().max() <= 1


def test_given_matches_replace_the_seed() -> None:
    queries, keys, valid = pyramid(16, 16, 5), pyramid(32, 32, 6), torch.tensor([[31, 26]]).int()
    matcher = Matcher(AMSAConfig.small())
    drawn = initial_matches(SEED + 9, 2, 2, torch.tensor([[4, 4]]))  # ceil(31 / 8), ceil(26 / 8)
    expected = matcher(queries, keys, valid, SEED + 9)
    assert all(torch.equal(a, b) for a, b in zip(matcher(queries, keys, valid, SEED, drawn), expected, strict=True))


def test_fusion_weights() -> None:
    relevances = [torch.tensor(x).view(1, 1, 1, 2) for x in ([0.1, 0.5], [0.3, 0.5], [-0.2, 0.5])]
    weights = fusion_weights(relevances, 10.0)
    assert [w.shape for w in weights] == [(1, 1, 1, 2)] * 3
    stacked = torch.cat(weights)[:, 0, 0]
    torch.testing.assert_close(stacked.sum(0), torch.ones(2))
    torch.testing.assert_close(stacked[:, 1], torch.full((3,), 1 / 3))
    torch.testing.assert_close((stacked[1, 0] / stacked[0, 0]).log(), torch.tensor(2.0))  # 10 * (0.3 - 0.1)


# ------------------------------------------------------------------------------------------------ resampling


def test_bicubic_is_pils() -> None:
    x = torch.rand(3, 11, 13, generator=torch.Generator().manual_seed(0))
    planes = [Image.fromarray(plane.numpy()).resize((52, 44), Image.Resampling.BICUBIC) for plane in x]
    torch.testing.assert_close(upscale_bicubic(x[None])[0], torch.from_numpy(np.stack(planes)), rtol=0, atol=2e-6)


def test_resampling_keeps_means_and_places() -> None:
    x = torch.rand(1, 2, 6, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(upscale_nearest(x), x.repeat_interleave(4, 2).repeat_interleave(4, 3))
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    centres = (torch.arange(32) + 0.5) / 4 - 0.5
    torch.testing.assert_close(upscale_bilinear(ramp)[0, 0], centres.clamp(0, 7).expand(32, -1))
    torch.testing.assert_close(halve(ramp)[0, 0, :, 1:-1], torch.tensor([2.5, 4.5]).expand(4, -1))
    assert halve(x).shape == (1, 2, 3, 4)


def test_published_queries_are_rounded_to_8_bits() -> None:
    lr = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    rounded, plain = (VGGKeys.pyramid_of_lr(lr, b) for b in (True, False))
    assert torch.equal((rounded[0] * 255).round() / 255, rounded[0])
    assert (rounded[0] - plain[0].clamp(0, 1)).abs().max() <= 0.5 / 255 + 1e-6
    assert plain[0].max() > 1  # bicubic overshoots, 8 bits do not
    assert rounded[0].max() <= 1
    assert all(torch.equal(a, b) for a, b in zip(rounded[1:], plain[1:], strict=True))
    assert [p.shape[2] for p in plain] == [64, 32, 16, 8]
