"""The restoration stage: what a step computes and which losses it has (paper, section 3.3)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..engine.references import round_up
from ..model.matching import fusion_weights
from ..model.network import AMSA
from ..stages import REF_MULTIPLE, SCALE, VALUE_SCALES
from .adversarial import Perceptual
from .distributed import ratio
from .matching import Patches, exhaustive_match, unfold_patches
from .recipe import Recipe

# How far from the truth a refined position may be to be learned from, in LR pixels: further is another place.
_REACH = 2.0
# Temperature of the contrastive loss: relevances of neighbours differ by about a tenth.
_TEMPERATURE = 0.05
# Every seventh patch is asked for: neighbours say the same, and all of them would cost a quarter of a step.
_ANCHOR_STEP = 7


class RestorationObjective(nn.Module):
    """Restores a batch and says how well: L1, and by the recipe's weights the other terms.

    Args:
        recipe: of the stage.
        model: the network, trained in place.
    """

    def __init__(self, recipe: Recipe, model: AMSA) -> None:
        super().__init__()
        self.recipe, self.model = recipe, model
        self.perceptual = Perceptual(recipe.imagenet, recipe.seed) if recipe.weights.perceptual else None

    def forward(self, batch: dict[str, Tensor], step: int) -> tuple[dict[str, Tensor], Tensor]:
        """The terms by the names of `Weights` (adversarial: added by the loop), and the picture [N, 3, H, W]."""
        recipe, config = self.recipe, self.model.config
        rng = np.random.default_rng((recipe.seed, step))
        exponents = list(range(recipe.scales))
        if rng.random() < recipe.extra_scale and recipe.scales < config.ref_scales:
            exponents.append(int(rng.integers(recipe.scales, config.ref_scales)))
        sr, contrastive, flow = restore(self.model, batch, exponents, recipe.matching, step)
        terms = {"pixel": F.l1_loss(sr, batch["hr"]), "contrastive": contrastive, "flow": flow}
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual(sr, batch["hr"])
        return terms, sr


def scale_ref(ref: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """A reference shrunk by a factor as the runtime does it, padded; and its valid size, int32 [1, 2]."""
    height, width = (int(side * factor) for side in ref.shape[2:])
    small = F.interpolate(ref, size=(height, width), mode="bicubic", antialias=True) if factor < 1 else ref
    pad = (0, round_up(width, REF_MULTIPLE) - width, 0, round_up(height, REF_MULTIPLE) - height)
    valid = torch.tensor([[height // SCALE, width // SCALE]], dtype=torch.int32, device=ref.device)
    return F.pad(small, pad, mode="replicate"), valid


def restore(
    model: AMSA, batch: dict[str, Tensor], exponents: list[int], matching: str = "patch_match", seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Restore a batch from its reference at scales k^exponent.

    Args:
        model: the network. exponents: of the scales.
        batch: as `ReferencePairs` makes it; without `position` and `known` both terms are zero.
        matching: as in the recipe. seed: of PatchMatch's initial matches.

    Returns:
        The picture [N, 3, 4h, 4w], not clamped; the contrastive and the flow term.
    """
    config = model.config
    lr = batch["lr"]
    queries, content = model.encode_lr(lr)
    towers, relevances = [], []
    contrastive, flow_loss = lr.new_zeros(()), lr.new_zeros(())
    known = batch.get("known")  # validation has none
    first = None
    for exponent in exponents:
        factor = config.ref_factor**exponent
        ref, valid = scale_ref(batch["ref"], factor)
        keys, values, masks = model.encode_ref(ref)
        if config.published_protocol:  # values of scale 0 for every scale
            first = first or (values, masks)
            values, masks = first
        with torch.autocast(lr.device.type, enabled=False):
            query, key = ([f.float() for f in pyramid] for pyramid in (queries, keys))
            if matching == "exhaustive":
                match, relevance = exhaustive_match(query[0], key[0], valid, config.cosine)
            else:
                seeds = torch.tensor([seed], dtype=torch.int32, device=lr.device)
                match, relevance = model.match(tuple(query), tuple(key), valid, seeds)
            if known is not None:
                # Positions in this scale's reference, in pixels of the matching grid.
                position = ((batch["position"] + 0.5) * factor) / SCALE - 0.5
                patches = unfold_patches(query[0], key[0], valid, config.cosine)
                contrastive = contrastive + contrastive_loss(patches, position, known, valid, key[0].shape[3] - 2)
        features, found_at = model.restore.tower(content, match, values, masks)
        towers.append(features)
        relevances.append(relevance)
        if known is not None:
            flow_loss = flow_loss + flow_consistency(found_at, position, known)
    weights = fusion_weights(relevances, config.sharpness)
    accumulator = torch.zeros_like(towers[0])
    for features, weight in zip(towers, weights, strict=True):
        accumulator = accumulator + features * F.interpolate(weight, scale_factor=SCALE, mode="nearest")
    n = len(exponents)
    return model.finish(accumulator, lr), contrastive / n, flow_loss / n


def contrastive_loss(patches: Patches, position: Tensor, known: Tensor, valid: Tensor, cols: int) -> Tensor:
    """Cross-entropy of known patches against all patches of the reference (InfoNCE over the matching's own scores).

    Args:
        patches: all of them. position: [N, 2, h, w], true centres on the matching grid.
        known: bool [N, h, w]. valid: int [1, 2]. cols: patch columns of the reference.
    """
    corner = position[:, :, 1:-1, 1:-1].round().long() - 1  # a patch is named by its top-left corner
    limit = (valid.long() - 2).view(1, 2, 1, 1)
    usable = known[:, 1:-1, 1:-1] & ((corner >= 0) & (corner < limit)).all(1)
    target = torch.where(usable, corner[:, 0] * cols + corner[:, 1], -1).flatten(1)[:, ::_ANCHOR_STEP]
    scores = torch.bmm(patches.queries[:, :, ::_ANCHOR_STEP].transpose(1, 2), patches.keys) / _TEMPERATURE
    scores = scores.masked_fill(~patches.inside, -torch.inf).flatten(0, 1)
    total = F.cross_entropy(scores, target.flatten(), ignore_index=-1, reduction="sum")
    return ratio(total, (target >= 0).sum())


def flow_consistency(found: list[Tensor], position: Tensor, known: Tensor) -> Tensor:
    """L1 between where each scale found the content and the truth, where it is near; in pixels of the scale.

    Args:
        found: per scale [N, 2, s*h, s*w], from the own position. position: [N, 2, h, w], true centres on the matching
            grid. known: bool [N, h, w].
    """
    total = position.new_zeros(())
    rows, cols = (torch.arange(side, device=position.device, dtype=torch.float32) for side in position.shape[2:])
    truth = position - torch.stack((rows[:, None].expand(position.shape[2:]), cols[None, :].expand(position.shape[2:])))
    for scale, place in zip(VALUE_SCALES, found, strict=False):
        error = (place - scale * F.interpolate(truth, size=place.shape[2:], mode="bilinear")).abs()
        near = (error.detach() < _REACH * scale).all(1) & F.interpolate(known[:, None].float(), size=place.shape[2:])[:, 0].bool()
        total = total + ratio(error.mean(1)[near].sum(), near.sum()) / len(VALUE_SCALES)
    return total
