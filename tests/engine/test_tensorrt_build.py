"""`amsa build` with TensorRT-RTX and no GPU: real engines in float16 for SM 7.5, and every way to get another than asked for."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from amsa import AmsaError
from amsa.config import VARIANTS
from amsa.engine import tensorrt_build, tensorrt_module
from amsa.engine.backends import SHIPPED_ENGINE_MODEL as SHIPPED
from amsa.engine.backends import SHIPPED_MODEL as SHIPPED_FP32
from amsa.engine.engine_cache import load_engine, read_sidecar
from amsa.engine.engine_shapes import bounds, dimensions, make_profile, parse_sizes
from amsa.engine.inspection import inspect_path
from amsa.engine.plan_facts import PlanFacts, check_plan, read_plan
from amsa.engine.tensorrt_build import BuiltEngine, build_engines
from amsa.export.layer_precision import LayerPrecision, read_precision, set_precision
from amsa.manifest import FILE_NAME, GraphFile
from amsa.plugins import DOMAIN, VERSION
from amsa.plugins import tensorrt as our_plugins

from ..conftest import Run

if find_spec("tensorrt_rtx") is None:
    pytest.skip("tensorrt_rtx is not installed: pip install 'amsa[rtx]'", allow_module_level=True)

trt = tensorrt_module.import_tensorrt("rtx")
STAGES = ("encode_ref", "encode_lr", "match", "restore", "finish")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> list[BuiltEngine]:
    """The shipped model's engines for SM 7.5, beside a copy of it."""
    model = Path(shutil.copytree(SHIPPED, tmp_path_factory.mktemp("models") / "small"))
    return build_engines(model, ["sm75"])


@pytest.fixture
def place(built: list[BuiltEngine], tmp_path: Path) -> Path:
    """A folder with `small` and `small.engines`, to change things in."""
    return Path(shutil.copytree(built[0].path.parents[2], tmp_path / "place"))


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Build no stage but this."""

    def choose(stage: str) -> None:
        monkeypatch.setattr(tensorrt_build, "_WITHOUT_KERNEL", ("match_exact", *(s for s in STAGES if s != stage)))

    return choose


class Changed:
    """The module tensorrt_rtx with some attributes of ours."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)
        self.__name__ = "tensorrt_rtx"

    def __getattr__(self, name: str) -> Any:
        return getattr(trt, name)


def facts(engine: BuiltEngine) -> PlanFacts:
    return read_plan(engine.path.read_bytes(), engine.path)


def change_graph(model: Path, stage: str, change: Callable[[onnx.ModelProto], None]) -> None:
    graph = onnx.load(str(model / f"{stage}.onnx"))
    change(graph)
    file = GraphFile.of(f"{stage}.onnx", graph.SerializeToString())
    (model / file.file).write_bytes(graph.SerializeToString())
    values = json.loads((model / FILE_NAME).read_text())
    values["graphs"][stage] = {"file": file.file, "size": file.size, "sha256": file.sha256}
    (model / FILE_NAME).write_text(json.dumps(values))


# ------------------------------------------------------------------------------------------------ what is built


def test_one_engine_per_graph_with_the_plugins_of_its_nodes(built: list[BuiltEngine]) -> None:
    assert [e.path.name for e in built] == [f"{stage}.engine" for stage in STAGES]
    assert {e.path.parent.name for e in built} == {"rtx-sm75-fp16"}
    assert {e.reason for e in built} == {"not built yet"}
    for engine in built:
        nodes = onnx.load(str(SHIPPED / f"{engine.path.stem}.onnx")).graph.node
        names = [node.name for node in nodes if node.domain == DOMAIN]
        assert sorted(p.name for p in facts(engine).plugins) == sorted(names)
        assert engine.sidecar.plugins == len(names)
    assert [e.sidecar.plugins for e in built] == [0, 0, 4, 6, 0]


def test_facts_of_the_plan(built: list[BuiltEngine]) -> None:
    for engine in built:
        found, sidecar = facts(engine), engine.sidecar
        assert found.targets == ("sm75",)
        assert f"tensorrt_rtx {found.version}" == sidecar.key.runtime
        assert (found.layers, found.scratch) == (sidecar.layers, sidecar.scratch)
    by_stage = {e.path.stem: facts(e) for e in built}
    assert {stage: set(found.convolutions) for stage, found in by_stage.items()} == {
        "encode_ref": {"half", "float"},  # pictures are blurred, and the nine taps weighed, in float32
        "encode_lr": {"half", "float"},  # and so are keys and queries
        "match": set(),
        "restore": {"half", "float"},
        "finish": {"half"},
    }
    floats = {stage: found.convolutions.get("float", 0) for stage, found in by_stage.items()}
    assert floats == {"encode_ref": 6, "encode_lr": 4, "match": 0, "restore": 1, "finish": 0}
    assert by_stage["encode_lr"].bounds == {(16, 512)}
    assert by_stage["encode_ref"].bounds == {(32, 2048)}
    assert sum(by_stage["encode_lr"].convolutions.values()) > 10
    for plugin in (*by_stage["match"].plugins, *by_stage["restore"].plugins):
        assert plugin.transposed == ()


