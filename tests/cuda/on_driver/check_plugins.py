"""The ops' TensorRT plugins from their attributes to their results: code as it is, kernels on the CPU, in place of TensorRT
a few lines that call as it does."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from cuda.bindings import driver as cuda
from torch import Tensor

from amsa.plugins import DEFORMABLE_SAMPLE, PATCH_MATCH, OpSpec, launcher, tensorrt
from amsa.plugins.deformable_sample.reference import deformable_sample
from amsa.plugins.nvrtc import KernelError
from amsa.plugins.patch_match.reference import patch_match

from ..cpu_driver import Control
from .gpu import ILLEGAL, Array, context, do, download, new, stream, upload


class TensorRT:
    """What of TensorRT a plugin is made with."""

    __name__ = "tensorrt_rtx"
    DataType = SimpleNamespace(FLOAT="float32", HALF="float16", INT32="int32")
    TensorFormat = SimpleNamespace(LINEAR="linear", HWC="hwc", HWC8="hwc8")
    IPluginV3, IPluginV3OneCore, IPluginV3OneBuild, IPluginV3OneRuntime = (
        type(name, (), {}) for name in ("IPluginV3", "IPluginV3OneCore", "IPluginV3OneBuild", "IPluginV3OneRuntime")
    )


Inputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Case:
    """An op with attributes; `inputs(size, seed)` for the sizes of a profile: smallest, usual and largest."""

    op: OpSpec
    attributes: dict[str, Any]
    inputs: Callable[[int, int], Inputs]
    reference: Callable[..., Any]


def match_inputs(channels: int, integers: bool) -> Callable[[int, int], Inputs]:
    """Whole numbers, whose sums are exact in any order, so that matches must be equal; or any, for int8."""

    def make(size: int, seed: int) -> Inputs:
        rng = np.random.default_rng(seed)
        query, ref = [((4, 6), (5, 4)), ((10, 8), (9, 11)), ((12, 14), (15, 10))][size]
        low, high = (-9, 10) if integers else (-90000, 90001)
        q, r = (torch.from_numpy(rng.integers(low, high, (1, channels, *s)).astype(np.float32)) for s in (query, ref))
        valid = torch.tensor([[2 * ref[0] - 1, 2 * ref[1] - 2]], dtype=torch.int32)
        init = rng.integers(0, 2, (1, 2, query[0] // 2, query[1] // 2)).astype(np.int32)
        return (q, r, valid, torch.from_numpy(init)) if integers else (q / 90000, r / 90000, valid, torch.from_numpy(init))

    return make


def sample_inputs(size: int, seed: int) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    h, w = [(2, 3), (5, 4), (7, 9)][size]
    value = torch.randn(1, 16, 2 * (h + 3), 2 * (w + 2), generator=generator)
    match = torch.randint(-2, 9, (1, 2, h + 2, w + 2), generator=generator, dtype=torch.int32)
    return value, match, 2 * torch.randn(1, 54, 2 * h, 2 * w, generator=generator)


MATCH: dict[str, Any] = {"iterations": 2, "schedule": "fast", "level": 1, "pad": 1, "init_scale": 2}
CASES = {
    "match": Case(PATCH_MATCH, {**MATCH, "arithmetic": "float"}, match_inputs(16, True), patch_match),
    "match_int8": Case(PATCH_MATCH, {**MATCH, "arithmetic": "int8"}, match_inputs(20, False), patch_match),
    "sample": Case(DEFORMABLE_SAMPLE, {"scale": 2, "groups": 2}, sample_inputs, deformable_sample),
}
TYPES = {"T": "", "int32": "int32", "float32": "float32"}


@pytest.fixture(autouse=True)
def control() -> Iterator[Control]:
    tensorrt.take_errors()
    with context() as control:
        yield control
    # The context took the modules with it; the next one has the same handle.
    launcher._functions.cache_clear()
    assert tensorrt.take_errors() == []


@pytest.fixture(params=[*CASES.values()], ids=[*CASES])
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


class Node:
    """A plugin as TensorRT has it in an engine: attached, with memory for the largest sizes."""

    def __init__(self, case: Case, dtype: str, attach: bool = True) -> None:
        self.case, self.dtype, self.stream = case, dtype, stream()
        plugin = tensorrt._plugin_class(TensorRT(), case.op)(case.attributes)
        largest = [tuple(t.shape) for t in case.inputs(2, 0)]
        self.scratch = plugin.get_workspace_size([SimpleNamespace(max=shape) for shape in largest], [])
        self.plugin = plugin.attach_to_context(None) if attach else plugin
        self.workspace = do(cuda.cuMemAlloc(self.scratch)) if self.scratch else 0
        self.kept: list[Array] = []

    def tensors(self, size: int, seed: int) -> list[Tensor]:
        inputs = zip(self.case.op.inputs, self.case.inputs(size, seed), strict=True)
        return [t.to(getattr(torch, self.dtype)) if spec.dtype == "T" else t for spec, t in inputs]

    def outputs(self, inputs: list[Tensor]) -> list[Array]:
        shapes = self.case.op.infer_shapes(*[tuple(t.shape) for t in inputs], **self.case.attributes)
        kinds = [self.dtype if t.dtype == "T" else t.dtype for t in self.case.op.outputs]
        return [np.zeros(shape, kind) for shape, kind in zip(shapes, kinds, strict=True)]

    def arrays(self, inputs: list[Tensor]) -> list[Array]:
        """Features channels-last."""
        last = [spec.dtype == "T" for spec in self.case.op.inputs]
        arrays = [(t.permute(0, 2, 3, 1) if hwc else t).contiguous().numpy() for hwc, t in zip(last, inputs, strict=True)]
        self.kept += arrays  # until the stream has read them
        return arrays

    def enqueue(self, inputs: list[Tensor], addresses: list[int], outputs: list[int]) -> None:
        specs = (*self.case.op.inputs,)
        described = [
            SimpleNamespace(type=self.dtype if spec.dtype == "T" else spec.dtype, dims=tuple(t.shape))
            for spec, t in zip(specs, inputs, strict=True)
        ]
        self.plugin.enqueue(described, [], addresses, outputs, int(self.workspace), int(self.stream))

    def spoil(self) -> None:
        if self.scratch:
            do(cuda.cuMemsetD8Async(self.workspace, 0xFF, self.scratch, self.stream))

    def finish(self, results: list[Any], like: list[Array]) -> list[Tensor]:
        """The outputs, when the stream is done."""
        last = [spec.dtype == "T" for spec in self.case.op.outputs]
        found = [
            np.zeros(np.transpose(a, (0, 2, 3, 1)).shape if hwc else a.shape, a.dtype) for hwc, a in zip(last, like, strict=True)
        ]
        for array, address in zip(found, results, strict=True):
            download(array, address, self.stream)
        assert not any(a.any() for a in found)  # nothing has run
        do(cuda.cuStreamSynchronize(self.stream))
        tensors = [torch.from_numpy(a) for a in found]
        return [t.permute(0, 3, 1, 2) if hwc else t for hwc, t in zip(last, tensors, strict=True)]

    def check(self, found: list[Tensor], inputs: list[Tensor]) -> None:
        expected = self.case.reference(*inputs, **self.case.attributes)
        if self.case.op is DEFORMABLE_SAMPLE:
            bound = 2e-3 if self.dtype == "float16" else 1e-5
            torch.testing.assert_close(found[0], expected, rtol=bound, atol=bound)
            return
        assert torch.equal(found[0], expected[0])
        if self.case.attributes["arithmetic"] == "int8":
            assert torch.equal(found[1], expected[1])
        else:
            torch.testing.assert_close(found[1], expected[1], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_all_sizes_of_a_profile(case: Case, dtype: str, control: Control) -> None:
    node = Node(case, dtype)
    before = {name: control.calls(name) for name in ("cuMemAlloc", "cuModuleLoadData", "cuFuncLoad")}
    for size in (0, 1, 2, 0):
        inputs = node.tensors(size, size)
        like = node.outputs(inputs)
        node.spoil()
        addresses = [new(a, node.stream) for a in node.arrays(inputs)]
        results = [do(cuda.cuMemAlloc(a.nbytes)) for a in like]  # new memory holds no numbers
        calls = control.calls("cuMemAlloc"), control.calls("cuStreamSynchronize")
        node.enqueue(inputs, [int(a) for a in addresses], [int(r) for r in results])
        assert (control.calls("cuMemAlloc"), control.calls("cuStreamSynchronize")) == calls
        node.check(node.finish(results, like), inputs)
        for memory in (*addresses, *results):
            do(cuda.cuMemFree(memory))
    assert control.calls("cuModuleLoadData") == before["cuModuleLoadData"] == 1
    assert control.calls("cuFuncLoad") == before["cuFuncLoad"]


def test_replayed_in_a_graph_on_changed_inputs(case: Case) -> None:
    node = Node(case, "float16")
    inputs = node.tensors(1, 0)
    like = node.outputs(inputs)
    addresses = [new(a, node.stream) for a in node.arrays(inputs)]
    results = [do(cuda.cuMemAlloc(a.nbytes)) for a in like]
    do(cuda.cuStreamBeginCapture(node.stream, cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_GLOBAL))
    node.enqueue(inputs, [int(a) for a in addresses], [int(r) for r in results])
    graph = do(cuda.cuStreamEndCapture(node.stream))
    executable = do(cuda.cuGraphInstantiate(graph, 0))
    for seed in (1, 2):
        inputs = node.tensors(1, seed)
        node.spoil()
        for address, array in zip(addresses, node.arrays(inputs), strict=True):
            upload(address, array, node.stream)
        do(cuda.cuGraphLaunch(executable, node.stream))
        node.check(node.finish(results, like), inputs)
    do(cuda.cuMemFree(addresses[0]))  # what a kernel reads
    assert cuda.cuGraphLaunch(executable, node.stream)[0] == ILLEGAL


def test_a_plugin_that_was_not_attached_loads_while_a_graph_is_captured() -> None:
    """What attaching is for: this driver refuses it, as a real one may."""
    node = Node(CASES["sample"], "float16", attach=False)
    do(cuda.cuStreamBeginCapture(node.stream, cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL))
    with pytest.raises(KernelError, match="kernels of deformable_sample: CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"):
        node.enqueue(node.tensors(0, 0), [0, 0, 0], [0])
    (error,) = tensorrt.take_errors()
    assert error.startswith("DeformableSample: kernels of deformable_sample: ")


@pytest.mark.parametrize("function", ["cuModuleLoadData", "cuModuleEnumerateFunctions", "cuFuncLoad", "cuLaunchKernel"])
def test_what_fails_is_told(function: str, control: Control) -> None:
    control.fail_next(function, cuda.CUresult.CUDA_ERROR_OUT_OF_MEMORY)
    memory = int(do(cuda.cuMemAlloc(1 << 16)))

    def attach_and_enqueue() -> None:
        node = Node(CASES["sample"], "float16")
        node.enqueue(node.tensors(0, 0), [memory] * 3, [memory])

    with pytest.raises(KernelError, match="CUDA_ERROR_OUT_OF_MEMORY"):
        attach_and_enqueue()
    assert len(tensorrt.take_errors()) == 1


def test_a_kernel_that_reads_freed_memory_or_writes_beyond_is_an_error() -> None:
    node = Node(CASES["sample"], "float32")
    inputs = node.tensors(0, 0)
    addresses = [int(new(a, node.stream)) for a in node.arrays(inputs)]
    short = int(do(cuda.cuMemAlloc(node.outputs(inputs)[0].nbytes - 16)))
    node.enqueue(inputs, addresses, [short])
    assert cuda.cuStreamSynchronize(node.stream)[0] == ILLEGAL
    Control().reset()
    node = Node(CASES["sample"], "float32")
    node.enqueue(inputs, addresses, [short])
    assert cuda.cuStreamSynchronize(node.stream)[0] == ILLEGAL


def test_parameters_are_copied_when_a_kernel_is_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the real driver does; what the program makes of the struct afterwards is nobody's concern."""
    node = Node(CASES["sample"], "float32")
    inputs = node.tensors(0, 0)
    addresses = [int(new(a, node.stream)) for a in node.arrays(inputs)]
    like = node.outputs(inputs)
    result = do(cuda.cuMemAlloc(like[0].nbytes))

    def launch_and_spoil(op: str, launches: Any, on: Any) -> None:
        launcher.launch_all(op, launches, on)
        for launch in launches:
            ctypes.memset(ctypes.addressof(launch.params), 0xFF, ctypes.sizeof(launch.params))

    monkeypatch.setattr(tensorrt, "launch_all", launch_and_spoil)
    node.enqueue(inputs, addresses, [int(result)])
    node.check(node.finish([result], like), inputs)
