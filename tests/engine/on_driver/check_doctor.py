"""`amsa doctor` on a machine with a GPU, which a CUDA driver on the CPU stands for. Run by test_doctor.py."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from amsa.engine import backends, tensorrt_build
from amsa.engine.doctor import ABSENT, BROKEN, OK, Finding, checks, examine_machine, packages
from amsa.engine.doctor.checks import GROUPS, examine
from amsa.engine.doctor.gpu import NO_DEVICE
from amsa.engine.tensorrt_build import engines_folder

from ...cuda.cpu_driver import Control
from . import tensorrt_on_cpu as stand_in

CAPABILITY = os.environ.get("AMSA_TEST_COMPUTE_CAPABILITY", "7.5")
RTX_TARGETS = ("NONE", "CURRENT", "SM75", "SM80", "SM86", "SM89", "SM120", "SM121")  # of TensorRT-RTX 1.7
UNKNOWN = 999  # CUDA_ERROR_UNKNOWN
with_kernels = pytest.mark.skipif(CAPABILITY != "7.5", reason="for compute capability 7.5")


@pytest.fixture(autouse=True)
def control() -> Iterator[Control]:
    driver = Control()
    driver.reset()
    yield driver
    driver.reset()


@with_kernels
def test_in_child_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "GROUPS", [group for group in GROUPS if group[0] in ("GPU", "kernels")])
    found = {f.name: f for f in examine_machine()}
    assert {f.state for f in found.values()} == {OK}, found
    assert found["driver"].text.endswith("for CUDA 13.0")
    assert found["GPU"].text == "CPU, 4.3 GB, compute capability 7.5 (kernels for sm_75)"
    assert "opens CPU, 4.3 GB free" in found["CUDA binding"].text
    assert found["kernels"].text.startswith("deformable_sample for sm_75: ")
    assert found["kernels"].text.endswith("; 4 loaded on the GPU")


@pytest.mark.skipif(CAPABILITY != "6.1", reason="for compute capability 6.1")
def test_a_card_without_kernels() -> None:
    for name, start in (("GPU", "CPU, 4.3 GB, compute capability 6.1: "), ("kernels", "")):
        found = examine(name)
        assert found.state == BROKEN
        assert found.text.startswith(f"{start}no kernels for compute capability 6.1; there are sm_75, ")
        assert found.mend.startswith("update amsa (pip install --upgrade amsa)")
    assert examine("CUDA binding").state == OK


@with_kernels
def test_a_driver_without_a_gpu(control: Control) -> None:
    for name, state in (("driver", OK), ("GPU", ABSENT), ("CUDA binding", OK), ("kernels", OK)):
        control.fail_next("cuInit", NO_DEVICE)
        assert examine(name).state == state
        control.reset()
    control.fail_next("cuInit", NO_DEVICE)
    assert examine("GPU").text == "the driver finds no GPU"
    control.fail_next("cuInit", NO_DEVICE)
    assert "loaded" not in examine("kernels").text


@with_kernels
@pytest.mark.parametrize("name", ["GPU", "CUDA binding", "kernels"])
def test_a_driver_that_fails(control: Control, name: str) -> None:
    control.fail_next("cuInit", UNKNOWN)
    found = examine(name)
    assert found.state == BROKEN
    assert found.text == "cuInit: CUDA_ERROR_UNKNOWN"
    assert found.mend


@with_kernels
def test_kernels_that_the_driver_refuses(control: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    from amsa.plugins import launcher

    monkeypatch.setattr(launcher, "_functions", launcher._functions.__wrapped__)  # they may be loaded already
    control.fail_next("cuModuleLoadData", 209)  # CUDA_ERROR_NO_BINARY_FOR_GPU
    found = examine("kernels")
    assert (found.state, found.text) == (BROKEN, "kernels of deformable_sample: CUDA_ERROR_NO_BINARY_FOR_GPU")


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """A TensorRT that computes on the CPU, and the settings that engines were built with."""
    asked: list[dict[str, Any]] = []
    model = Path(shutil.copytree(backends.SHIPPED_ENGINE_MODEL, tmp_path / "small_fp16"))
    trt = stand_in.install(monkeypatch)
    trt.ComputeCapability = SimpleNamespace(__members__=dict.fromkeys(RTX_TARGETS))
    monkeypatch.setattr("amsa.engine.tensorrt_module.import_tensorrt", lambda runtime: trt)

    def build(path: Path, targets: list[str], *, output: str, **settings: Any) -> None:
        asked.append({"path": path, "targets": targets, **settings})
        stand_in.build(path, trt, settings["runtime"], *targets)
        shutil.copytree(engines_folder(path), output, dirs_exist_ok=True)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(backends, "SHIPPED_ENGINE_MODEL", model)
    monkeypatch.setattr(tensorrt_build, "build_engines", build)
    monkeypatch.setattr(packages, "find_spec", lambda module: object())
    return asked


@with_kernels
def test_a_picture_by_the_gpu(builds: list[dict[str, Any]]) -> None:
    found = examine("GPU picture by tensorrt-rtx")
    text = "against ONNX Runtime on the CPU: PSNR inf dB, 100.0% of the pixels are equal"
    assert found == Finding("TensorRT", "GPU picture by tensorrt-rtx", OK, text)
    assert [(b["path"].name, b["targets"], b["runtime"]) for b in builds] == [("small_fp16", ["native"], "rtx")]
    assert stand_in.ran[-1] == "finish"
    assert stand_in.problems == []


@with_kernels
def test_another_picture_by_the_gpu(builds: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    finish = stand_in.Context._work

    def work(self: Any, stream: Any) -> Any:
        inner = finish(self, stream)
        addresses, name = dict(self.addresses), self.engine.stage.name

        def darker(argument: Any) -> None:
            inner(argument)
            if name == "finish":
                stand_in._view(addresses["sr"], self.get_tensor_shape("sr"), "float32")[...] *= 0.5

        return darker

    monkeypatch.setattr(stand_in.Context, "_work", work)
    found = examine("GPU picture by tensorrt-rtx")
    assert found.state == BROKEN
    assert found.text.endswith("at least 45 dB are expected")
    assert len(builds) == 1


@with_kernels
def test_a_gpu_that_fails_on_the_way(builds: list[dict[str, Any]], control: Control) -> None:
    control.fail_next("cuMemcpyDtoHAsync", 700)
    found = examine("GPU picture by tensorrt-rtx")
    assert (found.state, found.text) == (BROKEN, "CUDA: cuMemcpyDtoHAsync: CUDA_ERROR_ILLEGAL_ADDRESS")
    assert found.mend.startswith("report it as a bug")
    assert len(builds) == 1


@pytest.mark.skipif(CAPABILITY != "9.0", reason="for compute capability 9.0")
def test_a_card_that_rtx_does_not_serve(builds: list[dict[str, Any]]) -> None:
    """An H100: it has our kernels, and classic TensorRT."""
    found = examine("GPU picture by tensorrt-rtx")
    text = "TensorRT-RTX does not serve sm90, but sm75, sm80, sm86, sm89, sm120, sm121; classic TensorRT serves it"
    assert (found.state, found.text) == (ABSENT, text)
    assert found.mend.startswith("pip install 'amsa[tensorrt]'")
    assert builds == []
    assert examine("GPU").text == "CPU, 4.3 GB, compute capability 9.0 (kernels for sm_90)"
