"""Arithmetic of layers: what ONNX Runtime's and PyTorch's layers add up to is what the network was counted to need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from amsa.config import AMSAConfig
from amsa.engine.backends import SHIPPED_ENGINE_MODEL, SHIPPED_MODEL
from amsa.engine.profiling import onnx_layers, torch_layers
from amsa.engine.profiling.costs import conv_macs, element_size, node_macs, product_macs
from amsa.engine.profiling.pictures import make_pictures
from amsa.engine.profiling.results import LayerTime
from amsa.engine.profiling.torch_modes import TorchMode
from amsa.engine.upscaler import Upscaler
from amsa.manifest import ModelFolder
from amsa.model import AMSA, save_checkpoint
from amsa.training.evaluation.complexity import count_macs, network_macs

LR, REF = (40, 32), (128, 96)
Run = Callable[[Any], None]


@pytest.fixture(scope="module")
def run() -> Run:
    """Makes a picture on a backend, restored from every reference."""
    lr, refs = make_pictures(LR, [REF])
    return lambda backend: Upscaler.on(backend, skip=0).upscale_photo(lr, refs) and None  # type: ignore[func-returns-value]


def by_stage(layers: Sequence[LayerTime]) -> dict[str, float]:
    sums: Counter[str] = Counter()
    for layer in layers:
        sums[layer.stage] += layer.macs or 0  # type: ignore[assignment]
    return dict(sums)


def counted(config: AMSAConfig) -> dict[str, float]:
    cost = network_macs(config, LR[::-1], REF[::-1])
    return {
        "encode_lr": cost.encode_lr,
        "encode_ref": sum(cost.encode_ref),
        "match": sum(cost.match),
        "restore": sum(cost.restore),
        "finish": cost.finish,
    }


@pytest.mark.parametrize("model", [SHIPPED_MODEL, SHIPPED_ENGINE_MODEL], ids=["fp32", "fp16"])
def test_onnx_runtimes_layers_add_up(model: Path, run: Run, tmp_path: Path) -> None:
    folder = ModelFolder.open(model)
    layers = onnx_layers.time_layers(folder, 1, tmp_path, run, 1)
    assert by_stage(layers) == pytest.approx(counted(folder.manifest.config), rel=1e-12)
    ops = {layer.op for layer in layers}
    assert "PatchMatch" in ops
    assert ops & {"DeformableSample", "DeformableConv"}
    # one reference at five scales, one tile
    calls = {stage: max(layer.calls for layer in layers if layer.stage == stage) for stage in by_stage(layers)}
    assert calls == {"encode_lr": 1, "encode_ref": 5, "match": 5, "restore": 5, "finish": 1}
    assert all(layer.milliseconds > 0 for layer in layers if layer.macs)
    assert all(layer.bytes for layer in layers if layer.macs)


@pytest.mark.parametrize("variant", ["small", "paper"])
def test_pytorchs_layers_add_up(variant: str, run: Run, tmp_path: Path) -> None:
    config = AMSAConfig.small() if variant == "small" else replace(AMSAConfig.paper(8, 1, 4), ref_scales=2)
    model = AMSA(config)
    model.reset_parameters(0)
    save_checkpoint(tmp_path / "m.safetensors", model, {"trained": False})
    backend = TorchMode(tmp_path / "m.safetensors", 1, "torch")
    layers = torch_layers.time_layers(backend, run, 1)
    assert {k: v for k, v in by_stage(layers).items() if v} == pytest.approx(counted(config), rel=1e-12)
    assert {"aten::conv2d", "amsa::patch_match", "amsa::deformable_sample"} <= {layer.op for layer in layers}
    convs = [layer for layer in layers if layer.op == "aten::conv2d"]
    assert all(layer.bytes and layer.milliseconds > 0 for layer in convs)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(6, 8, 3, padding=1),
        nn.Conv2d(6, 9, 3, stride=2, bias=False),
        nn.Conv2d(6, 12, (1, 5), groups=3, dilation=2),
    ],
)
def test_convolutions_as_torch_counts_them(conv: nn.Conv2d) -> None:
    import torch

    x = torch.zeros(2, 6, 20, 22)
    macs, out = count_macs(conv, x)
    assert conv_macs(tuple(conv.weight.shape), tuple(out.shape)) == macs
    assert node_macs("Conv", [tuple(x.shape), (16, 16, 9, 9)], [tuple(out.shape)], tuple(conv.weight.shape)) == macs


def test_convolutions_in_torchs_profile() -> None:
    """As the network calls them, as compiled code does, and inside of another operator."""
    import torch

    x, weight = torch.zeros(2, 6, 20, 22), torch.zeros(12, 2, 3, 5)
    stride, padding, dilation, groups = (2, 1), (1, 2), (1, 3), 3
    with torch.inference_mode(), torch.profiler.profile(record_shapes=True, with_flops=True) as profiler:
        out = torch.conv2d(x, weight, None, stride, padding, dilation, groups)
        torch.convolution(x, weight, None, stride, padding, dilation, False, [0, 0], groups)
        torch.matmul(torch.zeros(4, 5), torch.zeros(5, 7))
    macs = [torch_layers.event_macs(event) for event in profiler.events() if event.cpu_parent is None]
    conv = conv_macs(tuple(weight.shape), tuple(out.shape))
    assert [m for m in macs if m] == [conv, conv, 4 * 5 * 7]


def test_other_operators() -> None:
    assert product_macs((3, 4, 5), (3, 4, 7)) == 3 * 4 * 5 * 7
    assert node_macs("Gemm", [(4, 5), (5, 7), (7,)], [(4, 7)], None) == 4 * 5 * 7
    # four corners for each sample; with the convolution behind them, each sample once per output channel too
    assert node_macs("DeformableSample", [(1, 4, 9, 9), (1, 2, 8, 8), (1, 27, 6, 7)], [(1, 36, 6, 7)], None) == 4 * 36 * 42
    inputs = [(1, 9, 9, 4), (1, 2, 8, 8), (1, 27, 6, 7), (10, 36, 1, 1), (10,)]
    assert node_macs("DeformableConv", inputs, [(1, 10, 6, 7)], None) == 36 * 42 * (4 + 10)
    assert node_macs("Concat", [(1, 2)], [(1, 4)], None) is None


@pytest.mark.parametrize(
    ("dtype", "size"), [("float", 4), ("float16", 2), ("double", 8), ("bool", 1), ("int64", 8), ("uint8", 1)]
)
def test_element_sizes(dtype: str, size: int) -> None:
    assert element_size(dtype) == size


# ------------------------------------------------------------------------------------------------ ONNX Runtime's file


def node(name: str, op: str, start: int, took: int, inputs: list[Any], outputs: list[Any]) -> dict[str, Any]:
    args = {"op_name": op, "input_type_shape": inputs, "output_type_shape": outputs}
    return {"cat": "Node", "name": f"{name}_kernel_time", "ts": start, "dur": took, "args": args}


def test_a_profile_is_read_without_its_warm_up() -> None:
    """Three pictures of two runs each; the first is slow, and one of the others was disturbed."""
    weights, shape = {"float": [4, 3, 3, 3]}, {"float": [1, 4, 8, 8]}
    events: list[dict[str, Any]] = [{"cat": "Session", "name": "session_initialization", "ts": 0, "dur": 5}]
    for i, took in enumerate((9000, 9000, 100, 200, 5000, 100)):
        events.append({"cat": "Session", "name": "model_run", "ts": 10_000 * i, "dur": 9500})
        events.append(node("conv_nchwc", "Conv", 10_000 * i + 1, took, [{"float": [1, 3, 8, 8]}, weights], [shape]))
        events.append(node("shape", "Shape", 10_000 * i + 2, 1, [shape], [{"int64": [4]}]))
    conv, view = onnx_layers.read_profile("finish", events, 3, AMSAConfig.small(), {"conv": (3, 3, 3, 3)})
    assert (conv.stage, conv.name, conv.op, conv.calls) == ("finish", "conv_nchwc", "Conv", 2)
    assert conv.milliseconds == pytest.approx((0.3 + 5.1) / 2)  # the median of two pictures
    assert conv.macs == 2 * 64 * 3 * 27  # of the graph's three channels, not of the four that ran
    assert conv.bytes == 2 * 4 * (3 * 64 + 4 * 27 + 4 * 64)
    assert (view.op, view.macs, view.bytes) == ("Shape", None, 0)
