"""Exhaustive matching for training: at crop sizes faster than PatchMatch in PyTorch, and differentiable in its scores."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def exhaustive_match(query: Tensor, key: Tensor, valid: Tensor, cosine: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The best reference patch of every query patch, by comparing all.

    Args:
        query: [N, C, h, w], the finest queries. key: [N, C, Hk, Wk], the finest keys.
        valid: int [1|N, 2], rows and columns of `key` that are picture.
        cosine: as in the config.

    Returns:
        match and relevance as `Matcher` returns them (relevance differentiable), and all scores
        [N, (h-2)*(w-2), (Hk-2)*(Wk-2)], -inf where not valid.
    """
    n, _, height, width = query.shape
    rows, cols = key.shape[2] - 2, key.shape[3] - 2
    q = F.unfold(query, 3) / (3 if cosine else 1)
    k = F.normalize(F.unfold(key, 3), dim=1)
    inside_rows = torch.arange(rows, device=key.device) < valid[:, :1] - 2
    inside_cols = torch.arange(cols, device=key.device) < valid[:, 1:] - 2
    inside = (inside_rows[:, :, None] & inside_cols[:, None, :]).flatten(1)[:, None]
    scores = torch.einsum("ncp,ncr->npr", q, k).masked_fill(~inside, -torch.inf)
    best, index = scores.max(2)
    found = torch.stack((index // cols, index % cols), 1).view(n, 2, height - 2, width - 2).int()
    own = torch.stack(torch.meshgrid(*(torch.arange(-2, s, device=key.device) for s in (height, width)), indexing="ij")).int()
    match = own.expand(n, -1, -1, -1).clone()
    match[:, :, 2:-2, 2:-2] = found
    return match, F.pad(best.view(n, 1, height - 2, width - 2), (1, 1, 1, 1)), scores
