"""What an engine of TensorRT-RTX holds, read from its file with no GPU.

The plan inside of it is text, undocumented and NVIDIA's to change: this was written against TensorRT-RTX 1.7. What cannot be
found is an error, never taken for "nothing there".
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import AmsaError
from ..plugins import OpSpec

_HEADER = struct.Struct("<4s12xQ4B")  # magic, bytes in all, version of TensorRT-RTX
_REGION = re.compile(r"region = \{ name=\S+ size=(\d+) [^}]*type=user place=accelerator[^}]*\}")
_BOUNDS = re.compile(r"is out of bounds \[(\d+), (\d+)\]")
_TENSOR = re.compile(r'tensor=\{ [^\n]*?name="([^"]*)"[^\n]*? strides=\{ ([^}]*)\} type=(\w+) \}')
_STATEMENT = re.compile(r"^  (\w+)=\{ name=\"?([^\" ]*)\"? ([^\n]*)", re.MULTILINE)
_TURNING = re.compile(r"__myl_(?:Tran|Move|Resh)+")
_NOT_LAYERS = {"shape_call", "signal", "wait", "copy", "memset"}


@dataclass(frozen=True)
class PluginLayer:
    """A plugin in a plan: its layer's name, its tensors' names, and beside which of them stands a transpose.

    Transposes of the engine's own inputs and outputs do not count: those come and go as NCHW.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    transposed: tuple[str, ...]


@dataclass(frozen=True)
class PlanFacts:
    """A plan in numbers.

    Attributes:
        version: of the TensorRT-RTX that built it, as "1.7.1.116".
        targets: compute capabilities that it was built for, as ("sm75",).
        layers: kernels that it launches, plugins and convolutions among them.
        plugins: its plugin layers, in order.
        convolutions: how many convolutions of each type ("float", "half").
        tensors: type ("float", "half", "int32", ..) of every tensor.
        channels_last: tensors whose channels lie side by side in memory.
        bounds: smallest and largest size of every dynamic dimension of the inputs, without their names.
        scratch: bytes of GPU memory for intermediate results at the largest sizes.
        layer_types: in which type ("float", "half", "int8") a convolution computes, by the ONNX nodes that are in it.
        transposes: kernels that do nothing but change a tensor's layout in memory.
    """

    version: str
    targets: tuple[str, ...]
    layers: int
    plugins: tuple[PluginLayer, ...]
    convolutions: Mapping[str, int]
    tensors: Mapping[str, str]
    channels_last: frozenset[str]
    bounds: frozenset[tuple[int, int]]
    scratch: int
    layer_types: Mapping[str, str] = field(default_factory=dict)
    transposes: int = 0


@dataclass(frozen=True)
class Wanted:
    """What a plan must turn out to be.

    Attributes:
        targets: compute capabilities, as ("sm75",): these and no others.
        plugins: by layer name, its op and the type ("float", "half") of its features.
        convolutions: how many of each type; those that are fused may be fewer.
        layers: type of convolutions by name; of those that the plan does not name, only `convolutions` can be checked.
        bounds: by size word, smallest and largest size of the dimensions that vary with it. A plan leaves out those that follow
            from others, so one per word is enough.
    """

    targets: tuple[str, ...]
    plugins: Mapping[str, tuple[OpSpec, str]]
    convolutions: Mapping[str, int]
    bounds: Mapping[str, frozenset[tuple[int, int]]]
    layers: Mapping[str, str] = field(default_factory=dict)


def check_plan(facts: PlanFacts, wanted: Wanted, source: str | Path) -> None:
    """AmsaError, which lists every difference, unless a plan is what was asked for."""
    wrong = []
    if sorted(facts.targets) != sorted(wanted.targets):
        wrong.append(f"built for {' '.join(facts.targets) or 'no GPU'}, not for {' '.join(wanted.targets)}")
    found = {plugin.name: plugin for plugin in facts.plugins}
    if missing := sorted(set(wanted.plugins) - set(found)):
        wrong.append(f"{len(found)} plugin layers of {len(wanted.plugins)}: {missing[0]} is missing")
    if more := sorted(set(found) - set(wanted.plugins)):
        wrong.append(f"plugin layer {more[0]} is not in the graph")
    for name in sorted(set(found) & set(wanted.plugins)):
        wrong += _plugin_differences(found[name], *wanted.plugins[name], facts)
    for dtype in sorted(set(facts.convolutions) | set(wanted.convolutions)):
        has, asked = facts.convolutions.get(dtype, 0), wanted.convolutions.get(dtype, 0)
        if has > asked or (asked and not has):
            wrong.append(f"{has} convolutions of {dtype}, not {asked}")
    for name, dtype in wanted.layers.items():
        if facts.layer_types.get(name, dtype) != dtype:
            wrong.append(f"{name} is {facts.layer_types[name]}, not {dtype}")
    every = frozenset[tuple[int, int]]().union(*wanted.bounds.values())
    if facts.bounds - every or any(not facts.bounds & sizes for sizes in wanted.bounds.values()):
        ranges = (" ".join(f"{low}..{high}" for low, high in sorted(sizes)) for sizes in (facts.bounds, every))
        wrong.append("sizes {}, not {}".format(*(text or "none" for text in ranges)))
    if wrong:
        raise AmsaError(f"{source}: TensorRT-RTX {facts.version} built another engine than was asked for: {'; '.join(wrong)}")


