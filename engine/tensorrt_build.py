"""Builds a model folder's graphs into TensorRT engines, and proves of each that it is what was asked for."""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

from ..errors import AmsaError
from ..manifest import ModelFolder
from ..plugins import DOMAIN, OPS, PATCH_MATCH, VERSION
from ..plugins.tensorrt import take_errors
from ..stages import LR_MIN, PRECISIONS, Stage
from .engine_cache import SUFFIX, EngineKey, Sidecar, plugins_hash, read_sidecar, store_engine, why_build
from .engine_shapes import GRID_MIN, LR_SIZES, REF_SIZES, bounds, dimensions, make_profile, parse_sizes
from .plan_facts import Wanted, check_plan, read_plan
from .tensorrt_module import gpu, import_tensorrt, process_logger, rtx_targets

Progress: TypeAlias = "Callable[[int, int, str], None]"
"""Called with (steps done, steps in all, what is being done)."""

NATIVE = "native"
_WITHOUT_KERNEL = ("match_exact",)  # TensorRT runs `match`; there is no CUDA kernel that compares all positions
_PLAN_TYPES = {"float32": "float", "float16": "half"}
_FILTERED = 9  # channels; a float16 model keeps fixed filters of pictures (3) and of the nine taps in float32


@dataclass(frozen=True)
class BuiltEngine:
    """An engine of `build_engines`: where it is, why it was built (None: it was up to date), and its figures."""

    path: Path
    reason: str | None
    sidecar: Sidecar

    def as_dict(self) -> dict[str, Any]:
        return {"path": str(self.path), "reason": self.reason, **asdict(self.sidecar)}


def build_engines(
    model: str | Path,
    targets: Sequence[str],
    *,
    runtime: str = "rtx",
    precision: str | None = None,
    lr_sizes: str = LR_SIZES,
    ref_sizes: str = REF_SIZES,
    output: str | Path | None = None,
    progress: Progress | None = None,
) -> list[BuiltEngine]:
    """Build one engine per graph and target; those that are up to date are left alone.

    Args:
        model: exported model folder or `.amsa` file.
        targets: compute capabilities, as "sm75"; several, as "sm86+sm89+sm120", share engines, which sm75 cannot, since all
            would be built to its abilities; or "native" for this machine's GPU.
        runtime: "rtx" builds for any target with no GPU; "tensorrt" only for this machine's GPU.
        precision: what the model must have been exported as, "fp32" or "fp16"; None: whatever it is.
        lr_sizes: smallest/usual/largest LR picture, "WxH/WxH/WxH" in pixels, multiples of 8.
        ref_sizes: the same of a reference's matching grid, a quarter of the photo.
        output: folder that gets a folder `<runtime>-<target>-<precision>` per target; None: `engines_folder(model)`.
        progress: called at every step of every build.

    Raises:
        AmsaError: no such model, runtime, target or precision; sizes that do not fit; a build that failed; an engine that is
            not what was asked for; no space to write it.
    """
    folder = ModelFolder.open(model)
    made = folder.manifest.precision
    if precision is not None and precision not in PRECISIONS:
        raise AmsaError(f"unknown precision {precision!r}; choose one of {', '.join(PRECISIONS)}")
    if precision not in (None, made):
        raise AmsaError(
            f"{model} was exported as {made}; for {precision} export it so: amsa export CHECKPOINT --precision {precision}"
        )
    lr, ref = parse_sizes(lr_sizes, "LR sizes", LR_MIN), parse_sizes(ref_sizes, "reference sizes", GRID_MIN)
    trt = import_tensorrt(runtime)
    wanted = list(dict.fromkeys(_target(trt, target, runtime) for target in targets))
    stages = [stage for stage in folder.manifest.config.stages(made) if stage.name not in _WITHOUT_KERNEL]
    halo = folder.manifest.config.halo
    special = dict.fromkeys(folder.manifest.int8_layers, "int8") | dict.fromkeys(folder.manifest.float32_layers, "float")
    if runtime == "rtx" and folder.manifest.int8_layers and any(target.capabilities == ("sm75",) for target in wanted):
        warnings.warn(
            f"INT8 convolutions run as half on SM 7.5 under TensorRT-RTX: the {len(folder.manifest.int8_layers)} of {model} cost "
            "accuracy there for no speed; build the float16 export for such a card",
            stacklevel=2,
        )
    built: list[BuiltEngine] = []
    total = len(stages) * len(wanted)
    for target in wanted:
        into = Path(output or engines_folder(folder.path)) / f"{runtime}-{target.name}-{made}"
        for stage in stages:
            graph = folder.graphs[stage.name]
            key = EngineKey(
                stage=stage.name,
                onnx=hashlib.sha256(graph).hexdigest(),
                plugins=plugins_hash(),
                runtime=f"{trt.__name__} {trt.__version__}",
                target=target.name,
                precision=made,
                profile=make_profile(stage.name, stage.inputs, lr, ref, halo),
                machine=target.machine,
            )
            path = into / f"{stage.name}{SUFFIX}"
            reason = why_build(path, key)
            if reason is not None:
                monitor = _Phases(progress, len(built), total, f"{stage.name} for {target.name}")
                store_engine(path, *_build(trt, graph, stage, key, target, monitor, special))
            built.append(BuiltEngine(path, reason, read_sidecar(path)))
    return built


