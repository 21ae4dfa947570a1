"""What a model would take on a card that is not there, from its graphs and the card's published figures. Nothing is measured."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from ..._version import __version__
from ...config import VARIANTS
from ...errors import AmsaError
from ...manifest import ModelFolder
from ...plugins.gpus import GPUS, Gpu
from ..backends import SHIPPED_ENGINE_MODEL
from ..engine_cache import SUFFIX, Sidecar, plugins_hash, read_sidecar
from ..tensorrt_build import engines_folder
from ..tiling import TILE
from .halving import Priced, to_halve
from .machine import machine
from .picture_work import Sizes, Workload
from .results import Estimate, EstimatedLayer, Profile
from .roofline import LAUNCH_US, assumptions, cost


def find_gpu(name: str) -> Gpu:
    """A card by its name, as "rtx2080ti", "RTX 2080 Ti", "GeForce RTX 2080-Ti" or "2080ti". AmsaError lists those known."""
    wanted = _plain(name)
    for gpu in GPUS:
        if wanted == _plain(gpu.name):
            return gpu
    raise AmsaError(f"unknown GPU {name!r}; choose one of {', '.join(gpu.name for gpu in GPUS)}")


def _plain(name: str) -> str:
    """A card's name as it is compared: without makers, brands, case, spaces and dashes."""
    return re.sub(r"^(nvidia)?(geforce|tesla)?(rtx)?(?=.)", "", re.sub(r"[^a-z0-9]", "", name.lower()))


def open_model(model: str | Path | None) -> ModelFolder:
    """The model to estimate: exported, so with graphs to read; None: the shipped one in float16. AmsaError where it is none."""
    name = str(model)
    if name.endswith(".safetensors") or (name in VARIANTS and not Path(name).exists()):
        raise AmsaError(f"{model}: estimates read an exported model; make one: amsa export {model} -o FOLDER --precision fp16")
    return ModelFolder.open(model or SHIPPED_ENGINE_MODEL)


def estimate(
    model: ModelFolder | str | Path | None,
    gpu: str,
    lr: tuple[int, int],
    refs: Sequence[tuple[int, int]],
    restored: int | None = None,
    engines: str | Path | None = None,
) -> Estimate:
    """Estimate what one picture takes, with all its references encoded anew.

    Args:
        model: exported folder or `.amsa` file; None: the shipped one in float16.
        gpu: the card's name, see `find_gpu`.
        lr, refs: (width, height) in pixels.
        restored: how many of the references at all their scales are restored; None: all.
        engines: folder that `amsa build -o` wrote to; None: beside the model. Where none are for the card, scratch memory is
            None; nothing is built.

    Raises:
        AmsaError: no such model or card; sizes that the runtime does not take; `engines` without any of this model for the card;
            the package onnx is missing.
    """
    card = find_gpu(gpu)
    folder = model if isinstance(model, ModelFolder) else open_model(model)
    sizes = Sizes(lr, refs, restored)
    workload = Workload(folder)
    work, larger = (
        [Priced(stage, kernel, times, cost(kernel, card)) for stage, kernel, times in workload.of(of)]
        for of in (sizes, replace(sizes, tile=2 * TILE))
    )
    sidecars = _engines(folder, card.sm, None if engines is None else Path(engines))
    layers = _layers(work)
    return Estimate(
        gpu=card.name,
        sm=card.sm,
        precision=folder.manifest.precision + (" with int8 layers" if folder.manifest.int8_layers else ""),
        layers=layers,
        launches=round(sum(layer.calls for layer in layers)),
        launch_us=LAUNCH_US,
        scratch_mb=max(sidecar.scratch for sidecar in sidecars) / 1e6 if sidecars else None,
        to_halve=to_halve(work, larger, card),
        assumptions=[*assumptions(card), *_sizes_said(folder, sizes), _engines_said(sidecars)],
    )


def only_estimates(
    model: str | Path | None,
    gpus: Sequence[str],
    lr: tuple[int, int],
    refs: Sequence[tuple[int, int]],
    engines: str | Path | None = None,
) -> Profile:
    """A profile of estimates alone; arguments and errors as those of `estimate`, for any number of cards."""
    folder = open_model(model)
    config = folder.manifest.config
    return Profile(
        version=__version__,
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        model=str(folder.path),
        variant=config.variant,
        trained=folder.manifest.trained,
        lr=lr,
        refs=refs,
        ref_scales=config.ref_scales,
        restored=config.ref_scales * len(refs),
        machine=machine(None),
        measured=(),
        estimates=[estimate(folder, gpu, lr, refs, engines=engines) for gpu in gpus],
        notes=(),
    )


