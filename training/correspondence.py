"""The matching stages: keys of sharp pairs by contrastive correspondence, then the LR picture's by knowledge distillation.

As the paper says (section 3), after C2-Matching (Jiang et al. 2021): positions that show the same place are pulled together
and the hardest other place is pushed away by a margin; the student, who sees the blurred picture, also learns the teacher's
whole distribution over places.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..engine.references import round_up
from ..model.features import VGGKeys, unit
from ..model.network import AMSA
from ..model.resample import upscale_bicubic
from ..stages import REF_MULTIPLE, SCALE
from .distributed import ratio
from .recipe import Recipe

_MARGIN = 1.0
# Nearer than this to the truth, in positions, another place of the reference is no negative.
_SAFE_RADIUS = 4.0
# Temperature of the distributions that the student learns.
_TEMPERATURE = 0.15


class TeacherObjective(nn.Module):
    """Contrastive correspondence of a sharp picture and its reference, through `encode_ref.keys`."""

    trains = ("encode_ref.keys",)

    def __init__(self, recipe: Recipe, model: AMSA) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, Tensor], _: int) -> tuple[dict[str, Tensor], None]:
        """The terms by the names of `Weights`; there is no picture."""
        query, key = (finest(_vgg_keys(self.model.encode_ref.keys), batch[name]) for name in ("hr", "ref"))
        with torch.autocast(query.device.type, enabled=False):
            return {"contrastive": margin_loss(query.float(), key.float(), batch["position"], batch["known"])}, None


class StudentObjective(nn.Module):
    """`encode_lr.keys` on the enlarged LR picture learn to agree with the teacher's on the sharp one."""

    trains = ("encode_lr.keys",)

    def __init__(self, recipe: Recipe, model: AMSA) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, Tensor], _: int) -> tuple[dict[str, Tensor], None]:
        """The terms by the names of `Weights`; there is no picture."""
        teacher, student = _vgg_keys(self.model.encode_ref.keys), _vgg_keys(self.model.encode_lr.keys)
        with torch.no_grad():
            sharp, key = finest(teacher, batch["hr"]), finest(teacher, batch["ref"])
        query = finest(student, upscale_bicubic(batch["lr"]))
        with torch.autocast(query.device.type, enabled=False):
            query, sharp, key = query.float(), sharp.float(), key.float()
            return {
                "contrastive": margin_loss(query, key, batch["position"], batch["known"]),
                "distillation": distillation_loss(query, sharp, key),
            }, None


def begin_student(model: AMSA) -> None:
    """The student begins as a copy of the teacher."""
    _vgg_keys(model.encode_lr.keys).load_state_dict(_vgg_keys(model.encode_ref.keys).state_dict())


def _vgg_keys(keys: nn.Module) -> VGGKeys:
    assert isinstance(keys, VGGKeys), "recipes of variants without keys of their own have no matching stages"
    return keys


def finest(keys: VGGKeys, picture: Tensor) -> Tensor:
    """Keys at the matching grid, normalised: [N, 3, H, W] -> [N, C, H/4, W/4]."""
    pad = [round_up(side, REF_MULTIPLE) - side for side in picture.shape[2:]]
    padded = F.pad(picture, (0, pad[1], 0, pad[0]), mode="replicate") if any(pad) else picture
    features = unit(keys.vgg(padded)["conv3_1"])
    return features[:, :, : picture.shape[2] // SCALE, : picture.shape[3] // SCALE]


def margin_loss(query: Tensor, key: Tensor, position: Tensor, known: Tensor) -> Tensor:
    """Mean over known positions of max(0, 1 + distance to the true place - distance to the nearest wrong one).

    Args:
        query: [N, C, h, w], unit vectors. key: [N, C, Hk, Wk], likewise.
        position: [N, 2, h, w], where each query's centre truly lies in the reference (y, x), in the reference's pixels.
        known: bool [N, h, w], where that is known.
    """
    rows, cols = key.shape[2:]
    truth = (position + 0.5) / SCALE - 0.5
    grid = torch.stack(((2 * truth[:, 1] + 1) / cols - 1, (2 * truth[:, 0] + 1) / rows - 1), -1)
    there = unit(F.grid_sample(key, grid, padding_mode="border", align_corners=False))
    right = 2 - 2 * (query * there).sum(1).flatten(1)
    products = torch.bmm(query.flatten(2).transpose(1, 2), key.flatten(2))
    y = torch.arange(rows, device=key.device).repeat_interleave(cols)
    x = torch.arange(cols, device=key.device).repeat(rows)
    t = truth.flatten(2)[..., None]
    near = ((t[:, 0] - y).abs() < _SAFE_RADIUS) & ((t[:, 1] - x).abs() < _SAFE_RADIUS)
    wrong = 2 - 2 * products.masked_fill(near, -1).max(2).values
    usable = known.flatten(1)
    return ratio(F.relu(_MARGIN + right - wrong)[usable].sum(), usable.sum())


def distillation_loss(query: Tensor, sharp: Tensor, key: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the student's distribution over places from the teacher's, per position.

    Args:
        query, sharp: [N, C, h, w], the student's and the teacher's unit vectors of one picture. key: [N, C, Hk, Wk].
    """
    flat = key.flatten(2)
    student, teacher = (torch.bmm(f.flatten(2).transpose(1, 2), flat) / _TEMPERATURE for f in (query, sharp))
    divergence = F.kl_div(student.log_softmax(2), teacher.log_softmax(2), log_target=True, reduction="sum")
    return divergence / (student.shape[0] * student.shape[1])
