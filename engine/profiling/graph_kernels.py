"""Which kernels a graph becomes on a GPU, roughly, and what each has to do: a model of TensorRT's fusion, not its plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...plugins import DEFORMABLE_SAMPLE, DOMAIN, PATCH_MATCH
from ...plugins.deformable_sample.plan import deformable_sample_plan
from ...plugins.launch import Launch
from ...plugins.patch_match.plan import Addresses, patch_match_plan
from ...plugins.workloads import launch_work
from .costs import CONVOLUTIONS, PRODUCTS, VIEWS, node_macs
from .graph_shapes import Graph, Tensor, attributes

# Other names for the same memory; int8 values become numbers where they are read.
_VIEWS = (*VIEWS, "DequantizeLinear")
# What a convolution does with its sums before it writes them.
_ELEMENTWISE = {"Abs", "Add", "Cast", "Clip", "Div", "LeakyRelu", "Max", "Min", "Mul", "Neg", "Pow", "QuantizeLinear", "Relu"}
_ELEMENTWISE |= {"Sigmoid", "Sqrt", "Sub", "Tanh"}
_PRODUCTS = (*CONVOLUTIONS, *PRODUCTS)
# Nothing that comes behind them is in their kernel.
_LAST = ("AveragePool", "MaxPool", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceSum")
# They read no more of a tensor than they give.
_PARTS = ("Gather", "Slice", "Split")
_FILTERED = 8
"""Channels from which on a tensor counts as features, which convolutions want channels-last: tensor cores take eight at once."""

MEMORY = "memory"
"""The kind of kernels that compute next to nothing."""
FLOAT_PRODUCT = "float32 product"
"""The kind of convolutions that no tensor core computes."""
FLOAT_MATCHING, INT8_MATCHING = PATCH_MATCH.name, f"{PATCH_MATCH.name} in int8"
"""The kinds of PatchMatch's kernels."""
WIDE = 48
"""Output channels from which on a convolution fills the tiles of the usual kernels, 64 wide, for the most part."""


@dataclass(frozen=True)
class Kernel:
    """What a launch, or several alike, has to do.

    Attributes:
        name: of the layer in the network, or of the node in the graph.
        op: what it does, as "Conv 3x3 48>48 half" or "Concat".
        kind: what its efficiency is stated for, see estimate.py.
        macs: multiply-accumulates.
        bytes: least traffic with the GPU's memory: what it reads and writes, each byte once.
        launches: how many kernels that is.
        read, written: tensors of the graph, and the bytes of each that it reads or writes.
    """

    name: str
    op: str
    kind: str
    macs: float
    bytes: float
    launches: int = 1
    read: Mapping[str, int] = field(default_factory=dict)
    written: Mapping[str, int] = field(default_factory=dict)


@dataclass
class _Group:
    """Nodes that run as one kernel. `first` decides what it is."""

    first: Any
    nodes: list[Any] = field(default_factory=list)
    closed: bool = False


def kernels(graph: Graph, sizes: Mapping[str, int]) -> list[Kernel]:
    """The kernels of a graph at these sizes (see `Graph.tensors`), in order.

    A node joins the kernel of the last of its inputs where that is possible: element by element behind a convolution, all but
    convolutions, pools and our ops behind each other. So no kernel waits for one that comes later.
    """
    return list(_Fusion(graph, graph.tensors(sizes)).kernels())