def test_a_float32_model(tmp_path: Path) -> None:
    built = build_engines(SHIPPED_FP32, ["sm75"], precision="fp32", output=tmp_path)
    assert {e.path.parent.name for e in built} == {"rtx-sm75-fp32"}
    assert [e.sidecar.plugins for e in built] == [0, 0, 4, 6, 0]
    for engine in built:
        found = facts(engine)
        assert found.targets == ("sm75",)
        assert set(found.convolutions) <= {"float"}
        assert "half" not in found.tensors.values()


def test_one_engine_for_several_capabilities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = build_engines(SHIPPED, ["sm120+sm86+sm89+sm86", "sm89+sm86+sm120"], output=tmp_path)
    assert [e.path.relative_to(tmp_path).as_posix() for e in built] == [f"rtx-sm86+sm89+sm120-fp16/{s}.engine" for s in STAGES]
    for engine in built:
        assert engine.sidecar.key.target == "sm86+sm89+sm120"
        assert facts(engine).targets == ("sm86", "sm89", "sm120")
    monkeypatch.setattr(tensorrt_build, "_build", lambda *_: pytest.fail("built again"))
    assert {e.reason for e in build_engines(SHIPPED, ["sm89+sm120+sm86"], output=tmp_path)} == {None}


def test_tiles_are_what_the_upscaler_cuts(built: list[BuiltEngine]) -> None:
    """A part of a tile at the picture's edge is as small as one pixel with its halo."""
    halo = VARIANTS["small"]().halo
    restore = next(e for e in built if e.path.stem == "restore").sidecar.key.profile
    assert restore["h"] == restore["w"] == (16, 128, 128 + 2 * halo)
    stage = next(s for s in VARIANTS["small"]().stages() if s.name == "restore")
    lr, ref = parse_sizes("64x64/64x128/96x128", "", 16), parse_sizes("8x8/8x8/8x8", "", 8)
    profile = make_profile("restore", stage.inputs, lr, ref, halo)
    assert profile == {"h": (1 + halo, 128, 128), "w": (1 + halo, 64, 96), "Hk": (8, 8, 8), "Wk": (8, 8, 8)}
    match = next(t for t in stage.inputs if t.name == "match")
    assert dimensions(match, profile)[2] == (1, 2, 130, 98)
    assert bounds([match], profile) == {"h": {(3 + halo, 130)}, "w": {(3 + halo, 98)}}


def test_up_to_date_engines_are_left_alone(built: list[BuiltEngine], place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_build, "_build", lambda *_: pytest.fail("built again"))
    again = build_engines(place / "small", ["sm75"])
    assert [e.reason for e in again] == [None] * 5
    assert [e.sidecar for e in again] == [e.sidecar for e in built]


def test_a_changed_graph_is_built_again_and_no_other(place: Path) -> None:
    change_graph(place / "small", "finish", lambda graph: graph.metadata_props.add(key="changed", value="yes"))
    reasons = {e.path.stem: e.reason for e in build_engines(place / "small", ["sm75"])}
    assert reasons == {**dict.fromkeys(STAGES), "finish": "built for another ONNX graph"}


def test_other_sizes_and_a_damaged_engine_are_built_again(place: Path, only: Callable[[str], None]) -> None:
    only("encode_lr")
    (other,) = build_engines(place / "small", ["sm75"], lr_sizes="16x24/32x32/64x128")
    assert str(other.reason).startswith("built for profile h 16/128/512")
    assert facts(other).bounds == {(24, 128), (16, 64)}
    other.path.write_bytes(other.path.read_bytes()[:-5])
    (mended,) = build_engines(place / "small", ["sm75"], lr_sizes="16x24/32x32/64x128")
    assert "checksum differs" in str(mended.reason)
    assert read_sidecar(mended.path) == mended.sidecar


def test_progress_and_interruption(place: Path, tmp_path: Path, only: Callable[[str], None]) -> None:
    only("match")
    told: list[tuple[int, int, str]] = []

    def progress(done: int, total: int, what: str) -> None:
        told.append((done, total, what))
        if len(told) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engines(place / "small", ["sm75"], output=tmp_path / "out", progress=progress)
    assert not list(tmp_path.glob("out/**/*.engine"))
    assert told[0][:2] == (0, 1)
    assert told[0][2].startswith("match for sm75: ")


