"""What a model folder, checkpoint or TensorRT engine contains and needs, as data."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..config import AMSAConfig
from ..errors import AmsaError
from ..manifest import FILE_NAME, ModelFolder
from ..plugins import DOMAIN, OPS
from ..stages import LR_MIN, REF_MIN, SCALE
from .engine_cache import SUFFIX, load_engine, plugins_hash, read_sidecar
from .plan_facts import read_plan


@dataclass(frozen=True)
class GraphReport:
    """A graph: its size and its inputs and outputs with dimensions."""

    name: str
    bytes: int
    signature: str


@dataclass(frozen=True)
class Report:
    """What `amsa inspect` prints."""

    title: str
    graphs: list[GraphReport]
    needs: list[str]
    config: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def inspect_path(path: str | Path) -> Report:
    """Describe a model as `inspect_model` does, an engine file, or a folder of engines. AmsaError where it is none."""
    path = Path(path)
    if path.suffix == SUFFIX and not path.is_dir():
        return _engines(path, [path])
    if path.is_dir() and not (path / FILE_NAME).exists() and (files := sorted(path.glob(f"**/*{SUFFIX}"))):
        return _engines(path, files)
    return inspect_model(path)


def inspect_model(path: str | Path) -> Report:
    """Describe a model folder, `.amsa` file or checkpoint, every hash checked. AmsaError where it is none."""
    path = Path(path)
    if path.suffix == ".safetensors":
        return _checkpoint(path)
    folder = ModelFolder.open(path)
    manifest = folder.manifest
    graphs = []
    for stage in manifest.config.stages(manifest.precision):
        inputs, outputs = (
            ", ".join(f"{t.name}[{','.join(map(str, t.dims))}]{'' if t.dtype == 'float32' else ' ' + t.dtype}" for t in tensors)
            for tensors in (stage.inputs, stage.outputs)
        )
        graphs.append(GraphReport(stage.name, manifest.graphs[stage.name].size, f"{inputs} -> {outputs}"))
    state = "trained" if manifest.trained else "untrained weights"
    bodies = "are in the files" if manifest.function_bodies else "are not in the files: ONNX Runtime needs amsa's CPU kernels"
    needs = [
        f"opset {manifest.opset}; ops {', '.join(f'{DOMAIN}::{op.name}' for op in OPS)}, whose function bodies {bodies}",
        *_picture_needs(manifest.config),
    ]
    if manifest.int8_layers:
        needs.append(f"{len(manifest.int8_layers)} layers are int8: {', '.join(manifest.int8_layers)}")
    if manifest.float32_layers:
        needs.append(f"{len(manifest.float32_layers)} layers are kept in float32: {', '.join(manifest.float32_layers)}")
    precision = manifest.precision + (" with int8 layers" if manifest.int8_layers else "")
    title = f"{path}: {manifest.config.variant}, {precision}, {state}; files as exported (hashes agree)"
    return Report(title, graphs, needs, manifest.config.to_dict())


def _engines(path: Path, files: list[Path]) -> Report:
    """Engines need no sidecar to be described: what one lacks or contradicts is said. A damaged engine is an error."""
    graphs, needs = [], []
    for file in files:
        graph, lines = _engine(file, file.name if file == path else str(file.relative_to(path)))
        graphs.append(graph)
        needs += lines
    what = "engine" if len(files) == 1 else f"{len(files)} engines"
    return Report(f"{path}: {what} of TensorRT", graphs, needs, {})


def _engine(file: Path, label: str) -> tuple[GraphReport, list[str]]:
    try:
        content = file.read_bytes()
    except OSError as e:
        raise AmsaError(f"{file}: cannot be read ({e.strerror})") from e
    lines, sidecar = [], None
    try:
        sidecar = read_sidecar(file)
        k = sidecar.key
        machine = f" on {k.machine}" if k.machine else ""
        sizes = ", ".join(f"{word} {'/'.join(map(str, triple))}" for word, triple in k.profile.items())
        by = f"by {k.runtime} for {k.target}{machine}, in {sidecar.seconds} s"
        lines.append(f"{label}: {k.stage}, {k.precision}, {by}; sizes {sizes}")
        lines.append(f"{label}: ONNX {k.onnx[:16]}, plugin sources {k.plugins[:16]}")
        load_engine(file)
        lines.append(f"{label}: as built (checksum agrees)")
        if k.plugins != plugins_hash():
            lines.append(f"{label}: its plugins are of another version of amsa; build it again with `amsa build`")
    except AmsaError as e:
        lines.append(str(e))
    if sidecar is not None and not sidecar.key.runtime.startswith("tensorrt_rtx"):
        figures = f"{sidecar.layers} layers, {sidecar.plugins} plugins, scratch {sidecar.scratch / 1e6:.0f} MB (from its sidecar)"
        return GraphReport(label.removesuffix(SUFFIX), len(content), figures), lines
    facts = read_plan(content, file)
    convolutions = " + ".join(f"{n} of {dtype}" for dtype, n in sorted(facts.convolutions.items())) or "none"
    figures = (
        f"{' '.join(facts.targets)}, {facts.layers} layers, {len(facts.plugins)} plugins, convolutions: {convolutions}, "
        f"scratch {facts.scratch / 1e6:.0f} MB"
    )
    sizes = ", ".join(f"{low}..{high}" for low, high in sorted(facts.bounds)) or "fixed"
    lines.append(f"{label}: plan of TensorRT-RTX {facts.version}; sizes of its dimensions {sizes}")
    for plugin in facts.plugins:
        tensors = [f"{name} {facts.tensors.get(name, '?')}{' HWC' * (name in facts.channels_last)}" for name in plugin.inputs]
        lines.append(f"{label}: plugin {plugin.name} takes {', '.join(tensors)}; {len(plugin.transposed)} transposes around it")
    return GraphReport(label.removesuffix(SUFFIX), len(content), figures), lines


def _picture_needs(config: AMSAConfig) -> list[str]:
    lines = [
        f"LR pictures from {LR_MIN} pixels a side, references from {REF_MIN}; output x{SCALE}",
        f"each reference is used at scales {config.ref_factor}^0 .. {config.ref_factor}^{config.ref_scales - 1}",
    ]
    if config.published_protocol:
        lines.append("published protocol: LR and references are zero-padded to one common size")
    return lines


def _checkpoint(path: Path) -> Report:
    """Read a safetensors file's header: its length, then JSON. No weight is loaded and torch is not needed."""
    try:
        with path.open("rb") as f:
            (length,) = struct.unpack("<Q", f.read(8))
            header = json.loads(f.read(min(length, path.stat().st_size)))
        metadata = json.loads(header.pop("__metadata__")["amsa"])
        config = AMSAConfig.from_dict(metadata["config"])
        weights = sum(_size(tensor["shape"]) for tensor in header.values())
    except AmsaError as e:
        raise AmsaError(f"{path}: its {e}") from e
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
        struct.error,
    ) as e:
        raise AmsaError(f"{path}: not a checkpoint of amsa ({type(e).__name__}: {e})") from e
    state = "trained" if metadata.get("trained") else "untrained weights"
    title = f"{path}: checkpoint, {config.variant}, {weights / 1e6:.2f} M weights, {path.stat().st_size / 1e6:.1f} MB, {state}"
    return Report(title, [], ["torch to run or export it: pip install 'amsa[export]'", *_picture_needs(config)], config.to_dict())


def _size(shape: list[int]) -> int:
    size = 1
    for side in shape:
        size *= int(side)
    return size