def engines_folder(model: Path) -> Path:
    """Where a model's engines go unless told otherwise: beside it, since a model folder holds what its manifest names."""
    named = model if model.name not in ("", "..") else model.resolve()
    return named.with_name(f"{named.name.removesuffix('.amsa')}.engines")


@dataclass(frozen=True)
class _Target:
    """What an engine is built for.

    Attributes:
        name: as in its key and its folder's name: the same for the same capabilities.
        capabilities: compute capabilities, ascending, as ("sm86", "sm89").
        machine: for the native one, what else an engine depends on; else empty.
    """

    name: str
    capabilities: tuple[str, ...]
    machine: str = ""


def _target(trt: Any, target: str, runtime: str) -> _Target:
    parts = target.split("+")
    if runtime == "rtx" and parts != [NATIVE]:
        known = rtx_targets(trt)
        if NATIVE in parts:
            raise AmsaError(f"--target {target}: {NATIVE} is this machine's GPU and no other; give it a --target of its own")
        if unknown := [part for part in parts if part not in known]:
            raise AmsaError(
                f"unknown target {unknown[0]!r}; choose one of {', '.join((*known, NATIVE))}, or several as sm86+sm89+sm120"
            )
        capabilities = tuple(name for name in known if name in parts)
        if len(capabilities) > 1 and "sm75" in capabilities:
            raise AmsaError(
                f"--target {target}: an engine shared with sm75 is built to the abilities of sm75; give it one of its own: "
                f"--target sm75 --target {'+'.join(capabilities[1:])}"
            )
        return _Target("+".join(capabilities), capabilities)
    try:
        capability, machine = gpu()
    except AmsaError as e:
        mend = "name the card that it is for, as --target sm75" if runtime == "rtx" else "use --runtime rtx"
        what = f"--target {NATIVE}" if runtime == "rtx" else "--runtime tensorrt"
        raise AmsaError(f"{what} builds on the GPU that runs the engine, and {e}; {mend}") from e
    if runtime == "rtx" and capability not in (served := rtx_targets(trt)):
        raise AmsaError(
            f"TensorRT-RTX does not serve this machine's GPU, {capability}, but {', '.join(served)}; classic TensorRT does: "
            "--runtime tensorrt"
        )
    if target not in (NATIVE, capability):
        raise AmsaError(
            f"--runtime tensorrt builds for this machine's GPU, which is {capability}; for {target} use --runtime rtx"
        )
    return _Target(target, (capability,), machine)


