"""The C++ kernels against the PyTorch references, and what happens without a compiler."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from amsa.plugins import cpu_library
from amsa.plugins.deformable_sample import cpu as sample_cpu
from amsa.plugins.deformable_sample import reference as sample
from amsa.plugins.patch_match import cpu as match_cpu
from amsa.plugins.patch_match import reference as match

pytestmark = pytest.mark.skipif(cpu_library.cpu_library() is None, reason="no C++ compiler on this machine")


Inputs = Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]
SCHEDULES = ("paper", "published", "fast", "exact")
SIZES = [
    ((12, 9), (11, 19), (11, 19)),
    ((13, 17), (11, 19), (8, 19)),
    ((5, 40), (40, 5), (33, 3)),
    ((3, 3), (3, 3), (3, 3)),
]


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def assert_as_reference(inputs: tuple[Tensor, ...], **attributes: Any) -> None:
    """Features are whole numbers, or arithmetic is int8: equal matches; int8 equal bits too."""
    found, relevance = match_cpu.patch_match(*inputs, **attributes)
    expected, expected_relevance = match.patch_match(*inputs, **attributes)
    assert torch.equal(found, expected)
    if attributes["arithmetic"] == "int8":
        assert torch.equal(relevance, expected_relevance)
    else:
        torch.testing.assert_close(relevance, expected_relevance, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("arithmetic", ["float", "int8"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("query", "ref", "valid"), SIZES)
@pytest.mark.parametrize(("level", "pad", "init_scale"), [(0, 0, 1), (1, 1, 2), (0, 0, 2), (3, 1, 1)])
def test_patch_match(
    patch_match_inputs: Inputs,
    query: Any,
    ref: Any,
    valid: Any,
    schedule: str,
    arithmetic: str,
    level: int,
    pad: int,
    init_scale: int,
) -> None:
    if init_scale == 2:
        query = tuple(n + n % 2 for n in query)
    a = {"iterations": 3, "schedule": schedule, "level": level, "pad": pad, "init_scale": init_scale, "arithmetic": arithmetic}
    for channels, batch, query_batch in ((5, 1, 1), (37, 2, 1), (16, 2, 2)):
        q, r, v, init = patch_match_inputs(
            channels, query, ref, valid, batch, query_batch, channels, integers=arithmetic == "float", **a
        )
        assert_as_reference((q, r, v, init), **a)
        assert_as_reference((q, r, v, init[:1]), **a)


@pytest.mark.parametrize("schedule", SCHEDULES[:3])
@given(seed=st.integers(0, 999), channels=st.integers(1, 70), size=st.tuples(*[st.integers(3, 19)] * 4), pad=st.integers(0, 1))
def test_any_size(schedule: str, seed: int, channels: int, size: tuple[int, ...], pad: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(1, channels, *size[:2], generator=generator)
    ref = torch.randn(1, channels, *size[2:], generator=generator)
    valid = torch.tensor([[max(3, s - seed % 2) for s in size[2:]]], dtype=torch.int32)
    init = torch.randint(0, 3, (1, 2, size[0] - 2 + 2 * pad, size[1] - 2 + 2 * pad), generator=generator, dtype=torch.int32)
    a = {"iterations": 2, "schedule": schedule, "level": 0, "pad": pad, "init_scale": 1}
    expected = match.patch_match(query, ref, valid, init, **a)
    with threads(1 + seed % 3):
        found = match_cpu.patch_match(query, ref, valid, init, **a)
    torch.testing.assert_close(found[1], expected[1], atol=1e-4, rtol=1e-5)
    # A score may round up in one and down in the other and turn a near-tie, so the scores decide.
    own = match.relevance_of(query, ref, valid, found[0], level=0, pad=pad)
    torch.testing.assert_close(own, found[1], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("arithmetic", ["float", "int8"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_float16_and_layouts(patch_match_inputs: Inputs, schedule: str, arithmetic: str) -> None:
    # Whole numbers up to 50 are the same in float16
    a = {"iterations": 2, "schedule": schedule, "level": 0, "pad": 1, "init_scale": 1, "arithmetic": arithmetic}
    q, r, valid, init = patch_match_inputs(1, (13, 21), (18, 35), (17, 33), 2, 1, 37, **a)
    assert_as_reference((q.half(), r.half(), valid, init), **a)
    expected = match_cpu.patch_match(q, r, valid, init, **a)
    for change in (
        lambda t: t.half(),
        lambda t: t.contiguous(memory_format=torch.channels_last),
        lambda t: t.half().contiguous(memory_format=torch.channels_last),
        lambda t: t.repeat_interleave(2, 3)[..., ::2],
    ):
        found = match_cpu.patch_match(change(q), change(r), valid, init, **a)
        assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


@pytest.mark.parametrize("cols", [256, 1])
def test_float16_numbers(cols: int) -> None:
    # Every finite float16 number, to float32 and back; the last of a row are not converted eight at a time
    every = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(torch.float16)
    every = every.where(every.isfinite(), 0).view(1, 1, -1, cols)
    rows = every.shape[2]
    where = torch.stack(torch.meshgrid(torch.arange(-2, rows), torch.arange(-2, cols), indexing="ij"))[None].int()
    mask = torch.full((1, 9, rows, cols), 20.0).half()  # its sigmoid is 1
    found = sample_cpu.deformable_sample(every, where, mask, scale=1, groups=1)[:, 4:5]
    assert torch.equal(found, every)


@pytest.mark.parametrize("arithmetic", ["float", "int8"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
def test_features_that_are_not_finite(patch_match_inputs: Inputs, schedule: str, arithmetic: str, number: float) -> None:
    a = {"iterations": 2, "schedule": schedule, "level": 0, "pad": 1, "init_scale": 1, "arithmetic": arithmetic}
    q, r, valid, init = patch_match_inputs(2, (9, 8), (10, 11), (9, 9), **a)
    q[0, 1, 4, 4] = number
    assert_as_reference((q, r, valid, init), **a)
    r[0, 2, 3, 3:5] = number
    r[0, 0, 9] = torch.nan  # beyond valid
    assert_as_reference((q, r, valid, init), **a)
    q[:] = number
    assert_as_reference((q, r, valid, init), **a)


@pytest.mark.parametrize("arithmetic", ["float", "int8"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("far", [-(2**31), -7, 90, 2**31 - 1])
def test_init_and_valid_out_of_range(patch_match_inputs: Inputs, schedule: str, arithmetic: str, far: int) -> None:
    for level, pad, init_scale in ((1, 1, 2), (0, 0, 2), (0, 0, 1)):
        a = {
            "iterations": 1,
            "schedule": schedule,
            "level": level,
            "pad": pad,
            "init_scale": init_scale,
            "arithmetic": arithmetic,
        }
        q, r, valid, init = patch_match_inputs(3, (8, 10), (7, 9), **a)
        init[:, :, ::2] = far
        assert_as_reference((q, r, valid, init), **a)
        assert_as_reference((q, r, torch.full_like(valid, far), init), **a)


@pytest.mark.parametrize("arithmetic", ["float", "int8"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_threads_change_no_match(patch_match_inputs: Inputs, schedule: str, arithmetic: str) -> None:
    # Large enough for the kernel to start more than one
    a = {"iterations": 1, "schedule": schedule, "level": 0, "pad": 1, "init_scale": 1, "arithmetic": arithmetic}
    inputs = patch_match_inputs(4, (40, 44), (38, 42), channels=64, integers=False, **a)
    results = []
    for count in (1, 3):
        with threads(count):
            results.append(match_cpu.patch_match(*inputs, **a))
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))


def test_no_score_is_computed_twice(patch_match_inputs: Inputs) -> None:
    a = {"iterations": 6, "schedule": "paper", "level": 0, "pad": 0, "init_scale": 1}
    counts: list[int] = []
    # One reference position; then three, of which a position needs to score each once in a step
    match_cpu.patch_match(*patch_match_inputs(5, (11, 13), (3, 3), channels=128, **a), **a, evaluations=counts)
    match_cpu.patch_match(*patch_match_inputs(5, (11, 13), (3, 5), channels=128, **a), **a, evaluations=counts)
    match_cpu.patch_match(*patch_match_inputs(5, (11, 13), (9, 5), **a), **{**a, "schedule": "exact"}, evaluations=counts)
    positions = 9 * 11
    assert counts[0] == positions
    assert positions < counts[1] <= 3 * positions  # with this many channels, once in all
    assert counts[2] == positions * 7 * 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": (0, 4, 8, 8)}, "query has a side of 0"),
        ({"valid": (1, 0)}, "valid has a side of 0"),
        ({"ref": (0, 4, 8, 8)}, "ref has a side of 0"),
        ({"query": (1, 0, 8, 8), "ref": (1, 0, 8, 8)}, "ref has a side of 0"),
        ({"query": (1, 3, 8, 8)}, "query has 3 channels; it must have 4"),
        ({"query": (3, 4, 8, 8)}, "query has batch 3; it must be 1 or 1"),
        ({"query": (1, 4, 2, 8)}, "query is 2x8; without padding both sides must be at least 3"),
        ({"init": (1, 2, 8, 8)}, "init is 8x8; it must be 6x6"),
        ({"init": (1, 1, 6, 6)}, "init has 1 channels; it must have 2"),
        ({"valid": (1, 3)}, "valid has 3 channels; it must have 2"),
        ({"query": (1, 1041, 8, 8), "ref": (1, 1041, 8, 8)}, "ref has 1041 channels; with int8 arithmetic it may have 1040"),
        ({"schedule": "best"}, "schedule is 'best'; it must be one of 'published', 'paper', 'fast', 'exact'"),
        ({"arithmetic": "int4"}, "arithmetic is 'int4'; it must be one of 'float', 'int8'"),
        ({"iterations": 0}, "iterations is 0; it must be 1 to 65536"),
        ({"iterations": 2**40}, "iterations is 1099511627776"),
        ({"level": -1}, "level is -1; it must be 0 to 3"),
        ({"pad": 2}, "pad is 2; it must be 0 to 1"),
        ({"init_scale": 3}, "init_scale is 3; it must be 1 to 2"),
    ],
)
def test_what_the_kernel_refuses(change: dict[str, Any], message: str) -> None:
    shapes = {"query": (1, 4, 8, 8), "ref": (1, 4, 8, 8), "valid": (1, 2), "init": (1, 2, 6, 6)}
    a = {"iterations": 1, "schedule": "paper", "level": 0, "pad": 0, "init_scale": 1, "arithmetic": "int8"}
    shapes |= {k: v for k, v in change.items() if k in shapes}
    tensors = [torch.zeros(s, dtype=torch.int32 if k in ("valid", "init") else torch.float32) for k, s in shapes.items()]
    with pytest.raises(ValueError, match=re.escape(f"PatchMatch: {message}")):
        # `pad` decides the size of the result, which is made before the call.
        match_cpu.patch_match(*tensors, **{**a, **{k: v for k, v in change.items() if k in a}})


@pytest.mark.parametrize(
    ("shapes", "attributes", "message"),
    [
        (((1, 4, 8, 8), (1, 2, 5, 5), (1, 9, 3, 4)), (1, 1), "offset_mask is 3x4; with this match and scale it must be 3x3"),
        (((1, 4, 8, 8), (1, 2, 5, 5), (1, 8, 3, 3)), (1, 1), "offset_mask has 8 channels; it must have 9 (masks) or 27"),
        (((1, 4, 8, 8), (1, 2, 5, 5), (1, 27, 3, 3)), (1, 3), "value has 4 channels; they must divide into 3 groups"),
        (((1, 4, 0, 8), (1, 2, 5, 5), (1, 9, 3, 3)), (1, 1), "value has a side of 0"),
        (((1, 4, 8, 8), (1, 2, 2, 5), (1, 9, 0, 3)), (1, 1), "offset_mask has a side of 0"),
        (((2, 4, 8, 8), (1, 2, 5, 5), (1, 9, 3, 3)), (1, 1), "value has batch 2; it must be 1 or 1"),
        (((1, 4, 8, 8), (1, 2, 5, 5), (1, 9, 9, 9)), (3, 1), "scale is 3; it must be one of 1, 2, 4"),
        (((1, 4, 8, 8), (1, 2, 5, 5), (1, 9, 3, 3)), (1, 0), "groups is 0; it must be at least 1"),
    ],
)
def test_what_the_sampling_kernel_refuses(shapes: Any, attributes: tuple[int, int], message: str) -> None:
    value, where, offset_mask = torch.zeros(shapes[0]), torch.zeros(shapes[1], dtype=torch.int32), torch.zeros(shapes[2])
    with pytest.raises(ValueError, match=re.escape(f"DeformableSample: {message}")):
        sample_cpu.deformable_sample(value, where, offset_mask, scale=attributes[0], groups=attributes[1])


@pytest.mark.parametrize("offset", [0.0, 1e9, -1e9, 3e38, torch.inf, -torch.inf])
@pytest.mark.parametrize("far", [0, -(2**31), 2**31 - 1])
def test_samples_far_outside_are_zero(offset: float, far: int) -> None:
    value, where = torch.ones(1, 3, 8, 8), torch.full((1, 2, 3, 3), far, dtype=torch.int32)
    offset_mask = torch.zeros(1, 27, 4, 4)
    offset_mask[:, :18] = offset
    found = sample_cpu.deformable_sample(value, where, offset_mask, scale=4, groups=1)
    if offset == 0 == far:
        assert found.max() > 0
    elif offset == 0 or offset * far >= 0:
        assert not found.any()
    assert torch.equal(found.isfinite(), torch.ones_like(found, dtype=torch.bool))


@pytest.mark.parametrize("groups", [1, 2])
def test_layouts_of_features(groups: int) -> None:
    generator = torch.Generator().manual_seed(1)
    value = torch.randn(1, 6, 12, 20, generator=generator)
    where = torch.randint(-4, 9, (2, 2, 5, 23), generator=generator, dtype=torch.int32)
    offset_mask = torch.randn(2, 27 * groups, 6, 42, generator=generator)
    expected = sample_cpu.deformable_sample(value, where, offset_mask, scale=2, groups=groups)
    last = [t.contiguous(memory_format=torch.channels_last) for t in (value, offset_mask)]
    found = sample_cpu.deformable_sample(last[0], where, last[1], scale=2, groups=groups)
    assert torch.equal(found, expected)
    halves = sample_cpu.deformable_sample(value.half(), where, offset_mask.half(), scale=2, groups=groups)
    reference = sample.deformable_sample(value.half(), where, offset_mask.half(), scale=2, groups=groups)
    torch.testing.assert_close(halves, reference, atol=2e-3, rtol=1e-3)  # one unit in the last place of float16


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
    results = []
    for count in (1, 3):
        with threads(count):
            out = sample_cpu.deformable_sample(value, where, offset_mask, scale=2, groups=1)
            grads = sample_cpu.deformable_sample_backward(value, where, offset_mask, grad, scale=2, groups=1)
        results.append((out, *grads))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


_SCRIPT = """
import torch, warnings
import amsa.plugins.torch_ops
from amsa.plugins import cpu_library
cpu_library._FOLDER /= "none"  # not the library that was built while installing
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(2):
        torch.ops.amsa.deformable_sample(
            torch.ones(1, 1, 4, 4), torch.zeros(1, 2, 3, 3, dtype=torch.int32), torch.zeros(1, 9, 1, 1), scale=1, groups=1)
