"""Runs the ops' function bodies in ONNX Runtime, and makes inputs for PatchMatch."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor

from amsa.plugins import DOMAIN, OPS, OPSET
from amsa.plugins.onnx_ops import attach_function_bodies, register_schemas

TYPES = {
    torch.float32: onnx.TensorProto.FLOAT,
    torch.float16: onnx.TensorProto.FLOAT16,
    torch.int32: onnx.TensorProto.INT32,
}
DECLARED = {"float32": torch.float32, "int32": torch.int32}


def _model_of_one_node(name: str, dtype: torch.dtype, **attributes: Any) -> onnx.ModelProto:
    """A model whose only node is the op, with its function body; every dimension is dynamic."""
    register_schemas()
    op = next(o for o in OPS if o.name == name)

    def declare(tensors: Any) -> list[onnx.ValueInfoProto]:
        types = [TYPES[DECLARED.get(t.dtype, dtype)] for t in tensors]
        ranks = [2 if t.name == "valid" else 4 for t in tensors]
        make = onnx.helper.make_tensor_value_info
        return [make(t.name, e, [None] * r) for t, e, r in zip(tensors, types, ranks, strict=True)]

    names = [t.name for t in op.inputs], [t.name for t in op.outputs]
    node = onnx.helper.make_node(name, *names, domain=DOMAIN, **attributes)
    graph = onnx.helper.make_graph([node], "one_node", declare(op.inputs), declare(op.outputs))
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=10)
    attach_function_bodies(model)
    return model


@pytest.fixture(scope="session")
def model_of_one_node() -> Callable[..., onnx.ModelProto]:
    return _model_of_one_node


@cache
def _session(name: str, dtype: torch.dtype, attributes: tuple[tuple[str, Any], ...]) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    model = _model_of_one_node(name, dtype, **dict(attributes)).SerializeToString()
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="session")
def run_onnx() -> Callable[..., list[Tensor]]:
    """(op name, inputs, **attributes) -> the outputs of its function body in ONNX Runtime."""

    def run(name: str, inputs: tuple[Tensor, ...], **attributes: Any) -> list[Tensor]:
        session = _session(name, inputs[0].dtype, tuple(attributes.items()))
        feed = {i.name: t.numpy() for i, t in zip(session.get_inputs(), inputs, strict=True)}
        return [torch.from_numpy(x) for x in session.run(None, feed)]

    return run


@pytest.fixture(scope="session")
def patch_match_inputs() -> Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Random query, ref, valid and init that fit each other.

    Features are integers unless `integers` is false: inner products are then exact in whatever order they are summed,
    so that implementations may be asked for equal matches.
    """

    def make(
        seed: int,
        query: tuple[int, int],
        ref: tuple[int, int],
        valid: tuple[int, int] | None = None,
        batch: int = 1,
        query_batch: int = 1,
        channels: int = 8,
        integers: bool = True,
        *,
        level: int,
        pad: int,
        init_scale: int,
        **_: Any,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rng = np.random.default_rng(seed)
        shapes = (query_batch, channels, *query), (batch, channels, *ref)
        draw = (lambda s: rng.integers(-50, 51, s)) if integers else rng.standard_normal
        q, r = (torch.from_numpy(draw(s).astype(np.float32)) for s in shapes)
        valid = valid or ref  # rows and columns of this level; the op takes those of level 0
        v = [n * 2**level - int(rng.integers(0, 2**level)) for n in valid]
        if init_scale == 1:
            size, limits = [n - 2 + 2 * pad for n in query], [n - 2 + 2 * pad for n in valid]
        else:
            size, limits = [n // 2 for n in query], [-(-n // 2 ** (level + 1)) for n in v]
        init = torch.from_numpy(np.stack([rng.integers(0, n, (batch, *size)) for n in limits], 1)).int()
        return q, r, torch.tensor([v], dtype=torch.int32), init

    return make
