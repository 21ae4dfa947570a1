"""Models in float16: typed graphs, near the float32 ones, and finite on any picture."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from amsa import AmsaError, Upscaler
from amsa.config import VARIANTS
from amsa.engine.backends import SHIPPED_ENGINE_MODEL, SHIPPED_MODEL, Arrays, HostExecution
from amsa.engine.demo import load_pair, shrink
from amsa.engine.images import from_array
from amsa.engine.metrics import compare_pictures
from amsa.engine.stage_comparison import EQUAL_MATCHES, compare_stages
from amsa.export import check_parity, export_folder, load_network
from amsa.manifest import FILE_NAME, ModelFolder
from amsa.model import save_checkpoint
from amsa.plugins import DOMAIN
from amsa.training.evaluation.precision import Watched, compare_matches

from .conftest import random_network

SHIPPED = SHIPPED_MODEL.parent / "small.safetensors"


@pytest.fixture(scope="module")
def half() -> Path:
    """A float16 export: the shipped one, which `test_what_ships_is_what_the_export_makes` compares with a new one."""
    return SHIPPED_ENGINE_MODEL


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


@pytest.mark.slow  # an export
@pytest.mark.parametrize(("shipped", "precision"), [(SHIPPED_MODEL, "fp32"), (SHIPPED_ENGINE_MODEL, "fp16")])
def test_what_ships_is_what_the_export_makes(shipped: Path, precision: str, tmp_path: Path) -> None:
    """Else: make weights."""
    export_folder(*load_network(str(SHIPPED), precision=precision), tmp_path / "model")
    ships, made = ModelFolder.open(shipped), ModelFolder.open(tmp_path / "model")
    assert ships.manifest.trained
    assert replace(ships.manifest, graphs={}) == replace(made.manifest, graphs={})
    for stage, graph in made.graphs.items():
        assert content(ships.graphs[stage]) == content(graph), stage


def test_types(half: Path) -> None:
    """Convolutions and aggregation in float16; keys and all that makes and compares them, pictures, relevances, weights and
    softmax in float32."""
    opened = ModelFolder.open(half)
    assert opened.manifest.precision == "fp16"
    for stage in opened.manifest.config.stages("fp16"):
        graph = onnx.shape_inference.infer_shapes(onnx.load_from_string(opened.graphs[stage.name])).graph
        types = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
        types |= {t.name: t.data_type for t in graph.initializer}
        for node in graph.node:
            if node.op_type == "Conv" and node.input[1] in types and "taps" not in node.input[1]:
                blur = stage.name == "encode_ref" and ".weight" not in node.input[1]
                exact = blur or ".keys." in node.input[1]
                expected = onnx.TensorProto.FLOAT if exact else onnx.TensorProto.FLOAT16
                assert types[node.input[1]] == expected, (stage.name, node.name)
            if node.op_type == "Softmax":
                assert types[node.input[0]] == onnx.TensorProto.FLOAT, (stage.name, node.name)
            if node.domain == DOMAIN:
                exact = stage.name in ("match", "match_exact")
                assert types[node.input[0]] == (onnx.TensorProto.FLOAT if exact else onnx.TensorProto.FLOAT16)
        declared = {t.name: t.dtype for t in (*stage.inputs, *stage.outputs)}
        for name in declared.keys() & {"lr", "ref", "relevance", "weight", "sr", "key_1", "key_8", "query_2", "query_4"}:
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
    """Neither picture nor matches, each model matching features of its own."""
    truth, ref = load_pair()
    lr, _ = shrink(truth)
    watched = [Watched(Upscaler(m).backend_in_use) for m in (SHIPPED, half)]
    pictures = [Upscaler.on(w).upscale_photo(lr, [ref]).rgb for w in watched]
    full, other = (compare_pictures(p, truth.rgb, 4).psnr_y for p in pictures)
    assert full - other <= 0.01
    assert full > 25  # of the pair's 24.05 by bicubic
    matches = compare_matches(watched[0].calls, watched[1].calls)
    assert matches.positions == 5 * (lr.height - 2) * (lr.width - 2)
    assert matches.near >= EQUAL_MATCHES * matches.positions
    assert abs(matches.lost) <= 1e-4 * matches.positions


KINDS = ("black", "white", "constant", "noise", "saturated", "16 bits")


def extreme(kind: str, height: int, width: int) -> NDArray[np.uint8] | NDArray[np.uint16]:
    rng = np.random.default_rng(height)
    shape = height, width, 3
    made = {
        "black": np.zeros(shape, np.uint8),
        "white": np.full(shape, 255, np.uint8),
        "constant": np.full(shape, 77, np.uint8),
        "noise": rng.integers(0, 256, shape, np.uint8),
        "saturated": (255 * rng.integers(0, 2, shape)).astype(np.uint8),
        "16 bits": rng.integers(0, 65536, shape, np.uint16),
    }
    return made[kind]


class Finite(HostExecution):
    """A backend whose tensors must all be numbers: in a picture that is clipped and rounded, NaN looks like black."""

    name = "finite"
    kernels = "another's"

    def __init__(self, model: Path) -> None:
        self.inner = Upscaler(model, threads=1).backend_in_use
        self.config, self.precision, self.trained = self.inner.config, self.inner.precision, self.inner.trained

    def run(self, stage: str, inputs: Mapping[str, Any]) -> Arrays:
        with self.inner.call() as on:
            outputs = on.run(stage, inputs)
        for name, tensor in outputs.items():
            assert np.isfinite(tensor).all(), (stage, name)
        return outputs


def upscale_extremes(model: Path) -> Iterator[tuple[str, str, NDArray[np.float64]]]:
    """LR and reference of every kind, in all combinations, and the picture in [0, 1]; every tensor on the way is finite."""
    upscaler = Upscaler.on(Finite(model))
    for reference in KINDS:
        encoded = upscaler.encode_reference(extreme(reference, 64, 64), (16, 16))  # published models need one common size
        for kind in KINDS:
            lr = extreme(kind, 16, 16)
            yield kind, reference, np.asarray(upscaler.upscale(lr, [encoded]), np.float64) / np.iinfo(lr.dtype).max


def test_every_picture_has_a_finite_result(tmp_path: Path) -> None:
    """Of the shipped models, at one scale of a reference instead of five; and it is what the float32 model makes of it."""
    models = []
    for model in (SHIPPED_ENGINE_MODEL, SHIPPED_MODEL):
        folder = Path(shutil.copytree(model, tmp_path / model.name))
        values = json.loads((folder / FILE_NAME).read_text())
        values["config"]["ref_scales"] = 1
        (folder / FILE_NAME).write_text(json.dumps(values))
        models.append(folder)
    pairs = list(zip(*map(upscale_extremes, models), strict=True))
    assert len(pairs) == len(KINDS) ** 2
    for (kind, reference, found), (*_, expected) in pairs:
        assert 10 * np.log10(1 / max(np.square(found - expected).mean(), 1e-12)) > 40, (kind, reference)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["published", "paper"])
def test_full_sizes_are_finite_too(tmp_path: Path, name: str) -> None:
    """Random weights, nowhere zero, of the published size. Every stage is near the float32 one's, given the same inputs: end to
    end, noise matched with noise has no best place, so that matches and pictures differ."""
    save_checkpoint(tmp_path / "m.safetensors", random_network(replace(VARIANTS[name](), ref_scales=1)), {"trained": True})
    export_folder(load_network(str(tmp_path / "m.safetensors"), precision="fp16")[0], True, tmp_path / "half")
    for kind, reference, picture in upscale_extremes(tmp_path / "half"):
        assert picture.max() > 0 or kind == "black", (kind, reference)
    full, half = (Upscaler(tmp_path / model) for model in ("m.safetensors", "half"))
    for kind, reference in zip(KINDS, (*KINDS[1:], KINDS[0]), strict=True):
        lr, ref = from_array(extreme(kind, 16, 16)), from_array(extreme(reference, 64, 64))
        for d in compare_stages(full, half, lr, [ref]):
            assert d.largest <= (d.bound if d.tensor == "match" else 2e-3), (kind, reference, d)


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