print(*(w.message for w in caught), sep="|")
"""


@pytest.mark.parametrize(
    ("compiler", "message"),
    [
        ("", "no C++ compiler, so no CPU kernels: PyTorch references"),
        ("false", "the CPU kernels cannot be built (/usr/bin/false exits with 1)"),
    ],
)
def test_without_a_compiler_the_references_run_and_say_so_once(tmp_path: Path, compiler: str, message: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "CXX"} | {"PATH": "", "XDG_CACHE_HOME": str(tmp_path)}
    if compiler:
        environment |= {"CXX": f"/usr/bin/{compiler}"}
    done = subprocess.run([sys.executable, "-c", _SCRIPT], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.count(message) == 1, done.stdout


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The library is looked for again, in the test and after it."""
    caches = (cpu_library.cpu_library, cpu_library.library_path)
    for cache in caches:
        cache.cache_clear()
    yield
    monkeypatch.undo()
    for cache in caches:
        cache.cache_clear()


@pytest.mark.usefixtures("fresh")
def test_a_library_that_another_process_built_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "amsa").mkdir()
    built = cpu_library.library_path()
    assert built is not None
    shutil.copy(built, tmp_path / "amsa")
    cpu_library.library_path.cache_clear()
    cpu_library.cpu_library.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "/usr/bin/false")  # nothing is compiled
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cpu_library.cpu_library() is not None


