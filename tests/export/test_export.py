"""What an export writes, and what it refuses to overwrite."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

import amsa
from amsa import AmsaError, Upscaler
from amsa.config import AMSAConfig
from amsa.engine.inspection import inspect_path
from amsa.export import check_parity, check_target, export_folder, export_single_file, load_network
from amsa.export import folder as folder_module
from amsa.export import single_file as single_file_module
from amsa.export.check import _compare
from amsa.export.graphs import drop_function_bodies, export_graph
from amsa.manifest import ModelFolder
from amsa.model import AMSA
from amsa.model.stage_modules import stage_modules
from amsa.plugins import DOMAIN, OPS, OPSET
from amsa.plugins.cpu_library import cpu_library, library_path

Exported = Callable[[str], tuple[AMSA, Path, Path]]
Picture = Callable[..., NDArray[np.uint8]]
STAGES = ["encode_ref", "encode_lr", "match", "match_exact", "restore", "finish"]


@pytest.mark.parametrize("name", ["small", pytest.param("reduced", marks=pytest.mark.slow)])
def test_the_folder_holds_checked_graphs(exported: Exported, name: str) -> None:
    model, folder, _ = exported(name)
    assert {p.name for p in folder.iterdir()} == {"manifest.json", *(f"{s}.onnx" for s in STAGES)}
    opened = ModelFolder.open(folder)
    assert opened.manifest.config == model.config
    assert (opened.manifest.trained, opened.manifest.precision, opened.manifest.opset) == (True, "fp32", OPSET)
    assert OPSET >= 20
    for stage in model.config.stages():
        graph = onnx.load(folder / f"{stage.name}.onnx")
        onnx.checker.check_model(graph, full_check=True)
        for declared, values in ((stage.inputs, graph.graph.input), (stage.outputs, graph.graph.output)):
            assert [v.name for v in values] == [t.name for t in declared]
            dims = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values]
            assert dims == [list(t.dims) for t in declared]
        ours = {n.op_type for n in graph.graph.node if n.domain == DOMAIN}
        matching = {"match": {"PatchMatch"}, "match_exact": {"PatchMatch"}}
        assert ours == {**matching, "restore": {"DeformableSample"}}.get(stage.name, set())
        assert {f.name for f in graph.functions} == ours


def test_the_files_tell_nothing_of_the_exporting_machine(exported: Exported) -> None:
    _, folder, _ = exported("small")
    for path in folder.iterdir():
        content = path.read_bytes()
        for word in (str(Path(amsa.__file__).parent), str(Path.home()), "site-packages", ".py"):
            assert word.encode() not in content, (path.name, word)


@pytest.mark.parametrize("name", ["small", *(pytest.param(name, marks=pytest.mark.slow) for name in ("reduced", "paper"))])
def test_parity_after_an_export(exported: Exported, name: str) -> None:
    model, folder, _ = exported(name)
    results = check_parity(model, ModelFolder.open(folder), (40, 48), (160, 192))
    assert [r.stage for r in results] == STAGES
    for r in results:
        assert r.difference <= 1e-4 * max(1, r.scale), r
        assert r.other_matches <= 0.001


def test_parity_notices_another_network(exported: Exported) -> None:
    _, folder, _ = exported("small")
    other = AMSA(AMSAConfig.small())
    other.reset_parameters(9)
    results = {r.stage: r for r in check_parity(other, ModelFolder.open(folder), (40, 48), (96, 96))}
    assert results["restore"].difference > 1e-2


@pytest.fixture
def bare(exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The small model's folder without function bodies, from the graphs that were traced with them."""
    model, whole, _ = exported("small")

    def traced(_module: object, name: str, _inputs: object, _outputs: object, function_bodies: bool) -> onnx.ModelProto:
        graph = onnx.load(whole / f"{name}.onnx")
        if not function_bodies:
            drop_function_bodies(graph)
        return graph

    monkeypatch.setattr(folder_module, "export_graph", traced)
    export_folder(model, True, tmp_path / "bare", function_bodies=False)
    return tmp_path / "bare"


