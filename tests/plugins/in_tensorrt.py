"""Uses the C++ plugins in TensorRT-RTX, or the Python ones to compare with; prints JSON.

A process of its own, because TensorRT has one registry in each, and `import_tensorrt` puts the Python plugins in it.

    in_tensorrt.py COMMAND LIBRARY|python [ARGUMENT ..]
"""

from __future__ import annotations

import _ctypes
import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import onnx

from amsa.engine import tensorrt_build, tensorrt_module
from amsa.plugins import DOMAIN, OPS, OPSET, VERSION, OpSpec
from amsa.plugins.tensorrt import load_plugins

tensorrt_module._make_findable()

import tensorrt_rtx as trt  # noqa: E402

ATTRIBUTES: dict[str, dict[str, Any]] = {
    "PatchMatch": {"iterations": 2, "schedule": "fast", "level": 1, "pad": 1, "init_scale": 2, "arithmetic": "int8"},
    "DeformableSample": {"scale": 2, "groups": 4},
}
SHAPES: dict[str, tuple[tuple[Any, ...], ...]] = {
    "PatchMatch": ((1, 16, 24, 32), (1, 16, 40, 48), (1, 2), (1, 2, 12, 16)),
    "DeformableSample": ((1, 32, 40, 48), (1, 2, 10, 12), (1, 108, 16, 20)),
}
registry = trt.get_plugin_registry()
logger = tensorrt_module.process_logger(trt)


def registered() -> int:
    """Of our ops; TensorRT logs an error where it is asked for one that is not there."""
    return sum(creator.name in [op.name for op in OPS] for creator in registry.all_creators)


def register(library: str, how: str = "load") -> None:
    """Register the plugins: Python's, or the library's, loaded by TensorRT or only opened."""
    handle = None
    if library == "python":
        load_plugins(trt, logger)
        return
    for step in how.split(", "):
        if step == "load":
            before = len(registry.all_creators)
            handle = registry.load_library(library)
            assert (handle is not None) == (len(registry.all_creators) > before)  # None: they were there already
        elif step == "open":
            _ctypes.dlopen(library, ctypes.DEFAULT_MODE)
        elif step == "unload":
            registry.deregister_library(handle)
            assert registered() == 0


def creators(library: str, how: str) -> Any:
    """All creators of our ops, as often as they are registered."""
    register(library, how)
    names = [op.name for op in OPS]
    ours = sorted((c for c in registry.all_creators if c.name in names), key=lambda c: names.index(c.name))
    return [
        {
            "name": c.name,
            "version": c.plugin_version,
            "namespace": c.plugin_namespace,
            "fields": [[f.name, f.type.name, f.size] for f in c.field_names],
        }
        for c in ours
    ]


def open_and_close(library: str, before: str) -> Any:
    """How many creators the library itself registers when it is opened and how many stay when it is closed; and what is logged.
    With `before` as "python", those of Python are there already."""
    builder = trt.Builder(logger)  # only now has the registry a log
    if before:
        register(before)
    logger.clear()
    count = len(registry.all_creators)
    handle = _ctypes.dlopen(library, ctypes.DEFAULT_MODE)
    opened = len(registry.all_creators)
    _ctypes.dlclose(handle)
    del builder
    return [opened - count, len(registry.all_creators) - count, logger.errors + logger.warnings]


def one_node(op: OpSpec, shapes: Any, dtype: str, attributes: dict[str, Any]) -> bytes:
    kinds = {"float32": onnx.TensorProto.FLOAT, "float16": onnx.TensorProto.FLOAT16, "int32": onnx.TensorProto.INT32}
    make = onnx.helper.make_tensor_value_info
    inputs = [make(t.name, kinds[dtype if t.dtype == "T" else t.dtype], s) for t, s in zip(op.inputs, shapes, strict=True)]
    outputs = [make(t.name, kinds[dtype if t.dtype == "T" else t.dtype], [None] * 4) for t in op.outputs]
    names = [t.name for t in op.inputs], [t.name for t in op.outputs]
    node = onnx.helper.make_node(op.name, *names, domain=DOMAIN, name="node", **attributes)
    opsets = [onnx.helper.make_opsetid("", OPSET), onnx.helper.make_opsetid(DOMAIN, VERSION)]
    graph = onnx.helper.make_graph([node], "one_node", inputs, outputs)
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def parse(builder: Any, model: bytes) -> Any:
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parsed = trt.OnnxParser(network, logger).parse(model)
    return network if parsed else None