def _build(
    trt: Any, graph: bytes, stage: Stage, key: EngineKey, target: _Target, monitor: _Phases, special: Mapping[str, str]
) -> tuple[bytes, Sidecar]:
    """An engine, checked, and its sidecar. `special`: layers of the model that are "int8", or "float" in a float16 model."""
    begin = time.perf_counter()
    logger = process_logger(trt)
    logger.clear()
    take_errors()
    builder = trt.Builder(logger)
    # From TensorRT 11 on there is no other kind of network.
    strong = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if strong is None else 1 << int(strong))
    nodes = _parse(trt, graph, network, stage.name)
    _check_ends(trt, network, stage)
    _check_layers(trt, network, stage, special)
    config = builder.create_builder_config()
    if trt.__name__ == "tensorrt_rtx":
        names = ["CURRENT"] if target.name == NATIVE else [capability.upper() for capability in target.capabilities]
        config.num_compute_capabilities = len(names)  # unset, it builds for SM80, and says nothing
        for i, name in enumerate(names):
            config.set_compute_capability(getattr(trt.ComputeCapability, name), i)
    else:
        _check_channels(trt, network)
    profile = builder.create_optimization_profile()
    declared = {tensor.name: tensor for tensor in stage.inputs}
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        if -1 in tensor.shape:
            profile.set_shape(tensor.name, *dimensions(declared[tensor.name], key.profile))
    config.add_optimization_profile(profile)
    config.progress_monitor = monitor.listener(trt)
    serialized = builder.build_serialized_network(network, config)
    if monitor.interrupted:
        raise KeyboardInterrupt
    raised = take_errors()  # whatever TensorRT made of them: an engine may come out all the same, but not the right one
    if serialized is None or raised:
        raise AmsaError(f"{stage.name}: {trt.__name__} {trt.__version__} cannot build it: {_reasons(logger, raised)}")
    for text in dict.fromkeys(logger.take_warnings()):
        warnings.warn(f"{stage.name}: {' '.join(text.split())}", stacklevel=4)
    engine = bytes(serialized)
    check = _check_rtx if trt.__name__ == "tensorrt_rtx" else _check_classic
    layers, plugins, scratch = check(trt, engine, graph, network, nodes, stage, key, target.capabilities)
    digest = hashlib.sha256(engine).hexdigest()
    return engine, Sidecar(key, len(engine), digest, layers, plugins, scratch, round(time.perf_counter() - begin, 2))


def _parse(trt: Any, graph: bytes, network: Any, stage: str) -> dict[str, str]:
    """Read a graph into a network; returns our ops' layers: name -> op."""
    import onnx

    model = onnx.load_from_string(graph)
    # TensorRT-RTX's parser prefers a function body to a plugin, and stumbles over the bodies' strings.
    bodies = [function for function in model.functions if function.domain != DOMAIN]
    del model.functions[:]
    model.functions.extend(bodies)
    registry = trt.get_plugin_registry()
    for op in sorted({node.op_type for node in model.graph.node if node.domain == DOMAIN}):
        if registry.get_creator(op, str(VERSION), DOMAIN) is None:
            raise AmsaError(
                f"{stage}.onnx: no TensorRT plugin {DOMAIN}::{op} of version {VERSION} is registered; "
                "export the model again with this version of amsa"
            )
    logger = process_logger(trt)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model.SerializeToString()):
        errors = [_parser_error(parser.get_error(i)) for i in range(parser.num_errors)]
        raise AmsaError(f"{stage}.onnx: {trt.__name__} {trt.__version__} cannot read it: {_reasons(logger, errors)}")
    return {node.name: node.op_type for node in model.graph.node if node.domain == DOMAIN}


def _parser_error(error: Any) -> str:
    return f"{error.node_operator()} {error.node_name()}: {error.desc()}"


