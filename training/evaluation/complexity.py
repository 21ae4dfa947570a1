"""What matching and the network cost in multiply-accumulates (MACs), counted without computing anything.

The paper's Table 2 gives matching costs as "GFLOPs"; they are 10^9 MACs (`paper_table2`). The other functions count what
this project's schedules and networks really do. Sizes are (rows, columns) throughout.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from ...config import AMSAConfig
from ...engine.references import lr_and_scales, round_up
from ...errors import AmsaError
from ...plugins.patch_match.schedule import TAPS, steps
from ...stages import KEY_LEVELS, LR_MULTIPLE, SCALE

if TYPE_CHECKING:
    from torch import nn

    from ...model.network import AMSA

Size = tuple[int, int]

PATCH = 3
"""Side of the patches that are compared."""
BILINEAR_MACS = 4
"""DeformableSample reads four corners per sampled channel; coordinates, masks and offsets are not counted."""


def _patches(hw: Size) -> int:
    """Whole 3x3 patches of a feature map."""
    if min(hw) < PATCH:
        raise AmsaError(f"features of {hw[0]}x{hw[1]} hold no whole {PATCH}x{PATCH} patch; both sides must be at least {PATCH}")
    return (hw[0] - PATCH + 1) * (hw[1] - PATCH + 1)


def enumerated_macs(query_hw: Size, ref_hw: Size, channels: int) -> int:
    """MACs to compare every whole 3x3 patch of the query features with every one of the reference features."""
    return _patches(query_hw) * _patches(ref_hw) * PATCH**2 * channels


@dataclass(frozen=True)
class LevelCost:
    """One level of the coarse-to-fine search.

    Attributes:
        level: the grid is 2^level times coarser than the finest.
        positions: that look for a match.
        scores: patch comparisons per position.
        macs: of all comparisons. The norms of the patches, one pass over the features, are not in it.
    """

    level: int
    positions: int
    scores: int
    macs: int


def patch_match_macs(
    schedule: str, iterations: tuple[int, ...], query_hw: Size, ref_hw: Size, channels: int
) -> tuple[LevelCost, ...]:
    """What our PatchMatch evaluates for one reference at one scale, coarsest level first.

    An upper bound: every step scores all nine candidates, even one that it or an earlier step has scored already. The
    positions are those of the LR picture, so the reference's size counts only through `published`'s number of dilations.

    Args:
        schedule: "published", "paper" or "fast" (plugins/patch_match).
        iterations: M of each level, coarsest first, as in `AMSAConfig`.
        query_hw: the finest query features, padded here to multiples of 8 as the runtime does.
        ref_hw: the part of the finest reference features that is picture.
        channels: of queries and keys.
    """
    padded = (round_up(query_hw[0], LR_MULTIPLE), round_up(query_hw[1], LR_MULTIPLE))
    costs = []
    for level in reversed(range(len(KEY_LEVELS))):
        grid = (padded[0] >> level, padded[1] >> level)
        positions = _patches(grid) if level == 0 else grid[0] * grid[1]  # coarser levels pad, as `Matcher` asks for
        scores = len(TAPS) * len(steps(schedule, iterations[-1 - level], level, grid, ref_hw))
        costs.append(LevelCost(level, positions, scores, positions * scores * PATCH**2 * channels))
    return tuple(costs)


# ------------------------------------------------------------------------------------------------ the paper's Table 2

PAPER_SIDE, PAPER_CHANNELS, PAPER_ITERATIONS, PAPER_SCALES = 250, 256, (1, 1, 2, 6), 5
"""Section 5 (ablation) and section 4.2."""


class Table2Row(NamedTuple):
    """MACs of a row of Table 2.

    Attributes:
        one: for one reference.
        five: for five reference scales as printed: `one` times the sum of 0.8^i.
        five_by_size: for five reference scales by their sizes. A reference shrunk by 0.8 per side has 0.64 of the area,
            so enumeration costs less than printed; PatchMatch's cost does not depend on the reference's size, so it costs
            five times one.
    """

    one: float
    five: float
    five_by_size: float


def paper_table2() -> dict[str, Table2Row]:
    """The matching costs of Table 2 by our reading of them, which docs/complexity.md explains; GFLOPs there are 10^9 of these.

    PatchMatch (section 3.1): a level's positions are its whole patches, (250 / 2^level - 2)^2, not rounded. Each is scored
    once to begin with, and then M * log2(sqrt(N) / 8) times by an LR and a Ref propagation of nine candidates each, where
    N = 248^2 at every level and the logarithm is not rounded either.
    """
    finest = PAPER_SIDE - PATCH + 1
    dilations = math.log2(finest / 8)
    scores = 0.0
    for level, m in enumerate(reversed(PAPER_ITERATIONS)):
        scores += (PAPER_SIDE / 2**level - PATCH + 1) ** 2 * (1 + 2 * len(TAPS) * m * dilations)
    sides = [int(PAPER_SIDE * 0.8**i) for i in range(PAPER_SCALES)]
    hw = (PAPER_SIDE, PAPER_SIDE)
    enumerated = enumerated_macs(hw, hw, PAPER_CHANNELS)
    embedded = scores * PATCH**2 * PAPER_CHANNELS
    printed = sum(0.8**i for i in range(PAPER_SCALES))
    by_size = sum(enumerated_macs(hw, (side, side), PAPER_CHANNELS) for side in sides)
    return {
        "CFE-PatchMatch": Table2Row(embedded, embedded * printed, embedded * PAPER_SCALES),
        "Enumerated Matching": Table2Row(enumerated, enumerated * printed, by_size),
    }


# ------------------------------------------------------------------------------------------------ a network's stages


@dataclass(frozen=True)
class NetworkCost:
    """MACs of a network's stages for one LR picture and one reference photo.

    Convolutions, PatchMatch and the samples of DeformableSample are counted; resampling, activations, norms, pooling,
    sums and the correlation of `refine` are not. Neither are the halos of tiles: the runtime's cost in one tile.

    Attributes:
        encode_lr, finish: once per picture.
        encode_ref, match, restore: per scale of the reference, scale 1 first.
        enumerated: per scale, what exhaustive matching of the finest features would take instead of `match`.
    """

    encode_lr: int
    encode_ref: tuple[int, ...]
    match: tuple[int, ...]
    restore: tuple[int, ...]
    finish: int
    enumerated: tuple[int, ...]

    @property
    def total(self) -> int:
        """All stages, all scales."""
        return self.encode_lr + sum(self.encode_ref) + sum(self.match) + sum(self.restore) + self.finish


def network_macs(config: AMSAConfig, lr_hw: Size, ref_hw: Size) -> NetworkCost:
    """Count a network's stages for an LR picture and a reference photo of any sizes. Needs torch, but computes nothing.

    Raises:
        AmsaError: a side below the runtime's least, 16 pixels of LR and 64 of the reference.
    """
    import torch

    from ...model.network import AMSA

    lr, scales = lr_and_scales(config, lr_hw, ref_hw)
    with torch.device("meta"):  # shapes without data
        model = AMSA(config)
    # Published scales are all of one size.
    counted = {scale: _graph_macs(model, lr, scale.picture) for scale in dict.fromkeys(scales)}
    first, *_ = counted.values()
    args = config.schedule, config.iterations, lr
    return NetworkCost(
        encode_lr=first["encode_lr"],
        encode_ref=tuple(counted[s]["encode_ref"] for s in scales),
        match=tuple(sum(level.macs for level in patch_match_macs(*args, s.valid, config.key_channels)) for s in scales),
        restore=tuple(counted[s]["restore"] for s in scales),
        finish=first["finish"],
        enumerated=tuple(enumerated_macs(lr, s.valid, config.key_channels) for s in scales),
    )


def _graph_macs(model: AMSA, lr: Size, picture: Size) -> dict[str, int]:
    """MACs of the convolutions and samples of each stage, for a reference picture of this size."""
    import torch

    from ...model.stage_modules import stage_modules

    macs = {}
    with torch.device("meta"), torch.no_grad():
        tensors = {
            "lr": torch.empty(1, 3, *lr),
            "ref": torch.empty(1, 3, *picture),
            "valid": torch.empty(1, 2, dtype=torch.int32),
            "seed": torch.empty(1, dtype=torch.int32),
            "weight": torch.empty(1, 1, *lr),
            "accumulator": torch.empty(1, model.config.channels[-1], SCALE * lr[0], SCALE * lr[1]),
        }
        for stage, module in stage_modules(model):
            macs[stage.name], outputs = count_macs(module, *(tensors[t.name] for t in stage.inputs))
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            tensors.update(zip((t.name for t in stage.outputs), outputs, strict=True))
    return macs


def count_macs(module: nn.Module, *inputs: Any) -> tuple[int, Any]:
    """MACs of a module's convolutions, matrix products and deformable samples on these inputs, and its outputs."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from ...plugins import torch_ops as _register_ops  # noqa: F401  (imported for torch.ops.amsa)

    def sample_flops(*_: Any, out_shape: torch.Size, **__: Any) -> int:
        return 2 * BILINEAR_MACS * out_shape.numel()

    mapping = {torch.ops.amsa.deformable_sample: sample_flops}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        outputs = module(*inputs)
    return counter.get_total_flops() // 2, outputs  # torch counts a MAC as two


