"""Q/DQ and float32 layers in a graph: placement, sharing, types, and pictures near the model's own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.reference
import onnx.utils
import pytest
import torch
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from amsa import AmsaError, Upscaler
from amsa.calib.layers import candidates, model_graphs
from amsa.engine.backends import SHIPPED_ENGINE_MODEL, SHIPPED_MODEL
from amsa.engine.demo import load_pair, shrink
from amsa.engine.images import from_array
from amsa.engine.inspection import inspect_path
from amsa.engine.metrics import compare_pictures
from amsa.export import check_parity, export_folder, load_network
from amsa.export.layer_precision import LayerPrecision, check_precision, conv_layers, identity, read_precision, set_precision
from amsa.manifest import Manifest, ModelFolder

CHECKPOINT = SHIPPED_MODEL.parent / "small.safetensors"
MODELS = {"fp32": SHIPPED_MODEL, "fp16": SHIPPED_ENGINE_MODEL}
TRUNK = "encode_lr.content.body.{}.conv{}"
OVERFLOWING = "encode_lr.content.body.2.conv1"


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def graphs(request: pytest.FixtureRequest) -> dict[str, ModelProto]:
    return model_graphs(ModelFolder.open(MODELS[request.param]))


def nodes(model: ModelProto, op: str) -> list[NodeProto]:
    return [node for node in model.graph.node if node.op_type == op]


def tensors(model: ModelProto) -> dict[str, NDArray[Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def test_both_precisions_of_a_model_have_the_same_layers_and_identity() -> None:
    full, half = (model_graphs(ModelFolder.open(path)) for path in MODELS.values())
    names = [[[*conv_layers(graph)] for graph in graphs.values()] for graphs in (full, half)]
    assert names[0] == names[1]
    assert identity(full.values()) == identity(half.values())
    weight = full["finish"].graph.initializer[0]
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) + np.float32(0.01), weight.name))
    assert identity(full.values()) != identity(half.values())


def test_a_layer_in_int8(graphs: dict[str, ModelProto]) -> None:
    layer = TRUNK.format(1, 1)
    before = graphs["encode_lr"]
    after = set_precision(before, LayerPrecision("", {layer: 2.0}))
    assert before == graphs["encode_lr"]
    assert after.functions == before.functions
    conv = next(node for node in nodes(after, "Conv") if node.name == layer)
    dequantize, of_weight = (next(n for n in after.graph.node if n.output[0] == name) for name in conv.input[:2])
    (quantize,) = nodes(after, "QuantizeLinear")
    assert (dequantize.op_type, of_weight.op_type) == ("DequantizeLinear", "DequantizeLinear")
    assert dequantize.input[0] == quantize.output[0]
    assert next(n for n in after.graph.node if n.output[0] == quantize.input[0]).op_type == "Add"
    assert conv.input[2] == f"{layer}.bias"
    found, original = tensors(after), tensors(before)
    weight = original[f"{layer}.weight"]
    scale, values = found[of_weight.input[1]], found[of_weight.input[0]]
    assert {a.dtype for a in (found[quantize.input[1]], scale, found[conv.input[2]])} == {weight.dtype}
    assert found[quantize.input[1]] == pytest.approx(2 / 127, rel=1e-3)
    assert scale.shape == (48,)  # one per output channel
    assert values.dtype == np.int8
    assert abs(values.reshape(48, -1)).max(1).min() == 127  # every channel uses all of it
    error = abs(values * scale.astype(np.float64)[:, None, None, None] - weight)
    assert (error <= 0.51 * scale.astype(np.float64)[:, None, None, None]).all()
    assert f"{layer}.weight" not in found
    assert after.ByteSize() < before.ByteSize() - weight.nbytes // 3


def test_layers_that_read_a_tensor_share_a_pair(graphs: dict[str, ModelProto]) -> None:
    """Three layers read the features before the offsets."""
    readers = [f"restore.scales.0.aggregation.{name}" for name in ("flow_vote", "flow", "offset_mask")]
    after = set_precision(graphs["restore"], LayerPrecision("", dict.fromkeys(readers, 3.0)))
    assert len(nodes(after, "QuantizeLinear")) == 1
    assert len({node.input[0] for node in nodes(after, "Conv") if node.name in readers}) == 1
    with pytest.raises(AmsaError, match=r"flow has the range 4, and another layer that reads the same tensor 3; .*calibrate"):
        set_precision(graphs["restore"], LayerPrecision("", {readers[0]: 3.0, readers[1]: 4.0}))


def test_residual_sums(graphs: dict[str, ModelProto]) -> None:
    """Of what a block's first convolution reads quantized, the sum adds the quantized values; only where asked for."""
    layers = {TRUNK.format(1, i): 2.0 for i in (1, 2)}
    for sums in (False, True):
        after = set_precision(graphs["encode_lr"], LayerPrecision("", layers, int8_sums=sums))
        conv1, conv2 = (next(n for n in nodes(after, "Conv") if n.name == layer) for layer in layers)
        (add,) = (node for node in nodes(after, "Add") if conv2.output[0] in node.input)
        assert (conv1.input[0] in add.input) is sums
    assert len(nodes(after, "QuantizeLinear")) == 2


