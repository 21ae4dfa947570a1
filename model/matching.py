"""Coarse-to-Fine Embedded PatchMatch (paper, section 3.1; Figure 3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import AMSAConfig
from ..plugins import torch_ops as _register_ops  # noqa: F401  (imported for torch.ops.amsa)
from ..stages import KEY_LEVELS

# x -> x^5 is a permutation of the integers modulo 2^31 - 1 (5 does not divide 2^31 - 2), and every product stays below
# 2^62: a random-looking sequence from multiplications and remainders alone, which every runtime computes exactly.
_PRIME = 2**31 - 1


def _scramble(x: Tensor) -> Tensor:
    for multiplier, increment in ((48271, 1013904223), (1583458089, 374761393)):
        x = (x * multiplier + increment) % _PRIME
        square = x * x % _PRIME
        x = square * square % _PRIME * x % _PRIME
    return x


def initial_matches(seed: Tensor, height: int, width: int, count: Tensor) -> Tensor:
    """Random matches to begin with, from nothing but (seed, position): equal on every backend.

    Args:
        seed: int32 [1], any value from 0.
        height, width: the grid.
        count: int64 [N, 2], how many reference rows and columns there are to choose from.

    Returns:
        int32 [N, 2, height, width], (y, x).
    """
    index = torch.arange(height, device=seed.device)[:, None] * width + torch.arange(width, device=seed.device)
    begin = seed.long() * 1_000_003 % _PRIME
    draws = _scramble(2 * index + torch.arange(2, device=seed.device)[:, None, None] + begin)
    # `//`, not torch.div: the latter is exported as a float32 division.
    return (draws * count[:, :, None, None] // _PRIME).int()


class Matcher(nn.Module):
    """Finds for every LR position the most relevant position of a reference: by four PatchMatch levels, coarse to fine, or
    exactly, by comparing all."""

    def __init__(self, config: AMSAConfig) -> None:
        super().__init__()
        self.schedule = config.schedule
        self.iterations = config.iterations
        self.cosine = config.cosine
        self.arithmetic = config.arithmetic

    def forward(
        self,
        queries: tuple[Tensor, ...],
        keys: tuple[Tensor, ...],
        valid: Tensor,
        seed: Tensor,
        init: Tensor | None = None,
        exact: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Match K (queries, from LR) against Q (keys, from a reference).

        Args:
            queries: [N, C, h, w] at 1/1, 1/2, 1/4, 1/8; h and w multiples of 8.
            keys: [N, C, Hk, Wk] likewise.
            valid: int32 [1|N, 2], rows and columns of the finest keys that are picture.
            seed: int32 [1].
            init: matches to begin with at 1/8, int32 [N, 2, h/8, w/8]; None draws them from the seed.
            exact: take the best of all positions of the finest keys instead of PatchMatch; nothing is random then.

        Returns:
            match: int32 [N, 2, h+2, w+2]: H, (y, x) of each patch's top-left corner, for anchors -2 to h-1 and -2 to
                w-1; anchors without a whole patch hold their own position (zero flow).
            relevance: float32 [N, 1, h, w]: S (Eq. 2) at each patch's centre, zero on the border.
        """
        match, relevance = (
            self._exact(queries[0], keys[0], valid) if exact else self._patch_match(queries, keys, valid, seed, init)
        )
        height, width = queries[0].shape[2:]
        rows = torch.arange(-2, height, device=match.device, dtype=torch.int32)
        cols = torch.arange(-2, width, device=match.device, dtype=torch.int32)
        own = torch.stack((rows[:, None].expand(-1, width + 2), cols[None, :].expand(height + 2, -1)))
        flow = match - own[:, 2:-2, 2:-2]
        # With unit vectors in all nine pixels a query patch has norm 3: S / 3 is the cosine of Eq. 1.
        relevance = relevance / 3 if self.cosine else relevance
        return F.pad(flow, (2, 2, 2, 2)) + own, F.pad(relevance, (1, 1, 1, 1))

    def _patch_match(
        self, queries: tuple[Tensor, ...], keys: tuple[Tensor, ...], valid: Tensor, seed: Tensor, init: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Matches and their scores, corners of whole patches: int32 [N, 2, h-2, w-2], float32 [N, 1, h-2, w-2]."""
        match = init
        if match is None:
            coarsest = (valid.long() + 7) // 8
            match = initial_matches(seed, queries[-1].shape[2], queries[-1].shape[3], coarsest)
        relevance = match
        for level in reversed(range(len(KEY_LEVELS))):
            match, relevance = torch.ops.amsa.patch_match(
                queries[level],
                keys[level],
                valid,
                match,
                iterations=self.iterations[-1 - level],
                schedule=self.schedule,
                level=level,
                pad=int(level > 0),
                init_scale=1 if level == len(KEY_LEVELS) - 1 else 2,
                arithmetic=self.arithmetic,
            )
        return match, relevance

    def _exact(self, query: Tensor, key: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        unused = torch.zeros((1, 2, query.shape[2] - 2, query.shape[3] - 2), dtype=torch.int32, device=key.device)
        match, relevance = torch.ops.amsa.patch_match(
            query,
            key,
            valid,
            unused,
            iterations=1,
            schedule="exact",
            level=0,
            pad=0,
            init_scale=1,
            arithmetic=self.arithmetic,
        )
        return match, relevance


def fusion_weights(relevances: list[Tensor], sharpness: float) -> list[Tensor]:
    """S' of Eq. 9: softmax over all references and scales, [N, 1, h, w] each."""
    return list(torch.softmax(sharpness * torch.stack(relevances), 0))
