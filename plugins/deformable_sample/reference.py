"""DeformableSample in PyTorch: the readable, differentiable definition that every other implementation is tested against."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def tap_positions(match: Tensor, scale: int) -> Tensor:
    """Where each tap of each output pixel samples, before learned offsets: [N, 2, h+2, w+2] -> int64 [N, 2, 9, H, W]."""
    n, _, rows, cols = match.shape
    device = match.device
    height, width = scale * (rows - 2), scale * (cols - 2)
    r, c = torch.arange(height, device=device), torch.arange(width, device=device)
    taps = torch.arange(3, device=device)
    # Tap i reads the match of the patch anchored i positions earlier; the grid starts at anchor -2.
    anchor_rows = r // scale - taps[:, None] + 2
    anchor_cols = c // scale - taps[:, None] + 2
    m = match.long()[:, :, anchor_rows][:, :, :, :, anchor_cols]  # [N, 2, 3, H, 3, W]
    m = scale * m.permute(0, 1, 2, 4, 3, 5)  # [N, 2, 3, 3, H, W]
    # Within the matched patch: the pixel's place in its position, the tap's place in the patch, the kernel's own offset.
    y = m[:, 0] + (r % scale)[:, None] + ((scale + 1) * taps - 1).view(3, 1, 1, 1)
    x = m[:, 1] + (c % scale) + ((scale + 1) * taps - 1).view(1, 3, 1, 1)
    return torch.stack((y, x), 1).view(n, 2, 9, height, width)


def sampling_field(match: Tensor, offset_mask: Tensor, *, scale: int, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, columns and mask of every sample, float32 [1|N, 1|groups, 9, H, W] each."""
    height, width = offset_mask.shape[2:]
    mask = offset_mask[:, -9 * groups :].float().reshape(-1, groups, 9, height, width).sigmoid()
    y, x = tap_positions(match, scale).float()[:, :, None].unbind(1)
    if offset_mask.shape[1] == 27 * groups:
        offset = offset_mask[:, : 18 * groups].float().reshape(-1, groups, 9, 2, height, width)
        y, x = y + offset[:, :, :, 0], x + offset[:, :, :, 1]
    return y, x, mask


def deformable_sample(value: Tensor, match: Tensor, offset_mask: Tensor, *, scale: int, groups: int) -> Tensor:
    """DeformableSample as declared in `spec.py`."""
    n, c = match.shape[0], value.shape[1]
    rows, cols = value.shape[2:]
    height, width = offset_mask.shape[2:]
    group = c // groups
    y, x, mask = sampling_field(match, offset_mask, scale=scale, groups=groups)
    # Beyond a pixel outside the value everything is zero; the clamp only keeps the integers small.
    y, x = y.clamp(-1, rows), x.clamp(-1, cols)
    top, left = y.detach().floor(), x.detach().floor()
    # One row per pixel: [N * groups * rows * cols, group].
    table = value.float().reshape(-1, groups, group, rows, cols).permute(0, 1, 3, 4, 2).reshape(-1, group)
    batch = torch.arange(n, device=value.device).clamp_max(value.shape[0] - 1).view(-1, 1, 1, 1, 1)
    base = (batch * groups + torch.arange(groups, device=value.device).view(-1, 1, 1, 1)) * (rows * cols)
    indices, weights = [], []
    for i in (0, 1):
        for j in (0, 1):
            corner_y, corner_x = top.long() + i, left.long() + j
            inside = (corner_y >= 0) & (corner_y < rows) & (corner_x >= 0) & (corner_x < cols)
            weight = (y - top if i else 1 - (y - top)) * (x - left if j else 1 - (x - left)) * inside * mask
            index = base + corner_y.clamp(0, rows - 1) * cols + corner_x.clamp(0, cols - 1)
            shape = (n, groups, 9, height, width)
            indices.append(index.expand(shape))
            weights.append(weight.expand(shape))
    # A weighted sum of four table rows per sample; 3x faster on a CPU than four gathers and as many products.
    samples = F.embedding_bag(
        torch.stack(indices, -1).view(-1, 4),
        table,
        per_sample_weights=torch.stack(weights, -1).view(-1, 4),
        mode="sum",
    ).view(n, groups, 9, height, width, group)
    return samples.permute(0, 2, 1, 5, 3, 4).reshape(n, 9 * c, height, width).to(value.dtype)
