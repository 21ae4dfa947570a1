"""Graphs as ONNX Runtime runs them on the CPU, where amsa's kernels are there: the exported ones, rewritten as they are loaded.

Exported graphs are made for every runtime. On a CPU more than half of restoring would be:

- DeformableSample writes nine times the features for a 1x1 convolution to read. Where nothing else reads them, both become
  `amsa.DeformableConv` (plugins/deformable_sample/conv.hpp), together with a leaky ReLU behind them.
- A sample is a run of channels, so `value` should lie channels-last; from NCHW the kernel rearranges all of the reference, tile
  after tile. So `encode_ref` ends in a transposition, once per reference, and `restore` takes values [1, rows, cols, C].
- A mean over 7x7 pixels is computed as one over columns of one over rows.
"""

from __future__ import annotations

import numpy as np
from google.protobuf.message import DecodeError
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from ..plugins import DOMAIN
from ..stages import VALUES

_CHANNELS_LAST = (0, 2, 3, 1)


def for_cpu(stage: str, graph: bytes) -> bytes:
    """A stage's exported ONNX file -> the one to run.

    Function bodies are left out: only with our kernels can it be run. What is no ONNX file is returned as it is, for ONNX Runtime
    to refuse.
    """
    try:
        model = ModelProto.FromString(graph)
    except DecodeError:
        return graph
    del model.functions[:]
    if stage == "encode_ref":
        _give_values_last(model.graph)
    if stage == "restore":
        _take_values_last(model.graph)
        _fuse(model.graph)
        _split_means(model.graph)
    return bytes(model.SerializeToString())


def _declare_last(tensor: ValueInfoProto) -> None:
    dims = tensor.type.tensor_type.shape.dim
    permuted = [type(dims[i]).FromString(dims[i].SerializeToString()) for i in _CHANNELS_LAST]
    del dims[:]
    dims.extend(permuted)


def _give_values_last(graph: GraphProto) -> None:
    for output in graph.output:
        if output.name not in VALUES:
            continue
        made = f"{output.name}_nchw"
        for node in graph.node:
            for names in (node.input, node.output):
                names[:] = [made if name == output.name else name for name in names]
        graph.node.append(helper.make_node("Transpose", [made], [output.name], made, perm=_CHANNELS_LAST))
        _declare_last(output)


def _take_values_last(graph: GraphProto) -> None:
    for tensor in graph.input:
        if tensor.name in VALUES:
            _declare_last(tensor)
    for node in graph.node:
        if _is_sample(node) and node.input[0] in VALUES:
            node.attribute.append(helper.make_attribute("value_channels_last", 1))


def _fuse(graph: GraphProto) -> None:
    """DeformableSample, Conv 1x1 [, LeakyRelu] -> DeformableConv, where nothing else reads what is between."""
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    kept = {output.name for output in graph.output}
    weights = {tensor.name: tensor for tensor in graph.initializer}

    def only_reader(node: NodeProto, op: str) -> NodeProto | None:
        output = node.output[0]
        found = readers.get(output, [])
        return found[0] if len(found) == 1 and found[0].op_type == op and found[0].output and output not in kept else None

    fused_into: dict[str, NodeProto] = {}  # by what the last node of each makes
    gone: set[str] = set()  # what the others make
    for sample in graph.node:
        if not _is_sample(sample):
            continue
        conv = only_reader(sample, "Conv")
        weight = weights.get(conv.input[1]) if conv is not None else None
        if conv is None or weight is None or not _is_plain(conv, weight):
            continue
        if len(conv.input) > 2:
            bias = conv.input[2]
        else:
            bias = f"{conv.output[0]}_no_bias"
            zeros = np.zeros(weight.dims[0], np.float16 if weight.data_type == TensorProto.FLOAT16 else np.float32)
            graph.initializer.append(numpy_helper.from_array(zeros, bias))
        relu = only_reader(conv, "LeakyRelu")
        slope = 1.0 if relu is None else helper.get_node_attr_value(relu, "alpha")
        last = relu or conv
        inputs = [*sample.input, weight.name, bias]
        fused = helper.make_node("DeformableConv", inputs, last.output, conv.name, domain=DOMAIN, negative_slope=slope)
        fused.attribute.extend(sample.attribute)
        fused_into[last.output[0]] = fused
        gone |= {sample.output[0], conv.output[0]}
    nodes: list[NodeProto] = []
    for node in graph.node:
        made = node.output[0] if node.output else ""
        if made in fused_into:
            nodes.append(fused_into[made])
        elif made not in gone:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def _is_sample(node: NodeProto) -> bool:
    return bool(node.domain == DOMAIN and node.op_type == "DeformableSample" and len(node.input) == 3 and len(node.output) == 1)


def _is_plain(conv: NodeProto, weight: TensorProto) -> bool:
    """Whether a convolution is a matrix product for every pixel: 1x1, with neither strides, padding nor groups."""
    attributes = {a.name: helper.get_attribute_value(a) for a in conv.attribute}
    steps = {*attributes.get("strides", [1]), *attributes.get("dilations", [1]), attributes.get("group", 1)}
    padded = any(attributes.get("pads", [])) or attributes.get("auto_pad", b"NOTSET") != b"NOTSET"
    return len(weight.dims) == 4 and tuple(weight.dims[2:]) == (1, 1) and steps == {1} and not padded


def _split_means(graph: GraphProto) -> None:
    """AveragePool of k x k -> of k x 1 and 1 x k, where padding counts as zeros, so that the two are the same."""
    nodes: list[NodeProto] = []
    for node in graph.node:
        a = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        kernel, pads = a.get("kernel_shape", []), a.get("pads", [0, 0, 0, 0])
        wide = node.op_type == "AveragePool" and len(kernel) == 2 and min(kernel) > 1
        known = a.get("count_include_pad", 0) == 1 and not a.get("ceil_mode", 0) and a.get("auto_pad", b"NOTSET") == b"NOTSET"
        if not wide or not known or {*a.get("strides", [1]), *a.get("dilations", [1])} != {1}:
            nodes.append(node)
            continue
        between = f"{node.output[0]}_of_rows"
        for axis, (source, target) in enumerate(((node.input[0], between), (between, node.output[0]))):
            size, pad = [1, 1], [0, 0, 0, 0]
            size[1 - axis], pad[1 - axis], pad[3 - axis] = kernel[1 - axis], pads[1 - axis], pads[3 - axis]
            name = f"{node.name}_{axis}"
            nodes.append(
                helper.make_node("AveragePool", [source], [target], name, kernel_shape=size, pads=pad, count_include_pad=1)
            )
    del graph.node[:]
    graph.node.extend(nodes)