class _Fusion:
    def __init__(self, graph: Graph, tensors: Mapping[str, Tensor]) -> None:
        self._graph, self._tensors = graph, tensors
        self._alias: dict[str, str] = {}
        self._groups: list[_Group] = []
        self._made_in: dict[str, int] = {}
        self._readers: dict[str, set[int]] = {}
        for node in graph.nodes:
            self._place(node)
        for i, group in enumerate(self._groups):
            for node in group.nodes:
                for name in self._inputs(node):
                    self._readers.setdefault(name, set()).add(i)

    def _memory(self, name: str) -> str:
        """The tensor whose memory this is."""
        while name in self._alias:
            name = self._alias[name]
        return name

    def _inputs(self, node: Any) -> list[str]:
        """The tensors that a node reads from the GPU's memory, or from the nodes in its kernel."""
        return [self._memory(name) for name in node.input if name and self._tensors[name].values is None]

    def _place(self, node: Any) -> None:
        if all(self._tensors[name].values is not None for name in node.output):
            return
        if node.op_type in _VIEWS:
            self._alias[node.output[0]] = node.input[0]
            return
        made_in = [self._made_in[name] for name in self._inputs(node) if name in self._made_in]
        last = max(made_in, default=None)
        if last is None or not self._joins(node, self._groups[last]):
            self._groups.append(_Group(node))
            last = len(self._groups) - 1
        group = self._groups[last]
        group.nodes.append(node)
        group.closed = group.closed or node.op_type in _LAST
        self._made_in |= dict.fromkeys(node.output, last)

    def _joins(self, node: Any, group: _Group) -> bool:
        if group.closed or node.domain == DOMAIN or node.op_type in _PRODUCTS or str(node.op_type).endswith("Pool"):
            return False
        if group.first.op_type not in _PRODUCTS:
            return bool(group.first.domain != DOMAIN)
        sums = self._tensors[group.first.output[0]].size
        return str(node.op_type) in _ELEMENTWISE and self._tensors[node.output[0]].size == sums

    def kernels(self) -> Iterator[Kernel]:
        ends = [tensor.name for tensor in self._graph.stage.outputs]
        for name in (tensor.name for tensor in self._graph.stage.inputs):
            if self._channels_last(name):
                yield self._turned(name)
        for i, group in enumerate(self._groups):
            if group.first.domain == DOMAIN:
                yield from self._custom(group.first)
            else:
                yield self._kernel(i, group, {self._memory(name) for name in ends})
        for name in ends:
            made = self._groups[self._made_in[self._memory(name)]].first
            if (made.op_type in _PRODUCTS or made.domain == DOMAIN) and self._features(name):
                yield self._turned(name)

    def _features(self, name: str) -> bool:
        shape = self._tensors[name].shape
        return len(shape) == 4 and shape[1] >= _FILTERED

    def _channels_last(self, name: str) -> bool:
        """Whether an input, which comes as NCHW, is features that convolutions or our ops read."""
        readers = [self._groups[i].first for i in self._readers.get(name, ())]
        return self._features(name) and any(
            name in self._inputs(node) and (node.op_type in _PRODUCTS or node.domain == DOMAIN) for node in readers
        )

    def _turned(self, name: str) -> Kernel:
        return Kernel(f"{name} between NCHW and channels-last", "Transpose", MEMORY, 0, 2 * self._tensors[name].bytes)

    def _kernel(self, index: int, group: _Group, ends: set[str]) -> Kernel:
        inside = {name for node in group.nodes for name in node.output}
        read: dict[str, int] = {}
        for node in group.nodes:
            # What follows from sizes alone is computed where it is needed; but weights are read, whatever is known of them.
            for name in (self._memory(name) for name in node.input if name):
                whole = self._tensors[name]
                if name in inside or (whole.values is not None and node.op_type not in _PRODUCTS):
                    continue
                part = sum(self._tensors[out].size for out in node.output) * whole.item if node.op_type in _PARTS else whole.bytes
                read[name] = min(whole.bytes, max(read.get(name, 0), part))
        leaving = [name for name in sorted(inside) if name in ends or self._readers.get(name, set()) - {index}]
        written = {name: self._tensors[name].bytes for name in leaving}
        traffic = sum(read.values()) + sum(written.values())
        if group.first.op_type in _PRODUCTS:
            name, op, kind, macs = self._product(group.first)
            return Kernel(name, op, kind, macs, traffic, 1, read, written)
        ops = list(dict.fromkeys(node.op_type for node in group.nodes))
        shown = "+".join(ops) if len(ops) < 4 else f"{ops[0]}+{ops[1]}+..+{ops[-1]}"
        return Kernel(group.nodes[-1].name, shown, MEMORY, 0, traffic, 1, read, written)

    def _product(self, node: Any) -> tuple[str, str, str, float]:
        """Name, operator, kind and multiply-accumulates of a convolution or matrix product."""
        data_name, weight_name = (self._memory(name) for name in node.input[:2])
        out, data, weight = (self._tensors[name] for name in (node.output[0], data_name, weight_name))
        item = {1: "int8", 2: "half", 4: "float"}[data.item]
        wide, shown = out.shape[-1], f"{data.shape[-1]}>{out.shape[-1]}"
        if node.op_type in CONVOLUTIONS:
            wide = out.shape[1] // attributes(node).get("group", 1)
            shown = f"{weight.shape[2]}x{weight.shape[3]} {data.shape[1]}>{out.shape[1]}"
        macs = node_macs(node.op_type, (data.shape, weight.shape), (out.shape,), None) or 0
        name = weight_name.removesuffix(".weight") if "." in weight_name else node.name
        kind = FLOAT_PRODUCT if item == "float" else ("" if wide >= WIDE else "narrow ") + f"{item} product"
        return name, f"{node.op_type} {shown} {item}", kind, macs

    def _custom(self, node: Any) -> Iterator[Kernel]:
        """One of our ops, by its launch plan; launches of one kernel together."""
        item = self._tensors[node.input[0]].item
        sums: dict[str, list[float]] = {}
        for launch in self._launches(node, item):
            kernel, traffic, operations = launch_work(launch, item)
            total = sums.setdefault(kernel, [0, 0, 0])
            for i, value in enumerate((1, traffic, operations / 2)):
                total[i] += value
        for kernel, (launches, traffic, macs) in sums.items():
            kind = INT8_MATCHING if "int8" in kernel else node.op_type
            read, written = ({name: self._tensors[name].bytes for name in names} for names in (self._inputs(node), node.output))
            yield Kernel(node.name, kernel, kind, macs, traffic, int(launches), read, written)

    def _launches(self, node: Any, item: int) -> list[Launch]:
        shapes = [self._tensors[name].shape for name in node.input]
        values, dtype = attributes(node), f"float{8 * item}"
        if node.op_type == DEFORMABLE_SAMPLE.name:
            value, match, offset_mask = shapes
            return deformable_sample_plan(value, match, offset_mask, (0, 0, 0, 0), dtype=dtype, **values)
        query, ref, valid, init = shapes
        return patch_match_plan(query, ref, valid, init, Addresses(*[0] * 7), dtype=dtype, **values)
