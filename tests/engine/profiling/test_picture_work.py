"""What a picture takes, counted: against the Upscaler, complexity.py and real engines; and fusion, on graphs by hand."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from amsa import Upscaler
from amsa.config import AMSAConfig
from amsa.engine.backends import SHIPPED_ENGINE_MODEL, HostExecution
from amsa.engine.engine_shapes import dimensions
from amsa.engine.profiling.graph_kernels import Kernel, kernels
from amsa.engine.profiling.graph_shapes import Graph
from amsa.engine.profiling.picture_work import Sizes, Workload
from amsa.export import export_folder
from amsa.manifest import ModelFolder
from amsa.model import AMSA
from amsa.stages import Stage, TensorIO
from amsa.training.evaluation.complexity import network_macs

SMALL = AMSAConfig.small()
PUBLISHED = replace(AMSAConfig.published(8, 1, 4), ref_scales=2)
STAGES = ("encode_ref", "encode_lr", "match", "restore", "finish")


@pytest.fixture(scope="module")
def small() -> ModelFolder:
    return ModelFolder.open(SHIPPED_ENGINE_MODEL)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    model = AMSA(PUBLISHED)
    model.reset_parameters(0)
    path = tmp_path_factory.mktemp("published") / "model"
    export_folder(model, False, path)
    return ModelFolder.open(path)


# ------------------------------------------------------------------------------------------------ what is counted


@pytest.mark.parametrize("name", ["small", pytest.param("published", marks=pytest.mark.slow)])
def test_shapes_of_all_outputs(name: str, request: pytest.FixtureRequest) -> None:
    folder: ModelFolder = request.getfixturevalue(name)
    sizes = {"h": 24, "w": 40, "Hk": 24, "Wk": 40}
    for stage in folder.manifest.config.stages(folder.manifest.precision):
        tensors = Graph.load(stage, folder.graphs[stage.name]).tensors(sizes)
        for declared in stage.outputs:
            found = tensors[declared.name]
            shape = [eval(str(dim), {}, dict(sizes)) for dim in declared.dims]
            assert (found.shape, found.item) == (tuple(map(int, shape)), np.dtype(declared.dtype).itemsize), declared.name


@pytest.mark.parametrize("name", ["small", pytest.param("published", marks=pytest.mark.slow)])
def test_macs_are_those_of_complexity(name: str, request: pytest.FixtureRequest) -> None:
    """Within 1 %: PatchMatch's norms and quantization, 0.3 % of it, are counted here alone. One tile, and no canvas beyond LR,
    which `published` is never restored on but complexity.py counts."""
    folder: ModelFolder = request.getfixturevalue(name)
    config = folder.manifest.config
    macs = Counter[str]()
    for stage, kernel, times in Workload(folder).of(Sizes((72, 48), [(264, 200)])):
        macs[stage] += times * kernel.macs
    expected = network_macs(config, (48, 72), (200, 264))
    assert macs["copies"] == 0
    for stage in STAGES:
        whole = getattr(expected, stage)
        assert macs[stage] == pytest.approx(sum(whole) if isinstance(whole, tuple) else whole, rel=0.01), stage


class Recorder(HostExecution):
    """Computes nothing: outputs are zeros. Remembers how often each stage ran at which sizes."""

    name, kernels, trained = "onnxruntime", "none", True

    def __init__(self, config: AMSAConfig, precision: str) -> None:
        self.config, self.precision = config, precision
        self.found: Counter[tuple[Any, ...]] = Counter()

    def run(self, stage: str, inputs: Any) -> dict[str, Any]:
        declared = next(s for s in self.config.stages(self.precision) if s.name == stage)
        sizes: dict[str, int] = {}
        for tensor in declared.inputs:
            for dim, size in zip(tensor.dims, inputs[tensor.name].shape, strict=True):
                if found := re.fullmatch(r"(?:([24])\*)?([A-Za-z]+)", str(dim)):
                    sizes[found[2]] = size // int(found[1] or 1)
        self.found[stage, *sorted(sizes.items())] += 1
        profile = {word: (size, size, size) for word, size in sizes.items()}
        return {t.name: np.zeros(dimensions(t, profile)[0], t.dtype) for t in declared.outputs}


@pytest.mark.parametrize("config", [SMALL, PUBLISHED], ids=["small", "published"])
def test_runs_are_those_of_the_upscaler(config: AMSAConfig) -> None:
    """Several tiles with halos, of a picture whose sides are no multiple of 8, and two references of other sizes."""
    sizes = Sizes((150, 139), [(64, 96), (330, 270)], tile=32)
    backend = Recorder(config, "fp16")
    blank = [np.zeros((height, width, 3), np.uint8) for width, height in (sizes.lr, *sizes.refs)]
    Upscaler.on(backend, tile=sizes.tile, skip=0).upscale(blank[0], blank[1:])
    counted: Counter[tuple[Any, ...]] = Counter()
    for run in sizes.runs(config):
        counted[run.stage, *sorted(run.sizes.items())] += run.times
    assert counted == backend.found
    assert sum(n for key, n in counted.items() if key[0] == "restore") >= 4 * 2 * config.ref_scales


def test_the_largest_are_restored() -> None:
    runs = Sizes((32, 32), [(512, 512), (128, 128)], restored=2).runs(SMALL)
    assert [(run.sizes["Hk"], run.times) for run in runs if run.stage == "restore"] == [(128, 1), (104, 1)]
    assert sum(run.times for run in runs if run.stage == "match") == 10


def test_what_the_engines_turned_out_to_be(small: ModelFolder) -> None:
    """Transposes at the ends are as many as in the plans; kernels of standard operators, within a third."""
    facts = json.loads((Path(__file__).parents[1] / "plan_facts.json").read_text())["stages"]
    sizes = {"h": 128, "w": 128, "Hk": 128, "Wk": 128}
    for stage in SMALL.stages("fp16"):
        if stage.name not in facts:
            continue
        found = kernels(Graph.load(stage, small.graphs[stage.name]), sizes)
        standard = [kernel for kernel in found if not kernel.op.startswith(("patch_match", "deformable"))]
        assert sum(kernel.op == "Transpose" for kernel in found) == facts[stage.name]["transposes"], stage.name
        products = sum(kernel.kind.endswith("product") for kernel in found)
        assert products == sum(facts[stage.name]["convolutions"].values())
        assert len(standard) == pytest.approx(facts[stage.name]["layers"] - facts[stage.name]["plugins"], rel=0.34), stage.name


# ------------------------------------------------------------------------------------------------ fusion


def graph(nodes: list[onnx.NodeProto], outputs: list[str], weights: dict[str, Any] | None = None) -> list[Kernel]:
    """The kernels of a hand-made graph that takes x, float16 [1, 16, h, w], at 8 x 8."""
    constants = [onnx.numpy_helper.from_array(value, name) for name, value in (weights or {}).items()]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT16, [1, 16, "h", "w"])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, None) for name in outputs]
    model = helper.make_model(helper.make_graph(nodes, "g", [x], ends, constants), opset_imports=[helper.make_opsetid("", 20)])
    declared = TensorIO("x", (1, 16, "h", "w"), "float16")
    stage = Stage("g", "", (declared,), tuple(TensorIO(name, (1, 16, "h", "w"), "float16") for name in outputs))
    return kernels(Graph.load(stage, model.SerializeToString()), {"h": 8, "w": 8})


PIXELS = 8 * 8
X = 2 * 16 * PIXELS
WEIGHT = np.zeros((16, 16, 3, 3), np.float16)


def test_a_convolution_takes_what_is_element_by_element_behind_it() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "a.weight"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Add", ["r", "x"], ["y"]),
    ]
    turned, conv, back = graph(nodes, ["y"], {"a.weight": WEIGHT})
    assert (turned.op, back.op) == ("Transpose", "Transpose")
    assert turned.bytes == back.bytes == 2 * X
    assert (conv.name, conv.op, conv.kind) == ("a", "Conv 3x3 16>16 half", "narrow half product")
    assert conv.macs == PIXELS * 9 * 16 * 16
    assert conv.bytes == X + WEIGHT.nbytes + X  # x, which is the residual, too; weights; y
    assert conv.written == {"y": X}


def test_other_operators_are_one_kernel_up_to_a_reduction() -> None:
    nodes = [
        helper.make_node("Slice", ["x", "start", "end", "axes"], ["s"]),
        helper.make_node("Concat", ["s", "s"], ["t"], axis=1),
        helper.make_node("Sigmoid", ["t"], ["u"]),
        helper.make_node("ReduceMean", ["u", "channels"], ["m"], keepdims=1),
        helper.make_node("Sub", ["u", "m"], ["y"]),
    ]
    weights = {"start": np.array([4]), "end": np.array([8]), "axes": np.array([1]), "channels": np.array([1])}
    one, two = graph(nodes, ["y"], weights)
    assert (one.op, two.op) == ("Slice+Concat+..+ReduceMean", "Sub")
    assert one.read == {"x": X // 4}  # four channels of 16
    assert one.written == {"m": 2 * PIXELS, "u": X // 2}
    assert two.bytes == X // 2 + 2 * PIXELS + X // 2


def test_int8_is_read_as_int8() -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        helper.make_node("DequantizeLinear", ["weight", "scale", "zero"], ["w"]),
        helper.make_node("Conv", ["d", "w"], ["y"], pads=[1, 1, 1, 1]),
    ]
    weights = {"scale": np.array(0.1, np.float16), "zero": np.array(0, np.int8), "weight": np.zeros((16, 16, 3, 3), np.int8)}
    found = graph(nodes, ["y"], weights)
    conv = next(kernel for kernel in found if kernel.macs)
    assert conv.kind == "narrow int8 product"
    assert conv.bytes == X // 2 + 16 * 16 * 9 + X
