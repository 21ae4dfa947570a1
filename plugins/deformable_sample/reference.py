"""DeformableSample in PyTorch: the readable, differentiable definition that every other implementation is tested against."""

from __future__ import annotations

import torch
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


def deformable_sample(value: Tensor, match: Tensor, offset_mask: Tensor, *, scale: int, groups: int) -> Tensor:
    """DeformableSample as declared in `spec.py`."""
    n, c = match.shape[0], value.shape[1]
    rows, cols = value.shape[2:]
    height, width = offset_mask.shape[2:]
    group = c // groups
    logits = offset_mask[:, -9 * groups :].float().view(-1, groups, 9, height, width)
    y, x = tap_positions(match, scale).float()[:, :, None].unbind(1)  # [N, 1, 9, H, W] each
    if offset_mask.shape[1] == 27 * groups:
        offset = offset_mask[:, : 18 * groups].float().view(-1, groups, 9, 2, height, width)
        y, x = y + offset[:, :, :, 0], x + offset[:, :, :, 1]
    # Beyond a pixel outside the value everything is zero; the clamp only keeps the integers small.
    y, x = y.clamp(-1, rows), x.clamp(-1, cols)
    top, left = y.floor(), x.floor()
    # [N * groups * rows * cols, group]: one row per pixel, so that a corner is a memory copy.
    table = value.float().view(-1, groups, group, rows, cols).permute(0, 1, 3, 4, 2).reshape(-1, group)
    batch = torch.arange(n, device=value.device).clamp_max(value.shape[0] - 1).view(-1, 1, 1, 1, 1)
    base = (batch * groups + torch.arange(groups, device=value.device).view(-1, 1, 1, 1)) * (rows * cols)
    total = torch.zeros((), device=value.device)
    for i in (0, 1):
        for j in (0, 1):
            corner_y, corner_x = top + i, left + j
            weight = (1 - (y - corner_y).abs()) * (1 - (x - corner_x).abs())
            weight = weight * ((corner_y >= 0) & (corner_y < rows) & (corner_x >= 0) & (corner_x < cols))
            index = base + corner_y.long().clamp(0, rows - 1) * cols + corner_x.long().clamp(0, cols - 1)
            shape = (n, groups, 9, height, width, group)
            total = total + weight.expand(shape[:-1])[..., None] * table[index.expand(shape[:-1]).flatten()].view(shape)
    samples = total * logits.sigmoid()[..., None]  # [N, G, 9, H, W, C/G]
    return samples.permute(0, 2, 1, 5, 3, 4).reshape(n, 9 * c, height, width).to(value.dtype)
