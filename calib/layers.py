"""A model's layers: which may be int8, the blocks that are tried together, and how much each computes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import onnx
from onnx import ModelProto

from ..config import AMSAConfig
from ..engine.references import lr_and_scales
from ..export.layer_precision import conv_layers
from ..manifest import ModelFolder
from ..stages import SCALE

# Matching decides which pixels are shown, and 8-bit keys changed half of the matches; offsets, masks, flow and votes are places
# and choices, where a step of int8 is a visible jump; the last convolutions make the picture itself.
_NEVER = re.compile(r"encode_(ref|lr)\.keys\..*|finish\..*|.*\b(offset_mask|flow|flow_vote|warp_masks?(\.\d+)?)")
_PICTURE_CHANNELS = 3
_BLOCK = re.compile(r"(?P<residual>.*\.body\.\d+)\.conv[12]|(?P<offsets>.*\.offset_conv)[12]")


def model_graphs(folder: ModelFolder) -> dict[str, ModelProto]:
    """The graphs that have layers, by stage."""
    graphs = {stage: onnx.load_from_string(content) for stage, content in folder.graphs.items()}
    return {stage: graph for stage, graph in graphs.items() if conv_layers(graph)}


def candidates(graphs: Mapping[str, ModelProto]) -> list[str]:
    """Layers that may be int8, in the order in which they run: not matching, not those that read a picture or make one, not those
    that give offsets, masks, flow or votes."""
    found = []
    for graph in graphs.values():
        shapes = {tensor.name: tensor.dims for tensor in graph.graph.initializer}
        for layer, node in conv_layers(graph).items():
            if not _NEVER.fullmatch(layer) and shapes[node.input[1]][1] > _PICTURE_CHANNELS:
                found.append(layer)
    return found


def blocks(layers: Iterable[str]) -> dict[str, list[str]]:
    """Layers by what they are tried together with: the two of a residual block, the two before the offsets, others alone."""
    found: dict[str, list[str]] = {}
    for layer in layers:
        block = _BLOCK.fullmatch(layer)
        found.setdefault((block["residual"] or block["offsets"]) if block else layer, []).append(layer)
    return found


def layer_macs(config: AMSAConfig, lr_hw: tuple[int, int], ref_hw: tuple[int, int]) -> dict[str, int]:
    """Multiply-accumulates of every layer for a whole picture and one reference photo at all its scales. Needs torch, computes
    nothing.

    Args:
        config: of the network.
        lr_hw, ref_hw: (rows, columns) of the LR picture and of the reference.
    """
    import torch
    from torch import nn

    from ..model.network import AMSA
    from ..model.stage_modules import stage_modules

    macs: dict[str, int] = {}
    times = 1

    def count(name: str) -> Any:
        def hook(module: Any, _: Any, output: Any) -> None:
            macs[name] = macs.get(name, 0) + times * output.shape[2] * output.shape[3] * module.weight.numel()

        return hook

    lr, scales = lr_and_scales(config, lr_hw, ref_hw)
    with torch.device("meta"), torch.no_grad():
        model = AMSA(config)
        tensors = {
            "lr": torch.empty(1, 3, *lr),
            "weight": torch.empty(1, 1, *lr),
            "match": torch.empty(1, 2, lr[0] + 2, lr[1] + 2, dtype=torch.int32),
            "accumulator": torch.empty(1, config.channels[-1], SCALE * lr[0], SCALE * lr[1]),
        }
        for stage, module in stage_modules(model):
            if stage.name.startswith("match"):
                continue
            hooks = [m.register_forward_hook(count(n)) for n, m in module.named_modules() if isinstance(m, nn.Conv2d)]
            runs = [scale.picture for scale in scales] if stage.name == "encode_ref" else [scales[0].picture]
            times = len(scales) if stage.name == "restore" else 1  # its cost does not depend on the reference's size
            for picture in reversed(runs):
                tensors["ref"] = torch.empty(1, 3, *picture)
                outputs = module(*(tensors[t.name] for t in stage.inputs))
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            tensors.update(zip((t.name for t in stage.outputs), outputs, strict=True))
            for hook in hooks:
                hook.remove()
    return macs