def test_without_function_bodies_the_graphs_are_the_same(exported: Exported, bare: Path) -> None:
    model, folder, _ = exported("small")
    opened, whole = ModelFolder.open(bare), ModelFolder.open(folder)
    assert opened.manifest == replace(whole.manifest, graphs=opened.manifest.graphs, function_bodies=False)
    for stage, content in whole.graphs.items():
        graph = onnx.load_from_string(content)
        assert {f.domain for f in graph.functions} <= {DOMAIN}
        del graph.functions[:]
        assert onnx.load_from_string(opened.graphs[stage]) == graph
    assert "function bodies are in the files" in inspect_path(folder).needs[0]
    assert "function bodies are not in the files: ONNX Runtime needs amsa's CPU kernels" in inspect_path(bare).needs[0]
    for r in check_parity(model, opened, (40, 48), (160, 192)):
        assert r.difference <= 1e-4 * max(1, r.scale), r
        assert r.other_matches <= 0.001


@pytest.mark.skipif(cpu_library() is None, reason="no C++ compiler on this machine")
def test_without_function_bodies_our_kernels_run(exported: Exported, bare: Path, picture: Picture) -> None:
    lr, ref = picture(24, 32), picture(96, 64, 1)
    pictures = [np.asarray(Upscaler(folder).upscale(lr, [ref])) for folder in (exported("small")[1], bare)]
    np.testing.assert_array_equal(*pictures)


_WITHOUT_KERNELS = """
import sys
import numpy as np
from amsa import AmsaError, Upscaler
from amsa.plugins import cpu_library
cpu_library._FOLDER /= "none"  # not the library that was built while installing
try:
    Upscaler(sys.argv[1]).upscale(np.zeros((16, 16, 3), np.uint8), [np.zeros((64, 64, 3), np.uint8)])
except AmsaError as e:
    print(e)
"""


def test_without_function_bodies_and_kernels_it_is_an_error(bare: Path, tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "CXX"} | {"PATH": "", "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-W", "ignore", "-c", _WITHOUT_KERNELS, bare]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"{bare}: ")
    assert "exported with --no-bodies, so ONNX Runtime needs amsa's CPU kernels" in line


def test_a_zip_is_the_folder_in_one_file(exported: Exported, tmp_path: Path) -> None:
    _, folder, _ = exported("small")
    with zipfile.ZipFile(tmp_path / "m.amsa", "w") as z:
        for path in folder.iterdir():
            z.write(path, path.name)
    assert ModelFolder.open(tmp_path / "m.amsa").graphs == ModelFolder.open(folder).graphs
    content = bytearray((tmp_path / "m.amsa").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "m.amsa").write_bytes(content)
    with pytest.raises(AmsaError, match=r"damaged|not the file that was exported"):
        ModelFolder.open(tmp_path / "m.amsa")


def test_exporting_twice_gives_the_same_bytes(exported: Exported) -> None:
    model, folder, _ = exported("small")
    stage, module = next((s, m) for s, m in stage_modules(model) if s.name == "finish")
    again = export_graph(module, stage.name, stage.inputs, stage.outputs).SerializeToString()
    assert again == (folder / "finish.onnx").read_bytes()


def test_the_shipped_model_is_this_versions() -> None:
    shipped = ModelFolder.open(Path(amsa.__file__).parent / "weights" / "small")
    assert shipped.manifest.config == AMSAConfig.small()


# ------------------------------------------------------------------------------------------------ targets and failures


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> AMSA:
    """A network whose export skips the tracing: what is tested is the writing."""

    class Written:
        def SerializeToString(self) -> bytes:
            return b"graph"

    monkeypatch.setattr(folder_module, "export_graph", lambda *_: Written())
    return AMSA(AMSAConfig.small())


def test_an_export_replaces_an_earlier_one(quick: AMSA, tmp_path: Path) -> None:
    for trained in (True, False):
        export_folder(quick, trained, tmp_path / "m")
        assert json.loads((tmp_path / "m" / "manifest.json").read_text())["trained"] == trained
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
    export_folder(quick, True, tmp_path / "m.amsa")
    assert zipfile.is_zipfile(tmp_path / "m.amsa")


