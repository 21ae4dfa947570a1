"""Exhaustive matching for training: at crop sizes faster than PatchMatch in PyTorch, and differentiable in its scores."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Exhaustive(NamedTuple):
    """What comparing all patches found.

    Attributes:
        match, relevance: as `Matcher` returns them; the relevance is differentiable.
        queries: [N, 9C, P], every query patch as the score sees it. keys: [N, 9C, R], every normalised reference patch;
            a score is the product of the two.
        inside: bool [1|N, 1, R], reference patches that are picture.
    """

    match: Tensor
    relevance: Tensor
    queries: Tensor
    keys: Tensor
    inside: Tensor


def exhaustive_match(query: Tensor, key: Tensor, valid: Tensor, cosine: bool) -> Exhaustive:
    """The best reference patch of every query patch, by comparing all.

    Args:
        query: [N, C, h, w], the finest queries. key: [N, C, Hk, Wk], the finest keys.
        valid: int [1|N, 2], rows and columns of `key` that are picture.
        cosine: as in the config.
    """
    n, _, height, width = query.shape
    rows, cols = key.shape[2] - 2, key.shape[3] - 2
    q = F.unfold(query, 3) / (3 if cosine else 1)
    k = F.normalize(F.unfold(key, 3), dim=1)
    inside_rows = torch.arange(rows, device=key.device) < valid[:, :1] - 2
    inside_cols = torch.arange(cols, device=key.device) < valid[:, 1:] - 2
    inside = (inside_rows[:, :, None] & inside_cols[:, None, :]).flatten(1)[:, None]
    with torch.no_grad():
        scores = torch.bmm(q.transpose(1, 2), k)
        index = (scores if inside.all() else scores.masked_fill_(~inside, -torch.inf)).argmax(2)
    best = (q * k.gather(2, index[:, None].expand(-1, k.shape[1], -1))).sum(1)
    found = torch.stack((index // cols, index % cols), 1).view(n, 2, height - 2, width - 2).int()
    own = torch.stack(torch.meshgrid(*(torch.arange(-2, s, device=key.device) for s in (height, width)), indexing="ij")).int()
    match = own.expand(n, -1, -1, -1).clone()
    match[:, :, 2:-2, 2:-2] = found
    return Exhaustive(match, F.pad(best.view(n, 1, height - 2, width - 2), (1, 1, 1, 1)), q, k, inside)
