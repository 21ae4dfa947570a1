"""The C++ plugins, called as TensorRT calls them, on a CUDA driver that works on the CPU: what they say of themselves equals the
Python plugins' word, and what they compute is the PyTorch reference's.

Run by test_plugin_library.py in a process of its own.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from amsa.plugins import DEFORMABLE_SAMPLE, OPS, PATCH_MATCH, OpSpec
from amsa.plugins.deformable_sample.reference import deformable_sample
from amsa.plugins.patch_match.plan import Addresses, patch_match_plan, patch_match_scratch
from amsa.plugins.patch_match.reference import patch_match

from .cpp_plugins import (
    ATTRIBUTES,
    CHW32,
    FIELD_TYPES,
    FLOAT,
    HALF,
    HWC,
    HWC8,
    INT32,
    LINEAR,
    POINTER,
    Attached,
    allocate,
    call,
    calls,
    create,
    download,
    driver,
    fields,
    log,
    open_shim,
    shim,
    upload,
)


@pytest.fixture(scope="module", autouse=True)
def context() -> POINTER:
    """The primary context, current in this thread."""
    call("cuInit", 0)
    made = POINTER()
    call("cuDevicePrimaryCtxRetain", ctypes.byref(made), 0)
    call("cuCtxSetCurrent", made)
    return made


@pytest.fixture(autouse=True)
def nothing_logged() -> Iterator[None]:
    yield
    assert log() == []


# ------------------------------------------------------------------------------------------------ what it says of itself


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_what_is_serialized(op: OpSpec) -> None:
    """Name, type and bytes of every field, as the Python plugin's `get_fields_to_serialize` has them."""
    attributes = ATTRIBUTES[op.name]
    values = [np.array([v], np.int32).tobytes() if isinstance(v, int) else v.encode() for v in attributes.values()]
    expected = [(a.name, FIELD_TYPES[a.type], value) for a, value in zip(op.attributes, values, strict=True)]
    plugin = create(op, **attributes)
    assert fields(plugin) == expected
    copy, again = POINTER(shim.clone(plugin)), POINTER(shim.create_again(plugin))
    shim.destroy(plugin)
    assert fields(copy) == fields(again) == expected
    shim.destroy(copy)
    shim.destroy(again)


def test_default_missing_and_wrong_attributes() -> None:
    attributes = ATTRIBUTES["PatchMatch"]
    plugin = create(PATCH_MATCH, **{k: v for k, v in attributes.items() if k != "arithmetic"})
    assert fields(plugin)[-1] == ("arithmetic", FIELD_TYPES[str], b"float")
    assert not create(PATCH_MATCH, **{k: v for k, v in attributes.items() if k != "iterations"})
    assert log() == ["PatchMatch: attribute iterations is missing"]
    assert not create(PATCH_MATCH, **{**attributes, "schedule": "sl\now"})
    assert log() == [r"PatchMatch: schedule is 'sl\now'; it must be one of 'published', 'paper', 'fast', 'exact'"]
    assert not create(PATCH_MATCH, **{**attributes, "level": 4})
    assert log() == ["PatchMatch: level is 4; it must be one of 0, 1, 2, 3"]
    assert not create(PATCH_MATCH, **{**attributes, "level": "1"})
    assert log() == ["PatchMatch: attribute level must be a whole number of 32 bits"]
    assert not create(DEFORMABLE_SAMPLE, scale=2, groups=0)
    assert log() == ["DeformableSample: groups is 0; it must be at least 1"]


def accepted(who: ctypes.CDLL, op: OpSpec, features: int, channels: int = 16) -> list[tuple[int, ...]]:
    """Every combination of formats that a plugin accepts, asked for as TensorRT does: tensor after tensor."""
    plugin = create(op, **ATTRIBUTES[op.name])
    declared = (*op.inputs, *op.outputs)
    types = (ctypes.c_int * len(declared))(*({"float32": FLOAT, "int32": INT32}.get(t.dtype, features) for t in declared))
    combinations: list[tuple[int, ...]] = [()]
    for position in range(len(declared)):
        longer = [(*before, chosen) for before, chosen in product(combinations, (LINEAR, HWC8, CHW32, HWC))]
        counts = len(op.inputs), len(op.outputs)
        combinations = [
            formats
            for formats in longer
            if who.supports(plugin, position, types, (ctypes.c_int * len(formats))(*formats), channels, *counts)
        ]
    shim.destroy(plugin)
    return combinations