def build_elsewhere(tmp_path: Path) -> subprocess.Popen[str]:
    """A process that builds a copy of the model, with nothing prepared: no LD_LIBRARY_PATH, an empty home."""
    if not (tmp_path / "model").exists():
        shutil.copytree(SHIPPED, tmp_path / "model")
        (tmp_path / "home").mkdir()
    environment = {k: v for k, v in os.environ.items() if k not in ("LD_LIBRARY_PATH", "XDG_CACHE_HOME")}
    environment["HOME"] = str(tmp_path / "home")
    command = [sys.executable, "-m", "amsa", "build", "model", "--target", "sm75", "--json"]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=pipe, stderr=pipe, text=True)


def test_a_process_of_its_own_needs_the_folder_alone(built: list[BuiltEngine], tmp_path: Path) -> None:
    """The parser must find its library: else the process aborts."""
    process = build_elsewhere(tmp_path)
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    engines = json.loads(out)["engines"]
    assert {e["key"]["stage"]: e["reason"] for e in engines} == dict.fromkeys(STAGES, "not built yet")
    for engine in built:
        again = tmp_path / "model.engines" / engine.path.parent.name / engine.path.name
        assert read_sidecar(again).key == engine.sidecar.key
        found, before = read_plan(load_engine(again), again), facts(engine)
        assert (found.targets, found.convolutions, found.scratch) == (before.targets, before.convolutions, before.scratch)


def test_two_processes_at_once(tmp_path: Path) -> None:
    processes = [build_elsewhere(tmp_path) for _ in range(2)]
    for process in processes:
        _, err = process.communicate()
        assert (process.returncode, err) == (0, "")
    folder = tmp_path / "model.engines" / "rtx-sm75-fp16"
    assert {p.name for p in folder.iterdir()} == {f"{stage}.{suffix}" for stage in STAGES for suffix in ("engine", "json")}
    for stage in STAGES:
        load_engine(folder / f"{stage}.engine")


_MEASURE = """
import json, resource, subprocess, sys
done = subprocess.run([sys.executable, "-m", "amsa", "build", sys.argv[1], "--target", "sm75", "--json"], stdout=sys.stderr)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([done.returncode, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]))
"""


@pytest.mark.slow
def test_the_published_configuration(tmp_path: Path) -> None:
    """Within 12 minutes and 2 GB; measured: 41 CPU seconds, 746 MB."""
    from amsa.export import export_folder, load_network

    export_folder(*load_network("published", precision="fp16"), tmp_path / "model")
    # A process between: what a child is charged for begins with the memory of the one that starts it, here with torch.
    done = subprocess.run([sys.executable, "-c", _MEASURE, tmp_path / "model"], capture_output=True, text=True, check=True)
    code, seconds, megabytes = json.loads(done.stdout)
    assert code == 0, done.stderr
    assert seconds < 12 * 60
    assert megabytes < 2000
    engines = sorted((tmp_path / "model.engines" / "rtx-sm75-fp16").glob("*.engine"))
    assert [e.stem for e in engines] == sorted(STAGES)
    assert [read_sidecar(e).plugins for e in engines] == [0, 0, 0, 4, 6]


def test_imported_too_early_is_an_error_and_no_abort() -> None:
    libraries = find_spec("tensorrt_rtx_libs")
    if libraries is None or (Path(str(libraries.origin)).parent / "libtensorrt_rtx.so").exists():
        pytest.skip("libtensorrt_rtx.so is found anyway")
    program = "import tensorrt_rtx\nfrom amsa.engine.tensorrt_module import import_tensorrt\nimport_tensorrt('rtx')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("amsa.errors.AmsaError: tensorrt_rtx was imported before amsa could prepare its libraries")
    assert "ln -s libtensorrt_rtx.so.1 " in last


# ------------------------------------------------------------------------------------------------ another engine than asked for


def refused(model: Path, output: Path, **arguments: Any) -> str:
    """Build what must be refused, and leave nothing."""
    with pytest.raises(AmsaError) as caught:
        build_engines(model, ["sm75"], output=output, **arguments)
    assert not list(output.glob("**/*.engine"))
    return str(caught.value)


