"""Multi-Scale Dynamic Aggregation and the restoration towers (paper, section 3.2; Eq. 6 to 10)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import AMSAConfig
from ..stages import VALUE_SCALES
from .resample import upscale_bicubic, upscale_bilinear, upscale_nearest


def lrelu(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.1)


def conv3(c_in: int, c_out: int) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 3, padding=1)


class ResidualBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv3(channels, channels), conv3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.conv2(F.relu(self.conv1(x)))
        return y


def trunk(channels: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(*(ResidualBlock(channels) for _ in range(blocks)))


class ContentExtractor(nn.Module):
    """F, the LR content features: [N, 3, h, w] -> [N, channels, h, w]."""

    def __init__(self, channels: int, blocks: int) -> None:
        super().__init__()
        self.conv_first = conv3(3, channels)
        self.body = trunk(channels, blocks)

    def forward(self, lr: Tensor) -> Tensor:
        content: Tensor = self.body(lrelu(self.conv_first(lr)))
        return content


class DynamicAggregation(nn.Module):
    """Aggregates reference features around the matches (Eq. 6 to 8) at one scale.

    Each sum over nine taps is the op DeformableSample followed by a 1x1 convolution with the weights w_j. With `refine`
    (ours) the nine samples are also correlated with the LR features, which shows where around the match the content
    lies; the flow found there moves this scale's second sampling, and the first one of the next scale.
    """

    def __init__(self, config: AMSAConfig, index: int) -> None:
        super().__init__()
        channels, value_channels = config.channels[index], config.value_channels[index]
        self.scale, self.groups, self.value_channels = VALUE_SCALES[index], config.groups, value_channels
        # Published: masks from the unwarped reference, made in `encode_ref`. Otherwise from the LR features, which
        # exist at every output pixel whatever the reference's size.
        self.warp_mask = None if config.warp_mask_from_ref else conv3(channels, 9)
        self.warp = nn.Conv2d(9 * value_channels, value_channels, 1)
        self.query = nn.Conv2d(channels, value_channels, 1) if config.refine else None
        self.flow = conv3(value_channels, 2) if config.refine else None
        correlations = 9 if config.refine else 0
        self.offset_conv1 = conv3(channels + value_channels + correlations, value_channels)
        self.offset_conv2 = conv3(value_channels, value_channels)
        self.offset_mask = conv3(value_channels, 27 * config.groups)
        self.aggregate = nn.Conv2d(9 * value_channels, value_channels, 1)

    def forward(
        self, x: Tensor, value: Tensor, match: Tensor, warp_mask: Tensor | None, flow: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Aggregated features Y [N, C, s*h, s*w], and with `refine` the flow [N, 2, s*h, s*w] (y, x) in pixels.

        `flow`: [N, 2, s*h, s*w] that the scale below found, in this scale's pixels; None at the first.
        """
        sample = torch.ops.amsa.deformable_sample
        moved = self.warp_mask(x) if self.warp_mask is not None else warp_mask
        assert moved is not None, "the published variant needs warp masks"
        if flow is not None:  # nine taps, (y, x) each: the same flow for all
            moved = torch.cat((flow.repeat(1, 9, 1, 1), moved), 1)
        samples = sample(value, match, moved, scale=self.scale, groups=1)
        evidence = [x, self.warp(samples)]  # Y' (Eq. 6)
        if self.query is not None:
            query = self.query(x) / self.value_channels**0.5
            evidence.append((samples.unflatten(1, (9, self.value_channels)) * query[:, None]).sum(2))
        features = lrelu(self.offset_conv2(lrelu(self.offset_conv1(torch.cat(evidence, 1)))))
        offset_mask = self.offset_mask(features)  # Delta P (Eq. 7)
        if self.flow is not None:
            flow = self.flow(features) if flow is None else flow + self.flow(features)
            offsets, masks = offset_mask.split((18 * self.groups, 9 * self.groups), 1)
            offset_mask = torch.cat((offsets + flow.repeat(1, 9 * self.groups, 1, 1), masks), 1)
        # Y (Eq. 8)
        return lrelu(self.aggregate(sample(value, match, offset_mask, scale=self.scale, groups=self.groups))), flow