@pytest.mark.parametrize("features", [HALF, FLOAT])
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_exactly_one_combination_of_formats(op: OpSpec, features: int) -> None:
    classic = open_shim("CLASSIC", with_log=False)
    tensors = (*op.inputs, *op.outputs)
    rtx = tuple(HWC if t.dtype == "T" else LINEAR for t in tensors)
    padded = tuple(HWC8 if t.dtype == "T" else LINEAR for t in tensors)
    assert accepted(shim, op, features) == accepted(shim, op, features, channels=27) == [rtx]
    assert accepted(classic, op, features) == [padded if features == HALF else rtx]
    assert accepted(classic, op, features, channels=27) == ([] if features == HALF else [rtx])


def test_scratch_is_that_of_the_largest_shapes() -> None:
    shapes = (1, 16, 24, 32), (2, 16, 40, 48), (1, 2), (1, 2, 12, 16)
    plugin = create(PATCH_MATCH, **ATTRIBUTES["PatchMatch"])
    ranks, sizes = (ctypes.c_int * 4)(4, 4, 2, 4), [n for shape in shapes for n in shape]
    found = shim.workspace(plugin, 4, ranks, (ctypes.c_int64 * len(sizes))(*sizes))
    assert found == patch_match_scratch(*shapes[:2], **ATTRIBUTES["PatchMatch"]) > 0
    plugin = create(DEFORMABLE_SAMPLE, **ATTRIBUTES["DeformableSample"])
    assert shim.workspace(plugin, 3, (ctypes.c_int * 3)(4, 4, 4), (ctypes.c_int64 * 12)(*range(1, 13))) == 0


# ------------------------------------------------------------------------------------------------ what it computes


