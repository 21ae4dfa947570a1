"""Profiling the TensorRT backend with no GPU, and what is read from a layer's name."""

from __future__ import annotations

from pathlib import Path

import pytest

from amsa.engine.profiling.tensorrt_layers import kind

from ...cuda.cpu_driver import run_on_driver


def test_on_the_cpu_driver() -> None:
    run_on_driver(Path(__file__).parent / "on_driver" / "check_profiling.py")


@pytest.mark.parametrize(
    ("name", "op"),
    [
        ("node_conv2d_3 + node_relu_1", "Conv"),
        ("node_deformable_sample_2", "DeformableSample"),
        ("node_patch_match__1", "PatchMatch"),
        ("Reformatting CopyNode for Input Tensor 0 to node_conv2d", "Reformat"),
        ("node_upsample_bilinear2d", "Resize"),
        ("{ForeignNode[node_add...node_mul]}", "other"),
    ],
)
def test_the_kind_of_a_layer(name: str, op: str) -> None:
    assert kind(name) == op
