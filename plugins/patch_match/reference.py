"""PatchMatch in PyTorch: the readable definition that every other implementation is tested against."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .schedule import JITTER_X, JITTER_Y, TAPS, Step, confined_valid, level_valid, steps

# The published code's guard when it normalises a reference patch.
EPSILON = 1e-12


# What a score that is not a number, or below, counts as. So a candidate that is not a number never wins over one that is.
LOWEST = torch.finfo(torch.float32).min


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric int8 with one scale: float32 [..] -> whole numbers from -127 to 127 in float32 [..], and the largest magnitude.

    What is not finite counts as zero, and a tensor whose magnitudes stay below 1e-30 as all zero.
    """
    x = torch.where(x.isfinite(), x, 0.0)
    largest = x.abs().max()
    largest = torch.where(largest < 1e-30, 0.0, largest)
    # Not `127 / largest`: torch computes that as 127 * (1 / largest), which rounds twice.
    scale = torch.where(largest > 0, torch.full_like(largest, 127) / largest, 0.0)
    return (x * scale).round().clamp(-127, 127), largest


class Patches:
    """3x3 patches of a query and a reference feature map, scored without ever unfolding them.

    Args:
        query: [Q, C, Hq, Wq] with Q = 1 or N.
        ref: [N, C, Hr, Wr]; rows and columns from `valid` on count as zero.
        valid: per batch element (rows, columns) of `ref` that hold picture.
        pad: 1: patches centred on a position, zeros outside; 0: whole patches, position = top-left corner.
        arithmetic: as in `spec.py`; with "int8" N is 1.
    """

    def __init__(self, query: Tensor, ref: Tensor, valid: Tensor, pad: int, arithmetic: str = "float") -> None:
        n, c, rows, cols = ref.shape
        device = ref.device
        inside_rows = torch.arange(rows, device=device) < valid[:, :1]
        inside_cols = torch.arange(cols, device=device) < valid[:, 1:]
        inside = inside_rows[:, None, :, None] & inside_cols[:, None, None, :]
        query, ref = query.float(), torch.where(inside, ref.float(), 0.0)
        self.unit: Tensor | float = 1.0
        """What a score is multiplied with to be the float score: the query's quantization step."""
        floor = EPSILON**2
        if arithmetic == "int8":
            query, largest = quantize(query)
            ref, _ = quantize(ref)
            self.unit, floor = largest / torch.full_like(largest, 127), 1.0
        # Gathering rows of a channels-last table is a memory copy per position, 5x faster than gather on NCHW.
        self.query = F.pad(query, (pad,) * 4).permute(0, 2, 3, 1).expand(n, -1, -1, -1)
        ref = F.pad(ref, (pad,) * 4)
        self.table = ref.permute(0, 2, 3, 1).reshape(-1, c).contiguous()
        """[N * rows * columns, C], padded."""
        # A pixel's sum is exact in int8 arithmetic (see INT8_CHANNELS); the nine are added where 9 * 2^24 is exact too.
        energy = F.avg_pool2d(ref.square().sum(1, keepdim=True).double(), 3, 1, divisor_override=1)
        # Clamped before the root: its gradient at zero is infinite. The root in float64, rounded, is the correctly rounded one
        # of float32; torch's own of float32 is off by one unit in the last place now and then.
        self.inverse_norm = energy.clamp_min(floor).float().double().sqrt().float().reciprocal().flatten()
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
        total = torch.zeros(y.shape, device=y.device, dtype=torch.float64)
        for i in range(3):
            for j in range(3):
                sample = self.table[(row + (i * self.pitch + j)).flatten()].view(*y.shape, -1)
                total = total + (self.query[:, i : i + self.height, j : j + self.width] * sample).sum(-1)
        score = total.float() * self.inverse_norm[(self._norm_base + y * self._norm_pitch + x).flatten()].view(y.shape)
        return torch.where(score > LOWEST, score, LOWEST)


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


def exact(patches: Patches) -> tuple[Tensor, Tensor, Tensor]:
    """The best of all positions, the first of equals in row-major order, for a batch of one: (y, x, score), [1, H, W] each."""
    limit_y, limit_x = patches.count[0].tolist()
    y = torch.zeros((1, patches.height, patches.width), dtype=torch.int64, device=patches.table.device)
    x, best = y, patches.score(y, y)
    for row in range(limit_y):
        for col in range(limit_x):
            score = patches.score(torch.full_like(y, row), torch.full_like(x, col))
            better = score > best
            y, x = torch.where(better, row, y), torch.where(better, col, x)
            best = torch.where(better, score, best)
    return y, x, best


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
        fine = fine.clamp_min(0).minimum(count[:, :, None, None] - 1)
    else:
        rows = torch.arange(fine.shape[2], device=fine.device) % 2
        cols = torch.arange(fine.shape[3], device=fine.device) % 2
        parity = torch.stack((rows[:, None].expand(-1, len(cols)), cols[None, :].expand(len(rows), -1)))
        # A centre c has its patch's top-left corner at c - 1.
        fine = (2 * fine + parity - (1 - pad)).clamp_min(0).minimum(count[:, :, None, None] - 1)
    if pad == 0:
        fine = fine[:, :, 1:-1, 1:-1]
    return fine[:, 0], fine[:, 1]


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
    arithmetic: str = "float",
) -> tuple[Tensor, Tensor]:
    """PatchMatch as declared in `spec.py`. Batch elements are independent: each equals its own run alone."""
    n, _, rows, cols = ref.shape
    valid, init = valid.expand(n, -1).long(), init.expand(n, -1, -1, -1).long()
    matches, scores = [], []
    for b in range(n):  # the schedule depends on the valid size, which may differ within a batch
        size = [confined_valid(int(v), side, level) for v, side in zip(valid[b], (rows, cols), strict=True)]
        inside = torch.tensor([[max(level_valid(v, level), 3 - 2 * pad) for v in size]], device=ref.device)
        q = query[b : b + 1] if query.shape[0] > 1 else query
        patches = Patches(q, ref[b : b + 1], inside, pad, arithmetic)
        if schedule == "exact":
            y, x, score = exact(patches)
        else:
            if init_scale == 2:
                coarse = torch.tensor([[level_valid(v, level + 1) for v in size]], device=ref.device)
                y, x = hand_over(init[b : b + 1], schedule == "published", pad, coarse, patches.count)
            else:
                start = init[b : b + 1].clamp_min(0).minimum(patches.count[:, :, None, None] - 1)
                y, x = start[:, 0], start[:, 1]
            path = steps(schedule, iterations, level, (query.shape[2], query.shape[3]), (size[0], size[1]))
            y, x, score = search(patches, y, x, path, schedule == "published")
        matches.append(torch.stack((y, x), 1))
        scores.append((score * patches.unit)[:, None])
    return torch.cat(matches).int(), torch.cat(scores)


def relevance_of(query: Tensor, ref: Tensor, valid: Tensor, match: Tensor, *, level: int, pad: int) -> Tensor:
    """Scores of given matches, differentiable in `query` and `ref`: float32 [N, 1, H, W]."""
    n = ref.shape[0]
    most = torch.tensor(ref.shape[2:], device=ref.device) << level
    inside = -torch.div(-valid.long().clamp_min(1).minimum(most), 2**level, rounding_mode="floor")
    patches = Patches(query, ref, inside.clamp_min(3 - 2 * pad).expand(n, -1), pad)
    return patches.score(match[:, 0].long(), match[:, 1].long())[:, None]
