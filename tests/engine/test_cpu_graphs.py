"""Graphs rewritten for the CPU compute what the exported ones do."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper
from torch import Tensor
from torch.nn.functional import conv2d, leaky_relu

from amsa.engine import backends
from amsa.engine.backends import SHIPPED_ENGINE_MODEL, SHIPPED_MODEL, OnnxRuntimeBackend
from amsa.engine.cpu_graphs import for_cpu
from amsa.engine.upscaler import Upscaler
from amsa.export import export_folder, load_network
from amsa.manifest import ModelFolder
from amsa.plugins import DOMAIN, OPSET
from amsa.plugins.cpu_library import cpu_library, library_path
from amsa.plugins.deformable_sample.reference import deformable_sample
from amsa.stages import VALUES

pytestmark = pytest.mark.skipif(cpu_library() is None, reason="no C++ compiler on this machine")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "model"
    export_folder(load_network("published")[0], False, folder)
    return folder


def ops(model: bytes) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load_from_string(model).graph.node)


# ------------------------------------------------------------------------------------------------- what is rewritten


def test_the_small_model_keeps_what_is_read_twice() -> None:
    graph = ModelFolder.open(SHIPPED_MODEL).graphs["restore"]
    before, after = ops(graph), ops(for_cpu("restore", graph))
    # At two scales the first samples are compared with keys, too.
    assert (before["DeformableSample"], after["DeformableSample"], after["DeformableConv"]) == (6, 2, 4)
    assert before["Conv"] - after["Conv"] == 4
    assert before["LeakyRelu"] - after["LeakyRelu"] == 3


@pytest.mark.slow  # an export
def test_the_published_model_is_rewritten_whole(published: Path) -> None:
    after = ops(for_cpu("restore", ModelFolder.open(published).graphs["restore"]))
    assert (after["DeformableSample"], after["DeformableConv"]) == (0, 6)


def one_conv(weight: np.ndarray[Any, Any], second_reader: bool = False, **attributes: Any) -> bytes:
    nodes = [
        helper.make_node("DeformableSample", ["value_1", "match", "om"], ["samples"], domain=DOMAIN, scale=1, groups=1),
        helper.make_node("Conv", ["samples", "weight"], ["out"], **attributes),
    ]
    if second_reader:
        nodes.append(helper.make_node("Relu", ["samples"], ["other"]))
    info = helper.make_tensor_value_info
    inputs = [info("value_1", 1, [1, 4, 8, 8]), info("match", 6, [1, 2, 8, 8]), info("om", 1, [1, 27, 6, 6])]
    outputs = [info(name, 1, None) for name in ("out", *(["other"] if second_reader else []))]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [numpy_helper.from_array(weight, "weight")])
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10).SerializeToString()


ONE = np.ones((3, 36, 1, 1), np.float32)


@pytest.mark.parametrize(
    ("graph", "fused"),
    [
        (one_conv(ONE), True),
        (one_conv(ONE, pads=[0, 0, 0, 0], strides=[1, 1], group=1), True),
        (one_conv(ONE, second_reader=True), False),
        (one_conv(np.ones((3, 36, 3, 3), np.float32)), False),
        (one_conv(ONE, strides=[2, 2]), False),
        (one_conv(ONE, pads=[0, 0, 1, 1]), False),
        (one_conv(ONE, auto_pad="SAME_UPPER"), False),
        (one_conv(np.ones((3, 12, 1, 1), np.float32), group=3), False),
    ],
)
def test_only_a_plain_1x1_convolution_is_taken_in(graph: bytes, fused: bool) -> None:
    assert ops(for_cpu("restore", graph))["DeformableConv"] == int(fused)


def one_pool(**attributes: Any) -> bytes:
    info = helper.make_tensor_value_info
    node = helper.make_node("AveragePool", ["x"], ["y"], "pool", **attributes)
    graph = helper.make_graph([node], "g", [info("x", 1, [1, 2, 11, 13])], [info("y", 1, None)])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10).SerializeToString()


@pytest.mark.parametrize(
    ("attributes", "split"),
    [
        ({"kernel_shape": [7, 7], "pads": [3, 3, 3, 3], "count_include_pad": 1}, True),
        ({"kernel_shape": [3, 5], "pads": [1, 0, 0, 2], "count_include_pad": 1, "strides": [1, 1]}, True),
        ({"kernel_shape": [7, 7], "pads": [3, 3, 3, 3]}, False),
        ({"kernel_shape": [2, 2], "strides": [2, 2], "count_include_pad": 1}, False),
        ({"kernel_shape": [1, 4], "count_include_pad": 1}, False),
    ],
)
def test_means_over_rows_and_columns(attributes: dict[str, Any], split: bool) -> None:
    graph = one_pool(**attributes)
    rewritten = for_cpu("restore", graph)
    assert ops(rewritten)["AveragePool"] == 1 + split
    x = {"x": np.random.default_rng(0).random((1, 2, 11, 13), np.float32)}
    (expected,), (found,) = (onnxruntime.InferenceSession(g).run(None, x) for g in (graph, rewritten))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_what_is_no_graph_is_left_to_onnx_runtime() -> None:
    assert for_cpu("restore", b"no graph") == b"no graph"


def test_without_kernels_graphs_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "cpu_library", lambda: None)
    backend = OnnxRuntimeBackend(ModelFolder.open(SHIPPED_MODEL), 1)
    ref = np.random.default_rng(0).random((1, 3, 64, 64), np.float32)
    assert backend.run("encode_ref", {"ref": ref})["value_4"].flags.c_contiguous


# ------------------------------------------------------------------------------------------------- what it computes


def inputs_of(rng: np.random.Generator, backend: OnnxRuntimeBackend, size: tuple[int, int]) -> dict[str, Any]:
    """Of `restore`, for an LR of this size and a reference of 96x160; from NCHW values."""
    stage = next(s for s in backend.config.stages(backend.precision) if s.name == "restore")
    dims = {"h": size[0], "w": size[1], "Hk": 24, "Wk": 40}

    def sizes(dims_of: tuple[int | str, ...]) -> list[int]:
        return [int(eval(str(d), {}, dims)) for d in dims_of]

    given: dict[str, Any] = {}
    for tensor in stage.inputs:
        if tensor.name == "match":
            given["match"] = rng.integers(-2, 30, (1, 2, size[0] + 2, size[1] + 2), np.int32)
        else:
            given[tensor.name] = rng.standard_normal(sizes(tensor.dims)).astype(tensor.dtype)
    return given


@pytest.mark.parametrize("size", [(16, 16), (24, 40), (8, 72)])
@pytest.mark.parametrize("which", ["small", "small fp16", pytest.param("published", marks=pytest.mark.slow)])
def test_restoring_as_exported(request: pytest.FixtureRequest, which: str, size: tuple[int, int]) -> None:
    path = {"small": SHIPPED_MODEL, "small fp16": SHIPPED_ENGINE_MODEL}.get(which) or request.getfixturevalue("published")
    folder = ModelFolder.open(path)
    backend = OnnxRuntimeBackend(folder, 1)
    given = inputs_of(np.random.default_rng(1), backend, size)
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(library_path()))
    exported = onnxruntime.InferenceSession(folder.graphs["restore"], options, providers=["CPUExecutionProvider"])
    (expected,) = exported.run(None, given)
    found = backend.run("restore", given)["accumulator_out"]
    assert found.dtype == expected.dtype
    largest = np.abs(expected.astype(np.float32)).max()
    bound = 3e-3 if which == "small fp16" else 2e-5
    assert np.abs(found.astype(np.float32) - expected).max() <= bound * largest
    # In channels-last memory, as `encode_ref` makes them, values are the same values.
    for name in VALUES:
        given[name] = np.ascontiguousarray(given[name].transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(backend.run("restore", given)["accumulator_out"], found)


def test_values_are_nchw_in_channels_last_memory() -> None:
    upscaler = Upscaler(threads=1)
    ref = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)
    value = upscaler.encode_reference(ref).scales[0].tensors["value_2"]
    assert value.shape == (1, 32, 48, 48)  # 96x96 after padding, at half of it
    assert value.transpose(0, 2, 3, 1).flags.c_contiguous


# ------------------------------------------------------------------------------------------------------- the kernel


def run_kernel(value: Tensor, match: Tensor, om: Tensor, weight: Tensor, bias: Tensor, last: bool, **attributes: Any) -> Tensor:
    kind = onnx.TensorProto.FLOAT16 if value.dtype == torch.float16 else onnx.TensorProto.FLOAT
    names = ["value", "match", "om", "weight", "bias"]
    node = helper.make_node("DeformableConv", names, ["out"], domain=DOMAIN, value_channels_last=int(last), **attributes)
    tensors = (value.permute(0, 2, 3, 1) if last else value, match, om, weight, bias)
    kinds = (kind, onnx.TensorProto.INT32, kind, kind, kind)
    info = helper.make_tensor_value_info
    declared = [info(n, k, list(t.shape)) for n, k, t in zip(names, kinds, tensors, strict=True)]
    graph = helper.make_graph([node], "g", declared, [info("out", kind, None)])
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(str(library_path()))
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    (out,) = session.run(None, {n: t.contiguous().numpy() for n, t in zip(names, tensors, strict=True)})
    return torch.from_numpy(out)


def problem(
    seed: int, scale: int, groups: int, channels: int, filters: int, offsets: bool, size: tuple[int, int]
) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    (h, w), n = size, 2
    value = torch.randn(1, channels, scale * 9, scale * 11, generator=g)
    match = torch.randint(-3, 14, (n, 2, h + 2, w + 2), generator=g, dtype=torch.int32)
    om = 2 * torch.randn(n, (27 if offsets else 9) * groups, scale * h, scale * w, generator=g)
    weight = torch.randn(filters, 9 * channels, 1, 1, generator=g) / 10
    return [value, match, om, weight, torch.randn(filters, generator=g)]


def expect(value: Tensor, match: Tensor, om: Tensor, weight: Tensor, bias: Tensor, slope: float, **attributes: int) -> Tensor:
    """In float32, whatever the tensors' type."""
    samples = deformable_sample(value.float(), match, om.float(), **attributes)
    return leaky_relu(conv2d(samples, weight.float(), bias.float()), slope)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    ("scale", "groups", "channels", "filters", "offsets", "size"),
    [
        (1, 1, 16, 16, True, (5, 70)),  # longer than a run of pixels
        (2, 1, 32, 32, False, (7, 33)),
        (4, 8, 64, 64, True, (3, 17)),
        (4, 1, 40, 17, True, (4, 5)),  # filters of a block and one more
        (1, 3, 21, 3, True, (6, 9)),
        (2, 2, 2, 1, False, (1, 1)),
    ],
)
def test_the_kernel_against_the_reference(
    scale: int, groups: int, channels: int, filters: int, offsets: bool, size: tuple[int, int], last: bool
) -> None:
    tensors = problem(3, scale, groups, channels, filters, offsets, size)
    found = run_kernel(*tensors, last, scale=scale, groups=groups, negative_slope=0.1)
    torch.testing.assert_close(found, expect(*tensors, 0.1, scale=scale, groups=groups), rtol=1e-4, atol=1e-4)