@pytest.mark.parametrize("name", ["m", "m.amsa"])
def test_a_failed_export_leaves_the_earlier_one(quick: AMSA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    export_folder(quick, True, tmp_path / name)
    before = ModelFolder.open(tmp_path / name).manifest

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    monkeypatch.setattr(zipfile.ZipFile, "writestr", full)
    with pytest.raises(AmsaError, match="No space left on device"):
        export_folder(quick, False, tmp_path / name)
    assert ModelFolder.open(tmp_path / name).manifest == before
    assert [p.name for p in tmp_path.iterdir()] == [name]


class Interrupted(BaseException):
    """What may happen at any moment, and is no OSError: KeyboardInterrupt without ending the tests."""


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), Interrupted()], ids=["disk", "interruption"])
@pytest.mark.parametrize(("name", "moved"), [("m", "new"), ("m", "m"), ("m.amsa", "m.amsa")])
def test_a_failed_renaming_leaves_the_earlier_export(
    quick: AMSA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException, name: str, moved: str
) -> None:
    export_folder(quick, True, tmp_path / name)
    before = ModelFolder.open(tmp_path / name)
    replace, failed = Path.replace, []

    def fails_once(self: Path, target: Path) -> Path:
        if self.name == moved and not failed:
            failed.append(self)
            raise failure
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fails_once)
    with pytest.raises(AmsaError if isinstance(failure, OSError) else Interrupted):
        export_folder(quick, False, tmp_path / name)
    assert failed
    assert ModelFolder.open(tmp_path / name) == before
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_graph_that_cannot_be_exported_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = []

    def fails_at_the_third(_module: object, name: str, *_: object) -> onnx.ModelProto:
        done.append(name)
        if len(done) == 3:
            raise RuntimeError("a dimension was traced as a constant")
        return onnx.ModelProto()

    monkeypatch.setattr(folder_module, "export_graph", fails_at_the_third)
    with pytest.raises(RuntimeError, match="traced as a constant"):
        export_folder(AMSA(AMSAConfig.small()), True, tmp_path / "m")
    assert done == STAGES[:3]
    assert list(tmp_path.iterdir()) == []


