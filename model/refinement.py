"""Ours, for the small variant: dynamic aggregation around refined positions instead of around integer matches.

Matches are whole LR pixels and jump from one to the next, while what they mean is smooth. So the nine taps, which read the
matches of nine overlapping patches, are taken as nine proposals for each position; the ones that look right are averaged,
and the finer scales search the eight pixels around what the coarser one found.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import AMSAConfig
from ..stages import VALUE_SCALES
from .layers import as_features, conv3, lrelu

# What makes squared distances of keys about as large as the features they stand beside.
_GAIN = 10.0
# Beyond this many LR pixels from the middle one, a proposal is just another place.
_FAR = 4.0
# Distances are averaged over this many positions a side before the best tap is guessed.
_WINDOW = 7
# How sharply the nearest tap is preferred to begin with, as a logarithm, at x1 and x2. At x2, with keys after 800 steps,
# three known shifts and a window of 5, positions were off by 0.25 LR pixels at 0, by 0.15 at 2.3; with a window of 7 and 2.3
# by 0.13. In 800 steps training had moved it from 0 to 0.2 only.
_SOFTNESS = (0.0, 2.1)


def displacements(match: Tensor) -> Tensor:
    """Where each of nine overlapping patches' matches puts a position: int32 [N, 2, h+2, w+2] -> [N, 18, h, w].

    Nine times (y, x), in LR pixels from the position's own place (of a tile: up to the tile's origin, the same for all).
    """
    height, width = match.shape[2] - 2, match.shape[3] - 2
    rows = torch.arange(height, device=match.device, dtype=torch.float32)[:, None].expand(-1, width)
    cols = torch.arange(width, device=match.device, dtype=torch.float32)[None, :].expand(height, -1)
    own = torch.stack((rows, cols))
    m = match.float()
    taps = []
    for i in range(3):
        for j in range(3):
            # Tap (i, j) is pixel (i, j) of the patch that is anchored that much earlier; the grid starts at anchor -2.
            place = m[:, :, 2 - i : 2 - i + height, 2 - j : 2 - j + width]
            taps.append(place - own + torch.tensor([i, j], dtype=torch.float32, device=m.device).view(2, 1, 1))
    return torch.cat(taps, 1)


class RefinedAggregation(nn.Module):
    """Dynamic aggregation (Eq. 6 to 8) at one scale, with taps around refined positions.

    At the first scale the first sampling reads the nine proposals; at the others the 3x3 pixels around the place that was
    found before. Where the values' last channels are keys, comparing them with the LR side's tells which is right.

    In a float16 model distances, votes and places stay float32: a place is as large as the picture. What DeformableSample
    gets is the offset from a match again.
    """

    def __init__(self, config: AMSAConfig, index: int) -> None:
        super().__init__()
        channels, value_channels = config.channels[index], config.value_channels[index]
        self.scale, self.groups, self.value_channels = VALUE_SCALES[index], config.groups, value_channels
        self.compared = config.compared_channels[index]
        first = index == 0
        self.warp = nn.Conv2d(9 * value_channels, value_channels, 1)
        self.softness = nn.Parameter(torch.full((1, 1, 1, 1), _SOFTNESS[index])) if self.compared else None
        evidence = 10 + (18 if first else 2) if self.compared else 0
        self.offset_conv1 = conv3(channels + value_channels + evidence, value_channels)
        self.offset_conv2 = conv3(value_channels, value_channels)
        self.offset_mask = conv3(value_channels, 27 * config.groups)
        self.flow = conv3(value_channels, 2)
        self.flow_vote = conv3(value_channels, 9) if first else None
        self.aggregate = nn.Conv2d(9 * value_channels, value_channels, 1)
        taps = torch.tensor([(i // 3 - 1.0, i % 3 - 1.0) for i in range(9)])  # (y, x), in pixels of the scale
        self.register_buffer("taps", taps.T.reshape(2, 9, 1, 1), persistent=False)
        self.register_buffer("tap_offsets", taps.reshape(1, 18, 1, 1), persistent=False)

    def forward(
        self, x: Tensor, value: Tensor, match: Tensor, proposals: Tensor, query: Tensor | None, place: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Aggregated features Y [N, C, s*h, s*w], and where they are from.

        Args:
            x: features of the LR side, [N, channels, s*h, s*w].
            value, match: as DeformableSample takes them.
            proposals: of `displacements`.
            query: what the values' last channels are compared with, [N, compared, s*h, s*w]; None: nothing.
            place: what the scale below found, [N, 2, s*h, s*w] (y, x) in pixels of this scale from the own position; None
                at the first scale.
        """
        s = self.scale
        sample = torch.ops.amsa.deformable_sample
        # A tap reads its own patch's match; this is what makes it read relative to the position itself.
        back = -s * (F.interpolate(proposals, scale_factor=float(s), mode="nearest") if s > 1 else proposals)
        if place is None:
            offsets = (-self.get_buffer("tap_offsets")).expand(x.shape[0], -1, x.shape[2], x.shape[3])
        else:
            offsets = place.repeat(1, 9, 1, 1) + back
        open_masks = x.new_zeros(1, 1, 1, 1).expand(x.shape[0], 9, x.shape[2], x.shape[3])  # every mask is one half
        samples = sample(value, match, torch.cat((as_features(offsets, self.warp), open_masks), 1), scale=s, groups=1)
        evidence = [x, self.warp(samples)]  # Y' (Eq. 6)
        guess = logits = None
        if query is not None:
            assert self.softness is not None
            keys = 2 * torch.unflatten(samples, 1, (9, self.value_channels))[:, :, -self.compared :]
            distance = _GAIN * (keys.float() - query[:, None].float()).square().sum(2)
            mean = distance.mean(1, keepdim=True)
            evidence += [distance - mean, mean]
            if place is None:
                logits = -distance * self.softness.exp()
                middle = proposals[:, 8:10].repeat(1, 9, 1, 1)
                evidence.append((proposals - middle).clamp(-_FAR, _FAR) / _FAR)
            else:
                around = F.avg_pool2d(distance, _WINDOW, 1, _WINDOW // 2)
                guess = F.conv2d((-around * self.softness.exp()).softmax(1), self.get_buffer("taps"))
                evidence.append(guess)
        seen = torch.cat([as_features(e, self.warp) for e in evidence], 1)
        features = lrelu(self.offset_conv2(lrelu(self.offset_conv1(seen))))
        if place is None:
            assert self.flow_vote is not None
            assert logits is not None
            votes = (logits + self.flow_vote(features).float()).softmax(1)
            apart = proposals - proposals[:, 8:10].repeat(1, 9, 1, 1)
            apart = apart * (apart.abs() < 2.0)
            apart = torch.unflatten(apart, 1, (9, 2))
            place = proposals[:, 8:10] + (apart * votes[:, :, None]).sum(1)
        elif guess is not None:
            place = place + guess
        place = place + self.flow(features).float()
        offsets, masks = self.offset_mask(features).split((18 * self.groups, 9 * self.groups), 1)  # Delta P (Eq. 7)
        offsets = offsets.float() + (place.repeat(1, 9, 1, 1) + back).repeat(1, self.groups, 1, 1)
        # Y (Eq. 8)
        samples = sample(value, match, torch.cat((as_features(offsets, self.warp), masks), 1), scale=s, groups=self.groups)
        return lrelu(self.aggregate(samples)), place