def test_quantized_after_the_activation(graphs: dict[str, ModelProto]) -> None:
    after = set_precision(graphs["encode_lr"], LayerPrecision("", {TRUNK.format(1, 2): 2.0}))
    (quantize,) = nodes(after, "QuantizeLinear")
    assert next(n for n in after.graph.node if n.output[0] == quantize.input[0]).op_type == "Relu"


def test_tiny_and_zero_weights(graphs: dict[str, ModelProto]) -> None:
    layer = TRUNK.format(1, 1)
    model = ModelProto()
    model.CopyFrom(graphs["encode_lr"])
    tensor = next(t for t in model.graph.initializer if t.name == f"{layer}.weight")
    weight = numpy_helper.to_array(tensor).copy()
    weight[0], weight[1] = 0, 1e-6
    tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
    found = tensors(set_precision(model, LayerPrecision("", {layer: 2.0})))
    assert (found[f"{layer}.weight_scale"] > 0).all()
    assert not found[f"{layer}.weight_int8"][0].any()


def ranges(folder: ModelFolder) -> dict[str, float]:
    """Rough ones for all that may be int8: the larger, the later in the network."""
    known = read_precision(SHIPPED_MODEL.parent / "small_int8.json").figures["largest"]
    return {layer: known[layer][0] for layer in candidates(model_graphs(folder))}


@pytest.fixture(scope="module")
def precision() -> LayerPrecision:
    folder = ModelFolder.open(SHIPPED_MODEL)
    return LayerPrecision(identity(model_graphs(folder).values()), ranges(folder))


