"""The C++ kernels in ONNX Runtime: they are used, they equal the references, and what happens without them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor

from amsa.plugins import DOMAIN
from amsa.plugins.cpu_library import cpu_library, library_path
from amsa.plugins.deformable_sample.reference import deformable_sample
from amsa.plugins.patch_match.reference import patch_match

pytestmark = pytest.mark.skipif(cpu_library() is None, reason="no C++ compiler on this machine")

Model = Callable[..., onnx.ModelProto]
Inputs = Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]
PLAIN: dict[str, Any] = {"iterations": 2, "schedule": "paper", "level": 0, "pad": 1, "init_scale": 1, "arithmetic": "float"}


def open_session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # errors are expected, and raised
    options.register_custom_ops_library(str(library_path()))
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run_session(session: onnxruntime.InferenceSession, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    feed = {i.name: t.numpy() for i, t in zip(session.get_inputs(), inputs, strict=True)}
    return [torch.from_numpy(x) for x in session.run(None, feed)]


@pytest.fixture(scope="module")
def run_kernel(model_of_one_node: Model) -> Callable[..., list[Tensor]]:
    """(op name, inputs, **attributes) -> the kernel's outputs. The model has no function body: nothing else could run it."""

    @cache
    def session(name: str, dtype: torch.dtype, attributes: tuple[tuple[str, Any], ...]) -> onnxruntime.InferenceSession:
        model = model_of_one_node(name, dtype, **dict(attributes))
        del model.functions[:]
        return open_session(model)

    return lambda name, inputs, **a: run_session(session(name, inputs[0].dtype, tuple(a.items())), inputs)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("arithmetic", ["float", "int8"])
@pytest.mark.parametrize("schedule", ["paper", "published", "fast", "exact"])
@pytest.mark.parametrize(("level", "pad", "init_scale"), [(1, 1, 2), (0, 0, 1), (2, 0, 2)])
def test_patch_match(
    patch_match_inputs: Inputs,
    run_kernel: Callable[..., list[Tensor]],
    schedule: str,
    arithmetic: str,
    level: int,
    pad: int,
    init_scale: int,
    half: bool,
) -> None:
    a = {"iterations": 2, "schedule": schedule, "level": level, "pad": pad, "init_scale": init_scale, "arithmetic": arithmetic}
    for query, ref, valid, batch in (
        ((12, 8), (11, 19), (8, 19), 1),
        ((14, 18), (11, 19), (11, 18), 2),
        ((6, 40), (40, 5), None, 2),
    ):
        q, r, v, init = patch_match_inputs(6, query, ref, valid, batch, **a)
        inputs = (q.half(), r.half(), v, init) if half else (q, r, v, init)
        found, relevance = run_kernel("PatchMatch", inputs, **a)
        expected, expected_relevance = patch_match(*inputs, **a)
        assert torch.equal(found, expected)
        if arithmetic == "int8":
            assert torch.equal(relevance, expected_relevance)
        else:
            torch.testing.assert_close(relevance, expected_relevance, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("offsets", [False, True])
@pytest.mark.parametrize(("scale", "groups"), [(1, 1), (2, 2), (4, 3)])
def test_deformable_sample(run_kernel: Callable[..., list[Tensor]], scale: int, groups: int, offsets: bool, half: bool) -> None:
    generator = torch.Generator().manual_seed(scale)
    for h, w, batch in ((5, 3, (1, 1, 1)), (3, 9, (1, 2, 1)), (4, 4, (2, 2, 2))):
        value = torch.randn(batch[0], 6 * groups, 9 * scale, 7 * scale, generator=generator)
        where = torch.randint(-4, 12, (batch[1], 2, h + 2, w + 2), generator=generator, dtype=torch.int32)
        offset_mask = torch.randn(batch[2], (27 if offsets else 9) * groups, scale * h, scale * w, generator=generator)
        inputs = (value.half(), where, offset_mask.half()) if half else (value, where, offset_mask)
        (found,) = run_kernel("DeformableSample", inputs, scale=scale, groups=groups)
        expected = deformable_sample(*inputs, scale=scale, groups=groups)
        tolerance = {"atol": 2e-3, "rtol": 1e-3} if half else {"atol": 1e-5, "rtol": 1e-5}
        torch.testing.assert_close(found, expected, **tolerance)


def test_the_kernel_goes_before_the_function_body(patch_match_inputs: Inputs, model_of_one_node: Model) -> None:
    model = model_of_one_node("PatchMatch", torch.float32, **PLAIN)
    (body,) = model.functions
    wrong = onnx.helper.make_function(
        DOMAIN,
        "PatchMatch",
        list(body.input),
        list(body.output),
        [
            onnx.helper.make_node("Identity", [body.input[3]], [body.output[0]]),
            onnx.helper.make_node("ReduceSum", [body.input[0]], [body.output[1]]),
        ],
        list(body.opset_import),
        list(body.attribute),
    )
    del model.functions[:]
    model.functions.append(wrong)
    inputs = patch_match_inputs(7, (9, 8), (11, 10), **PLAIN)
    match, _ = run_session(open_session(model), inputs)
    assert torch.equal(match, patch_match(*inputs, **PLAIN)[0])
    assert not torch.equal(match, inputs[3])


def test_a_graph_without_arithmetic_means_float(patch_match_inputs: Inputs, run_kernel: Callable[..., list[Tensor]]) -> None:
    inputs = patch_match_inputs(8, (9, 8), (11, 10), **PLAIN)
    without = {k: v for k, v in PLAIN.items() if k != "arithmetic"}
    found, expected = run_kernel("PatchMatch", inputs, **without), run_kernel("PatchMatch", inputs, **PLAIN)
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schedule": "best"}, "PatchMatch: schedule is 'best'; it must be one of 'published', 'paper', 'fast', 'exact'"),
        ({"arithmetic": "int4"}, "PatchMatch: arithmetic is 'int4'"),
        ({"iterations": 0}, "PatchMatch: iterations is 0"),
        ({"level": 4}, "PatchMatch: level is 4"),
        ({"pad": -1}, "PatchMatch: pad is -1"),
        ({"init_scale": 0}, "PatchMatch: init_scale is 0"),
        ({"level": None}, "level"),
        ({"schedule": None}, "schedule"),
    ],
)
def test_wrong_attributes(model_of_one_node: Model, change: dict[str, Any], message: str) -> None:
    model = model_of_one_node("PatchMatch", torch.float32, **{k: v for k, v in {**PLAIN, **change}.items() if v is not None})
    del model.functions[:]
    with pytest.raises(Exception, match=message):
        open_session(model)


