"""Models in float16: typed graphs, near the float32 ones, and finite on any picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from amsa import AmsaError, Upscaler
from amsa.engine.backends import SHIPPED_MODEL
from amsa.engine.demo import load_pair, shrink
from amsa.engine.metrics import compare_pictures
from amsa.export import check_parity, export_folder, load_network
from amsa.manifest import ModelFolder
from amsa.plugins import DOMAIN

SHIPPED = SHIPPED_MODEL.parent / "small.safetensors"


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("full") / "model"
    export_folder(*load_network(str(SHIPPED)), folder)
    return folder


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("half") / "model"
    export_folder(*load_network(str(SHIPPED), precision="fp16"), folder)
    return folder


def content(graph: bytes) -> list[bytes]:
    """All that a graph computes, in no order and without names, which torch's exporter gives anew: weights, nodes with their
    attributes, inputs and outputs, function bodies."""
    model = onnx.load_from_string(graph)
    found = []
    for tensor in model.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        found.append(f"{array.dtype} {array.shape} ".encode() + array.tobytes())
    for node in model.graph.node:
        attributes = sorted(a.SerializeToString(deterministic=True) for a in node.attribute)
        found.append(b" ".join((node.domain.encode(), node.op_type.encode(), *attributes)))
    messages = (*model.graph.input, *model.graph.output, *model.functions)
    return sorted([*found, *(message.SerializeToString(deterministic=True) for message in messages)])


@pytest.mark.parametrize(("shipped", "exported"), [pytest.param("small", "full", marks=pytest.mark.slow), ("small_fp16", "half")])
def test_what_ships_is_what_the_export_makes(request: pytest.FixtureRequest, shipped: str, exported: str) -> None:
    """Else: make weights."""
    ships, made = ModelFolder.open(SHIPPED_MODEL.with_name(shipped)), ModelFolder.open(request.getfixturevalue(exported))
    assert ships.manifest.trained
    assert replace(ships.manifest, graphs={}) == replace(made.manifest, graphs={})
    for stage, graph in made.graphs.items():
        assert content(ships.graphs[stage]) == content(graph), stage


def test_types(half: Path) -> None:
    """Convolutions and both ops in float16; pictures, relevances, weights and softmax in float32."""
    opened = ModelFolder.open(half)
    assert opened.manifest.precision == "fp16"
    for stage in opened.manifest.config.stages("fp16"):
        graph = onnx.shape_inference.infer_shapes(onnx.load_from_string(opened.graphs[stage.name])).graph
        types = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
        types |= {t.name: t.data_type for t in graph.initializer}
        for node in graph.node:
            if node.op_type == "Conv" and node.input[1] in types and "taps" not in node.input[1]:
                blur = stage.name == "encode_ref" and types[node.input[0]] == onnx.TensorProto.FLOAT
                assert blur or types[node.input[1]] == onnx.TensorProto.FLOAT16, (stage.name, node.name)
            if node.op_type == "Softmax":
                assert types[node.input[0]] == onnx.TensorProto.FLOAT, (stage.name, node.name)
            if node.domain == DOMAIN and stage.name == "restore":
                assert types[node.input[0]] == onnx.TensorProto.FLOAT16
        declared = {t.name: t.dtype for t in (*stage.inputs, *stage.outputs)}
        for name in declared.keys() & {"lr", "ref", "relevance", "weight", "sr"}:
            assert declared[name] == "float32"
        for name, dtype in declared.items():
            expected = {"float16": onnx.TensorProto.FLOAT16, "float32": onnx.TensorProto.FLOAT}
            assert types[name] == expected.get(dtype, onnx.TensorProto.INT32), name


def test_onnx_runtime_computes_what_pytorch_does(half: Path) -> None:
    model, _ = load_network(str(SHIPPED), precision="fp16")
    for stage in check_parity(model, ModelFolder.open(half), (40, 48), (160, 192)):
        assert stage.difference <= 4e-3 * max(stage.scale, 1), stage
        assert stage.other_matches <= 0.01, stage


def test_a_real_pair_loses_nothing(half: Path) -> None:
    truth, ref = load_pair()
    lr, _ = shrink(truth)
    pictures = [Upscaler(m).upscale_photo(lr, [ref]).rgb for m in (SHIPPED, half)]
    full, other = (compare_pictures(p, truth.rgb, 4).psnr_y for p in pictures)
    assert full - other <= 0.01
    assert full > 25  # of the pair's 24.05 by bicubic


@pytest.mark.parametrize("kind", ["black", "white", "noise", "constant", "saturated", "16 bits"])
def test_every_picture_has_a_finite_result(half: Path, kind: str) -> None:
    def picture(height: int, width: int) -> NDArray[np.uint8] | NDArray[np.uint16]:
        rng = np.random.default_rng(height)
        shape = height, width, 3
        made = {
            "black": np.zeros(shape, np.uint8),
            "white": np.full(shape, 255, np.uint8),
            "noise": rng.integers(0, 256, shape, np.uint8),
            "constant": np.full(shape, 77, np.uint8),
            "saturated": (255 * rng.integers(0, 2, shape)).astype(np.uint8),
            "16 bits": rng.integers(0, 65536, shape, np.uint16),
        }
        return made[kind]

    lr, ref = picture(24, 20), picture(80, 96)
    sr = np.asarray(Upscaler(half).upscale(lr, [ref]))
    expected = np.asarray(Upscaler(SHIPPED).upscale(lr, [ref]))
    largest = np.iinfo(sr.dtype).max
    error = (sr.astype(np.float64) - expected) / largest
    assert np.isfinite(error).all()
    assert 10 * np.log10(1 / max(np.square(error).mean(), 1e-12)) > 40  # NaN and overflow would show as black or white


def test_weights_that_float16_cannot_hold_are_refused() -> None:
    model, _ = load_network("small")
    with torch.no_grad():
        model.finish.conv1.weight[0, 0, 0, 0] = 1e6
    with pytest.raises(AmsaError, match=r"^finish.conv1: a weight is too large for float16; export this model as fp32$"):
        model.to_fp16()


def test_unknown_precision() -> None:
    with pytest.raises(AmsaError, match="unknown precision 'int4'; choose one of fp32, fp16"):
        load_network("small", precision="int4")


def test_references_of_another_precision_are_refused(half: Path, picture: Callable[..., NDArray[np.uint8]]) -> None:
    encoded = Upscaler(half).encode_reference(picture(80, 96, 1))
    with pytest.raises(AmsaError, match=r"another config or precision, .*; encode it again"):
        Upscaler(SHIPPED).upscale(picture(24, 24, 0), [encoded])