def test_forgotten_target(tmp_path: Path, only: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    only("finish")
    sm80 = trt.ComputeCapability.SM80

    class Capabilities:
        __members__ = trt.ComputeCapability.__members__
        SM75 = sm80

    monkeypatch.setattr(tensorrt_build, "import_tensorrt", lambda _: Changed(ComputeCapability=Capabilities, __version__="1"))
    message = refused(SHIPPED, tmp_path)
    assert message.startswith("finish: TensorRT-RTX 1.7")
    assert message.endswith("built another engine than was asked for: built for sm80, not for sm75")


def test_one_of_several_targets_is_another(tmp_path: Path, only: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    only("finish")
    sm86, sm120 = trt.ComputeCapability.SM86, trt.ComputeCapability.SM120

    class Capabilities:
        __members__ = trt.ComputeCapability.__members__
        SM86 = SM89 = sm86
        SM120 = sm120

    monkeypatch.setattr(tensorrt_build, "import_tensorrt", lambda _: Changed(ComputeCapability=Capabilities, __version__="1"))
    with pytest.raises(AmsaError, match=r"asked for: built for sm86 sm86 sm120, not for sm86 sm89 sm120$"):
        build_engines(SHIPPED, ["sm86+sm89+sm120"], output=tmp_path)
    assert not list(tmp_path.glob("**/*.engine"))


def test_missing_plugin_layer(tmp_path: Path, only: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph has a node that did not become a plugin layer."""
    only("match")
    parse = tensorrt_build._parse
    monkeypatch.setattr(tensorrt_build, "_parse", lambda *arguments: {**parse(*arguments), "lost": "PatchMatch"})
    assert refused(SHIPPED, tmp_path).endswith("4 plugin layers of 5: lost is missing")


@pytest.fixture
def linear_plugins() -> Iterator[None]:
    """Plugins that take their features as NCHW."""
    registry = trt.get_plugin_registry()

    def register(module: Any) -> None:
        for creator in [c for c in registry.all_creators if c.plugin_namespace == DOMAIN]:
            registry.deregister_creator(creator)
        our_plugins.load_plugins(module)

    class Formats:
        LINEAR = HWC = HWC8 = trt.TensorFormat.LINEAR

    register(Changed(TensorFormat=Formats))
    yield
    register(trt)
    assert registry.get_creator("PatchMatch", str(VERSION), DOMAIN) is not None


@pytest.mark.usefixtures("linear_plugins")
def test_linear_plugins_and_their_transposes(tmp_path: Path, only: Callable[[str], None]) -> None:
    only("restore")
    message = refused(SHIPPED, tmp_path)
    assert "value of node_deformable_sample is not channels-last" in message
    assert "samples of node_deformable_sample is not channels-last" in message
    assert "1 transposes around node_deformable_sample" in message


def test_other_sizes_than_asked_for(tmp_path: Path, only: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    only("encode_lr")
    monkeypatch.setattr(tensorrt_build, "dimensions", lambda *_: ((1, 3, 16, 16), (1, 3, 32, 32), (1, 3, 256, 256)))
    assert refused(SHIPPED, tmp_path).endswith("sizes 16..256, not 16..512")


def test_convolutions_of_another_type(built: list[BuiltEngine]) -> None:
    found = facts(next(e for e in built if e.path.stem == "finish"))
    layers = found.convolutions["half"]
    every = {"h": found.bounds}
    wanted = tensorrt_build.Wanted(("sm75",), {}, {"half": layers}, every)
    check_plan(found, wanted, "x")
    check_plan(found, replace(wanted, convolutions={"half": layers + 1}), "x")  # two of one input may be fused
    with pytest.raises(AmsaError, match=f"0 convolutions of float, not {layers}; {layers} convolutions of half, not 0"):
        check_plan(found, replace(wanted, convolutions={"float": layers}), "x")


def put(model: Path, stage: str, graph: onnx.ModelProto) -> None:
    """Another graph in a stage's place."""

    def change(there: onnx.ModelProto) -> None:
        there.CopyFrom(graph)

    change_graph(model, stage, change)


def test_a_float32_graph_in_a_float16_model(place: Path, tmp_path: Path, only: Callable[[str], None]) -> None:
    only("encode_lr")
    graph = onnx.load(str(SHIPPED_FP32 / "encode_lr.onnx"))
    put(place / "small", "encode_lr", graph)
    message = "encode_lr.onnx: output content is float32, and the manifest says float16; export the model again with this version"
    assert refused(place / "small", tmp_path / "out") == message
    # The same with outputs as they should be: it computes in float32 still.
    for output in (output for output in graph.graph.output if output.name == "content"):
        for node in graph.graph.node:
            node.output[:] = [f"{name}_float" if name == output.name else name for name in node.output]
            node.input[:] = [f"{name}_float" if name == output.name else name for name in node.input]
        cast = onnx.helper.make_node("Cast", [f"{output.name}_float"], [output.name], to=onnx.TensorProto.FLOAT16)
        graph.graph.node.append(cast)
        output.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    put(place / "small", "encode_lr", graph)
    message = refused(place / "small", tmp_path / "out")
    assert re.search(r"asked for: 2\d convolutions of float, not 5; 0 convolutions of half, not 16$", message), message


@pytest.mark.parametrize("which", ["input", "output"])
def test_a_graph_with_other_ends(place: Path, tmp_path: Path, only: Callable[[str], None], which: str) -> None:
    only("finish")

    def rename(model: onnx.ModelProto) -> None:
        (value,) = [v for v in (*model.graph.input, *model.graph.output) if v.name == {"input": "lr", "output": "sr"}[which]]
        for node in model.graph.node:
            node.input[:] = ["other" if name == value.name else name for name in node.input]
            node.output[:] = ["other" if name == value.name else name for name in node.output]
        value.name = "other"

    change_graph(place / "small", "finish", rename)
    name = {"input": "lacks the input lr", "output": "has an output other"}[which]
    assert refused(place / "small", tmp_path / "out") == f"finish.onnx {name}; export the model again with this version"


def test_an_input_that_decides_a_shape(place: Path, tmp_path: Path, only: Callable[[str], None]) -> None:
    """TensorRT wants it in host memory; the runtime hands over addresses on the GPU."""
    only("match")

    def resize_relevance(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            node.output[:] = ["found" if name == "relevance" else name for name in node.output]
        for name, value in (("all", [-1]), ("ones", [1, 1])):
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(value), name))
        make = onnx.helper.make_node
        model.graph.node.extend(
            [
                make("Reshape", ["valid", "all"], ["sides"]),
                make("Cast", ["sides"], ["sides_64"], to=onnx.TensorProto.INT64),
                make("Concat", ["ones", "sides_64"], ["size"], axis=0),
                make("Resize", ["found", "", "", "size"], ["relevance"], mode="nearest"),
            ]
        )

    change_graph(place / "small", "match", resize_relevance)
    message = "match.onnx: input valid decides a shape, so the host would read it; export the model again with this version"
    assert refused(place / "small", tmp_path / "out") == message


def test_an_input_in_host_memory() -> None:
    """Classic TensorRT says of every tensor where it lies."""
    stage = next(s for s in VARIANTS["small"]().stages("fp16") if s.name == "encode_ref")
    types = {"float32": trt.DataType.FLOAT, "float16": trt.DataType.HALF}

    def network(location: Any) -> Any:
        def tensor(of: Any) -> Any:
            return SimpleNamespace(name=of.name, dtype=types[of.dtype], is_shape_tensor=False, location=location)

        inputs, outputs = ([tensor(t) for t in tensors] for tensors in (stage.inputs, stage.outputs))
        return SimpleNamespace(
            num_inputs=len(inputs), num_outputs=len(outputs), get_input=inputs.__getitem__, get_output=outputs.__getitem__
        )

    tensorrt_build._check_ends(trt, network(trt.TensorLocation.DEVICE), stage)
    with pytest.raises(AmsaError, match=r"^encode_ref.onnx: input ref decides a shape"):
        tensorrt_build._check_ends(trt, network(trt.TensorLocation.HOST), stage)


def test_a_plugin_that_is_not_registered(tmp_path: Path, only: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    only("match")
    monkeypatch.setattr(tensorrt_build, "import_tensorrt", lambda _: trt)  # which registers them
    registry = trt.get_plugin_registry()
    registry.deregister_creator(registry.get_creator("PatchMatch", str(VERSION), DOMAIN))
    try:
        message = refused(SHIPPED, tmp_path)
    finally:
        our_plugins.load_plugins(trt)
    assert message == (
        f"match.onnx: no TensorRT plugin amsa::PatchMatch of version {VERSION} is registered; "
        "export the model again with this version of amsa"
    )


def test_an_op_that_there_is_no_plugin_for(place: Path, tmp_path: Path, only: Callable[[str], None]) -> None:
    only("restore")

    def rename(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            if node.domain == DOMAIN:
                node.op_type = "DeformableSample2"

    change_graph(place / "small", "restore", rename)
    message = refused(place / "small", tmp_path / "out")
    assert message.startswith("restore.onnx: no TensorRT plugin amsa::DeformableSample2 ")
    assert message.endswith("; export the model again with this version of amsa")


def test_plugin_features_of_another_type(built: list[BuiltEngine]) -> None:
    found = facts(next(e for e in built if e.path.stem == "match"))
    ops = {p.name: (our_plugins.PATCH_MATCH, "half") for p in found.plugins}
    with pytest.raises(AmsaError, match=r"query of node_patch_match_.* is float, not half"):
        check_plan(found, tensorrt_build.Wanted(("sm75",), ops, {}, {"h": found.bounds}), "x")


def test_what_a_plugin_raises_reaches_the_user(
    tmp_path: Path, only: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    only("restore")

    def wrong(*_: object) -> int:
        raise ValueError("no scratch\nmemory")

    kernels = our_plugins._KERNELS["DeformableSample"]
    monkeypatch.setitem(our_plugins._KERNELS, "DeformableSample", replace(kernels, scratch=wrong))
    registry = trt.get_plugin_registry()
    registry.deregister_creator(registry.get_creator("DeformableSample", str(VERSION), DOMAIN))
    our_plugins.load_plugins(trt)  # the class keeps the kernels it was made with
    try:
        assert refused(SHIPPED, tmp_path).endswith("cannot build it: DeformableSample: no scratch memory")
    finally:
        monkeypatch.undo()
        registry.deregister_creator(registry.get_creator("DeformableSample", str(VERSION), DOMAIN))
        our_plugins.load_plugins(trt)


def test_classic_tensorrt_would_pad_half_features() -> None:
    def network(channels: int, dtype: Any) -> Any:
        tensor = SimpleNamespace(name="offset_mask", dtype=dtype, shape=(1, channels, 8, 8))
        layer = SimpleNamespace(
            name="node", type=trt.LayerType.PLUGIN_V3, num_inputs=1, num_outputs=0, get_input=lambda _: tensor
        )
        return SimpleNamespace(num_layers=1, get_layer=lambda _: layer)

    tensorrt_build._check_channels(trt, network(216, trt.DataType.HALF))
    tensorrt_build._check_channels(trt, network(27, trt.DataType.FLOAT))
    with pytest.raises(AmsaError, match="node: offset_mask has 27 channels; in float16 classic TensorRT needs a multiple of 8"):
        tensorrt_build._check_channels(trt, network(27, trt.DataType.HALF))


def test_a_graph_that_cannot_be_read(place: Path, tmp_path: Path, only: Callable[[str], None]) -> None:
    only("finish")

    def spoil(graph: onnx.ModelProto) -> None:
        graph.graph.node[0].op_type = "NoSuchOp"

    change_graph(place / "small", "finish", spoil)
    message = refused(place / "small", tmp_path / "out")
    assert re.match(r"finish.onnx: tensorrt_rtx 1\S+ cannot read it: NoSuchOp \S+: ", message)


# ------------------------------------------------------------------------------------------------ the command line


def test_build_prints_a_table(place: Path, run: Run) -> None:
    (place / "small.engines" / "rtx-sm75-fp16" / "finish.engine").unlink()
    code, out, err = run("build", place / "small", "--target", "sm75")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert "│match      │ 15     │ 4       │" in out
    assert sum("up to date" in line for line in lines) == 4
    assert lines[-1] == f"{place / 'small.engines' / 'rtx-sm75-fp16' / 'finish.engine'}: not built yet"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "sm99"], "unknown target 'sm99'; choose one of sm75, sm80, sm86, sm89, sm120, sm121, native"),
        (["--target", "75"], "unknown target '75'; choose one of"),
        (["--target", "sm86+sm99"], "unknown target 'sm99'; choose one of"),
        (["--target", "sm86+"], "unknown target ''; choose one of"),
        (["--target", "sm86+sm75"], "is built to the abilities of sm75; give it one of its own: --target sm75 --target sm86"),
        (["--target", "sm86+native"], "native is this machine's GPU and no other; give it a --target of its own"),
        (["--target", "sm75", "--runtime", "cpu"], "unknown runtime 'cpu'; choose one of rtx, tensorrt"),
        (["--target", "sm75", "--precision", "int8"], "unknown precision 'int8'; choose one of fp32, fp16"),
        (["--target", "sm75", "--precision", "fp32"], "was exported as fp16; for fp32 export it so: amsa export CHECKPOINT"),
        (["--target", "sm75", "--shapes", "16x16"], "give smallest, usual and largest size as WIDTHxHEIGHT"),
        (["--target", "sm75", "--shapes", "16x16/32x32/24x64"], "must not shrink"),
        (["--target", "sm75", "--shapes", "16x16/36x32/64x64"], "36 does not fit; every side must be a multiple of 8 from 16 on"),
        (["--target", "sm75", "--shapes", "8x16/32x32/64x64"], "LR sizes 8x16/32x32/64x64: 8 does not fit"),
        (["--target", "sm75", "--ref-shapes", "0x8/8x8/8x8"], "reference sizes 0x8/8x8/8x8: 0 does not fit"),
    ],
)
def test_wrong_arguments_are_one_line(arguments: list[str], message: str, tmp_path: Path, run: Run) -> None:
    code, out, err = run("build", SHIPPED, *arguments, "-o", tmp_path / "out")
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [["--target", "native"], ["--target", "sm75", "--runtime", "tensorrt"]])
def test_without_a_gpu(arguments: list[str], monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    def none() -> Any:
        raise AmsaError("there is no NVIDIA GPU here (no driver: libcuda.so.1)")

    monkeypatch.setattr(tensorrt_build, "gpu", none)
    monkeypatch.setattr(tensorrt_build, "import_tensorrt", lambda _: trt)
    code, _, err = run("build", SHIPPED, *arguments)
    assert code == 2
    assert f"error: {' '.join(arguments[-2:])} builds on the GPU that runs the engine, and there is no NVIDIA GPU here" in err


def test_a_gpu_that_rtx_does_not_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_build, "gpu", lambda: ("sm90", "NVIDIA H100, driver 1, CUDA 13.0"))
    with pytest.raises(AmsaError, match=r"does not serve this machine's GPU, sm90, but sm75, .*: --runtime tensorrt$"):
        build_engines(SHIPPED, ["native"])