def _plugin_differences(plugin: PluginLayer, op: OpSpec, dtype: str, facts: PlanFacts) -> list[str]:
    wrong = []
    for declared, names in ((op.inputs, plugin.inputs), (op.outputs, plugin.outputs)):
        for tensor, name in zip(declared, names, strict=False):  # behind the outputs stands the scratch memory
            if tensor.dtype != "T":
                continue
            if name not in facts.channels_last:
                wrong.append(f"{tensor.name} of {plugin.name} is not channels-last")
            if facts.tensors.get(name) != dtype:
                wrong.append(f"{tensor.name} of {plugin.name} is {facts.tensors.get(name)}, not {dtype}")
    if plugin.transposed:
        wrong.append(f"{len(plugin.transposed)} transposes around {plugin.name}")
    return wrong


def read_plan(engine: bytes, source: str | Path) -> PlanFacts:
    """Read the facts.

    Args:
        engine: the engine file's content.
        source: what to call it in an error.

    Raises:
        AmsaError: not an engine of TensorRT-RTX, a truncated one, or a plan in another language than this reads.
    """
    version = check_header(engine, source)
    plan = engine.decode("latin1")
    begin, end = plan.find("\nmain {"), plan.find("\nshape_main {")
    targets = re.findall(r"accelerators=\{([^}]*)\}", plan[: max(begin, 0)])
    if begin < 0 or end < begin or len(targets) != 1:
        raise AmsaError(f"{source}: the plan of TensorRT-RTX {version} cannot be read; this version of amsa reads 1.7")
    main, header = plan[begin:end], plan[:begin]
    tensors = {m[1]: (m[2].split(), m[3]) for m in _TENSOR.finditer(header)}
    statements = [(m[1], m[2], m[3]) for m in _STATEMENT.finditer(main)]
    # Layers live on the GPU: no event, no copy of a size.
    kernels = [s for s in statements if s[0] not in _NOT_LAYERS]
    convolutions: dict[str, int] = {}
    layer_types: dict[str, str] = {}
    for kind, name, rest in kernels:
        if kind == "corrltn" or (kind == "runtime_fusion" and "backbone=conv" in rest):
            # Of its type are its weights; a fused one may list another layer's tensor first.
            operands = [operand for operand in _names(rest, "input", "input_args") if operand in tensors]
            # Int8 weights that are turned into float16 at run time, for SM 7.5, are no constant; they come second all the same.
            second = operands[1] if kind == "corrltn" and len(operands) > 1 else None
            weights = second or next((operand for operand in operands if operand.endswith("const")), next(iter(operands), None))
            if weights is None:
                raise AmsaError(f"{source}: the input of {name} is not in the plan; this version of amsa reads TensorRT-RTX 1.7")
            dtype = tensors[weights][1]
            convolutions[dtype] = convolutions.get(dtype, 0) + 1
            layers = re.search(r'layers="([^"]*)"', rest)
            for layer in (name, *re.findall(r"ONNX Layer: ([^\]]+)\]", layers[1] if layers else "")):
                layer_types[layer] = dtype
    ends = set(_names(header, "inputs") + _names(header, "outputs"))
    return PlanFacts(
        version=version,
        targets=tuple(targets[0].split()),
        layers=len(kernels),
        plugins=tuple(_plugin(name, rest, kernels, ends) for kind, name, rest in kernels if kind == "custom_layer"),
        convolutions=convolutions,
        tensors={name: dtype for name, (_, dtype) in tensors.items()},
        channels_last=frozenset(name for name, (strides, _) in tensors.items() if len(strides) == 4 and strides[1] == "1"),
        bounds=frozenset((int(low), int(high)) for low, high in _BOUNDS.findall(plan)),
        scratch=sum(map(int, _REGION.findall(header))),
        layer_types=layer_types,
        transposes=sum(kind.endswith("function") and _TURNING.fullmatch(name) is not None for kind, name, _ in kernels),
    )


def check_header(engine: bytes, source: str | Path) -> str:
    """The version of TensorRT-RTX that an engine was built with. AmsaError for any other file, and for a truncated one."""
    if engine[:4] == b"ftrt":
        raise AmsaError(f"{source}: an engine of classic TensorRT; only those of TensorRT-RTX can be read without a GPU")
    if len(engine) < _HEADER.size or engine[:4] != b"vtrt":
        raise AmsaError(f"{source}: not an engine of TensorRT-RTX; make one with `amsa build`")
    _, size, *version = _HEADER.unpack_from(engine)
    if size != len(engine):
        raise AmsaError(f"{source}: damaged: it has {len(engine):,} of its {size:,} bytes; build it again with `amsa build`")
    return ".".join(map(str, version))


def _names(text: str, *lists: str) -> list[str]:
    """The quoted names in the first of these lists that the text has: input={"a" "b" }."""
    for key in lists:
        if found := re.search(rf"(?<![a-z_]){key}=\{{([^}}]*)\}}", text.replace("{ForeignNode", "(").replace("]}", ")")):
            return re.findall(r'"([^"]*)"', found[1])
    return []


def _plugin(name: str, rest: str, kernels: list[tuple[str, str, str]], ends: set[str]) -> PluginLayer:
    inputs, outputs = _names(rest, "input"), _names(rest, "output")
    transposed = []
    for kind, kernel, other in kernels:
        if kind != "function" or kernel != "__myl_Tran":
            continue
        read, written = _names(other, "input_args"), _names(other, "output_args")
        transposed += [t for t in written if t in inputs and not ends & set(read)]
        transposed += [t for t in read if t in outputs and not ends & set(written)]
    return PluginLayer(name, tuple(inputs), tuple(outputs), tuple(transposed))
