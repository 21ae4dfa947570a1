"""DeformableSample's CUDA kernels, executed on the CPU, against the PyTorch reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from amsa.plugins.deformable_sample.plan import deformable_sample_plan
from amsa.plugins.deformable_sample.reference import deformable_sample as reference

from . import ops
from .harness import Build, Order, missing

pytestmark = pytest.mark.skipif(missing() is not None, reason=missing() or "")


def inputs(
    channels: int, groups: int, scale: int, offsets: bool, batch: int = 1, size: tuple[int, int] = (5, 4), shared: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Value 7x9 times the scale, matches in and around it, offsets of a few pixels."""
    generator = torch.Generator().manual_seed(channels + groups + scale)
    n = 1 if shared else batch
    value = torch.randn(n, channels, 7 * scale, 9 * scale, generator=generator)
    match = torch.randint(-2, 9, (batch, 2, size[0] + 2, size[1] + 2), generator=generator, dtype=torch.int32)
    per_group = 27 if offsets else 9
    learned = 2 * torch.randn(n, per_group * groups, scale * size[0], scale * size[1], generator=generator)
    return value, match, learned


def check(given: tuple[Tensor, Tensor, Tensor], build: Build = "fast", order: Order = "forward", **a: Any) -> Tensor:
    found = ops.deformable_sample(ops.device("deformable_sample", build, order), *given, **a)
    bound = {"rtol": 2e-3, "atol": 2e-3} if given[0].dtype == torch.float16 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(found, reference(*given, **a), equal_nan=True, **bound)
    return found


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("scale", [1, 2, 4])
@pytest.mark.parametrize(("channels", "groups"), [(16, 1), (40, 1), (64, 8), (12, 2), (3, 1), (18, 3)])
@pytest.mark.parametrize("offsets", [True, False])
def test_equals_the_reference(channels: int, groups: int, scale: int, offsets: bool, dtype: torch.dtype) -> None:
    value, match, learned = inputs(channels, groups, scale, offsets)
    check((value.to(dtype), match, learned.to(dtype)), scale=scale, groups=groups)


@pytest.mark.parametrize("shared", [True, False])
def test_batches(shared: bool) -> None:
    check(inputs(16, 1, 2, True, 3, shared=shared), scale=2, groups=1)


@pytest.mark.parametrize("order", ["reversed", "shuffled"])
def test_the_order_of_threads_does_not_matter(order: Order) -> None:
    given = inputs(16, 2, 2, True)
    assert torch.equal(check(given, scale=2, groups=2), check(given, order=order, scale=2, groups=2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("channels", [8, 5])
def test_no_undefined_behaviour(channels: int, dtype: torch.dtype) -> None:
    """Offsets that are huge, infinite or not numbers, and matches as far out as an int32 can say."""
    value, match, learned = inputs(channels, 1, 2, True, size=(3, 5))
    match[0, :, 2, 2], match[0, :, 3, 3], match[0, 0, 4, 4] = 2**31 - 1, -(2**31), 2**30
    learned[0, 0, 1, 1], learned[0, 1, 2, 2], learned[0, 2, 3, 3] = torch.inf, -torch.inf, torch.nan
    learned[0, 3, 4, 4], learned[0, 20, 0, 0], learned[0, 21, 0, 0] = 60000, torch.inf, torch.nan
    learned[0, 22, 0, 0] = -torch.inf
    found = check((value.to(dtype), match, learned.to(dtype)), "asan", scale=2, groups=1)
    assert found.isnan().any()  # what is not a number stays one: it is not made a picture


def test_no_races() -> None:
    check(inputs(8, 1, 1, True, size=(2, 2)), "tsan", scale=1, groups=1)


def test_nothing_to_do_and_too_much() -> None:
    def plan(value: Any, match: Any, learned: Any) -> Any:
        return deformable_sample_plan(value, match, learned, (0, 0, 0, 0), dtype="float16", scale=1, groups=1)

    assert plan((1, 8, 4, 4), (1, 2, 2, 6), (1, 9, 0, 4)) == []
    with pytest.raises(ValueError, match=r"the output has 576x2048x2048 elements; .*: use smaller tiles"):
        plan((1, 64, 4, 4), (1, 2, 2050, 2050), (1, 9, 2048, 2048))