def test_the_kernel_in_float16() -> None:
    tensors = [t.half() if t.is_floating_point() else t for t in problem(4, 2, 1, 16, 24, True, (5, 21))]
    found = run_kernel(*tensors, True, scale=2, groups=1, negative_slope=1.0)
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), expect(*tensors, 1.0, scale=2, groups=1), rtol=2e-3, atol=2e-3)


def test_the_kernel_with_extreme_numbers() -> None:
    value, match, om, weight, bias = problem(5, 1, 1, 8, 5, True, (9, 40))
    match[0, :, :3] = torch.iinfo(torch.int32).max
    match[1, :, -3:] = torch.iinfo(torch.int32).min
    om[0, 3, 4], om[0, 20, 5], om[1, 2, 2], om[1, 26, 1] = float("nan"), float("nan"), float("inf"), -1e30
    found = run_kernel(value, match, om, weight, bias, True, scale=1, groups=1, negative_slope=0.1)
    expected = expect(value, match, om, weight, bias, 0.1, scale=1, groups=1)
    assert torch.equal(found.isnan(), expected.isnan())
    assert found.isnan().any()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4, equal_nan=True)


def test_a_weight_that_does_not_fit() -> None:
    value, match, om, weight, bias = problem(6, 1, 1, 4, 5, False, (4, 4))
    with pytest.raises(Exception, match="weight and bias do not fit"):
        run_kernel(value, match, om, weight[:, :-1], bias, True, scale=1, groups=1, negative_slope=0.1)
