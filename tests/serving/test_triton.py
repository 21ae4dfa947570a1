"""`amsa deploy triton`: what it declares, writes and refuses. tests/serving/test_triton_server.py has a real server serve it."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
from tritonclient.grpc import model_config_pb2

import amsa
from amsa import cli
from amsa.engine.backends import SHIPPED_ENGINE_MODEL, SHIPPED_MODEL
from amsa.engine.engine_cache import EngineKey, Sidecar, plugins_hash, store_engine
from amsa.errors import AmsaError
from amsa.manifest import ModelFolder
from amsa.serving.triton.interface import INPUTS, OUTPUTS, Settings, check_interface, config_text
from amsa.serving.triton.repository import deploy

from .triton_config import as_triton_says, parsed

# ------------------------------------------------------------------------------------------------ config.pbtxt


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt"])
def test_config_is_what_was_declared(backend: str) -> None:
    settings = Settings(backend, instances=3, queue=5, pixels=1_000_000)
    config = parsed(config_text(settings))
    assert (config.name, config.backend, config.max_batch_size) == ("amsa", "python", 0)
    for found, declared in ((config.input, INPUTS), (config.output, OUTPUTS)):
        types_ = [model_config_pb2.DataType.Name(t.data_type) for t in found]
        assert [(t.name, d, tuple(t.dims)) for t, d in zip(found, types_, strict=True)] == [
            (t.name, t.data_type, t.dims) for t in declared
        ]
    assert [t.name for t in config.input if t.optional] == ["SEED", "FORMAT"]
    (group,) = config.instance_group
    kind = model_config_pb2.ModelInstanceGroup.Kind.Name(group.kind)
    assert (group.count, kind, [*group.gpus]) == (3, *(("KIND_GPU", [0]) if backend == "tensorrt" else ("KIND_CPU", [])))
    assert config.dynamic_batching.default_queue_policy.max_queue_size == 5
    given = as_triton_says(config_text(settings))
    check_interface(given)
    assert Settings.of(given) == settings


def test_settings_that_were_edited_badly() -> None:
    text = config_text(Settings())
    with pytest.raises(AmsaError, match=r"config\.pbtxt is not as .* wrote it \(ValueError"):
        Settings.of(as_triton_says(text.replace('"16000000"', '"many"')))
    with pytest.raises(AmsaError, match=r"KeyError: 'max_pixels'"):
        Settings.of(as_triton_says(text.replace('"max_pixels"', '"pixels"')))
    with pytest.raises(AmsaError, match="deploy the repository again"):
        check_interface(as_triton_says(text.replace('"REFS"', '"REF"')))


def test_documented_graph_is_the_one_that_is_exported() -> None:
    from amsa.config import AMSAConfig
    from amsa.export.single_file import single_file_inputs
    from amsa.model.network import AMSA

    document = (Path(amsa.__file__).parent / "docs/triton.md").read_text()
    config = parsed(document.split("```\n")[1])
    found = [(t.name, model_config_pb2.DataType.Name(t.data_type), [*t.dims]) for t in config.input]
    declared = single_file_inputs(AMSA(AMSAConfig.small()), 1, uint8=True)
    assert found == [(t.name, f"TYPE_{t.dtype.upper()}", [d if isinstance(d, int) else -1 for d in t.dims]) for t in declared]


# ------------------------------------------------------------------------------------------------ the repository


def names(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_repository_holds_the_model_and_is_replaced(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    done = deploy(repository)
    graphs = {f"amsa/1/graphs/{path.name}" for path in SHIPPED_MODEL.iterdir()}
    beside = {"README.md", "client.py", "deployment.json", "amsa/config.pbtxt", "amsa/1/model.py"}
    assert names(repository) == graphs | beside
    assert done.size > sum(path.stat().st_size for path in SHIPPED_MODEL.glob("*.onnx"))
    assert ModelFolder.open(repository / "amsa/1/graphs").graphs == ModelFolder.open(SHIPPED_MODEL).graphs

    (repository / "amsa/1/__pycache__").mkdir()  # as Triton's Python leaves it
    (repository / "amsa/1/__pycache__/model.pyc").write_bytes(b"")
    (repository / "client.py").unlink()
    deploy(repository, settings=Settings(instances=2))
    assert names(repository) == graphs | beside
    assert "count: 2" in (repository / "amsa/config.pbtxt").read_text()
    assert [*tmp_path.iterdir()] == [repository]


def test_what_is_not_ours_is_not_replaced(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    deploy(repository)
    config = repository / "amsa/config.pbtxt"
    config.write_text(config.read_text() + "# mine\n")
    with pytest.raises(AmsaError, match=r"config\.pbtxt was changed since it was deployed"):
        deploy(repository)
    deploy(other := tmp_path / "other")
    (other / "resnet").mkdir()
    (other / "resnet/config.pbtxt").write_text("")
    with pytest.raises(AmsaError, match=r"holds resnet/config\.pbtxt, which `amsa deploy` did not write"):
        deploy(other)
    (folder := tmp_path / "photos").mkdir()
    (folder / "a.jpg").write_bytes(b"")
    with pytest.raises(AmsaError, match="holds files that `amsa deploy` did not write"):
        deploy(folder)
    with pytest.raises(AmsaError, match="is a file"):
        deploy(folder / "a.jpg")
    with pytest.raises(AmsaError, match="no such folder"):
        deploy(tmp_path / "a/b")
    assert names(other) >= {"resnet/config.pbtxt"}
    assert config.read_text().endswith("# mine\n")


def make_engines(root: Path, onnx: str = "", plugins: str = "") -> Path:
    """A folder such as `amsa build` writes for the shipped float16 model, whose engines are a few bytes each."""
    manifest = ModelFolder.open(SHIPPED_ENGINE_MODEL).manifest
    for stage, graph in manifest.graphs.items():
        if stage != "match_exact":
            content = b"engine of " + stage.encode()
            key = EngineKey(stage, onnx or graph.sha256, plugins or plugins_hash(), "tensorrt_rtx 1.7.1", "sm75", "fp16", {})
            sidecar = Sidecar(key, len(content), hashlib.sha256(content).hexdigest(), 1, 0, 0, 0.0)
            store_engine(root / "rtx-sm75-fp16" / f"{stage}.engine", content, sidecar)
    return root


def test_engines_travel_with_the_model(tmp_path: Path) -> None:
    settings, repository = Settings("tensorrt"), tmp_path / "repository"
    done = deploy(repository, None, settings, make_engines(tmp_path / "engines"))
    assert done.engines == ("rtx-sm75-fp16",)
    there = repository / "amsa/1/graphs.engines/rtx-sm75-fp16"
    assert names(there) == names(tmp_path / "engines/rtx-sm75-fp16")
    assert (there / "match.engine").read_bytes() == b"engine of match"
    readme = (repository / "README.md").read_text()
    assert "its engines rtx-sm75-fp16" in readme
    assert "'.[rtx]' 'tensorrt-rtx==1.7.1'" in readme


def test_engines_that_would_not_run_are_refused(tmp_path: Path) -> None:
    def refuse(match: str, engines: Path | None, backend: str = "tensorrt") -> None:
        with pytest.raises(AmsaError, match=match):
            deploy(tmp_path / "repository", None, Settings(backend), engines)

    refuse("no fp16 engines .* amsa build", tmp_path / "none")
    refuse(r"another encode_ref\.onnx", make_engines(tmp_path / "a", onnx="0" * 64))
    refuse("plugins are of another version", make_engines(tmp_path / "b", plugins="0" * 64))
    damaged = make_engines(tmp_path / "c")
    (damaged / "rtx-sm75-fp16/match.engine").write_bytes(b"x")
    refuse("checksum differs", damaged)
    (damaged / "rtx-sm75-fp16/match.engine").unlink()
    refuse(r"match\.engine: cannot be read", damaged)
    refuse("add --backend tensorrt", damaged, "onnxruntime")
    refuse("unknown backend 'torch'", None, "torch")
    assert not (tmp_path / "repository").exists()


def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["amsa", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    captured = capsys.readouterr()
    return int(left.value.code or 0), captured.out, captured.err


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = run(capsys, monkeypatch, "deploy", "triton", "-o", tmp_path / "r", "--instances", 2, "--queue", 7)
    assert code == 0
    assert "onnxruntime" in out
    config = parsed((tmp_path / "r/amsa/config.pbtxt").read_text())
    assert (config.instance_group[0].count, config.dynamic_batching.default_queue_policy.max_queue_size) == (2, 7)
    for arguments, words in (
        (("kserve", "-o", tmp_path / "s"), "unknown server 'kserve'"),
        (("triton", "-o", tmp_path / "s", "-m", "weights/small.safetensors"), "amsa export weights/small.safetensors"),
        (("triton", "-o", tmp_path / "s", "-m", tmp_path / "nothing"), "no such model folder"),
        (("triton", "-o", tmp_path / "s", "-m", tmp_path), "not an exported model"),
    ):
        code, _, err = run(capsys, monkeypatch, "deploy", *arguments)
        assert code == 2
        assert err.startswith("error: ")
        assert words in err
        assert err.count("\n") == 1
    assert not (tmp_path / "s").exists()


def test_model_py_says_where_amsa_is_missing(tmp_path: Path) -> None:
    deploy(tmp_path / "r")
    command = [sys.executable, "-S", "-c", "import model"]  # -S: without installed packages
    done = subprocess.run(command, cwd=tmp_path / "r/amsa/1", capture_output=True, text=True, check=False)
    assert "ImportError: amsa is missing in the Python that Triton uses" in done.stderr
    assert amsa.__version__ in (tmp_path / "r/README.md").read_text()
