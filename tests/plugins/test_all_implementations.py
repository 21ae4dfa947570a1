"""PatchMatch's implementations side by side: reference, function body, C++ kernel, CUDA kernels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

import amsa.plugins.torch_ops  # noqa: F401
from amsa.engine.backends import SHIPPED_MODEL, open_backend
from amsa.engine.demo import load_pair, shrink
from amsa.plugins.patch_match.reference import patch_match as reference

from ..cuda import ops
from ..cuda.harness import missing


@pytest.mark.skipif(missing() is not None, reason=missing() or "")
@pytest.mark.parametrize("schedule", ["published", "paper", "fast"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_int8_is_bit_equal_on_a_photo(run_onnx: Callable[..., list[Tensor]], schedule: str, dtype: torch.dtype) -> None:
    """Reference, function body, C++ kernel and CUDA kernels, with the shipped model's keys of a real pair."""
    truth, ref = load_pair()
    lr, _ = shrink(truth)
    crop, window = lr.rgb[32:64, 40:72], ref.rgb[128:256, 160:288]
    backend = open_backend(SHIPPED_MODEL)
    pictures = [np.ascontiguousarray(x.transpose(2, 0, 1)[None], np.float32) for x in (crop, window)]
    query = torch.from_numpy(backend.run("encode_lr", {"lr": pictures[0]})["query_1"]).to(dtype)
    key = torch.from_numpy(backend.run("encode_ref", {"ref": pictures[1]})["key_1"]).to(dtype)
    init = torch.from_numpy(np.random.default_rng(0).integers(0, 14, (1, 2, 16, 16)).astype(np.int32))
    given = query, key, torch.tensor([[32, 31]], dtype=torch.int32), init
    a = {"iterations": 2, "schedule": schedule, "level": 0, "pad": 0, "init_scale": 2, "arithmetic": "int8"}
    expected_match, expected = reference(*given, **a)
    for match, relevance in (
        run_onnx("PatchMatch", given, **a),
        torch.ops.amsa.patch_match(*given, **a),
        ops.patch_match(ops.device("patch_match"), *given, **a),
    ):
        assert torch.equal(match, expected_match)
        assert torch.equal(relevance, expected)