@pytest.mark.usefixtures("fresh")
def test_a_library_beside_the_sources_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = cpu_library.library_path()
    assert built is not None
    cpu_library.library_path.cache_clear()
    monkeypatch.setattr(cpu_library, "_FOLDER", built.parent)  # as `build` leaves it in an installed package
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cpu_library.library_path() == built
    assert not list(tmp_path.iterdir())


def test_importing_the_library_needs_no_torch() -> None:
    script = "import sys; from amsa.plugins import cpu_library; cpu_library.cpu_library(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"torch", "onnx", "onnxruntime"} & set(done.stdout.split())


@pytest.mark.slow
def test_building(tmp_path: Path) -> None:
    built = cpu_library.build(tmp_path / "new")
    assert built.parent == tmp_path / "new"
    assert [p.name for p in built.parent.iterdir()] == [built.name]
    assert ctypes.CDLL(str(built)).amsa_patch_match


@pytest.mark.slow
def test_sanitizers(tmp_path: Path) -> None:
    """Both ops and every inner product, at every size and with extreme numbers, under ASan and UBSan; see the program."""
    folder = Path(cpu_library.__file__).parent
    sources = [s for s in cpu_library._SOURCES if s.name not in ("onnxruntime_library.cpp", "dots.cpp")]
    command = ["g++", "-std=c++17", "-O1", "-g", "-ffp-contract=off", "-pthread", f"-I{folder}"]
    sanitize = ["-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all"]
    program = Path(__file__).with_name("cpu_kernels.cpp")  # includes dots.cpp
    subprocess.run([*command, *sanitize, program, *sources, "-o", tmp_path / "run"], check=True)
    done = subprocess.run([tmp_path / "run"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "ok"
