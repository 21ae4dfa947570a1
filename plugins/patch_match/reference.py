"""PatchMatch in PyTorch: the readable definition that every other implementation is tested against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from .schedule import JITTER_X, JITTER_Y, TAPS, Step, level_valid, steps

# The published code's guard when it normalises a reference patch.
EPSILON = 1e-12


class Patches:
    """3x3 patches of a query and a reference feature map, scored without ever unfolding them.

    Args:
        query: [Q, C, Hq, Wq] with Q = 1 or N.
        ref: [N, C, Hr, Wr]; rows and columns from `valid` on count as zero.
        valid: per batch element (rows, columns) of `ref` that hold picture.
        pad: 1: patches centred on a position, zeros outside; 0: whole patches, position = top-left corner.
    """

    def __init__(self, query: Tensor, ref: Tensor, valid: Tensor, pad: int) -> None:
        n, c, rows, cols = ref.shape
        device = ref.device
        inside_rows = torch.arange(rows, device=device) < valid[:, :1]
        inside_cols = torch.arange(cols, device=device) < valid[:, 1:]
        inside = inside_rows[:, None, :, None] & inside_cols[:, None, None, :]
        # Gathering rows of a channels-last table is a memory copy per position, 5x faster than gather on NCHW.
        self.query = F.pad(query.float(), (pad,) * 4).permute(0, 2, 3, 1).expand(n, -1, -1, -1)
        ref = F.pad(ref.float() * inside, (pad,) * 4)
        self.table = ref.permute(0, 2, 3, 1).reshape(-1, c).contiguous()
        """[N * rows * columns, C], padded."""
        energy = F.avg_pool2d(ref.square().sum(1, keepdim=True), 3, 1, divisor_override=1)
        # Clamped before the root: its gradient at zero is infinite.
        self.inverse_norm = energy.clamp_min(EPSILON**2).sqrt().reciprocal().flatten()
        self.pitch = ref.shape[3]
        self._norm_pitch = ref.shape[3] - 2
        self._base = torch.arange(n, device=device).view(-1, 1, 1) * (ref.shape[2] * ref.shape[3])
        self._norm_base = torch.arange(n, device=device).view(-1, 1, 1) * ((ref.shape[2] - 2) * (ref.shape[3] - 2))
        self.height, self.width = self.query.shape[1] - 2, self.query.shape[2] - 2
        self.count = (valid - 2 + 2 * pad).long()
        """[N, 2]: how many reference positions (rows, columns) can be matched."""

    def score(self, y: Tensor, x: Tensor) -> Tensor:
        """Inner product of each query patch with the normalised reference patch at (y, x): int64 [N, H, W] -> float32."""
        row = self._base + y * self.pitch + x
        total = torch.zeros(y.shape, device=y.device)
        for i in range(3):
            for j in range(3):
                sample = self.table[(row + (i * self.pitch + j)).flatten()].view(*y.shape, -1)
                total = total + (self.query[:, i : i + self.height, j : j + self.width] * sample).sum(-1)
        return total * self.inverse_norm[(self._norm_base + y * self._norm_pitch + x).flatten()].view(y.shape)


def reflect(index: Tensor, size: int) -> Tensor:
    """Reflect indices into 0..size-1 without repeating the border (numpy's `reflect`), however far outside they lie."""
    period = max(2 * (size - 1), 1)
    index = index.abs() % period
    return torch.minimum(index, period - index)


def candidates(step: Step, y: Tensor, x: Tensor, count: Tensor, wrap: bool) -> tuple[Tensor, Tensor]:
    """The nine candidate matches of every position: int64 [N, H, W] each -> [9, N, H, W] each."""
    height, width = y.shape[1:]
    limit_y, limit_x = count[:, 0, None, None], count[:, 1, None, None]
    ys, xs = [], []
    for (dy, dx), jitter_y, jitter_x in zip(TAPS, JITTER_Y, JITTER_X, strict=True):
        if step.lr:  # Eq. 3 to 5: the neighbour's match is copied, not shifted, unless the schedule says so
            own_rows, own_cols = torch.arange(height, device=y.device), torch.arange(width, device=y.device)
            rows, cols = reflect(own_rows + step.dilation * dy, height), reflect(own_cols + step.dilation * dx, width)
            cy, cx = y[:, rows][:, :, cols], x[:, rows][:, :, cols]
            if step.shifted:
                cy = (cy - (rows - own_rows)[:, None]).clamp_min(0).minimum(limit_y - 1)
                cx = (cx - (cols - own_cols)).clamp_min(0).minimum(limit_x - 1)
            ys.append(cy)
            xs.append(cx)
        else:
            cy = y + (step.dilation * dy + step.jitter * jitter_y)
            cx = x + (step.dilation * dx + step.jitter * jitter_x)
            ys.append(cy % limit_y if wrap else cy.clamp_min(0).minimum(limit_y - 1))
            xs.append(cx % limit_x if wrap else cx.clamp_min(0).minimum(limit_x - 1))
    return torch.stack(ys), torch.stack(xs)


def propagate(patches: Patches, step: Step, y: Tensor, x: Tensor, wrap: bool) -> tuple[Tensor, Tensor, Tensor]:
    """One step: the best of nine candidates per position; ties go to the first. Returns (y, x, score)."""
    cy, cx = candidates(step, y, x, patches.count, wrap)
    best_y, best_x, best = cy[0], cx[0], patches.score(cy[0], cx[0])
    for k in range(1, 9):
        score = patches.score(cy[k], cx[k])
        better = score > best
        best_y, best_x = torch.where(better, cy[k], best_y), torch.where(better, cx[k], best_x)
        best = torch.where(better, score, best)
    return best_y, best_x, best


def search(patches: Patches, y: Tensor, x: Tensor, path: Sequence[Step], wrap: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Run the steps from the matches (y, x), int64 [N, H, W]; returns (y, x, score)."""
    score = torch.empty(0)
    for step in path:
        y, x, score = propagate(patches, step, y, x, wrap)
    return y, x, score


def hand_over(init: Tensor, published: bool, pad: int, coarse: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Matches of the next coarser level (centred patches) -> matches to start this level from, int64 [N, H, W] each.

    Args:
        init: int [N, 2, h, w].
        published: rescale the position to this level's range, round half to even, and repeat it for the four children;
            otherwise double it and keep each child's own offset.
        pad: this level's pad; with 0 the border positions have no whole patch and are dropped.
        coarse: [N, 2] matchable positions of the coarser level. count: [N, 2] those of this level.
    """
    fine = init.repeat_interleave(2, 2).repeat_interleave(2, 3)
    if published:
        scale = (count - 1).float()[:, :, None, None]
        fine = (fine * scale / (coarse - 1).clamp_min(1)[:, :, None, None]).round().long()
    else:
        rows = torch.arange(fine.shape[2], device=fine.device) % 2
        cols = torch.arange(fine.shape[3], device=fine.device) % 2
        parity = torch.stack((rows[:, None].expand(-1, len(cols)), cols[None, :].expand(len(rows), -1)))
        # A centre c has its patch's top-left corner at c - 1.
        fine = (2 * fine + parity - (1 - pad)).clamp_min(0).minimum(count[:, :, None, None] - 1)
    if pad == 0:
        fine = fine[:, :, 1:-1, 1:-1]
    return fine[:, 0], fine[:, 1]


Search: TypeAlias = "Callable[[Patches, Tensor, Tensor, Sequence[Step], bool], tuple[Tensor, Tensor, Tensor]]"
"""Takes the steps of a level from the matches (y, x) on; returns (y, x, score)."""


def patch_match(
    query: Tensor,
    ref: Tensor,
    valid: Tensor,
    init: Tensor,
    *,
    iterations: int,
    schedule: str,
    level: int,
    pad: int,
    init_scale: int,
    run: Search = search,
) -> tuple[Tensor, Tensor]:
    """PatchMatch as declared in `spec.py`. Batch elements are independent: each equals its own run alone.

    `run`: what takes the steps.
    """
    n = ref.shape[0]
    valid, init = valid.expand(n, -1), init.expand(n, -1, -1, -1).long()
    ceil = torch.tensor([[level_valid(int(v), level) for v in row] for row in valid], device=ref.device)
    matches, scores = [], []
    for b in range(n):  # the schedule depends on the valid size, which may differ within a batch
        q = query[b : b + 1] if query.shape[0] > 1 else query
        patches = Patches(q, ref[b : b + 1], ceil[b : b + 1], pad)
        if init_scale == 2:
            coarse = torch.tensor([[level_valid(int(v), level + 1) for v in valid[b]]], device=ref.device)
            y, x = hand_over(init[b : b + 1], schedule == "published", pad, coarse, patches.count)
        else:
            y, x = init[b : b + 1, 0], init[b : b + 1, 1]
        path = steps(schedule, iterations, level, (query.shape[2], query.shape[3]), (int(valid[b, 0]), int(valid[b, 1])))
        y, x, score = run(patches, y, x, path, schedule == "published")
        matches.append(torch.stack((y, x), 1))
        scores.append(score[:, None])
    return torch.cat(matches).int(), torch.cat(scores)


def relevance_of(query: Tensor, ref: Tensor, valid: Tensor, match: Tensor, *, level: int, pad: int) -> Tensor:
    """Scores of given matches, differentiable in `query` and `ref`: float32 [N, 1, H, W]."""
    n = ref.shape[0]
    ceil = -torch.div(-valid.long(), 2**level, rounding_mode="floor")
    patches = Patches(query, ref, ceil.expand(n, -1), pad)
    return patches.score(match[:, 0].long(), match[:, 1].long())[:, None]
