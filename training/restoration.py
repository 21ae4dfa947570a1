"""The restoration stage: what a step computes and which losses it has."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engine.references import round_up
from ..model.matching import fusion_weights
from ..model.network import AMSA
from ..plugins.deformable_sample.reference import tap_positions
from ..stages import REF_MULTIPLE, SCALE, VALUE_SCALES
from .matching import Exhaustive, exhaustive_match

# How far a refined position may be from its match to be learned from, in pixels of its scale: further is another place.
_REACH = 3.0
# Temperature of the contrastive loss: relevances of neighbours differ by about a tenth.
_TEMPERATURE = 0.05
# Every seventh patch is asked for: neighbours say the same, and all of them would cost a quarter of a step.
_ANCHOR_STEP = 7


@dataclass(frozen=True)
class Losses:
    """Terms of a step's loss, and the picture's PSNR."""

    pixel: Tensor
    contrastive: Tensor
    flow: Tensor
    psnr: Tensor


def scale_ref(ref: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """A reference shrunk by a factor as the runtime does it, padded; and its valid size, int32 [1, 2]."""
    height, width = (int(side * factor) for side in ref.shape[2:])
    small = F.interpolate(ref, size=(height, width), mode="bicubic", antialias=True) if factor < 1 else ref
    pad = (0, round_up(width, REF_MULTIPLE) - width, 0, round_up(height, REF_MULTIPLE) - height)
    return F.pad(small, pad, mode="replicate"), torch.tensor([[height // SCALE, width // SCALE]], dtype=torch.int32)


def restore_batch(model: AMSA, batch: dict[str, Tensor], exponents: list[int]) -> tuple[Tensor, Losses]:
    """Restore a batch from its reference at scales k^exponent; returns the picture and the losses."""
    config = model.config
    lr, hr = batch["lr"], batch["hr"]
    queries, content = model.encode_lr(lr)
    towers, relevances = [], []
    contrastive, flow_loss = lr.new_zeros(()), lr.new_zeros(())
    for exponent in exponents:
        factor = config.ref_factor**exponent
        ref, valid = scale_ref(batch["ref"], factor)
        keys, values, masks = model.encode_ref(ref)
        found = exhaustive_match(queries[0], keys[0], valid, config.cosine)
        features, flows = model.restore.tower(content, found.match, values, masks)
        towers.append(features)
        relevances.append(found.relevance)
        # Positions in this scale's reference, in pixels of the matching grid.
        position = ((batch["position"] + 0.5) * factor) / SCALE - 0.5
        contrastive = contrastive + contrastive_loss(found, position, batch["known"], valid, keys[0].shape[3] - 2)
        flow_loss = flow_loss + flow_consistency(flows, found.match, position, batch["known"])
    weights = fusion_weights(relevances, config.sharpness)
    accumulator = torch.zeros_like(towers[0])
    for features, weight in zip(towers, weights, strict=True):
        accumulator = accumulator + features * F.interpolate(weight, scale_factor=SCALE, mode="nearest")
    sr = model.finish(accumulator, lr)
    n = len(exponents)
    psnr = -10 * torch.log10((sr.detach().clamp(0, 1) - hr).square().mean((1, 2, 3)) + 1e-8).mean()
    return sr, Losses(F.l1_loss(sr, hr), contrastive / n, flow_loss / n, psnr)


def contrastive_loss(found: Exhaustive, position: Tensor, known: Tensor, valid: Tensor, cols: int) -> Tensor:
    """Cross-entropy of known patches against all patches of the reference (InfoNCE over the matching's own scores).

    Args:
        found: all patches. position: [N, 2, h, w], true centres on the matching grid.
        known: bool [N, h, w]. valid: int [1, 2]. cols: patch columns of the reference.
    """
    corner = position[:, :, 1:-1, 1:-1].round().long() - 1  # a patch is named by its top-left corner
    limit = (valid.long() - 2).view(1, 2, 1, 1)
    usable = known[:, 1:-1, 1:-1] & ((corner >= 0) & (corner < limit)).all(1)
    target = torch.where(usable, corner[:, 0] * cols + corner[:, 1], -1).flatten(1)[:, ::_ANCHOR_STEP]
    scores = torch.bmm(found.queries[:, :, ::_ANCHOR_STEP].transpose(1, 2), found.keys) / _TEMPERATURE
    scores = scores.masked_fill(~found.inside, -torch.inf).flatten(0, 1)
    total = F.cross_entropy(scores, target.flatten(), ignore_index=-1, reduction="sum")
    return total / (target >= 0).sum().clamp_min(1)


def flow_consistency(flows: list[Tensor], match: Tensor, position: Tensor, known: Tensor) -> Tensor:
    """L1 between where each scale's flow leads and the truth, where the match is near the truth; in pixels of the scale."""
    total = position.new_zeros(())
    for scale, flow in zip(VALUE_SCALES, flows, strict=False):
        truth = F.interpolate((position + 0.5) * scale, size=flow.shape[2:], mode="bilinear") - 0.5
        begin = tap_positions(match, scale)[:, :, 4].float()
        residual = truth - begin
        near = (residual.abs() < _REACH).all(1) & F.interpolate(known[:, None].float(), size=flow.shape[2:])[:, 0].bool()
        if near.any():
            total = total + (flow - residual).abs().mean(1)[near].mean() / len(VALUE_SCALES)
    return total