class ScaleRestoration(nn.Module):
    """Dynamic aggregation and a residual trunk at one scale; doubles the resolution unless it is the last scale."""

    def __init__(self, config: AMSAConfig, index: int) -> None:
        super().__init__()
        channels = config.channels[index]
        self.aggregation = DynamicAggregation(config, index)
        self.head = conv3(channels + config.value_channels[index], channels)
        self.body = trunk(channels, config.blocks[index + 1])
        last = index == len(VALUE_SCALES) - 1
        self.up = None if last else conv3(channels, 4 * config.channels[index + 1])

    def forward(
        self, x: Tensor, value: Tensor, match: Tensor, warp_mask: Tensor | None, flow: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Features for the next scale, at its resolution, and the flow found here."""
        aggregated, flow = self.aggregation(x, value, match, warp_mask, flow)
        h = self.body(lrelu(self.head(torch.cat((x, aggregated), 1)))) + x
        return (lrelu(F.pixel_shuffle(self.up(h), 2)) if self.up is not None else h), flow


class Restoration(nn.Module):
    """One reference's tower: content -> x2 -> x4, then its share of the sum over references (Eq. 10)."""

    def __init__(self, config: AMSAConfig) -> None:
        super().__init__()
        self.scales = nn.ModuleList(ScaleRestoration(config, i) for i in range(len(VALUE_SCALES)))

    def tower(
        self, content: Tensor, match: Tensor, values: tuple[Tensor, ...], warp_masks: tuple[Tensor, ...]
    ) -> tuple[Tensor, list[Tensor]]:
        """Restored features [N, channels, 4h, 4w] of one reference, and with `refine` the flow found at each scale."""
        x, flow, flows = content, None, []
        for i, scale in enumerate(self.scales):
            if flow is not None:
                flow = 2 * F.interpolate(flow, size=x.shape[2:], mode="bilinear")
            x, flow = scale(x, values[i], match, warp_masks[i] if warp_masks else None, flow)
            if flow is not None:
                flows.append(flow)
        return x, flows

    def forward(
        self,
        content: Tensor,
        match: Tensor,
        weight: Tensor,
        values: tuple[Tensor, ...],
        warp_masks: tuple[Tensor, ...],
        accumulator: Tensor,
    ) -> Tensor:
        """Add this reference's features, weighted, to the accumulator.

        Args:
            content: F, [N, channels, h, w].
            match: int32 [N, 2, h+2, w+2], from the matcher or a slice of it.
            weight: S' (Eq. 9), [N, 1, h, w].
            values: V at 1, 2 and 4 times the matching grid, [1|N, C, s*Hk, s*Wk].
            warp_masks: published variant only: [1|N, 9, s*h, s*w]; otherwise empty.
            accumulator: [N, channels, 4h, 4w].
        """
        x, _ = self.tower(content, match, values, warp_masks)
        return accumulator + x * upscale_nearest(weight)


class Finish(nn.Module):
    """Z (Eq. 10): the last convolutions over the fused features, added to the upsampled LR picture."""

    def __init__(self, config: AMSAConfig) -> None:
        super().__init__()
        width = config.channels[-1]
        self.conv1, self.conv2 = conv3(width, width // 2), conv3(width // 2, 3)
        self.bicubic = config.base == "bicubic"

    def forward(self, accumulator: Tensor, lr: Tensor) -> Tensor:
        """[N, channels, 4h, 4w] and [N, 3, h, w] -> [N, 3, 4h, 4w], not clamped."""
        base = upscale_bicubic(lr) if self.bicubic else upscale_bilinear(lr)
        sr: Tensor = self.conv2(lrelu(self.conv1(accumulator))) + base
        return sr
