"""Single files of uint8 pictures, the check after their export, and what TensorRT makes of them."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from amsa import cli
from amsa import export as exporter
from amsa.config import AMSAConfig
from amsa.engine.images import Photo, to_array
from amsa.export import check_single_file, export_single_file, load_network
from amsa.export import single_file as single_file_module
from amsa.export.graphs import export_graph
from amsa.export.single_file import _Composed
from amsa.model import AMSA
from amsa.plugins.cpu_library import library_path
from amsa.stages import TensorIO

Exported = Callable[[str], tuple[AMSA, Path, Path]]
Picture = Callable[..., NDArray[np.uint8]]
Made = Callable[[str, bool], tuple[AMSA, Path]]


@pytest.fixture(scope="module")
def made(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """(precision, whether uint8) -> network, single file for one reference; float32 ones with bodies, float16 ones without."""
    folder = tmp_path_factory.mktemp("single")
    full, _, checkpoint = exported("small")
    models = {"fp32": full, "fp16": load_network(str(checkpoint), precision="fp16")[0]}
    files: dict[tuple[str, bool], Path] = {}

    def make(precision: str, uint8: bool) -> tuple[AMSA, Path]:
        if (precision, uint8) not in files:
            path = folder / f"{precision}-{uint8}.onnx"
            export_single_file(models[precision], path, 1, function_bodies=precision == "fp32", uint8=uint8)
            files[precision, uint8] = path
        return models[precision], files[precision, uint8]

    return make


def run(path: Path, *pictures: NDArray[Any]) -> NDArray[Any]:
    """NCHW pictures through a single file in ONNX Runtime; with our kernels, which files without bodies need."""
    if library_path() is None:
        pytest.skip("no C++ compiler on this machine")
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(library_path()))
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [tensor.name for tensor in session.get_inputs()]
    (sr,) = session.run(None, dict(zip(names, pictures, strict=True)))
    return sr  # type: ignore[no-any-return]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_uint8_is_the_float_graph_rounded(made: Made, picture: Picture, precision: str) -> None:
    lr, ref = (picture(*size, seed).transpose(2, 0, 1)[None].copy() for seed, size in enumerate([(24, 32), (96, 64)]))
    floats = run(made(precision, False)[1], *(p.astype(np.float32) / 255 for p in (lr, ref)))
    samples = run(made(precision, True)[1], lr, ref)
    assert floats.min() < -1 / 255
    assert floats.max() > 1 + 1 / 255  # so that it has to be clipped
    assert samples.dtype == np.uint8
    np.testing.assert_array_equal(samples[0].transpose(1, 2, 0), to_array(Photo(floats[0].transpose(1, 2, 0))))


def test_samples_are_read_and_rounded_as_photos_are(tmp_path: Path) -> None:
    """All 256 levels, halves between levels, and what lies outside, in a graph that does nothing else."""

    class Stretched(_Composed):
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)
            self.uint8 = True

        def forward(self, lr: Tensor) -> Tensor:
            return super().forward(lr)

        def _upscale(self, lr: Tensor, *_refs: Tensor) -> Tensor:
            return torch.cat((lr, lr * 1.5 - 0.25, lr + 0.5 / 255), 1)

    ends = [TensorIO(name, (1, channels, "h", "w"), "uint8") for name, channels in (("lr", 1), ("sr", 3))]
    model = export_graph(Stretched(), "rounding", ends[:1], ends[1:])
    onnx.save(model, tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    levels = np.arange(256, dtype=np.uint8).reshape(1, 1, 8, 32)
    (found,) = session.run(None, {"lr": levels})
    x = levels[0, 0].astype(np.float32) / np.float32(255)
    expected = np.stack((x, x * np.float32(1.5) - np.float32(0.25), x + np.float32(0.5 / 255)), 2)
    np.testing.assert_array_equal(found[0].transpose(1, 2, 0), to_array(Photo(expected)))
    np.testing.assert_array_equal(found[0, 0], levels[0, 0])


@pytest.mark.slow  # an export
def test_the_check_after_an_export(made: Made) -> None:
    model, path = made("fp32", True)
    found = check_single_file(model, path, (40, 48), (96, 128))
    assert found.difference <= 1.01 / 255  # where both round, one level is the least difference
    assert found.psnr > 80
    other = AMSA(AMSAConfig.small())
    other.reset_parameters(9)
    wrong = check_single_file(other, path, (40, 48), (96, 128))
    assert wrong.difference > 0.1
    assert wrong.psnr < 40


@pytest.mark.slow
@pytest.mark.parametrize("uint8", [False, True])
def test_the_check_of_float16_without_bodies(made: Made, uint8: bool) -> None:
    found = check_single_file(*made("fp16", uint8), (40, 48), (96, 128))
    assert found.psnr > 45


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_tensorrt_takes_and_gives_samples(made: Made, precision: str) -> None:
    """TensorRT-RTX builds it for SM 7.5 with the Python plugins."""
    if find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt_rtx is not installed: pip install 'amsa[rtx]'")
    from amsa.engine import tensorrt_build
    from amsa.engine.tensorrt_module import import_tensorrt, process_logger

    trt = import_tensorrt("rtx")
    logger = process_logger(trt)
    logger.clear()
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    nodes = tensorrt_build._parse(trt, made(precision, True)[1].read_bytes(), network, "amsa")
    assert sorted(set(nodes.values())) == ["DeformableSample", "PatchMatch"]
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM75, 0)
    profile.set_shape("lr", *((1, 3, side, side) for side in (16, 64, 128)))
    profile.set_shape("ref_0", *((1, 3, side, side) for side in (64, 256, 512)))
    config.add_optimization_profile(profile)
    ends = [network.get_input(i) for i in range(network.num_inputs)] + [network.get_output(0)]
    assert [(tensor.name, tensor.dtype) for tensor in ends] == [(name, trt.uint8) for name in ("lr", "ref_0", "sr")]
    engine = builder.build_serialized_network(network, config)
    assert engine is not None, logger.take_errors()


# ------------------------------------------------------------------------------------------------ the command line


class Written:
    """A graph that is not traced: what is tested is the command."""

    def SerializeToString(self) -> bytes:
        return b"graph"


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr("sys.argv", ["amsa", "export", *map(str, arguments)])
    cli.main()


@pytest.mark.parametrize("uint8", [False, True])
def test_the_command_compares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], uint8: bool
) -> None:
    declared = []
    monkeypatch.setattr(single_file_module, "export_graph", lambda *arguments: (declared.append(arguments[2:4]), Written())[1])
    monkeypatch.setattr(exporter, "check_single_file", lambda *_: exporter.FileParity(0.00123, 71.26))
    path = tmp_path / "m.onnx"
    with pytest.raises(SystemExit) as ended:
        command(monkeypatch, "small", "-o", path, "--single-file", 2, *(["--uint8"] if uint8 else []))
    assert ended.value.code == 0
    assert capfd.readouterr().out == f"{path}: 0.0 MB; largest difference to PyTorch 1.2e-03, PSNR 71.3 dB\n"
    ((inputs, outputs),) = declared
    assert [t.name for t in (*inputs, *outputs)] == ["lr", "ref_0", "ref_1", "sr"]
    assert {t.dtype for t in (*inputs, *outputs)} == {"uint8" if uint8 else "float32"}


def test_folders_of_uint8_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command(monkeypatch, "small", "-o", tmp_path / "model", "--uint8")
    assert ended.value.code == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("error: --uint8: ")
    assert line.endswith("add --single-file N")
    assert list(tmp_path.iterdir()) == []
