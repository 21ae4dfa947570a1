"""`amsa deploy triton`: the repository it writes, and the model in it on a stand-in for Triton's module.

tests/serving/test_triton_server.py runs the same repository in a real server.
"""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format, text_format
from PIL import Image
from tritonclient.grpc import model_config_pb2

import amsa
from amsa import cli
from amsa.engine.backends import SHIPPED_ENGINE_MODEL, SHIPPED_MODEL
from amsa.engine.engine_cache import EngineKey, Sidecar, plugins_hash, store_engine
from amsa.engine.gpu.cuda import CudaError, OutOfDeviceMemory
from amsa.engine.upscaler import Upscaler
from amsa.errors import AmsaError
from amsa.manifest import ModelFolder
from amsa.serving.triton.interface import INPUTS, OUTPUTS, Settings, check_interface, config_text
from amsa.serving.triton.model import TritonPythonModel
from amsa.serving.triton.repository import deploy

Picture = Callable[..., bytes]


def parsed(text: str) -> Any:
    """A config.pbtxt, as Triton's own schema reads it."""
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def as_triton_says(text: str) -> dict[str, Any]:
    """What Triton gives to a model as `model_config`; protobuf's JSON has long integers as text, Triton's has not."""
    message = json_format.MessageToDict(parsed(text), preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    for tensor in (*message["input"], *message["output"]):
        tensor["dims"] = [int(dim) for dim in tensor["dims"]]
    return message


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
    assert "rtx-sm75-fp16 (tensorrt_rtx 1.7.1)" in readme
    assert "'.[rtx]'" in readme


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


# ------------------------------------------------------------------------------------------------ the model


class Tensor:
    def __init__(self, name: str, array: np.ndarray) -> None:
        self.name, self._array = name, array

    def as_numpy(self) -> np.ndarray:
        return self._array


class TritonError:
    INTERNAL, INVALID_ARG, CANCELLED = "INTERNAL", "INVALID_ARG", "CANCELLED"

    def __init__(self, message: str, code: str) -> None:
        self.message, self.code = message, code


class Response:
    def __init__(self, output_tensors: Any = (), error: TritonError | None = None) -> None:
        self.outputs = {tensor.name: tensor.as_numpy() for tensor in output_tensors}
        self.error = error


class Request:
    """LR, references and the optional inputs; cancelled from the given look on."""

    def __init__(self, lr: bytes, *refs: bytes, cancelled_at: int | None = None, **others: Any) -> None:
        self.inputs = {"LR": np.array([lr], np.object_), "REFS": np.array(refs, np.object_)}
        self.inputs |= {name: np.array([value], np.int32 if name == "SEED" else np.object_) for name, value in others.items()}
        self._cancelled_at, self.looks = cancelled_at, 0

    def is_cancelled(self) -> bool:
        self.looks += 1
        return self._cancelled_at is not None and self.looks > self._cancelled_at


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """`triton_python_backend_utils` as far as a model uses it; returns what is logged."""
    logged: list[str] = []
    module: Any = types.ModuleType("triton_python_backend_utils")
    module.Tensor, module.InferenceResponse, module.TritonError = Tensor, Response, TritonError
    module.TritonModelException = type("TritonModelException", (Exception,), {})
    module.Logger = types.SimpleNamespace(log_info=logged.append, log_warn=logged.append, log_error=logged.append)
    module.get_input_tensor_by_name = lambda request, name: Tensor(name, request.inputs[name]) if name in request.inputs else None
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", module)
    return logged


def load(repository: Path) -> TritonPythonModel:
    model = TritonPythonModel()
    config = as_triton_says((repository / "amsa/config.pbtxt").read_text())
    folder = str(repository / "amsa")
    model.initialize({"model_config": json.dumps(config), "model_repository": folder, "model_version": "1"})
    return model


def test_model_answers_requests(tmp_path: Path, stand_in: list[str], picture: Picture) -> None:
    deploy(tmp_path / "r", settings=Settings(pixels=100_000))
    model = load(tmp_path / "r")
    assert any("backend onnxruntime (CPU" in line for line in stand_in)
    lr, ref, other = picture(20, 16), picture(64, 72, 1), picture(80, 64, 2)
    frames = picture(20, 16, format="TIFF")

    def ask(request: Request) -> Any:
        (response,) = model.execute([request])
        return response

    expected = np.asarray(Upscaler(threads=1).upscale(*decoded(lr, ref, other), seed=3))
    answer = ask(Request(lr, ref, other, SEED=3, FORMAT=b".PNG"))
    assert answer.error is None
    np.testing.assert_array_equal(decoded(answer.outputs["SR"][0])[0], expected)
    assert [*answer.outputs["NOTES"]] == []
    assert ask(Request(frames, ref, FORMAT=b"jpg")).outputs["SR"][0].startswith(b"\xff\xd8")

    # Several at once: what is wrong with one does not concern the others.
    good, bad = model.execute([Request(lr, ref), Request(b"no picture", ref)])
    assert good.outputs["SR"][0].startswith(b"\x89PNG")
    assert bad.error.code == "INVALID_ARG"

    for request, words in (
        (Request(b"", ref), "LR is empty"),
        (Request(b"no picture", ref), "LR is damaged or no picture"),
        (Request(picture(8, 8), ref), "LR is 8x8 pixels"),
        (Request(lr), "no reference photo"),
        (Request(lr, *[ref] * 17), "at most 16"),
        (Request(lr, ref, ref[:90]), "reference 2 is cut short or damaged"),
        (Request(lr, ref, picture(40, 80)), "reference 2 is 40x80"),
        (Request(picture(80, 80), ref), "the result would be 320x320"),
        (Request(lr, picture(300, 300), picture(200, 200)), "over 0.1 megapixels together"),
        (Request(lr, ref, SEED=-1), "seed is -1"),
        (Request(lr, ref, FORMAT=b"\xff"), "FORMAT is"),
        (Request(picture(20, 16, mode="RGBA"), ref, FORMAT=b"jpg"), "no transparency"),
    ):
        answer = ask(request)
        assert answer.error.code == "INVALID_ARG", words
        assert words in answer.error.message
        assert "\n" not in answer.error.message
    model.finalize()


def decoded(*contents: bytes) -> Any:
    first, *others = (np.asarray(Image.open(io.BytesIO(content))) for content in contents)
    return first, others


def test_notes_cancellation_and_our_own_faults(
    tmp_path: Path, stand_in: list[str], picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    deploy(tmp_path / "r", settings=Settings(instances=2))
    model = load(tmp_path / "r")
    lr, ref = picture(20, 16), picture(64, 64, 1)
    animated = animation(64, 64)
    for _ in range(2):  # the second is told, too
        (answer,) = model.execute([Request(lr, animated)])
        assert [*answer.outputs["NOTES"]] == [b"reference 1 has several frames; only the first is read"]

    request = Request(lr, ref, cancelled_at=2)
    (answer,) = model.execute([request])
    assert (answer.error.code, request.looks) == ("CANCELLED", 3)

    for fault, code, words in (
        (CudaError("the GPU fell off the bus"), "INTERNAL", "the GPU fell off the bus"),
        (OutOfDeviceMemory("no room"), "INVALID_ARG", "no room"),
        (MemoryError(), "INVALID_ARG", "use smaller photos"),
        (ZeroDivisionError("secret"), "INTERNAL", "ZeroDivisionError in amsa, which is a bug"),
    ):

        def fail(*_: Any, fault: Exception = fault, **__: Any) -> None:
            raise fault

        monkeypatch.setattr(Upscaler, "upscale_photo", fail)
        (answer,) = model.execute([Request(lr, ref)])
        assert answer.error.code == code
        assert words in answer.error.message
        assert "secret" not in answer.error.message
    assert "ZeroDivisionError: secret" in stand_in[-1]


def animation(width: int, height: int) -> bytes:
    frames = [Image.new("RGB", (width, height), colour) for colour in ("red", "blue")]
    frames[0].save(file := io.BytesIO(), "GIF", save_all=True, append_images=frames[1:])
    return file.getvalue()


def test_model_that_cannot_run_is_told_when_it_is_loaded(tmp_path: Path, stand_in: list[str]) -> None:
    deploy(tmp_path / "r")
    graph = tmp_path / "r/amsa/1/graphs/match.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])
    with pytest.raises(sys.modules["triton_python_backend_utils"].TritonModelException, match=r"match\.onnx is not the file"):
        load(tmp_path / "r")


def test_model_py_says_where_amsa_is_missing(tmp_path: Path) -> None:
    deploy(tmp_path / "r")
    command = [sys.executable, "-S", "-c", "import model"]  # -S: without installed packages
    done = subprocess.run(command, cwd=tmp_path / "r/amsa/1", capture_output=True, text=True, check=False)
    assert "ImportError: amsa is missing in the Python that Triton uses" in done.stderr
    assert amsa.__version__ in (tmp_path / "r/README.md").read_text()