def layers(library: str) -> Any:
    """Shapes and types of the plugin layers, known and unknown, that the parser makes of a node."""
    register(library)
    builder = trt.Builder(logger)
    unknown = {
        "PatchMatch": ((1, 16, "H", "W"), ("n", 16, "y", "x"), (1, 2), (1, 2, "h", "w")),
        "DeformableSample": (("n", 32, "H", "W"), ("n", 2, "h", "w"), (1, 108, "y", "x")),
    }
    found = []
    for op in OPS:
        for shapes in (SHAPES[op.name], unknown[op.name]):
            for dtype in ("float32", "float16"):
                network = parse(builder, one_node(op, shapes, dtype, ATTRIBUTES[op.name]))
                made = [network.get_layer(i) for i in range(network.num_layers)]
                outputs = [layer.get_output(i) for layer in made for i in range(layer.num_outputs)]
                found.append(
                    [op.name, [x.type.name for x in made], [[*o.shape] for o in outputs], [o.dtype.name for o in outputs]]
                )
    return [found, logger.errors + logger.warnings]


def in_builder(library: str) -> Any:
    """The library in a builder's own registry, as trtexec --dynamicPlugins loads it: what a node becomes."""
    builder = trt.Builder(logger)
    assert builder.get_plugin_registry().load_library(library) is not None
    assert registered() == 0  # in the registry of all
    network = parse(builder, one_node(OPS[0], SHAPES[OPS[0].name], "float16", ATTRIBUTES[OPS[0].name]))
    return [[network.get_layer(i).type.name for i in range(network.num_layers)], logger.errors]


def misfits(library: str, how: str, cases: str) -> Any:
    """Of nodes that do not fit: whether they are parsed all the same, and the logged lines that begin with the op's name.

    A case is an op, shapes of inputs by name, and attributes; null for one that is to be missing.
    """
    register(library, how)
    builder = trt.Builder(logger)
    told = []
    for name, changed, attributes in json.loads(cases):
        logger.clear()
        op = next(o for o in OPS if o.name == name)
        shapes = [changed.get(t.name, s) for t, s in zip(op.inputs, SHAPES[name], strict=True)]
        given = {k: v for k, v in {**ATTRIBUTES[name], **attributes}.items() if v is not None}
        network = parse(builder, one_node(op, shapes, "float32", given))
        told.append([network is not None, sorted({line for line in logger.errors if line.startswith(f"{name}: ")})])
    return told


def build(library: str, model: str, output: str) -> Any:
    """`amsa build` of the graphs with plugins; whether the plugins were Python's."""
    register(library)
    tensorrt_build._WITHOUT_KERNEL = ("match_exact", "encode_ref", "encode_lr", "finish")
    tensorrt_build.build_engines(Path(model), ["sm75"], output=output)
    return [type(registry.get_creator(op.name, str(VERSION), DOMAIN)).__module__ == "amsa.plugins.tensorrt" for op in OPS]


def embed(library: str) -> Any:
    """Bytes of an engine without and with the library in it."""
    register(library)
    builder = trt.Builder(logger)
    sizes = []
    for libraries in ([], [library]):
        network = parse(builder, one_node(OPS[1], SHAPES[OPS[1].name], "float16", ATTRIBUTES[OPS[1].name]))
        config = builder.create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.SM75, 0)
        config.plugins_to_serialize = libraries
        engine = bytes(builder.build_serialized_network(network, config))
        sizes.append([len(engine), Path(library).read_bytes() in engine])
    return sizes


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](*sys.argv[2:])))