def test_the_same_export_is_the_same_file_at_any_time(quick: AMSA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export_folder(quick, True, tmp_path / "a.amsa")
    later = time.time() + 1e6
    monkeypatch.setattr(time, "time", lambda: later)
    export_folder(quick, True, tmp_path / "b.amsa")
    assert (tmp_path / "a.amsa").read_bytes() == (tmp_path / "b.amsa").read_bytes()


def test_an_export_says_what_it_does(quick: AMSA, tmp_path: Path) -> None:
    said: list[str] = []
    export_folder(quick, True, tmp_path / "m", said.append)
    assert [line.split(":")[0] for line in said] == [f"exporting {name}" for name in STAGES]


@pytest.mark.parametrize("folder", ["file/m", "gone/m.amsa", "file/m.amsa"])
def test_targets_without_a_folder(quick: AMSA, tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(AmsaError, match="no such folder; create it first"):
        export_folder(quick, True, tmp_path / folder)
    (tmp_path / "m.amsa").mkdir()
    with pytest.raises(AmsaError, match="is a folder"):
        export_folder(quick, True, tmp_path / "m.amsa")
    assert {p.name for p in tmp_path.rglob("*")} == {"file", "m.amsa"}


@pytest.mark.slow
def test_another_process_exports_the_same_bytes(exported: Exported, tmp_path: Path) -> None:
    """No order of a set or of hashes, no address and no time gets into a graph."""
    _, folder, checkpoint = exported("small")
    program = f"from amsa.export import *; export_folder(*load_network({str(checkpoint)!r}), {str(tmp_path / 'm')!r})"
    subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONHASHSEED": "1"}, check=True)
    for path in folder.iterdir():
        assert (tmp_path / "m" / path.name).read_bytes() == path.read_bytes(), path.name


def test_targets_that_are_refused(tmp_path: Path) -> None:
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("x")
    refused = {"foreign": "not an exported model", "file": "is a file", "m.onnx": "--single-file", "no/m": "create it first"}
    for target, word in refused.items():
        with pytest.raises(AmsaError, match=word):
            check_target(tmp_path / target)
    assert (tmp_path / "foreign" / "thesis.txt").read_text() == "years of work"


def test_a_manifest_of_something_else_protects_its_folder(quick: AMSA, tmp_path: Path) -> None:
    extension = tmp_path / "extension"
    extension.mkdir()
    (extension / "manifest.json").write_text('{"manifest_version": 3}')
    (extension / "thesis.txt").write_text("years of work")
    (tmp_path / "notes.amsa").write_text("not a zip")
    export_folder(quick, True, tmp_path / "mine")
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    for name in ("extension", "notes.amsa", "mine"):
        with pytest.raises(AmsaError, match="not an exported model"):
            export_folder(quick, False, tmp_path / name)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_graph_that_gives_nan_is_not_at_parity() -> None:
    picture = {"sr": torch.ones(1, 3, 4, 4)}
    assert np.isnan(_compare("finish", picture, {"sr": np.full((1, 3, 4, 4), np.nan, np.float32)}).difference)


def test_an_untrained_network_comes_from_its_seed() -> None:
    (a, trained), (b, _), (c, _) = (load_network("small", seed) for seed in (3, 3, 4))
    assert not trained
    assert torch.equal(a.finish.conv1.weight, b.finish.conv1.weight)
    assert not torch.equal(a.finish.conv1.weight, c.finish.conv1.weight)


# ------------------------------------------------------------------------------------------------ one file


@pytest.fixture
def quick_file(quick: AMSA, monkeypatch: pytest.MonkeyPatch) -> AMSA:
    monkeypatch.setattr(single_file_module, "export_graph", folder_module.export_graph)
    return quick


def test_a_single_file_is_replaced_whole_or_not_at_all(quick_file: AMSA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"earlier")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as failing:
        failing.setattr(os, "replace", full)
        with pytest.raises(AmsaError, match="No space left on device"):
            export_single_file(quick_file, path, 2)
    assert path.read_bytes() == b"earlier"
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    export_single_file(quick_file, path, 2)
    assert path.read_bytes() == b"graph"
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.parametrize(
    ("name", "references", "message"),
    [
        ("m", 1, "must end in .onnx"),
        ("m.amsa", 1, "must end in .onnx"),
        ("m.onnx", 0, "at least one reference"),
        ("gone/m.onnx", 1, "no such folder"),
        ("folder.onnx", 1, "is a folder"),
    ],
)
def test_single_files_that_are_refused(quick_file: AMSA, tmp_path: Path, name: str, references: int, message: str) -> None:
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(AmsaError, match=message):
        export_single_file(quick_file, tmp_path / name, references)
    assert [p.name for p in tmp_path.rglob("*")] == ["folder.onnx"]


@pytest.mark.slow  # exports
@pytest.mark.parametrize(
    ("name", "sizes", "bodies"),
    [
        ("small", [(96, 64), (64, 160)], True),
        ("small", [(96, 64)], False),
        ("reduced", [(96, 128), (96, 128)], True),
    ],
)
def test_a_single_file_equals_the_network(
    exported: Exported, picture: Picture, tmp_path: Path, name: str, sizes: list[tuple[int, int]], bodies: bool
) -> None:
    model, _, _ = exported(name)
    export_single_file(model, tmp_path / "amsa.onnx", len(sizes), function_bodies=bodies)
    assert [p.name for p in tmp_path.iterdir()] == ["amsa.onnx"]
    onnx.checker.check_model(tmp_path / "amsa.onnx", full_check=True)
    lr, *refs = (
        torch.from_numpy(picture(*size, seed)).permute(2, 0, 1)[None].float() / 255
        for seed, size in enumerate([(24, 32), *sizes])
    )
    assert {f.name for f in onnx.load(tmp_path / "amsa.onnx").functions} == ({op.name for op in OPS} if bodies else set())
    options = onnxruntime.SessionOptions()
    if not bodies:
        if library_path() is None:
            pytest.skip("no C++ compiler on this machine")
        options.register_custom_ops_library(str(library_path()))
    session = onnxruntime.InferenceSession(tmp_path / "amsa.onnx", options, providers=["CPUExecutionProvider"])
    inputs = {"lr": lr.numpy(), **{f"ref_{i}": r.numpy() for i, r in enumerate(refs)}}
    (found,) = session.run(None, inputs)
    photos = [refs] if model.config.published_protocol else [[r] for r in refs]
    with torch.inference_mode():
        expected = model(lr, photos).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-3)
