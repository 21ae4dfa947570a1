"""The ops as TensorRT plugins, with no GPU: what the builder asks of them, and what they would launch."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import product
from types import SimpleNamespace
from typing import Any

import onnx
import pytest

from amsa.plugins import DEFORMABLE_SAMPLE, DOMAIN, OPS, OPSET, PATCH_MATCH, VERSION, OpSpec, launcher, tensorrt
from amsa.plugins.deformable_sample.plan import deformable_sample_plan
from amsa.plugins.launch import Launch
from amsa.plugins.nvrtc import KernelError
from amsa.plugins.patch_match.plan import Addresses, patch_match_plan, patch_match_scratch

if find_spec("tensorrt_rtx") is None:
    pytest.skip("tensorrt_rtx is not installed: pip install 'amsa[rtx]'", allow_module_level=True)

from amsa.engine.tensorrt_module import import_tensorrt, process_logger

trt = import_tensorrt("rtx")

ATTRIBUTES: dict[str, dict[str, Any]] = {
    "PatchMatch": {"iterations": 2, "schedule": "fast", "level": 1, "pad": 1, "init_scale": 2, "arithmetic": "int8"},
    "DeformableSample": {"scale": 2, "groups": 4},
}
SHAPES = {
    "PatchMatch": ((1, 16, 24, 32), (1, 16, 40, 48), (1, 2), (1, 2, 12, 16)),
    "DeformableSample": ((1, 32, 40, 48), (1, 2, 10, 12), (1, 108, 16, 20)),
}
TYPES = {"float32": trt.DataType.FLOAT, "int32": trt.DataType.INT32}


@pytest.fixture(autouse=True)
def no_errors_left() -> Iterator[None]:
    tensorrt.take_errors()
    process_logger(trt).clear()
    yield
    tensorrt.take_errors()


def creator(op: OpSpec) -> Any:
    return trt.get_plugin_registry().get_creator(op.name, str(VERSION), DOMAIN)


def plugin_of(op: OpSpec, module: Any = trt, **attributes: Any) -> Any:
    return tensorrt._plugin_class(module, op)({**ATTRIBUTES[op.name], **attributes})


def one_node(op: OpSpec, shapes: Any, dtype: str = "float32", **attributes: Any) -> bytes:
    kinds = {"float32": onnx.TensorProto.FLOAT, "float16": onnx.TensorProto.FLOAT16, "int32": onnx.TensorProto.INT32}
    make = onnx.helper.make_tensor_value_info
    inputs = [make(t.name, kinds[dtype if t.dtype == "T" else t.dtype], s) for t, s in zip(op.inputs, shapes, strict=True)]
    outputs = [make(t.name, kinds[dtype if t.dtype == "T" else t.dtype], [None] * 4) for t in op.outputs]
    names = [t.name for t in op.inputs], [t.name for t in op.outputs]
    node = onnx.helper.make_node(op.name, *names, domain=DOMAIN, name="node", **{**ATTRIBUTES[op.name], **attributes})
    opsets = [onnx.helper.make_opsetid("", OPSET), onnx.helper.make_opsetid(DOMAIN, VERSION)]
    graph = onnx.helper.make_graph([node], "one_node", inputs, outputs)
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def parse(model: bytes) -> Any:
    """(builder, network, whether it parsed): the builder must outlive the network."""
    builder = trt.Builder(process_logger(trt))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, process_logger(trt))
    return builder, network, parser.parse(model)


# ------------------------------------------------------------------------------------------------ the builder's questions


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_parser_makes_a_plugin_with_the_declared_shapes_and_types(op: OpSpec, dtype: str) -> None:
    _, network, parsed = parse(one_node(op, SHAPES[op.name], dtype))
    assert parsed
    assert [network.get_layer(i).type for i in range(network.num_layers)] == [trt.LayerType.PLUGIN_V3]
    layer = network.get_layer(0)
    outputs = [layer.get_output(i) for i in range(layer.num_outputs)]
    assert [tuple(o.shape) for o in outputs] == [*op.infer_shapes(*SHAPES[op.name], **ATTRIBUTES[op.name])]
    features = trt.DataType.HALF if dtype == "float16" else trt.DataType.FLOAT
    assert [o.dtype for o in outputs] == [TYPES.get(t.dtype, features) for t in op.outputs]
    assert process_logger(trt).take_warnings() == []


def test_shapes_of_dynamic_sizes_follow_the_inputs() -> None:
    shapes = [(1, 32, "H", "W"), (1, 2, "h", "w"), (1, 108, "y", "x")]
    _, network, parsed = parse(one_node(DEFORMABLE_SAMPLE, shapes))
    assert parsed
    assert tuple(network.get_layer(0).get_output(0).shape) == (1, 9 * 32, -1, -1)


def test_what_does_not_fit_is_told_though_tensorrt_swallows_it() -> None:
    value, _, offset_mask = SHAPES["DeformableSample"]
    parse(one_node(DEFORMABLE_SAMPLE, (value, (1, 2, 11, 12), offset_mask)))
    (error,) = tensorrt.take_errors()
    assert error == "DeformableSample: offset_mask is 16x20; with this match and scale it must be 18x20"
    assert error in process_logger(trt).errors
    assert tensorrt.take_errors() == []


def test_wrong_attribute_is_told() -> None:
    parse(one_node(PATCH_MATCH, SHAPES["PatchMatch"], schedule="slow"))
    (error,) = tensorrt.take_errors()
    assert error.startswith("PatchMatch: schedule is 'slow'; it must be one of 'published', ")


def accepted(plugin: Any, op: OpSpec, features: Any, channels: int = 16) -> list[tuple[Any, ...]]:
    """Every combination of formats that a plugin accepts, asked for as TensorRT does: tensor after tensor."""
    declared = (*op.inputs, *op.outputs)
    formats = [trt.TensorFormat.LINEAR, trt.TensorFormat.HWC, trt.TensorFormat.HWC8, trt.TensorFormat.CHW32]
    types = [TYPES.get(t.dtype, features) for t in declared]
    combinations: list[tuple[Any, ...]] = [()]
    for position in range(len(declared)):
        longer = []
        for before, chosen in product(combinations, formats):
            described = [
                SimpleNamespace(desc=SimpleNamespace(type=t, format=f, dims=(1, channels, 8, 8)))
                for t, f in zip(types, (*before, chosen), strict=False)
            ]
            if plugin.supports_format_combination(position, described, len(op.inputs)):
                longer.append((*before, chosen))
        combinations = longer
    return combinations


@pytest.mark.parametrize("features", [trt.DataType.HALF, trt.DataType.FLOAT], ids=lambda t: t.name)
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_exactly_one_combination_of_formats(op: OpSpec, features: Any) -> None:
    tensors = (*op.inputs, *op.outputs)
    wanted = tuple(trt.TensorFormat.HWC if t.dtype == "T" else trt.TensorFormat.LINEAR for t in tensors)
    assert accepted(plugin_of(op), op, features) == [wanted]


class Classic:
    """TensorRT-RTX under the name of the classic one: their APIs are the same, their formats are not."""

    __name__ = "tensorrt"

    def __getattr__(self, name: str) -> Any:
        return getattr(trt, name)


def test_classic_takes_half_features_in_eights() -> None:
    classic = plugin_of(DEFORMABLE_SAMPLE, Classic())
    linear, hwc, hwc8 = trt.TensorFormat.LINEAR, trt.TensorFormat.HWC, trt.TensorFormat.HWC8
    assert accepted(classic, DEFORMABLE_SAMPLE, trt.DataType.HALF) == [(hwc8, linear, hwc8, hwc8)]
    assert accepted(classic, DEFORMABLE_SAMPLE, trt.DataType.FLOAT) == [(hwc, linear, hwc, hwc)]
    assert accepted(classic, DEFORMABLE_SAMPLE, trt.DataType.HALF, channels=27) == []  # would be padded to 32
    assert accepted(plugin_of(DEFORMABLE_SAMPLE), DEFORMABLE_SAMPLE, trt.DataType.HALF, channels=27)


def test_scratch_is_that_of_the_largest_shapes() -> None:
    described = [SimpleNamespace(max=shape) for shape in SHAPES["PatchMatch"]]
    query, ref, *_ = SHAPES["PatchMatch"]
    expected = patch_match_scratch(query, ref, **ATTRIBUTES["PatchMatch"])
    assert plugin_of(PATCH_MATCH).get_workspace_size(described, []) == expected > 0
    assert plugin_of(DEFORMABLE_SAMPLE).get_workspace_size(described, []) == 0


# ------------------------------------------------------------------------------------------------ attributes


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_attributes_survive_serialization(op: OpSpec) -> None:
    fields = plugin_of(op).get_fields_to_serialize()
    again = creator(op).create_plugin("again", fields, trt.TensorRTPhase.RUNTIME)
    assert again.attributes == ATTRIBUTES[op.name]
    assert again.clone().attributes == ATTRIBUTES[op.name]


def test_default_and_missing_attributes() -> None:
    fields = [f for f in plugin_of(PATCH_MATCH).get_fields_to_serialize() if f.name != "arithmetic"]
    assert tensorrt._parsed(PATCH_MATCH, fields)["arithmetic"] == "float"
    with pytest.raises(ValueError, match="PatchMatch: attribute iterations is missing"):
        tensorrt._parsed(PATCH_MATCH, fields[1:])


def test_creator_declares_the_ops_attributes_with_their_types() -> None:
    kinds = {int: trt.PluginFieldType.INT32, str: trt.PluginFieldType.CHAR}
    for op in OPS:
        declared = {f.name: f.type for f in creator(op).field_names}
        assert declared == {a.name: kinds[a.type] for a in op.attributes}


def test_plugins_are_registered_once() -> None:
    before = len(trt.get_plugin_registry().all_creators)
    tensorrt.load_plugins(trt)
    assert len(trt.get_plugin_registry().all_creators) == before


# ------------------------------------------------------------------------------------------------ launches


def plain(launches: list[Launch]) -> list[tuple[Any, ...]]:
    return [(x.kernel, x.grid, x.block, x.shared, bytes(x.params)) for x in launches]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_enqueue_launches_the_ops_plan(op: OpSpec, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[Any] = []
    monkeypatch.setattr(tensorrt, "launch_all", lambda *arguments: launched.append(arguments))
    features = trt.DataType.HALF if dtype == "float16" else trt.DataType.FLOAT
    shapes = SHAPES[op.name]
    described = [SimpleNamespace(type=TYPES.get(t.dtype, features), dims=s) for t, s in zip(op.inputs, shapes, strict=True)]
    inputs = [0x1000 * (i + 1) for i in range(len(op.inputs))]
    outputs = [0x100000 * (i + 1) for i in range(len(op.outputs))]
    plugin_of(op).enqueue(described, [], inputs, outputs, 0x7000000, 42)
    ((name, launches, stream),) = launched
    attributes = ATTRIBUTES[op.name]
    if op is PATCH_MATCH:
        expected = patch_match_plan(*shapes, Addresses(*inputs, *outputs, 0x7000000), dtype=dtype, **attributes)
    else:
        expected = deformable_sample_plan(*shapes, (*inputs, *outputs), dtype=dtype, **attributes)  # type: ignore[arg-type]
    assert plain(launches) == plain(expected)
    assert (name, stream.value) == (op.torch_name, 42)


def test_what_enqueue_raises_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise KernelError("launch of step: CUDA_ERROR_INVALID_VALUE")

    monkeypatch.setattr(tensorrt, "launch_all", refuse)
    shapes = SHAPES["DeformableSample"]
    described = [SimpleNamespace(type=trt.DataType.FLOAT, dims=shape) for shape in shapes]
    with pytest.raises(KernelError):
        plugin_of(DEFORMABLE_SAMPLE).enqueue(described, [], [1, 2, 3], [4], 0, 0)
    assert tensorrt.take_errors() == ["DeformableSample: launch of step: CUDA_ERROR_INVALID_VALUE"]


class Driver:
    """Stands for libcuda: records what it is asked, and hands out numbers."""

    KERNELS = (b"step", b"norm")

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.launched: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            self.calls.append(name)
            target = getattr(arguments[0], "_obj", None) if arguments else None
            if name == "cuDriverGetVersion":
                target.value = 12040
            elif name == "cuCtxGetCurrent":
                target.value = 7
            elif name == "cuCtxGetId":
                arguments[1]._obj.value = 1
            elif name == "cuDeviceGetAttribute":
                target.value = {75: 7, 76: 5}[arguments[1]]
            elif name == "cuModuleGetFunctionCount":
                target.value = len(self.KERNELS)
            elif name == "cuModuleEnumerateFunctions":
                arguments[0][:] = [100 + i for i in range(len(self.KERNELS))]
            elif name == "cuFuncGetName":
                target.value = self.KERNELS[arguments[1].value - 100]
            elif name == "cuLaunchKernel":
                self.launched.append((arguments[0].value, *arguments[1:8], arguments[8].value))
            return 0

        return call


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    fake = Driver()
    compiled: list[str] = []
    monkeypatch.setattr(launcher, "_driver", lambda: fake)
    monkeypatch.setattr(launcher, "compile_cubin", lambda source, arch: compiled.append(arch) or b"cubin")
    launcher._functions.cache_clear()
    yield fake
    launcher._functions.cache_clear()
    assert set(compiled) <= {"sm_75"}


def test_kernels_are_loaded_when_attached_and_not_when_launched(driver: Driver) -> None:
    attached = plugin_of(DEFORMABLE_SAMPLE).attach_to_context(None)
    assert attached.attributes == ATTRIBUTES["DeformableSample"]
    assert driver.calls.count("cuModuleLoadData") == 1
    assert driver.calls.count("cuFuncLoad") == len(Driver.KERNELS)
    driver.calls.clear()
    launch = Launch("norm", (3, 2, 1), (128, 1, 1), ctypes.c_int(5), 64)  # type: ignore[arg-type]
    launcher.launch_all("deformable_sample", [launch, launch], ctypes.c_void_p(42))
    assert set(driver.calls) == {"cuCtxGetCurrent", "cuCtxGetId", "cuLaunchKernel"}
    assert driver.launched == [(101, 3, 2, 1, 128, 1, 1, 64, 42)] * 2


def test_kernel_that_is_not_there_is_an_error(driver: Driver) -> None:
    launch = Launch("absent", (1, 1, 1), (1, 1, 1), ctypes.c_int(5))  # type: ignore[arg-type]
    with pytest.raises(KernelError, match="deformable_sample has no kernel absent"):
        launcher.launch_all("deformable_sample", [launch], ctypes.c_void_p(0))


def test_no_driver_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Any:
        raise KernelError("no NVIDIA driver on this machine (libcuda.so.1); kernels can be compiled, not launched")

    monkeypatch.setattr(launcher, "_driver", none)
    with pytest.raises(KernelError):
        plugin_of(PATCH_MATCH).attach_to_context(None)
    assert tensorrt.take_errors()[0].startswith("PatchMatch: no NVIDIA driver")
