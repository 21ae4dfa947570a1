"""The declarations of the ops, and what is derived from them for torch and ONNX."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor

import amsa.plugins.torch_ops  # noqa: F401
from amsa.plugins import DEFORMABLE_SAMPLE, DOMAIN, OPS, OPSET, PATCH_MATCH, VERSION, OpSpec
from amsa.plugins.onnx_ops import attach_function_bodies, function_bodies, register_schemas

MATCHING: dict[str, Any] = {"iterations": 1, "schedule": "paper", "level": 0, "pad": 1, "init_scale": 1}
SAMPLING: dict[str, Any] = {"scale": 2, "groups": 2}
ATTRIBUTES = {PATCH_MATCH.name: MATCHING, DEFORMABLE_SAMPLE.name: SAMPLING}


def matching_inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "query": torch.randn(1, 4, 10, 8, generator=generator),
        "ref": torch.randn(2, 4, 9, 12, generator=generator),
        "valid": torch.tensor([[8, 12]], dtype=torch.int32),
        "init": torch.zeros(2, 2, 10, 8, dtype=torch.int32),
    }


def sampling_inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "value": torch.randn(1, 6, 12, 10, generator=generator),
        "match": torch.randint(-2, 6, (2, 2, 7, 6), generator=generator, dtype=torch.int32),
        "offset_mask": torch.randn(1, 54, 10, 8, generator=generator),
    }


def run(op: OpSpec, inputs: dict[str, Tensor], **attributes: Any) -> tuple[Tensor, ...]:
    outputs = getattr(torch.ops.amsa, op.torch_name)(*inputs.values(), **attributes)
    return outputs if isinstance(outputs, tuple) else (outputs,)


# ------------------------------------------------------------------------------------------------ declarations


def test_torch_schemas() -> None:
    assert PATCH_MATCH.torch_schema() == (
        "patch_match(Tensor query, Tensor ref, Tensor valid, Tensor init, *, "
        'int iterations, str schedule, int level, int pad, int init_scale, str arithmetic="float") -> (Tensor, Tensor)'
    )
    assert DEFORMABLE_SAMPLE.torch_schema() == (
        "deformable_sample(Tensor value, Tensor match, Tensor offset_mask, *, int scale, int groups) -> Tensor"
    )


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_onnx_schema_and_body_agree_with_the_declaration(op: OpSpec) -> None:
    schema, body = op.onnx_schema(), function_bodies()[op.name]
    assert (schema.domain, schema.since_version) == (body.domain, VERSION) == (DOMAIN, 1)
    names = [t.name for t in op.inputs]
    assert [t.name for t in schema.inputs] == list(body.input) == names
    assert [t.name for t in schema.outputs] == [t.name for t in op.outputs]
    assert len(body.output) == len(op.outputs)
    defaults = {a.name: onnx.helper.get_attribute_value(a) for a in body.attribute_proto}
    assert set(schema.attributes) == {*body.attribute, *defaults} == {a.name for a in op.attributes}
    for a in op.attributes:
        assert schema.attributes[a.name].required == (a.default is None) == (a.name in body.attribute)
        assert a.default is None or defaults[a.name].decode() == a.default
    assert [o.version for o in body.opset_import if not o.domain] == [OPSET]  # else ONNX Runtime does not inline it


def test_declarations_need_neither_torch_nor_onnx() -> None:
    code = "import sys, amsa.plugins, amsa.stages; print(*({'torch', 'onnx', 'onnxscript', 'numpy'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


@pytest.mark.parametrize(
    ("attributes", "query", "init", "grid"),
    [
        ({}, (12, 9), (12, 9), (12, 9)),
        ({"pad": 0}, (12, 9), (10, 7), (10, 7)),
        ({"init_scale": 2, "level": 2}, (12, 10), (6, 5), (12, 10)),
        ({"init_scale": 2, "pad": 0}, (12, 10), (6, 5), (10, 8)),
    ],
)
def test_shapes_of_matches(attributes: dict[str, Any], query: Any, init: Any, grid: Any) -> None:
    shapes = PATCH_MATCH.infer_shapes((1, 5, *query), (3, 5, 7, 8), (1, 2), (3, 2, *init), **{**MATCHING, **attributes})
    assert shapes == ((3, 2, *grid), (3, 1, *grid))


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_shapes_of_samples(scale: int) -> None:
    inputs = (1, 8, 5, 9), (3, 2, 6, 7), (1, 27 * 2, 4 * scale, 5 * scale)
    assert DEFORMABLE_SAMPLE.infer_shapes(*inputs, scale=scale, groups=2) == ((3, 72, 4 * scale, 5 * scale),)


# ------------------------------------------------------------------------------------------------ torch


@pytest.mark.parametrize(("op", "inputs"), [(PATCH_MATCH, matching_inputs), (DEFORMABLE_SAMPLE, sampling_inputs)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_meta_tensors_have_the_real_shapes(op: OpSpec, inputs: Callable[[], dict[str, Tensor]], dtype: torch.dtype) -> None:
    real = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs().items()}
    outputs = run(op, real, **ATTRIBUTES[op.name])
    meta = run(op, {k: v.to("meta") for k, v in real.items()}, **ATTRIBUTES[op.name])
    assert [(t.shape, t.dtype) for t in meta] == [(t.shape, t.dtype) for t in outputs]
    declared = {"T": dtype, "float32": torch.float32, "int32": torch.int32}
    assert [t.dtype for t in outputs] == [declared[t.dtype] for t in op.outputs]


def test_opcheck_of_deformable_sample() -> None:
    inputs = [t.requires_grad_() if t.is_floating_point() else t for t in sampling_inputs().values()]
    torch.library.opcheck(torch.ops.amsa.deformable_sample.default, inputs, SAMPLING)


def test_opcheck_of_patch_match() -> None:
    inputs = list(matching_inputs().values())
    op = torch.ops.amsa.patch_match.default
    torch.library.opcheck(op, inputs, MATCHING)
    inputs = [t.requires_grad_() if t.is_floating_point() else t for t in inputs]
    # torch's own check of the traced gradient adds up all outputs and cannot begin with an integer one; see below
    torch.library.opcheck(op, inputs, MATCHING, test_utils=("test_schema", "test_autograd_registration", "test_faketensor"))


def test_gradient_of_patch_match_can_be_traced() -> None:
    inputs = [t.requires_grad_() if t.is_floating_point() else t for t in matching_inputs().values()]

    def relevance(*inputs: Tensor) -> Tensor:
        result: Tensor = torch.ops.amsa.patch_match(*inputs, **MATCHING)[1].square().sum()
        return result

    traced = torch.compile(relevance, backend="aot_eager", dynamic=True, fullgraph=True)
    grads = torch.autograd.grad(traced(*inputs), inputs[:2])
    for grad, expected in zip(grads, torch.autograd.grad(relevance(*inputs), inputs[:2]), strict=True):
        torch.testing.assert_close(grad, expected)


# ------------------------------------------------------------------------------------------------ errors

ATTRIBUTE_ERRORS = [
    (PATCH_MATCH, {"iterations": 0}, "iterations is 0; it must be at least 1"),
    (PATCH_MATCH, {"schedule": "quick"}, "schedule is 'quick'; it must be one of 'published', 'paper'"),
    (PATCH_MATCH, {"level": 4}, "level is 4; it must be one of 0, 1, 2, 3"),
    (PATCH_MATCH, {"level": -1}, "level is -1"),
    (PATCH_MATCH, {"pad": 2}, "pad is 2"),
    (PATCH_MATCH, {"init_scale": 4}, "init_scale is 4"),
    (DEFORMABLE_SAMPLE, {"scale": 3}, "scale is 3; it must be one of 1, 2, 4"),
    (DEFORMABLE_SAMPLE, {"groups": 0}, "groups is 0; it must be at least 1"),
]


@pytest.mark.parametrize(("op", "wrong", "message"), ATTRIBUTE_ERRORS)
def test_errors_name_the_attribute(op: OpSpec, wrong: dict[str, Any], message: str) -> None:
    attributes = {**ATTRIBUTES[op.name], **wrong}
    inputs = matching_inputs() if op is PATCH_MATCH else sampling_inputs()
    with pytest.raises(ValueError, match=f"^{op.name}: {message}"):
        run(op, inputs, **attributes)


MATCHING_ERRORS = [
    ({"query": torch.zeros(4, 10, 8)}, {}, "query has 3 dimensions; it must have 4"),
    ({"ref": torch.zeros(1, 4, 9, 12, 1)}, {}, "ref has 5 dimensions"),
    ({"init": torch.zeros(2, 10, 8).int()}, {}, "init has 3 dimensions"),
    ({"query": torch.zeros(3, 4, 10, 8)}, {}, "query has batch 3; it must be 1 or 2"),
    ({"valid": torch.ones(3, 2).int()}, {}, "valid has batch 3; it must be 1 or 2"),
    ({"init": torch.zeros(3, 2, 10, 8).int()}, {}, "init has batch 3; it must be 1 or 2"),
    ({"query": torch.zeros(1, 5, 10, 8)}, {}, "query has 5 channels and ref 4"),
    ({"init": torch.zeros(2, 2, 8, 10).int()}, {}, "init is 8x10; it must be 10x8"),
    ({}, {"pad": 0}, "init is 10x8; it must be 8x6"),
    ({}, {"init_scale": 2}, "init is 10x8; it must be 5x4"),
    ({"init": torch.zeros(2, 2, 10, 8)}, {}, "init is torch.float32; it must be torch.int32"),
    ({"valid": torch.ones(1, 2).long()}, {}, "valid is torch.int64; it must be torch.int32"),
    ({"query": torch.zeros(1, 4, 10, 8).half()}, {}, "features are .*float16.*float32"),
    ({"query": torch.zeros(1, 4, 10, 8).double(), "ref": torch.zeros(2, 4, 9, 12).double()}, {}, "features are .*float64"),
    ({"valid": torch.tensor([8, 12]).int()}, {}, "valid has 1 dimension"),
    ({"valid": torch.ones(1, 3).int()}, {}, "valid"),
    ({"init": torch.zeros(2, 3, 10, 8).int()}, {}, "init has 3 channels"),
    ({"query": torch.zeros(1, 4, 11, 8), "init": torch.zeros(2, 2, 5, 4).int()}, {"init_scale": 2}, "query is 11x8"),
    ({"query": torch.zeros(1, 4, 2, 8), "init": torch.zeros(2, 2, 0, 6).int()}, {"pad": 0}, "query is 2x8"),
    ({"ref": torch.zeros(2, 4, 2, 12), "init": torch.zeros(2, 2, 8, 6).int()}, {"pad": 0}, "ref is 2x12"),
]


@pytest.mark.parametrize(("wrong", "attributes", "message"), MATCHING_ERRORS)
def test_errors_name_the_tensor_of_patch_match(wrong: dict[str, Tensor], attributes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^PatchMatch: {message}"):
        run(PATCH_MATCH, {**matching_inputs(), **wrong}, **{**MATCHING, **attributes})


SAMPLING_ERRORS = [
    ({"value": torch.zeros(6, 12, 10)}, "value has 3 dimensions; it must have 4"),
    ({"match": torch.zeros(2, 7, 6).int()}, "match has 3 dimensions"),
    ({"offset_mask": torch.zeros(54, 10, 8)}, "offset_mask has 3 dimensions"),
    ({"value": torch.zeros(3, 6, 12, 10)}, "value has batch 3; it must be 1 or 2"),
    ({"offset_mask": torch.zeros(3, 54, 10, 8)}, "offset_mask has batch 3; it must be 1 or 2"),
    ({"value": torch.zeros(1, 5, 12, 10)}, "value has 5 channels; they must divide into 2 groups"),
    ({"offset_mask": torch.zeros(1, 36, 10, 8)}, r"offset_mask has 36 channels; it must have 18 \(masks\) or 54"),
    ({"match": torch.zeros(2, 2, 7, 7).int()}, "offset_mask is 10x8; with this match and scale it must be 10x10"),
    ({"match": torch.zeros(2, 2, 7, 6)}, "match is torch.float32; it must be torch.int32"),
    ({"offset_mask": torch.zeros(1, 54, 10, 8).half()}, "features are .*float16.*float32"),
    ({"match": torch.zeros(2, 3, 7, 6).int()}, "match has 3 channels"),
    ({"match": torch.zeros(2, 1, 7, 6).int()}, "match has 1 channel"),
]


@pytest.mark.parametrize(("wrong", "message"), SAMPLING_ERRORS)
def test_errors_name_the_tensor_of_deformable_sample(wrong: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=f"^DeformableSample: {message}"):
        run(DEFORMABLE_SAMPLE, {**sampling_inputs(), **wrong}, **SAMPLING)


# ------------------------------------------------------------------------------------------------ ONNX


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_model_of_one_node_passes_the_full_check(
    model_of_one_node: Callable[..., onnx.ModelProto], op: OpSpec, dtype: torch.dtype
) -> None:
    model = model_of_one_node(op.name, dtype, **ATTRIBUTES[op.name])
    onnx.checker.check_model(model, full_check=True)
    assert [f.name for f in model.functions] == [op.name]
    assert [o.version for o in model.opset_import if o.domain == DOMAIN] == [VERSION]
    del model.graph.node[0].attribute[0]
    with pytest.raises(onnx.checker.ValidationError, match="attribute"):
        onnx.checker.check_model(model, full_check=True)


def test_bodies_are_attached_only_where_used() -> None:
    register_schemas()
    register_schemas()  # once per process, however often it is asked for
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    result = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "none_of_ours", [value], [result])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)])
    attach_function_bodies(model)
    assert not model.functions
    assert [o.domain for o in model.opset_import] == [""]