def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_module, "find_spec", lambda _: None)
    for runtime, module in tensorrt_module.RUNTIMES.items():
        monkeypatch.delitem(sys.modules, module, raising=False)
        with pytest.raises(AmsaError, match=rf"^{module} is not installed; install it with: pip install 'amsa\[{runtime}\]'$"):
            build_engines(SHIPPED, ["sm75"], runtime=runtime)


def test_not_a_model_and_a_model_of_another_version(place: Path, tmp_path: Path) -> None:
    with pytest.raises(AmsaError, match=r"no manifest.json in it"):
        build_engines(tmp_path, ["sm75"])
    values = json.loads((place / "small" / FILE_NAME).read_text())
    (place / "small" / FILE_NAME).write_text(json.dumps({**values, "format": 99}))
    with pytest.raises(AmsaError, match="manifest format 99, this version of amsa reads 1; export the model again"):
        build_engines(place / "small", ["sm75"])


def test_a_full_disk(tmp_path: Path, only: Callable[[str], None]) -> None:
    only("finish")
    (tmp_path / "file").write_text("")
    assert "cannot be written (Not a directory); free some space" in refused(SHIPPED, tmp_path / "file")


# ------------------------------------------------------------------------------------------------ inspection


def test_inspect_an_engine(place: Path) -> None:
    engine = place / "small.engines" / "rtx-sm75-fp16" / "match.engine"
    report = inspect_path(engine)
    text = "\n".join([report.title, report.graphs[0].signature, *report.needs])
    assert re.search(r"sm75, 15 layers, 4 plugins, convolutions: none, scratch \d+ MB", text)
    assert "match, fp16, by tensorrt_rtx 1.7" in text
    assert "as built (checksum agrees)" in text
    assert "h 16/128/512" in text
    assert "float HWC" in text
    content = engine.read_bytes()
    engine.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert any("checksum differs" in line for line in inspect_path(engine).needs)
    engine.with_suffix(".json").unlink()
    assert any("match.json is missing" in line for line in inspect_path(engine).needs)