def match_inputs(seed: int, channels: int, query: tuple[int, int], ref: tuple[int, int], batch: int = 1) -> list[Tensor]:
    """Whole numbers: sums are exact in any order, so matches must be equal."""
    rng = np.random.default_rng(seed)
    q, r = (torch.from_numpy(rng.integers(-9, 10, (n, channels, *s)).astype(np.float32)) for n, s in ((1, query), (batch, ref)))
    valid = torch.tensor([[2 * n - 1 for n in ref]], dtype=torch.int32)
    init = torch.from_numpy(np.stack([rng.integers(0, n // 2, (batch, *(s // 2 for s in query))) for n in ref], 1)).int()
    return [q, r, valid, init]


# Smallest, usual and largest of one profile: query and reference.
SIZES = [((6, 6), (7, 5)), ((8, 14), (12, 10)), ((16, 12), (14, 18))]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("arithmetic", ["float", "int8"])
@pytest.mark.parametrize("schedule", ["published", "paper", "fast"])
def test_patch_match(schedule: str, arithmetic: str, dtype: torch.dtype) -> None:
    attributes = {**ATTRIBUTES["PatchMatch"], "schedule": schedule, "arithmetic": arithmetic}
    plugin = Attached(PATCH_MATCH, [t.shape for t in match_inputs(0, 16, *SIZES[2], batch=2)], **attributes)
    for i, (query, ref) in enumerate(SIZES):
        q, r, valid, init = match_inputs(i, 16, query, ref, batch=1 + i % 2)
        given = q.to(dtype), r.to(dtype), valid, init
        match, relevance = plugin.run(*given, shape=(1 + i % 2, 2, *query))
        expected_match, expected = patch_match(*given, **attributes)
        assert torch.equal(match, expected_match)
        torch.testing.assert_close(
            relevance, expected, rtol=0 if arithmetic == "int8" else 1e-5, atol=0 if arithmetic == "int8" else 1e-4
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(("scale", "groups", "offsets"), [(1, 1, True), (2, 2, True), (4, 2, False)])
def test_deformable_sample(scale: int, groups: int, offsets: bool, dtype: torch.dtype) -> None:
    def inputs(size: tuple[int, int], batch: int) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(size[0])
        value = torch.randn(1, 16, 7 * scale, 9 * scale, generator=generator).to(dtype)
        match = torch.randint(-2, 9, (batch, 2, size[0] + 2, size[1] + 2), generator=generator, dtype=torch.int32)
        learned = torch.randn(1, (27 if offsets else 9) * groups, scale * size[0], scale * size[1], generator=generator)
        return value, match, (2 * learned).to(dtype)

    plugin = Attached(DEFORMABLE_SAMPLE, [t.shape for t in inputs((9, 7), 2)], scale=scale, groups=groups)
    for size, batch in (((1, 1), 1), ((5, 4), 2), ((9, 7), 1)):
        given = inputs(size, batch)
        (found,) = plugin.run(*given, shape=(batch, 9 * 16, scale * size[0], scale * size[1]))
        bound = {"rtol": 2e-3, "atol": 2e-3} if dtype == torch.float16 else {"rtol": 1e-5, "atol": 1e-5}
        torch.testing.assert_close(found, deformable_sample(*given, scale=scale, groups=groups), **bound)


def test_enqueue_can_be_captured() -> None:
    """The driver refuses everything but launches while a graph is captured: loading, allocating, waiting."""
    attributes = {**ATTRIBUTES["PatchMatch"]}
    given = match_inputs(3, 16, *SIZES[1])
    shapes = [t.shape for t in given]
    plugin = Attached(PATCH_MATCH, shapes, **attributes)
    inputs = [upload((t.permute(0, 2, 3, 1) if t.is_floating_point() else t).contiguous().numpy()) for t in given]
    size = 8 * 14
    outputs = [allocate(8 * size), allocate(4 * size)]
    graph, ready = POINTER(), POINTER()
    call("cuStreamBeginCapture_v2", plugin.stream, 0)  # global: calls of other threads count too
    launched = calls("cuLaunchKernel")
    plugin.enqueue(False, shapes, inputs, outputs)
    assert calls("cuLaunchKernel") - launched == len(
        patch_match_plan(*shapes, Addresses(*range(7)), dtype="float32", **attributes)
    )
    call("cuStreamEndCapture", plugin.stream, ctypes.byref(graph))
    call("cuGraphInstantiateWithFlags", ctypes.byref(ready), graph, ctypes.c_ulonglong(0))
    call("cuGraphLaunch", ready, plugin.stream)
    call("cuStreamSynchronize", plugin.stream)
    expected, _ = patch_match(*given, **attributes)
    assert np.array_equal(download(outputs[0], (1, 2, 8, 14), np.int32), expected.numpy())


# ------------------------------------------------------------------------------------------------ what goes wrong


def test_wrong_shapes_while_running_are_told() -> None:
    plugin = Attached(DEFORMABLE_SAMPLE, [(1, 16, 8, 8), (1, 2, 6, 6), (1, 54, 8, 8)], **ATTRIBUTES["DeformableSample"])
    wrong = "^DeformableSample: offset_mask is 8x9; with this match and scale it must be 8x8$"
    with pytest.raises(RuntimeError, match=wrong):
        plugin.enqueue(False, [(1, 16, 8, 8), (1, 2, 6, 6), (1, 54, 8, 9)], [0, 0, 0], [0])


def test_exact_has_no_kernel() -> None:
    given = match_inputs(3, 16, *SIZES[0])
    plugin = Attached(PATCH_MATCH, [t.shape for t in given], **{**ATTRIBUTES["PatchMatch"], "schedule": "exact"})
    with pytest.raises(RuntimeError) as refused:
        plugin.enqueue(False, [t.shape for t in given], [0] * 4, [0] * 2)
    assert str(refused.value) == "PatchMatch: there is no CUDA kernel for schedule 'exact'; take one of published, paper, fast"


def test_what_the_driver_reports_is_told() -> None:
    plugin = Attached(DEFORMABLE_SAMPLE, [(1, 16, 8, 8), (1, 2, 6, 6), (1, 54, 8, 8)], **ATTRIBUTES["DeformableSample"])
    driver.amsa_test_fail_next(b"cuLaunchKernel", 701, 0)
    with pytest.raises(RuntimeError) as refused:
        plugin.enqueue(False, [(1, 16, 8, 8), (1, 2, 6, 6), (1, 54, 8, 8)], [0, 0, 0], [0])
    assert str(refused.value) == "DeformableSample: launch of deformable_sample_f32: CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"


def test_no_context(context: POINTER) -> None:
    call("cuCtxSetCurrent", None)
    try:
        with pytest.raises(
            RuntimeError, match=r"^PatchMatch: no current CUDA context; make the device's primary context current"
        ):
            Attached(PATCH_MATCH, [(1, 16, 8, 8)] * 4, **ATTRIBUTES["PatchMatch"])
    finally:
        call("cuCtxSetCurrent", context)


@pytest.mark.skipif("AMSA_TEST_EXPECTED" not in os.environ, reason="only on the devices that test_plugin_library.py names")
def test_kernels_for_a_device() -> None:
    """Other devices than SM 7.5: what attaching a plugin comes to; and that all is loaded then, once."""
    arguments = DEFORMABLE_SAMPLE, [(1, 16, 8, 8), (1, 2, 6, 6), (1, 54, 8, 8)]
    result = "attached"
    try:
        for _ in range(2):
            Attached(*arguments, **ATTRIBUTES["DeformableSample"])
        assert (calls("cuModuleLoadData"), calls("cuFuncLoad")) == (1, 4)
    except RuntimeError as e:
        result = str(e)
    assert result == os.environ["AMSA_TEST_EXPECTED"]