@pytest.fixture(scope="module")
def exported(precision: LayerPrecision, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "model"
    export_folder(*load_network(str(CHECKPOINT), precision="fp16"), path, quantization=precision)
    return path


@pytest.mark.slow  # an export
def test_an_export_with_int8_layers(exported: Path, precision: LayerPrecision) -> None:
    folder = ModelFolder.open(exported)
    assert set(folder.manifest.int8_layers) == set(precision.int8)
    assert folder.manifest.float32_layers == ()
    report = inspect_path(exported)
    assert "with int8 layers" in report.title
    assert any(line.startswith(f"{len(precision.int8)} layers are int8: encode_ref.values.conv4b, ") for line in report.needs)
    truth, ref = load_pair()
    lr, _ = shrink(truth)
    pictures = [Upscaler(model).upscale_photo(lr, [ref]).rgb for model in (SHIPPED_MODEL, exported)]
    full, other = (compare_pictures(picture, truth.rgb).psnr_y for picture in pictures)
    assert full - other < 0.15
    assert 38 < compare_pictures(*pictures).psnr_y < 60  # it is int8, and near


@pytest.mark.slow  # an export
def test_parity_against_the_float32_network(exported: Path) -> None:
    model, _ = load_network(str(CHECKPOINT))
    stages = {p.stage: p for p in check_parity(model, ModelFolder.open(exported), (40, 48), (160, 192))}
    assert 25 < stages["restore"].psnr < 60
    assert stages["match"].other_matches < 0.05
    assert stages["finish"].psnr > 60


def test_manifests_of_older_versions_open() -> None:
    manifest = ModelFolder.open(SHIPPED_MODEL).manifest
    assert "int8_layers" not in json.loads(manifest.to_json())
    assert (manifest.int8_layers, manifest.float32_layers) == ((), ())
    new = replace(manifest, int8_layers=("a.b",), float32_layers=("c.d",))
    assert Manifest.from_json(new.to_json().encode(), "x") == new


# -------------------------------------------------------------------------------------------------- float32 in float16


KEPT = (OVERFLOWING, TRUNK.format(2, 2))
FACTORS = {f"{KEPT[0]}.weight": 2e5, f"{KEPT[0]}.bias": 2e5, f"{KEPT[1]}.weight": 1 / 2e5}
"""A block with inner values 200,000 times larger: the same picture in float32, and infinity in float16."""


def block(model: ModelProto) -> NDArray[np.float32]:
    """What the block gives for values from -1 to 1, computed in numpy's float16: ONNX Runtime has no float16 convolution on the
    CPU, computes the whole block in float32, and sees no infinity."""
    after = next(n for n in nodes(model, "Add") if n.input[0] == "add_1" or n.input[1] == "add_1").output[0]
    part = onnx.utils.Extractor(onnx.shape_inference.infer_shapes(model)).extract_model(["add_1"], [after])
    x = np.random.default_rng(0).uniform(-1, 1, (1, 48, 8, 8))
    dtype = onnx.helper.tensor_dtype_to_np_dtype(part.graph.input[0].type.tensor_type.elem_type)
    with np.errstate(all="ignore"):
        (found,) = onnx.reference.ReferenceEvaluator(part).run(None, {"add_1": x.astype(dtype)})
    return np.asarray(found, np.float32)


def test_layers_that_float16_cannot_hold() -> None:
    full, half = (model_graphs(ModelFolder.open(path))["encode_lr"] for path in MODELS.values())
    weights: dict[str, NDArray[np.float32]] = {}
    for graph in (full, half):
        for tensor in graph.graph.initializer:
            if tensor.name in FACTORS:
                values = numpy_helper.to_array(tensor).astype(np.float32) * np.float32(FACTORS[tensor.name])
                weights[tensor.name] = values
                dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
                tensor.CopyFrom(numpy_helper.from_array(values.astype(dtype), tensor.name))
    expected, overflown = block(full), block(half)
    kept = set_precision(half, LayerPrecision("", {}, KEPT), weights)
    assert not np.isfinite(overflown).all()
    assert abs(block(kept) - expected).max() < 5e-3 * abs(expected).max()
    types = {name: array.dtype for name, array in tensors(kept).items()}
    assert {types[f"{layer}.weight"] for layer in KEPT} == {np.dtype(np.float32)}
    conv1, conv2 = (next(c for c in nodes(kept, "Conv") if c.name == layer) for layer in KEPT)
    relu = next(n for n in nodes(kept, "Relu") if n.input[0] == conv1.output[0])
    assert relu.output[0] == conv2.input[0]  # no cast between the two


@pytest.mark.slow  # an export
def test_weights_that_float16_cannot_hold(tmp_path: Path, picture: Callable[..., NDArray[np.uint8]]) -> None:
    """Refused without the file; with it the layers take the weights of the float32 network."""
    from amsa.model.checkpoints import save_checkpoint

    model, trained = load_network(str(CHECKPOINT))
    with torch.no_grad():
        for name, factor in FACTORS.items():
            dict(model.named_parameters())[name].mul_(10 * factor if factor > 1 else factor / 10)
    path = tmp_path / "doctored.safetensors"
    save_checkpoint(path, model, {"trained": True})
    with pytest.raises(AmsaError, match="a weight is too large for float16"):
        load_network(str(path), precision="fp16")
    half, _ = load_network(str(path), precision="fp16", float32=KEPT)
    graph = model_graphs(ModelFolder.open(SHIPPED_MODEL))  # its weights differ, so that the identity is that of the export
    with pytest.raises(AmsaError, match="made for another model"):
        export_folder(half, trained, tmp_path / "kept", quantization=LayerPrecision(identity(graph.values()), {}, KEPT))
    export_folder(model, trained, tmp_path / "full")
    found = LayerPrecision(identity(model_graphs(ModelFolder.open(tmp_path / "full")).values()), {}, KEPT)
    export_folder(half, trained, tmp_path / "kept", quantization=found, full=model)
    assert ModelFolder.open(tmp_path / "kept").manifest.float32_layers == KEPT
    assert f"layers are kept in float32: {KEPT[0]}" in " ".join(inspect_path(tmp_path / "kept").needs)
    lr, ref = from_array(picture(32, 32, 0)), from_array(picture(96, 96, 1))
    expected, kept = (Upscaler(m).upscale_photo(lr, [ref]).rgb for m in (SHIPPED_MODEL, tmp_path / "kept"))
    assert compare_pictures(kept, expected).psnr_rgb > 50


def test_a_trunk_that_float16_cannot_hold() -> None:
    """Where the sums themselves are too large they are float32, from the first of these layers to the last."""
    graph = model_graphs(ModelFolder.open(SHIPPED_ENGINE_MODEL))["encode_lr"]
    kept = tuple(TRUNK.format(block, i) for block in (2, 3) for i in (1, 2))
    after = onnx.shape_inference.infer_shapes(set_precision(graph, LayerPrecision("", {}, kept)))
    types = {value.name: value.type.tensor_type.elem_type for value in (*after.graph.value_info, *after.graph.output)}
    convs = {node.name: node for node in nodes(after, "Conv")}
    sums = [next(n for n in nodes(after, "Add") if convs[TRUNK.format(b, 2)].output[0] in n.input) for b in (2,)]
    assert {types[n.output[0]] for n in sums} == {TensorProto.FLOAT}
    assert types["content"] == TensorProto.FLOAT16
    full = model_graphs(ModelFolder.open(SHIPPED_MODEL))["encode_lr"]
    assert set_precision(full, LayerPrecision("", {}, kept)).graph == full.graph  # nothing to keep


# ---------------------------------------------------------------------------------------------------------- bad files


def test_a_file_of_another_model(precision: LayerPrecision) -> None:
    graphs = model_graphs(ModelFolder.open(SHIPPED_MODEL))
    check_precision(graphs, precision, "x.json")
    with pytest.raises(AmsaError, match=r"x\.json: made for another model \(its weights differ\); run `amsa calibrate`"):
        check_precision(graphs, replace(precision, model="0" * 64), "x.json")
    with pytest.raises(AmsaError, match=r"the model has no layer nobody\.conv; make the file with `amsa calibrate`"):
        check_precision(graphs, replace(precision, int8={"nobody.conv": 1.0}), "x.json")


@pytest.mark.slow  # an export
def test_an_export_with_a_file_of_another_model(precision: LayerPrecision, tmp_path: Path) -> None:
    with pytest.raises(AmsaError, match="made for another model"):
        export_folder(*load_network("small", 3), tmp_path / "out", quantization=precision)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change",
    [
        "not JSON",
        {"int8": {"a": float("nan")}},
        {"int8": {"a": 0}},
        {"int8": {"a": -1.0}},
        {"int8": {"a": "wide"}},
        {"int8": ["a"]},
        {"float32": "a"},
        {"int8": {"a": 1.0}, "float32": ["a"]},
        {"figures": 3},
        {"model": None, "method": None, "format": 2},
        "[]",
        "{}",
    ],
    ids=str,
)
def test_damaged_files(tmp_path: Path, change: str | dict[str, Any]) -> None:
    path = tmp_path / "x.json"
    good = LayerPrecision("m", {"a": 1.5}, ("b",), True, "mse", {"crops": 3})
    path.write_text(good.to_json())
    assert read_precision(path) == good
    path.write_text(change if isinstance(change, str) else json.dumps(json.loads(good.to_json()) | change))
    with pytest.raises(AmsaError, match=r"x\.json: .*make it again with `amsa calibrate`$") as e:
        read_precision(path)
    assert "\n" not in str(e.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(AmsaError, match=r"no\.json: cannot be read"):
        read_precision(tmp_path / "no.json")


@pytest.mark.slow
def test_export_on_the_command_line(precision: LayerPrecision, tmp_path: Path) -> None:
    (tmp_path / "int8.json").write_text(precision.to_json())
    command = [sys.executable, "-m", "amsa", "export", str(CHECKPOINT), "-o", str(tmp_path / "model"), "--precision", "fp16"]
    given = ["--quantization", str(tmp_path / "int8.json")]
    result = subprocess.run([*command, *given], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert f"{len(precision.int8)} layers in int8, 0 kept in float32; compared with PyTorch in float32" in result.stdout
    assert "PSNR" in result.stdout
    refused = subprocess.run([*command, *given, "--single-file", "1"], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "--quantization is for a folder's graphs" in refused.stderr
