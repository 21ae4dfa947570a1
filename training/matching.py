"""Patches and their scores for training: all against all, which at crop sizes is affordable, and differentiable."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Patches(NamedTuple):
    """3x3 patches as the matching's score sees them; a score is the product of two.

    Attributes:
        queries: [N, 9C, P], every query patch. keys: [N, 9C, R], every normalised reference patch.
        inside: bool [1|N, 1, R], reference patches that are picture.
    """

    queries: Tensor
    keys: Tensor
    inside: Tensor


def unfold_patches(query: Tensor, key: Tensor, valid: Tensor, cosine: bool) -> Patches:
    """All patches of two feature maps.

    Args:
        query: [N, C, h, w], the finest queries. key: [N, C, Hk, Wk], the finest keys.
        valid: int [1|N, 2], rows and columns of `key` that are picture.
        cosine: as in the config.
    """
    rows, cols = key.shape[2] - 2, key.shape[3] - 2
    inside_rows = torch.arange(rows, device=key.device) < valid[:, :1] - 2
    inside_cols = torch.arange(cols, device=key.device) < valid[:, 1:] - 2
    inside = (inside_rows[:, :, None] & inside_cols[:, None, :]).flatten(1)[:, None]
    return Patches(F.unfold(query, 3) / (3 if cosine else 1), F.normalize(F.unfold(key, 3), dim=1), inside)


def exhaustive_match(query: Tensor, key: Tensor, valid: Tensor, cosine: bool) -> tuple[Tensor, Tensor]:
    """The best reference patch of every query patch, by comparing all: match and relevance as `Matcher` returns them.

    The relevance is differentiable. Arguments as of `unfold_patches`.
    """
    n, _, height, width = query.shape
    cols = key.shape[3] - 2
    queries, keys, inside = unfold_patches(query, key, valid, cosine)
    with torch.no_grad():
        scores = torch.bmm(queries.transpose(1, 2), keys)
        index = (scores if inside.all() else scores.masked_fill_(~inside, -torch.inf)).argmax(2)
    best = (queries * keys.gather(2, index[:, None].expand(-1, keys.shape[1], -1))).sum(1)
    found = torch.stack((index // cols, index % cols), 1).view(n, 2, height - 2, width - 2).int()
    own = torch.stack(torch.meshgrid(*(torch.arange(-2, s, device=key.device) for s in (height, width)), indexing="ij")).int()
    match = own.expand(n, -1, -1, -1).clone()
    match[:, :, 2:-2, 2:-2] = found
    return match, F.pad(best.view(n, 1, height - 2, width - 2), (1, 1, 1, 1))