def test_inspect_a_folder_of_engines(place: Path) -> None:
    report = inspect_path(place / "small.engines" / "rtx-sm75-fp16")
    assert sorted(g.name for g in report.graphs) == sorted(STAGES)
    assert report.title.endswith("5 engines of TensorRT")
    report = inspect_path(place / "small.engines")
    assert sorted(g.name for g in report.graphs) == sorted(f"rtx-sm75-fp16/{stage}" for stage in STAGES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an engine of TensorRT-RTX"),
        (b"\x7fELF" + bytes(100), "not an engine of TensorRT-RTX"),
        (b"ftrt" + bytes(100), "an engine of classic TensorRT"),
        (None, "damaged: it has 1,000 of its"),
    ],
)
def test_inspect_what_is_no_engine(content: bytes | None, message: str, built: list[BuiltEngine], tmp_path: Path) -> None:
    path = tmp_path / "x.engine"
    path.write_bytes(built[0].path.read_bytes()[:1000] if content is None else content)
    with pytest.raises(AmsaError, match=message) as caught:
        inspect_path(path)
    assert str(caught.value).isprintable()


def test_a_plan_in_another_language(built: list[BuiltEngine], tmp_path: Path) -> None:
    content = built[-1].path.read_bytes().replace(b"accelerators={", b"accelerator_s{")
    with pytest.raises(AmsaError, match=r"the plan of TensorRT-RTX 1.7.1.116 cannot be read; this version of amsa reads 1.7"):
        read_plan(content, "x")