def _check_ends(trt: Any, network: Any, stage: Stage) -> None:
    """AmsaError unless a network takes and gives the stage's tensors, of their types, all in GPU memory: the runtime hands over
    addresses there, and a tensor that decides a shape would be read by the host."""
    ends = (
        ("input", stage.inputs, [network.get_input(i) for i in range(network.num_inputs)]),
        ("output", stage.outputs, [network.get_output(i) for i in range(network.num_outputs)]),
    )
    again = "export the model again with this version"
    for what, tensors, found in ends:
        declared = {tensor.name: tensor.dtype for tensor in tensors}
        if differing := sorted(declared.keys() ^ {tensor.name for tensor in found}):
            missing = "lacks the" if differing[0] in declared else "has an"
            raise AmsaError(f"{stage.name}.onnx {missing} {what} {differing[0]}; {again}")
        for tensor in found:
            dtype = {plan: ours for ours, plan in _PLAN_TYPES.items()}.get(_plan_type(tensor), _plan_type(tensor))
            if dtype != declared[tensor.name]:
                raise AmsaError(
                    f"{stage.name}.onnx: {what} {tensor.name} is {dtype}, and the manifest says {declared[tensor.name]}; {again}"
                )
            if tensor.is_shape_tensor or getattr(tensor, "location", None) == trt.TensorLocation.HOST:
                raise AmsaError(f"{stage.name}.onnx: {what} {tensor.name} decides a shape, so the host would read it; {again}")


def _special_layers(trt: Any, network: Any) -> dict[str, str]:
    """Convolutions of a network that the export named, since their type is another than the model's: "int8" where the input is
    dequantized, else "float"."""
    layers = _layers(trt, network)
    dequantized = {layer.get_output(0).name for layer in layers if layer.type == trt.LayerType.DEQUANTIZE}
    found = {}
    for layer in layers:
        if layer.type == trt.LayerType.CONVOLUTION:
            if layer.get_input(0).name in dequantized:
                found[layer.name] = "int8"
            elif "." in layer.name:
                found[layer.name] = _plan_type(layer.get_input(0))
    return found


def _check_layers(trt: Any, network: Any, stage: Stage, special: Mapping[str, str]) -> None:
    """AmsaError unless the convolutions that are int8, or float32 in a float16 model, are those that the manifest names."""
    found = _special_layers(trt, network)
    named = {layer: dtype for layer, dtype in special.items() if layer.startswith(f"{stage.name}.")}
    for layer in sorted(found.keys() | named.keys()):
        if found.get(layer) != named.get(layer):
            is_now, should_be = (types.get(layer, "of the model's precision") for types in (found, named))
            raise AmsaError(f"{stage.name}.onnx: {layer} is {is_now}, and the manifest says {should_be}; export the model again")


def _reasons(logger: Any, errors: Sequence[str] = ()) -> str:
    """Why TensorRT failed: what our plugins raised, else `errors`, else what it logged."""
    logged = logger.take_errors()
    reasons = take_errors() or [*errors] or logged or ["it does not say why"]
    return "; ".join(" ".join(text.split()) for text in dict.fromkeys(reasons))


def _layers(trt: Any, network: Any) -> list[Any]:
    return [network.get_layer(i) for i in range(network.num_layers)]


def _plan_type(tensor: Any) -> str:
    return str(tensor.dtype.name).lower()


def _check_channels(trt: Any, network: Any) -> None:
    """AmsaError where classic TensorRT would pad the features of a plugin: its channels-last float16 comes in eights."""
    for layer in _layers(trt, network):
        if layer.type != trt.LayerType.PLUGIN_V3:
            continue
        tensors = [layer.get_input(i) for i in range(layer.num_inputs)] + [layer.get_output(i) for i in range(layer.num_outputs)]
        for tensor in tensors:
            if tensor.dtype == trt.DataType.HALF and tensor.shape[1] % 8:
                raise AmsaError(
                    f"{layer.name}: {tensor.name} has {tensor.shape[1]} channels; in float16 classic TensorRT needs a multiple "
                    "of 8: use --runtime rtx, or export with --precision fp32"
                )


def _key_convolutions(graph: bytes) -> set[str]:
    """Names of the convolutions that make keys or queries, by their weights' names."""
    import onnx

    nodes = onnx.load_from_string(graph).graph.node
    return {node.name for node in nodes if node.op_type == "Conv" and ".keys." in node.input[1]}


