"""The model that Triton runs, on a stand-in for Triton's module; tests/serving/test_triton_server.py runs it in a real server."""

from __future__ import annotations

import io
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from amsa.engine.gpu.cuda import CudaError, OutOfDeviceMemory
from amsa.engine.upscaler import Upscaler
from amsa.serving.triton.interface import Settings
from amsa.serving.triton.model import TritonPythonModel
from amsa.serving.triton.repository import deploy

from .triton_config import as_triton_says

Picture = Callable[..., bytes]


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