# --------------------------------------------------------------------------------------------------------- int8 layers


def with_int8(path: Path, source: Path = SHIPPED) -> Path:
    """A copy of a model with the layers of the shipped precision file in int8."""
    shutil.copytree(source, path)
    precision = read_precision(SHIPPED.with_name("small_int8.json"))
    manifest = json.loads((path / FILE_NAME).read_text())
    for stage in ("encode_ref", "encode_lr", "restore"):
        graph = set_precision(onnx.load(str(path / f"{stage}.onnx")), precision)
        content = graph.SerializeToString()
        (path / f"{stage}.onnx").write_bytes(content)
        manifest["graphs"][stage] = vars(GraphFile.of(f"{stage}.onnx", content))
    manifest["int8_layers"] = list(precision.int8)
    (path / FILE_NAME).write_text(json.dumps(manifest))
    return path


@pytest.fixture(scope="module")
def int8_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_int8(tmp_path_factory.mktemp("int8") / "int8")


def test_int8_layers_are_int8_in_the_plan(int8_model: Path, tmp_path: Path) -> None:
    """From SM 8.0 on. Layer by layer what the precision file says, and nothing more."""
    chosen = set(read_precision(SHIPPED.with_name("small_int8.json")).int8)
    types: dict[str, str] = {}
    count = 0
    for engine in build_engines(int8_model, ["sm86"], output=tmp_path):
        types |= facts(engine).layer_types
        count += facts(engine).convolutions.get("int8", 0)
    files = [int8_model / f"{stage}.onnx" for stage in STAGES]
    convolutions = {node.name for file in files for node in onnx.load(str(file)).graph.node if node.op_type == "Conv"}
    assert {name for name, dtype in types.items() if dtype == "int8"} & convolutions == chosen
    assert count == len(chosen)


