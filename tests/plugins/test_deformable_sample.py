"""DeformableSample: the reference against grid_sample, torchvision and loops; the function body against the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import amsa.plugins.torch_ops  # noqa: F401
from amsa.plugins.deformable_sample.reference import tap_positions

Run = Callable[..., list[Tensor]]
MASK_OF_ONE = 100.0  # a logit whose sigmoid is exactly 1 in float32

# (scale, groups, with offsets)
CASES = [(1, 1, False), (1, 2, True), (2, 1, True), (2, 4, False), (4, 4, True)]


def run(value: Tensor, match: Tensor, offset_mask: Tensor, scale: int, groups: int) -> Tensor:
    samples: Tensor = torch.ops.amsa.deformable_sample(value, match, offset_mask, scale=scale, groups=groups)
    return samples


def identity(rows: int, cols: int) -> Tensor:
    """Every anchor from -2 on matched with itself, for `rows` x `cols` positions."""
    grid = torch.meshgrid(torch.arange(-2, rows), torch.arange(-2, cols), indexing="ij")
    return torch.stack(grid)[None].int()


def random_inputs(
    seed: int,
    scale: int,
    groups: int,
    offsets: bool,
    size: tuple[int, int] = (5, 6),
    value_size: tuple[int, int] = (7, 8),
    batch: tuple[int, int, int] = (1, 1, 1),
) -> tuple[Tensor, Tensor, Tensor]:
    """Value, match and offset_mask; matches lie up to three positions outside the value."""
    generator = torch.Generator().manual_seed(seed)
    (h, w), (rows, cols) = size, value_size
    value = torch.randn(batch[0], 4 * groups, scale * rows, scale * cols, generator=generator)
    match = torch.randint(-3, max(value_size) + 3, (batch[1], 2, h + 2, w + 2), generator=generator, dtype=torch.int32)
    channels = 27 * groups if offsets else 9 * groups
    offset_mask = 2 * torch.randn(batch[2], channels, scale * h, scale * w, generator=generator)
    return value, match, offset_mask


def split(offset_mask: Tensor, groups: int, batch: int) -> tuple[Tensor, Tensor]:
    """Offsets [N, G, 9, 2, H, W] and mask logits [N, G, 9, H, W]."""
    shape = offset_mask.shape[2:]
    offset_mask = offset_mask.expand(batch, -1, -1, -1)
    offset = (
        offset_mask[:, : -9 * groups] if offset_mask.shape[1] > 9 * groups else offset_mask.new_zeros(batch, 18 * groups, *shape)
    )
    return offset.reshape(batch, groups, 9, 2, *shape), offset_mask[:, -9 * groups :].reshape(batch, groups, 9, *shape)


def by_grid_sample(value: Tensor, match: Tensor, offset_mask: Tensor, scale: int, groups: int) -> Tensor:
    """The same samples from torch's own bilinear sampler, one tap and group at a time, in the inputs' precision."""
    n, (rows, cols), group = match.shape[0], value.shape[2:], value.shape[1] // groups
    offset, logits = split(offset_mask, groups, n)
    positions = tap_positions(match, scale)
    taps = []
    for tap in range(9):
        for g in range(groups):
            y, x = (positions[:, i, tap] + offset[:, g, tap, i] for i in (0, 1))
            grid = torch.stack((2 * x / max(cols - 1, 1) - 1, 2 * y / max(rows - 1, 1) - 1), -1)
            part = value[:, g * group : (g + 1) * group].expand(n, -1, -1, -1)
            sample = F.grid_sample(part, grid, mode="bilinear", padding_mode="zeros", align_corners=True)
            taps.append(sample * logits[:, g, tap].sigmoid()[:, None])
    return torch.cat(taps, 1)


# ------------------------------------------------------------------------------------------------ the reference


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_tap_positions_follow_the_formula(scale: int) -> None:
    match = torch.randint(-9, 99, (2, 2, 5, 6), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    positions = tap_positions(match, scale)
    assert positions.shape == (2, 2, 9, 3 * scale, 4 * scale)
    for r in range(3 * scale):
        for c in range(4 * scale):
            for i in range(3):
                for j in range(3):
                    # the match of the patch anchored (i, j) before the pixel's position; the grid starts at anchor -2
                    m = match[:, :, r // scale - i + 2, c // scale - j + 2]
                    inside = torch.tensor([r % scale + scale * i + i - 1, c % scale + scale * j + j - 1])
                    assert torch.equal(positions[:, :, 3 * i + j, r, c], scale * m + inside)


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_matched_with_itself_a_pixel_reads_its_neighbours(scale: int) -> None:
    positions = tap_positions(identity(4, 5), scale)
    r, c = torch.meshgrid(torch.arange(4 * scale), torch.arange(5 * scale), indexing="ij")
    for tap in range(9):
        assert torch.equal(positions[0, :, tap], torch.stack((r + tap // 3 - 1, c + tap % 3 - 1)))


@given(
    seed=st.integers(0, 2**32 - 1), case=st.sampled_from(CASES), size=st.tuples(*[st.integers(1, 7)] * 4), batch=st.integers(1, 3)
)
def test_equals_grid_sample(seed: int, case: tuple[int, int, bool], size: Any, batch: int) -> None:
    scale, groups, _ = case
    value, match, offset_mask = random_inputs(seed, *case, size[:2], (size[2] + 1, size[3] + 1), (1, batch, batch))
    samples = run(value, match, offset_mask, scale, groups)
    expected = by_grid_sample(value.double(), match, offset_mask.double(), scale, groups)
    torch.testing.assert_close(samples.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_gradients_equal_those_of_grid_sample(case: tuple[int, int, bool]) -> None:
    scale, groups, _ = case
    value, match, offset_mask = random_inputs(1, *case, batch=(1, 2, 1))
    inputs = value.requires_grad_(), offset_mask.requires_grad_()
    samples = run(value, match, offset_mask, scale, groups)
    factor = torch.randn(samples.shape, generator=torch.Generator().manual_seed(2))
    grads = torch.autograd.grad((samples * factor).sum(), inputs)
    doubles = [t.detach().double().requires_grad_() for t in inputs]
    expected = torch.autograd.grad((by_grid_sample(doubles[0], match, doubles[1], scale, groups) * factor).sum(), doubles)
    for grad, expected_grad in zip(grads, expected, strict=True):
        assert grad.abs().max() > 0.1
        torch.testing.assert_close(grad.double(), expected_grad, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("own", [True, False])
def test_with_a_1x1_convolution_it_is_torchvisions_deformable_convolution(case: tuple[int, int, bool], own: bool) -> None:
    ops = pytest.importorskip("torchvision.ops")
    scale, groups, _ = case
    value, match, offset_mask = random_inputs(3, *case, (6, 5), (6, 5), (2, 2, 2))
    value.requires_grad_()
    offset_mask.requires_grad_()
    match = identity(6, 5).expand(2, -1, -1, -1) if own else match
    offset, logits = split(offset_mask, groups, 2)
    # torchvision's offsets count from the pixel's own neighbours.
    moved = tap_positions(match, scale) - tap_positions(identity(6, 5), scale)  # [N, 2, 9, H, W]
    offset = (offset + moved.transpose(1, 2)[:, None]).flatten(1, 3)
    weight = torch.randn(7, value.shape[1], 3, 3, generator=torch.Generator().manual_seed(4))
    bias = torch.linspace(-1, 1, 7)
    expected = ops.deform_conv2d(value, offset, weight, bias, padding=1, mask=logits.flatten(1, 2).sigmoid())
    samples = run(value, match, offset_mask, scale, groups)
    weight_1x1 = weight.permute(0, 2, 3, 1).reshape(7, -1, 1, 1)  # channel tap * C + c
    result = F.conv2d(samples, weight_1x1, bias)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)
    factor = torch.randn(result.shape, generator=torch.Generator().manual_seed(8))
    grads, expected_grads = (torch.autograd.grad((y * factor).sum(), (value, offset_mask)) for y in (result, expected))
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_whole_positions_copy_pixels(scale: int) -> None:
    value, match, _ = random_inputs(5, scale, 2, False)
    samples = run(value, match, torch.full((1, 18, 5 * scale, 6 * scale), MASK_OF_ONE), scale, 2)
    padded = F.pad(value, (99, 99, 99, 99))
    positions = tap_positions(match, scale) + 99
    for tap in range(9):
        expected = padded[0][:, positions[0, 0, tap], positions[0, 1, tap]]
        assert torch.equal(samples[0, 8 * tap : 8 * tap + 8], expected)
    assert (samples == 0).any()
    assert (samples != 0).any()


def test_outside_everything_is_zero(run_onnx: Run) -> None:
    value = torch.ones(1, 4, 6, 6)
    match = identity(4, 4)
    offset_mask = torch.zeros(1, 27, 4, 4)
    offset_mask[:, 18:] = MASK_OF_ONE
    for far in (-9.0, 9.0, -1e9, 1e9, -3e38, 3e38):
        for axis in (0, 1):
            offset_mask[:, :18] = 0
            offset_mask[:, axis:18:2] = far
            assert not run(value, match, offset_mask, 1, 1).any()
            assert not run_onnx("DeformableSample", (value, match, offset_mask), scale=1, groups=1)[0].any()
    assert not run(value, match + 1000, torch.zeros(1, 9, 4, 4), 1, 1).any()
    assert run(value, match, torch.zeros(1, 9, 4, 4), 1, 1).any()


@pytest.mark.parametrize("far", [9.0, -9.0, 1e9, -1e9, 3e38])
def test_outside_everything_gradients_are_zero(far: float) -> None:
    value, match = torch.ones(1, 4, 6, 6, requires_grad=True), identity(4, 4)
    offset_mask = torch.cat((torch.full((1, 18, 4, 4), far), torch.zeros(1, 9, 4, 4)), 1).requires_grad_()
    for grad in torch.autograd.grad(run(value, match, offset_mask, 1, 1).sum(), (value, offset_mask)):
        assert torch.equal(grad, torch.zeros_like(grad))


def test_samples_fade_out_over_one_pixel_beyond_the_border() -> None:
    value, match = torch.ones(1, 1, 3, 3), identity(1, 1)
    offset_mask = torch.full((1, 27, 1, 1), MASK_OF_ONE)
    for offset, expected in ((0.0, 1.0), (0.75, 1.0), (-0.25, 0.75), (-0.999, 0.001), (2.5, 0.5), (3.0, 0.0)):
        offset_mask[0, 8:10, 0, 0] = torch.tensor([offset, 1.0])  # the middle tap, which reads pixel (0, 0)
        assert run(value, match, offset_mask, 1, 1)[0, 4, 0, 0].item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("batch", [(3, 3, 1), (1, 3, 3), (1, 3, 1), (3, 3, 3)])
def test_a_batch_equals_its_elements_alone(run_onnx: Run, batch: tuple[int, int, int]) -> None:
    inputs = random_inputs(6, 2, 2, True, batch=batch)
    samples = run(*inputs, 2, 2)
    (body,) = run_onnx("DeformableSample", inputs, scale=2, groups=2)
    for b in range(3):
        alone = [t if t.shape[0] == 1 else t[b : b + 1] for t in inputs]
        assert torch.equal(samples[b : b + 1], run(*alone, 2, 2))
        assert torch.equal(body[b : b + 1], run_onnx("DeformableSample", tuple(alone), scale=2, groups=2)[0])
    assert not torch.equal(samples[0], samples[1])


@pytest.mark.parametrize("case", CASES)
def test_float16(run_onnx: Run, case: tuple[int, int, bool]) -> None:
    scale, groups, _ = case
    value, match, offset_mask = random_inputs(7, *case)
    value, offset_mask = value.half(), offset_mask.half()
    expected = run(value.float(), match, offset_mask.float(), scale, groups)
    samples = run(value, match, offset_mask, scale, groups)
    assert samples.dtype == torch.float16
    assert torch.equal(samples, expected.half())  # one rounding, at the end
    (body,) = run_onnx("DeformableSample", (value, match, offset_mask), scale=scale, groups=groups)
    assert body.dtype == torch.float16
    torch.testing.assert_close(body.float(), expected, rtol=1e-3, atol=1e-5)


def test_float16_features_have_float32_coordinates(run_onnx: Run) -> None:
    value = torch.arange(3000.0).remainder(7).view(1, 1, 1, 3000).half()
    match = torch.tensor([-1, 2902], dtype=torch.int32).view(1, 2, 1, 1).expand(1, 2, 3, 3).contiguous()
    offset_mask = torch.full((1, 9, 1, 1), MASK_OF_ONE).half()
    # Taps 3 to 5 read columns 2901, 2903, 2905, which float16 would round to even ones.
    expected = [0] * 3 + [column % 7 for column in (2901, 2903, 2905)] + [0] * 3
    assert run(value, match, offset_mask, 1, 1).flatten().tolist() == expected
    (body,) = run_onnx("DeformableSample", (value, match, offset_mask), scale=1, groups=1)
    assert body.flatten().tolist() == expected


# ------------------------------------------------------------------------------------------------ ONNX


@given(
    seed=st.integers(0, 2**32 - 1),
    case=st.sampled_from(CASES),
    size=st.tuples(*[st.integers(1, 9)] * 4),
    batch=st.sampled_from([(1, 1, 1), (1, 3, 1), (2, 2, 2), (1, 2, 2), (2, 2, 1)]),
)
def test_body_equals_the_reference(run_onnx: Run, seed: int, case: Any, size: Any, batch: Any) -> None:
    scale, groups, _ = case
    inputs = random_inputs(seed, *case, size[:2], size[2:], batch)
    (samples,) = run_onnx("DeformableSample", inputs, scale=scale, groups=groups)
    torch.testing.assert_close(samples, run(*inputs, scale, groups), rtol=1e-5, atol=1e-5)