def table(config: AMSAConfig, lr_hw: Size, ref_hw: Size) -> str:
    """`network_macs` as a Markdown table in 10^9 MACs: a row per stage, a column per scale of the reference, and the sum."""
    cost = network_macs(config, lr_hw, ref_hw)
    once = ("",) * config.ref_scales
    rows: list[tuple[str, tuple[int | str, ...], int]] = [
        ("encode_lr", once, cost.encode_lr),
        *((name, getattr(cost, name), sum(getattr(cost, name))) for name in ("encode_ref", "match", "restore")),
        ("finish", once, cost.finish),
        ("all", once, cost.total),
        ("enumerated, instead of match", cost.enumerated, sum(cost.enumerated)),
    ]
    scales = [f"scale {config.ref_factor**i:.3g}" for i in range(config.ref_scales)]
    lines = [["GMACs", *scales, "sum"], ["---", *["---:"] * (len(scales) + 1)]]
    lines += [[name, *(v if isinstance(v, str) else _giga(v) for v in (*parts, total))] for name, parts, total in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def parse_size(text: str) -> Size:
    """WIDTHxHEIGHT, as pictures' sizes are written -> (rows, columns)."""
    found = re.fullmatch(r"([0-9]{1,6})x([0-9]{1,6})", text)
    if found is None:
        raise AmsaError(f"{text!r} is not a size; write WIDTHxHEIGHT, for example 250x250")
    return int(found[2]), int(found[1])


def _giga(macs: int) -> str:
    return f"{macs / 1e9:.3f}"