def test_int8_layers_run_as_half_on_sm75(int8_model: Path, tmp_path: Path) -> None:
    """Known of TensorRT-RTX 1.7.1, asserted and told once."""
    with pytest.warns(UserWarning, match=r"INT8 convolutions run as half on SM 7\.5 under TensorRT-RTX") as told:
        built = build_engines(int8_model, ["sm75"], output=tmp_path)
    assert sum("run as half" in str(w.message) for w in told) == 1
    chosen = set(read_precision(SHIPPED.with_name("small_int8.json")).int8)
    types = {layer: dtype for engine in built for layer, dtype in facts(engine).layer_types.items() if layer in chosen}
    assert types.keys() == chosen
    assert set(types.values()) == {"half"}
    assert all("int8" not in facts(engine).convolutions for engine in built)


def test_int8_layers_of_a_float32_model(tmp_path: Path) -> None:
    model = with_int8(tmp_path / "int8", SHIPPED_FP32)
    built = build_engines(model, ["sm75", "sm86"], output=tmp_path / "engines")
    for target, expected in (("sm75", 0), ("sm86", 48)):
        found = [facts(engine).convolutions for engine in built if engine.sidecar.key.target == target]
        assert sum(convolutions.get("int8", 0) for convolutions in found) == expected
        assert all("half" not in convolutions for convolutions in found)


def test_an_int8_layer_of_another_type_is_no_engine(int8_model: Path, tmp_path: Path, only: Callable[[str], None]) -> None:
    only("encode_lr")
    (engine,) = build_engines(int8_model, ["sm86"], output=tmp_path)
    found = facts(engine)
    layer = "encode_lr.content.body.0.conv1"
    wanted = tensorrt_build.Wanted(("sm86",), {}, found.convolutions, {"h": frozenset({(16, 512)})}, {layer: "int8"})
    check_plan(found, wanted, "x")
    with pytest.raises(AmsaError, match=rf"built another engine than was asked for: {layer} is half, not int8$"):
        check_plan(replace(found, layer_types={layer: "half"}), wanted, "x")
    check_plan(replace(found, layer_types={}), wanted, "x")  # a plan that does not name it


def test_a_manifest_that_names_other_int8_layers(int8_model: Path, tmp_path: Path, only: Callable[[str], None]) -> None:
    only("encode_lr")
    model = Path(shutil.copytree(int8_model, tmp_path / "int8"))
    manifest = json.loads((model / FILE_NAME).read_text())
    layer = "encode_lr.content.body.0.conv1"
    (model / FILE_NAME).write_text(json.dumps(manifest | {"int8_layers": [n for n in manifest["int8_layers"] if n != layer]}))
    assert f"{layer} is int8, and the manifest says of the model's precision; export the model" in refused(model, tmp_path / "e")
    more = [*manifest["int8_layers"], "encode_lr.keys.conv2"]
    (model / FILE_NAME).write_text(json.dumps(manifest | {"int8_layers": more}))
    assert "encode_lr.keys.conv2 is of the model's precision, and the manifest says int8" in refused(model, tmp_path / "e")


def test_layers_kept_in_float32(tmp_path: Path, only: Callable[[str], None]) -> None:
    only("encode_lr")
    model = Path(shutil.copytree(SHIPPED, tmp_path / "kept"))
    layers = tuple(f"encode_lr.content.body.2.conv{i}" for i in (1, 2))
    content = set_precision(onnx.load(str(model / "encode_lr.onnx")), LayerPrecision("", {}, layers)).SerializeToString()
    (model / "encode_lr.onnx").write_bytes(content)
    manifest = json.loads((model / FILE_NAME).read_text())
    manifest["graphs"]["encode_lr"] = vars(GraphFile.of("encode_lr.onnx", content))
    (model / FILE_NAME).write_text(json.dumps(manifest | {"float32_layers": layers}))
    (engine,) = build_engines(model, ["sm75"], output=tmp_path / "engines")
    assert {facts(engine).layer_types[layer] for layer in layers} == {"float"}
    assert facts(engine).convolutions["float"] == 4 + 2  # keys, and these
