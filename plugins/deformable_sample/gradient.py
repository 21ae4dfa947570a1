"""Gradients of DeformableSample through `grid_sample`: 2x faster on a CPU than through the reference's table sums.

Its normalised coordinates round to about 1e-7 of the picture's side, which the values would show but a gradient does not.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .reference import sampling_field


def differentiable_sample(value: Tensor, match: Tensor, offset_mask: Tensor, *, scale: int, groups: int) -> Tensor:
    """DeformableSample but for rounding, differentiable in `value` and `offset_mask`."""
    n, c = match.shape[0], value.shape[1]
    rows, cols = value.shape[2:]
    height, width = offset_mask.shape[2:]
    y, x, mask = (t.expand(n, groups, -1, -1, -1) for t in sampling_field(match, offset_mask, scale=scale, groups=groups))
    # Two pixels outside everything is zero; further would only overflow.
    y, x = y.clamp(-2, rows + 1), x.clamp(-2, cols + 1)
    grid = torch.stack(((2 * x + 1) / cols - 1, (2 * y + 1) / rows - 1), -1).reshape(n * groups, 9 * height, width, 2)
    pixels = value.float().expand(n, -1, -1, -1).reshape(n * groups, c // groups, rows, cols)
    samples = F.grid_sample(pixels, grid, padding_mode="zeros", align_corners=False)
    samples = samples.view(n, groups, c // groups, 9, height, width) * mask[:, :, None]
    return samples.permute(0, 3, 1, 2, 4, 5).reshape(n, 9 * c, height, width).to(value.dtype)
