"""Opening models for running: what each backend takes, what it refuses, and what it needs installed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest

import amsa
from amsa import AmsaError, Upscaler
from amsa.engine.backends import SHIPPED_MODEL, open_backend
from amsa.manifest import FILE_NAME, GraphFile


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the shipped model."""
    return Path(shutil.copytree(SHIPPED_MODEL, tmp_path / "model"))


def error_of(path: Path | None, backend: str = "auto") -> str:
    with pytest.raises(AmsaError) as caught:
        open_backend(path, backend)
    assert str(caught.value).isprintable()
    return str(caught.value)


def replace_graph(folder: Path, stage: str, content: bytes) -> None:
    """Put other bytes in a graph's place, and let the manifest agree with them."""
    graph = GraphFile.of(f"{stage}.onnx", content)
    values = json.loads((folder / FILE_NAME).read_text())
    values["graphs"][stage] = {"file": graph.file, "size": graph.size, "sha256": graph.sha256}
    (folder / FILE_NAME).write_text(json.dumps(values))
    (folder / graph.file).write_bytes(content)


def pictures() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (16, 16, 3), np.uint8), rng.integers(0, 256, (64, 64, 3), np.uint8)


def python(program: str, without: str = "") -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own, in which the named modules cannot be imported."""
    block = f"import sys\nfor name in {without.split()!r}: sys.modules[name] = None\n"
    return subprocess.run([sys.executable, "-c", block + program], capture_output=True, text=True, check=False)


# ------------------------------------------------------------------------------------------------ which backend


def test_the_shipped_model_is_the_default() -> None:
    opened = open_backend()
    assert opened.name == "onnxruntime"
    assert Path(amsa.__file__).parent / "weights" / "small" == SHIPPED_MODEL
    assert opened.trained == json.loads((SHIPPED_MODEL / FILE_NAME).read_text())["trained"]
    assert open_backend(str(SHIPPED_MODEL), "onnxruntime").config == opened.config


def test_an_unknown_backend() -> None:
    assert error_of(None, "cuda") == "unknown backend 'cuda'; choose one of auto, onnxruntime, torch, tensorrt"


@pytest.mark.parametrize("backend", ["auto", "onnxruntime", "torch"])
@pytest.mark.parametrize("name", ["gone", "gone.amsa", "gone.safetensors"])
def test_a_missing_path(tmp_path: Path, backend: str, name: str) -> None:
    assert error_of(tmp_path / name, backend).startswith(f"{tmp_path / name}: no such model")


def test_a_backend_that_cannot_run_the_file(tmp_path: Path) -> None:
    for message in (error_of(None, "torch"), error_of(SHIPPED_MODEL, "torch")):
        assert message.startswith(f"{SHIPPED_MODEL} is an exported model, which the torch backend cannot run")
    path = tmp_path / "m.safetensors"
    path.touch()
    message = error_of(path, "onnxruntime")
    assert message.startswith(f"{path} is a checkpoint, which the onnxruntime backend cannot run")
    assert "amsa export" in message


@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff" * 100, b"\x02\0\0\0\0\0\0\0{}"])
def test_a_broken_checkpoint(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    assert str(path) in error_of(path)


# ------------------------------------------------------------------------------------------------ graphs


def test_an_amsa_file_gives_the_same_picture(folder: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.amsa", "w", zipfile.ZIP_DEFLATED) as z:
        for path in folder.iterdir():
            z.write(path, path.name)
    lr, ref = pictures()
    expected = Upscaler(threads=1).upscale(lr, [ref])
    assert expected.shape == (64, 64, 3)
    np.testing.assert_array_equal(Upscaler(tmp_path / "m.amsa", threads=1).upscale(lr, [ref]), expected)


@pytest.mark.parametrize("content", [b"", b"garbage", b"\0" * 64, "cut"], ids=["empty", "text", "zeros", "cut"])
@pytest.mark.parametrize("stage", ["encode_lr", "match", "finish"])
def test_garbage_that_the_manifest_vouches_for(folder: Path, stage: str, content: bytes | str) -> None:
    whole = (folder / f"{stage}.onnx").read_bytes()
    replace_graph(folder, stage, whole[: len(whole) // 2] if isinstance(content, str) else content)
    upscaler = Upscaler(folder, threads=1)  # graphs are loaded when first needed
    lr, ref = pictures()
    with pytest.raises(AmsaError) as caught:
        upscaler.upscale(lr, [ref])
    message = str(caught.value)
    assert message.startswith(f"{folder}: ONNX Runtime ")
    assert f"cannot load {stage}.onnx" in message
    assert message.isprintable()


def test_an_operator_that_the_runtime_lacks(folder: Path) -> None:
    graph = onnx.load(folder / "finish.onnx")
    graph.graph.node[0].op_type = "Nonsense"
    replace_graph(folder, "finish", graph.SerializeToString())
    lr, ref = pictures()
    with pytest.raises(AmsaError, match=r"cannot load finish\.onnx .*Nonsense") as caught:
        Upscaler(folder, threads=1).upscale(lr, [ref])
    assert str(caught.value).isprintable()


# ------------------------------------------------------------------------------------------------ what is installed

OPEN = """
from amsa import AmsaError
from amsa.engine.backends import open_backend
try:
    open_backend({path!r})
except AmsaError as e:
    print(e)
"""


def checkpoint(tmp_path: Path) -> str:
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"garbage")
    return str(path)


def test_a_checkpoint_without_torch(tmp_path: Path) -> None:
    done = python(OPEN.format(path=checkpoint(tmp_path)), without="torch")
    assert done.stdout == "the torch backend needs torch; install it with: pip install 'amsa[export]'\n", done.stderr


def test_a_checkpoint_without_safetensors(tmp_path: Path) -> None:
    done = python(OPEN.format(path=checkpoint(tmp_path)), without="safetensors")
    assert "needs safetensors; install it with: pip install 'amsa[export]'" in done.stdout, done.stderr


def test_the_runtime_alone_upscales() -> None:
    program = (
        "import numpy as np, amsa\n"
        "rng = np.random.default_rng(0)\n"
        "lr, ref = rng.integers(0, 256, (16, 16, 3), np.uint8), rng.integers(0, 256, (64, 64, 3), np.uint8)\n"
        "sr = amsa.Upscaler(threads=1).upscale(lr, [ref])\n"
        "print(sr.shape, sr.dtype)\n"
    )
    done = python(program, without="torch onnxscript safetensors skimage")
    assert done.stdout == "(64, 64, 3) uint8\n", done.stderr


HEAVY = "print([m for m in ('torch', 'onnx', 'onnxruntime', 'cv2') if m in sys.modules])"


@pytest.mark.parametrize(
    "program",
    [
        "import amsa",
        "import amsa.cli",
        "import amsa.cli\nsys.argv = ['amsa', '--version']\ntry: amsa.cli.main()\nexcept SystemExit: pass",
        "import amsa.manifest",
    ],
    ids=["amsa", "cli", "version", "manifest"],
)
def test_starting_imports_nothing_heavy(program: str) -> None:
    done = python(f"{program}\n{HEAVY}")
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_onnx_runtime_reports_to_nobody(tmp_path: Path) -> None:
    """Where its telemetry is on, importing it leaves a file in the folder for temporary ones."""
    program = f"import tempfile; tempfile.tempdir = {str(tmp_path)!r}; import os; os.environ['TMPDIR'] = {str(tmp_path)!r}\n"
    done = python(program + "import amsa, onnxruntime; print(os.environ['ORT_DISABLE_TELEMETRY'])")
    assert done.stdout == "1\n", done.stderr
    assert list(tmp_path.iterdir()) == []