@pytest.mark.parametrize(
    ("index", "shape", "message"),
    [
        (0, (1, 8, 9, 0), "query has a side of 0"),
        (0, (1, 7, 9, 8), "query has 7 channels; it must have 8"),
        (1, (0, 8, 11, 10), "ref has a side of 0"),
        (2, (1, 3), "valid has 3 channels; it must have 2"),
        (3, (1, 2, 8, 9), "init is 8x9; it must be 9x8"),
    ],
)
def test_wrong_shapes(
    patch_match_inputs: Inputs, run_kernel: Callable[..., list[Tensor]], index: int, shape: tuple[int, ...], message: str
) -> None:
    inputs = list(patch_match_inputs(9, (9, 8), (11, 10), **PLAIN))
    inputs[index] = torch.zeros(shape, dtype=inputs[index].dtype)
    with pytest.raises(Exception, match=f"PatchMatch: {message}"):
        run_kernel("PatchMatch", tuple(inputs), **PLAIN)


def test_a_wrong_rank(model_of_one_node: Model, patch_match_inputs: Inputs) -> None:
    model = model_of_one_node("PatchMatch", torch.float32, **PLAIN)
    del model.functions[:]
    model.graph.input[2].CopyFrom(onnx.helper.make_tensor_value_info("valid", onnx.TensorProto.INT32, None))
    inputs = list(patch_match_inputs(9, (9, 8), (11, 10), **PLAIN))
    inputs[2] = inputs[2].view(-1)
    with pytest.raises(Exception, match="PatchMatch: valid has 1 dimensions; it must have 2"):
        run_session(open_session(model), tuple(inputs))


_SCRIPT = """
import os, sys, warnings
import numpy as np
from amsa.plugins import cpu_library
if not os.environ["PATH"]:
    cpu_library._FOLDER /= "none"  # not the library that was built while installing
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from amsa.engine.backends import open_backend
    from amsa.engine.upscaler import Upscaler
    kernels = open_backend().kernels
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (n, n, 3), np.uint8) for n in (16, 64)]
    np.save(sys.argv[1], Upscaler(threads=1).upscale(pictures[0], [pictures[1]]))
print(kernels, *(w.message for w in caught), sep="|")
assert "torch" not in sys.modules
"""


def test_without_a_compiler_the_function_bodies_run_and_say_so_once(tmp_path: Path) -> None:
    import numpy as np

    without = {k: v for k, v in os.environ.items() if k != "CXX"} | {"PATH": "", "XDG_CACHE_HOME": str(tmp_path)}
    said, pictures = [], []
    for i, environment in enumerate((dict(os.environ), without)):
        path = tmp_path / f"{i}.npy"
        command = [sys.executable, "-c", _SCRIPT, path]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout.strip().split("|"))
        pictures.append(np.load(path).astype(int))
    assert said[0][0].startswith("C++ kernels, ")
    assert len(said[0]) == 1
    assert said[1][0] == "function bodies"
    assert said[1][1].startswith("no C++ compiler, so no CPU kernels: ")
    assert len(said[1]) == 2
    # A near-tie may fall either way, which moves a few pixels.
    assert np.mean(np.abs(pictures[0] - pictures[1]) <= 1) > 0.99