def _check_rtx(
    trt: Any,
    engine: bytes,
    graph: bytes,
    network: Any,
    nodes: Mapping[str, str],
    stage: Stage,
    key: EngineKey,
    capabilities: tuple[str, ...],
) -> tuple[int, int, int]:
    """Prove an engine of TensorRT-RTX from its plan. Returns layers, plugin layers and scratch bytes."""
    ops = {op.name: op for op in OPS}
    features = _PLAN_TYPES[PRECISIONS[key.precision]]
    # Keys, and what makes them, may be float32 in a float16 model.
    compared = next((t.dtype for t in (*stage.inputs, *stage.outputs) if t.name in ("key_1", "query_1")), None)
    key_type = _PLAN_TYPES[compared] if compared else features
    layers = _special_layers(trt, network)
    int8 = "int8"
    if "sm75" in capabilities:  # there TensorRT-RTX turns int8 back into the features' type, weights at run time
        int8 = features
    types = {name: int8 if dtype == "int8" else dtype for name, dtype in layers.items()}
    convolved = {x.name: x.get_input(0) for x in _layers(trt, network) if x.type == trt.LayerType.CONVOLUTION}
    keys = _key_convolutions(graph)
    wanted = Wanted(
        targets=capabilities,
        plugins={name: (ops[op], key_type if op == PATCH_MATCH.name else features) for name, op in nodes.items()},
        convolutions=Counter(
            types.get(name) or (key_type if name in keys else features if tensor.shape[1] > _FILTERED else _plan_type(tensor))
            for name, tensor in convolved.items()
        ),
        bounds=bounds(stage.inputs, key.profile),
        layers=types,
    )
    facts = read_plan(engine, stage.name)
    check_plan(facts, wanted, stage.name)
    return facts.layers, len(facts.plugins), facts.scratch


def _check_classic(
    trt: Any,
    engine: bytes,
    graph: bytes,
    network: Any,
    nodes: Mapping[str, str],
    stage: Stage,
    key: EngineKey,
    capabilities: tuple[str, ...],
) -> tuple[int, int, int]:
    """The same for classic TensorRT, whose plans are no text: it is asked, on the GPU that built the engine."""
    loaded = trt.Runtime(process_logger(trt)).deserialize_cuda_engine(engine)
    if loaded is None:
        raise AmsaError(f"{stage.name}: TensorRT cannot read the engine it built: {_reasons(process_logger(trt))}")
    information = loaded.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    text = json.dumps(json.loads(information))
    wrong = [f"plugin layer {name} is missing" for name in nodes if name not in text]
    for tensor in stage.inputs:
        shapes = [tuple(shape) for shape in loaded.get_tensor_profile_shape(tensor.name, 0)]
        if shapes != [*dimensions(tensor, key.profile)]:
            wrong.append(f"{tensor.name} takes {shapes}")
    if wrong:
        raise AmsaError(f"{stage.name}: TensorRT built another engine than was asked for: {'; '.join(wrong)}")
    return loaded.num_layers, len(nodes), loaded.device_memory_size_v2


class _Phases:
    """Tells how far a build is; Ctrl-C ends it at the next step."""

    def __init__(self, progress: Progress | None, done: int, total: int, what: str) -> None:
        self._progress, self._done, self._total, self._what = progress, done, total, what
        self.interrupted = False

    def _tell(self, phase: str) -> bool:
        try:
            if self._progress is not None:
                self._progress(self._done, self._total, f"{self._what}: {phase}")
        except KeyboardInterrupt:
            self.interrupted = True
        return not self.interrupted

    def listener(self, trt: Any) -> Any:
        """This as TensorRT's IProgressMonitor."""
        phases = self

        class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()

            def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
                phases._tell(phase_name)

            def step_complete(self, phase_name: str, step: int) -> bool:
                return phases._tell(phase_name)

            def phase_finish(self, phase_name: str) -> None:
                pass

        return Monitor()