def _layers(work: Sequence[Priced]) -> list[EstimatedLayer]:
    """Kernels of one name, at all sizes, as one layer; in the order in which they first run."""
    groups: dict[tuple[str, str, str], list[Priced]] = {}
    for item in work:
        groups.setdefault((item.stage, item.kernel.name, item.kernel.op), []).append(item)
    layers = []
    for (stage, name, op), items in groups.items():
        longest = max(items, key=lambda item: item.times * item.cost.roofline)
        layers.append(
            EstimatedLayer(
                stage=stage,
                name=name,
                op=op,
                calls=sum(item.times * item.kernel.launches for item in items),
                macs=sum(item.times * item.kernel.macs for item in items),
                bytes=sum(item.times * item.kernel.bytes for item in items),
                bound=longest.cost.bound,
                roofline_ms=sum(item.times * item.cost.roofline for item in items),
                low_ms=sum(item.low for item in items),
                high_ms=sum(item.high for item in items),
            )
        )
    return layers


def stage_times(estimate: Estimate) -> dict[str, tuple[float, float, float]]:
    """By stage, in order: milliseconds low and high, time between kernels included, and launches."""
    sums: dict[str, tuple[float, float, float]] = {}
    for layer in estimate.layers:
        low, high, launches = sums.get(layer.stage, (0.0, 0.0, 0.0))
        between = layer.calls * estimate.launch_us / 1e3
        sums[layer.stage] = low + layer.low_ms + between, high + layer.high_ms + between, launches + layer.calls
    return sums


def _engines(folder: ModelFolder, sm: str, given: Path | None) -> list[Sidecar]:
    """What is known of the model's engines for a compute capability; none where there are none."""
    root = given or engines_folder(folder.path)
    stages = [name for name in folder.graphs if name != "match_exact"]
    build = f"amsa build {folder.path} --target {sm}" + (f" -o {given}" if given else "")
    for place in sorted(root.glob(f"*-{folder.manifest.precision}")):
        if sm not in place.name.split("-")[1].split("+"):
            continue
        try:
            found = [read_sidecar(place / f"{name}{SUFFIX}") for name in stages]
            if all(s.key.onnx == folder.manifest.graphs[s.key.stage].sha256 and s.key.plugins == plugins_hash() for s in found):
                return found
            reason = f"{place} holds engines of another export or version of amsa"
        except AmsaError as e:
            reason = str(e)
        if given is None:
            warnings.warn(f"scratch memory is not known: {reason}; build them again with: {build}", stacklevel=3)
            return []
        raise AmsaError(f"{reason}; build them again with: {build}")
    if given is not None:
        raise AmsaError(f"{root}: no {folder.manifest.precision} engines for {sm}; build them with: {build}")
    return []


def _sizes_said(folder: ModelFolder, sizes: Sizes) -> list[str]:
    config = folder.manifest.config
    runs = sizes.runs(config)
    matched, restored, tiles = (sum(r.times for r in runs if r.stage == stage) for stage in ("match", "restore", "finish"))
    side = sizes.tile + 2 * config.halo
    counted = f"{tiles} tiles of at most {side} LR pixels a side, halos of {config.halo} included" if tiles > 1 else "one tile"
    return [
        f"{folder.path.name}: {config.variant}, {folder.manifest.precision}; {matched} references at a scale are encoded and "
        f"matched, the {restored // tiles} largest are restored, in {counted}."
    ]


def _engines_said(sidecars: Sequence[Sidecar]) -> str:
    if not sidecars:
        return "No engines were looked into: scratch memory is not known, and kernels are counted in the graphs."
    layers = ", ".join(f"{sidecar.key.stage} {sidecar.layers}" for sidecar in sidecars)
    key = sidecars[0].key
    return (
        "Scratch memory is that of the stage that needs most, at the largest sizes that the engines take "
        f"({key.runtime}, {key.target}). Kernels are counted in the graphs; the engines have {layers} layers."
    )
