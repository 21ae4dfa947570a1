"""The C++ kernels against the PyTorch references, and what happens without a compiler."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amsa.plugins import cpu_library
from amsa.plugins.deformable_sample import cpu as sample_cpu
from amsa.plugins.deformable_sample import reference as sample
from amsa.plugins.patch_match import cpu as match_cpu
from amsa.plugins.patch_match import reference as match
from amsa.plugins.patch_match.schedule import steps

pytestmark = pytest.mark.skipif(cpu_library.cpu_library() is None, reason="no C++ compiler on this machine")


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("schedule", ["paper", "published", "fast"])
@given(seed=st.integers(0, 999), channels=st.integers(1, 37), size=st.tuples(*[st.integers(3, 19)] * 4), pad=st.integers(0, 1))
def test_patch_match_steps(threads: int, schedule: str, seed: int, channels: int, size: tuple[int, ...], pad: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(1, channels, *size[:2], generator=generator)
    ref = torch.randn(1, channels, *size[2:], generator=generator)
    valid = torch.tensor([[max(3, s - seed % 2) for s in size[2:]]])
    patches = match.Patches(query, ref, valid, pad)
    shape = (1, patches.height, patches.width)
    y, x = (torch.randint(0, int(n), shape, generator=generator) for n in patches.count[0])
    path = steps(schedule, 2, 0, (size[0], size[1]), (int(valid[0, 0]), int(valid[0, 1])))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = match_cpu.search(patches, y, x, path, schedule == "published")
    finally:
        torch.set_num_threads(before)
    expected = match.search(patches, y, x, path, schedule == "published")
    torch.testing.assert_close(found[2], expected[2], atol=1e-4, rtol=1e-5)
    # A score may round up in one and down in the other and turn a near-tie, so the scores decide.
    torch.testing.assert_close(patches.score(found[0], found[1]), found[2], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("offsets", [True, False])
@given(
    seed=st.integers(0, 999),
    scale=st.sampled_from([1, 2, 4]),
    groups=st.sampled_from([1, 2, 3]),
    width=st.integers(1, 21),
    size=st.tuples(*[st.integers(1, 7)] * 4),
    batch=st.sampled_from([(1, 1, 1), (2, 2, 2), (1, 2, 2), (2, 2, 1)]),
)
def test_deformable_sample(
    offsets: bool, seed: int, scale: int, groups: int, width: int, size: tuple[int, ...], batch: tuple[int, int, int]
) -> None:
    h, w, rows, cols = size
    generator = torch.Generator().manual_seed(seed)
    value = torch.randn(batch[0], groups * width, scale * rows, scale * cols, generator=generator)
    where = torch.randint(-4, 9, (batch[1], 2, h + 2, w + 2), generator=generator, dtype=torch.int32)
    channels = (27 if offsets else 9) * groups
    offset_mask = 2 * torch.randn(batch[2], channels, scale * h, scale * w, generator=generator)
    # Float64 in the reference: gradients are to be compared, and it has no kernel.
    tensors = (value.double().requires_grad_(), where, offset_mask.double().requires_grad_())
    expected = _sample_in_float64(*tensors, scale, groups)
    found = sample_cpu.deformable_sample(value, where, offset_mask, scale=scale, groups=groups)
    torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=1e-5)
    grad = torch.randn(expected.shape, generator=generator)
    grads = sample_cpu.deformable_sample_backward(value, where, offset_mask, grad, scale=scale, groups=groups)
    for ours, theirs in zip(grads, torch.autograd.grad(expected, (tensors[0], tensors[2]), grad.double()), strict=True):
        torch.testing.assert_close(ours.double(), theirs, atol=2e-4, rtol=1e-4)


def _sample_in_float64(
    value: torch.Tensor, where: torch.Tensor, offset_mask: torch.Tensor, scale: int, groups: int
) -> torch.Tensor:
    """The definition by its formula: nine taps, four corners each."""
    n, (height, width), (rows, cols) = where.shape[0], offset_mask.shape[2:], value.shape[2:]
    value = value.expand(n, -1, -1, -1).unflatten(1, (groups, -1))
    offset_mask = offset_mask.expand(n, -1, -1, -1)
    mask = offset_mask[:, -9 * groups :].unflatten(1, (groups, 9)).sigmoid()
    position = sample.tap_positions(where, scale).double()[:, None].expand(-1, groups, -1, -1, -1, -1)
    y, x = position[:, :, 0], position[:, :, 1]
    if offset_mask.shape[1] == 27 * groups:
        offset = offset_mask[:, : 18 * groups].unflatten(1, (groups, 9, 2))
        y, x = y + offset[:, :, :, 0], x + offset[:, :, :, 1]
    total = torch.zeros((), dtype=torch.float64)
    for i in (0, 1):
        for j in (0, 1):
            cy, cx = y.detach().floor() + i, x.detach().floor() + j
            weight = (1 - (y - cy).abs()) * (1 - (x - cx).abs())
            inside = (cy >= 0) & (cy < rows) & (cx >= 0) & (cx < cols)
            flat = (cy.clamp(0, rows - 1) * cols + cx.clamp(0, cols - 1)).long().flatten(2)
            corner = value.flatten(3).gather(3, flat[:, :, None].expand(-1, -1, value.shape[2], -1))
            total = total + corner.view(*value.shape[:3], 9, height, width) * (weight * inside * mask)[:, :, None]
    samples = total.permute(0, 3, 1, 2, 4, 5)  # tap first, then group and channel
    return samples.reshape(n, -1, height, width)


@pytest.mark.parametrize("channel", [0, 5, 18, 26])
def test_what_is_not_a_number_stays_visible(channel: int) -> None:
    value, where = torch.ones(1, 1, 4, 4), torch.zeros(1, 2, 3, 3, dtype=torch.int32)
    offset_mask = torch.zeros(1, 27, 1, 1)
    offset_mask[:, channel] = torch.nan
    found = sample_cpu.deformable_sample(value, where, offset_mask, scale=1, groups=1)
    expected = sample.deformable_sample(value, where, offset_mask, scale=1, groups=1)
    torch.testing.assert_close(found, expected, equal_nan=True)
    assert found.isnan().sum() == 1


def test_threads_change_nothing() -> None:
    # 1 and 3 threads: the same bits, forward and backward
    generator = torch.Generator().manual_seed(0)
    value, offset_mask = torch.randn(2, 16, 32, 32, generator=generator), torch.randn(2, 27, 24, 24, generator=generator)
    where = torch.randint(0, 16, (2, 2, 14, 14), generator=generator, dtype=torch.int32)
    grad = torch.randn(2, 144, 24, 24, generator=generator)
    before, results = torch.get_num_threads(), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        out = sample_cpu.deformable_sample(value, where, offset_mask, scale=2, groups=1)
        grads = sample_cpu.deformable_sample_backward(value, where, offset_mask, grad, scale=2, groups=1)
        results.append((out, *grads))
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


_SCRIPT = """
import torch, warnings
import amsa.plugins.torch_ops
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(2):
        torch.ops.amsa.deformable_sample(
            torch.ones(1, 1, 4, 4), torch.zeros(1, 2, 3, 3, dtype=torch.int32), torch.zeros(1, 9, 1, 1), scale=1, groups=1)
print(*(w.message for w in caught), sep="|")
"""


@pytest.mark.parametrize(
    ("compiler", "message"),
    [("", "no C++ compiler: the CPU kernels run as PyTorch references"), ("false", "the CPU kernels cannot be built (")],
)
def test_without_a_compiler_the_references_run_and_say_so_once(tmp_path: Path, compiler: str, message: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "CXX"} | {"PATH": "", "XDG_CACHE_HOME": str(tmp_path)}
    if compiler:
        environment |= {"CXX": f"/usr/bin/{compiler}"}
    done = subprocess.run([sys.executable, "-c", _SCRIPT], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.count(message) == 1, done.stdout


def test_a_library_that_another_process_built_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cpu_library.cpu_library.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cpu_library.cpu_library() is not None
        (built,) = (tmp_path / "amsa").iterdir()
        stamp = built.stat().st_mtime_ns
        cpu_library.cpu_library.cache_clear()
        assert cpu_library.cpu_library() is not None
    assert [p.stat().st_mtime_ns for p in (tmp_path / "amsa").iterdir()] == [stamp]
    monkeypatch.undo()
    cpu_library.cpu_library.cache_clear()
