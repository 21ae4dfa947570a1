"""Multi-Scale Dynamic Aggregation and the restoration towers (paper, section 3.2; Eq. 6 to 10)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import AMSAConfig
from ..stages import VALUE_SCALES
from .layers import as_features, conv3, lrelu
from .refinement import RefinedAggregation, displacements
from .resample import upscale_bicubic, upscale_bilinear, upscale_nearest


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
        content: Tensor = self.body(lrelu(self.conv_first(as_features(lr, self.conv_first))))
        return content


class DynamicAggregation(nn.Module):
    """Aggregates reference features around the matches (Eq. 6 to 8) at one scale.

    Each sum over nine taps is the op DeformableSample followed by a 1x1 convolution with the weights w_j.
    """

    def __init__(self, config: AMSAConfig, index: int) -> None:
        super().__init__()
        channels, value_channels = config.channels[index], config.value_channels[index]
        self.scale, self.groups = VALUE_SCALES[index], config.groups
        # Published: masks from the unwarped reference, made in `encode_ref`. Otherwise from the LR features, which
        # exist at every output pixel whatever the reference's size.
        self.warp_mask = None if config.warp_mask_from_ref else conv3(channels, 9)
        self.warp = nn.Conv2d(9 * value_channels, value_channels, 1)
        self.offset_conv1 = conv3(channels + value_channels, value_channels)
        self.offset_conv2 = conv3(value_channels, value_channels)
        self.offset_mask = conv3(value_channels, 27 * config.groups)
        self.aggregate = nn.Conv2d(9 * value_channels, value_channels, 1)

    def forward(self, x: Tensor, value: Tensor, match: Tensor, warp_mask: Tensor | None) -> Tensor:
        """Aggregated features Y [N, C, s*h, s*w]. `warp_mask`: the published variant's, [N, 9, s*h, s*w]."""
        sample = torch.ops.amsa.deformable_sample
        masks = self.warp_mask(x) if self.warp_mask is not None else warp_mask
        assert masks is not None, "the published variant needs warp masks"
        warped = self.warp(sample(value, match, masks, scale=self.scale, groups=1))  # Y' (Eq. 6)
        features = lrelu(self.offset_conv2(lrelu(self.offset_conv1(torch.cat((x, warped), 1)))))
        offset_mask = self.offset_mask(features)  # Delta P (Eq. 7)
        # Y (Eq. 8)
        return lrelu(self.aggregate(sample(value, match, offset_mask, scale=self.scale, groups=self.groups)))


class ScaleRestoration(nn.Module):
    """Dynamic aggregation and a residual trunk at one scale; doubles the resolution unless it is the last scale."""

    def __init__(self, config: AMSAConfig, index: int) -> None:
        super().__init__()
        channels = config.channels[index]
        self.aggregation = RefinedAggregation(config, index) if config.refine else DynamicAggregation(config, index)
        self.head = conv3(channels + config.value_channels[index], channels)
        self.body = trunk(channels, config.blocks[index + 1])
        last = index == len(VALUE_SCALES) - 1
        self.up = None if last else conv3(channels, 4 * config.channels[index + 1])

    def forward(self, x: Tensor, aggregated: Tensor) -> Tensor:
        """Features for the next scale, at its resolution."""
        h = self.body(lrelu(self.head(torch.cat((x, aggregated), 1)))) + x
        return lrelu(F.pixel_shuffle(self.up(h), 2)) if self.up is not None else h


class Restoration(nn.Module):
    """One reference's tower: content -> x2 -> x4, then its share of the sum over references (Eq. 10)."""

    def __init__(self, config: AMSAConfig) -> None:
        super().__init__()
        self.scales = nn.ModuleList(ScaleRestoration(config, i) for i in range(len(VALUE_SCALES)))
        k1, k2, _ = config.compared_channels
        self.parts = [config.channels[0], k1, 4 * k2] if config.refine else []

    def tower(
        self, content: Tensor, match: Tensor, values: tuple[Tensor, ...], warp_masks: tuple[Tensor, ...]
    ) -> tuple[Tensor, list[Tensor]]:
        """Restored features [N, channels, 4h, 4w] of one reference.

        With `refine` also where each scale found the content: [N, 2, s*h, s*w] (y, x), in pixels of the scale from its
        own position.
        """
        if not self.parts:
            x = content
            for i, scale in enumerate(self.scales):
                aggregated = scale.get_submodule("aggregation")(x, values[i], match, warp_masks[i] if warp_masks else None)
                x = scale(x, aggregated)
            return x, []
        x, key, fine = torch.split(content, self.parts, 1)
        queries = (key, F.pixel_shuffle(fine, 2), None)
        proposals = displacements(match)
        found: list[Tensor] = []
        for i, scale in enumerate(self.scales):
            place = 2 * F.interpolate(found[-1], scale_factor=2, mode="bilinear") if found else None
            aggregated, place = scale.get_submodule("aggregation")(x, values[i], match, proposals, queries[i], place)
            found.append(place)
            x = scale(x, aggregated)
        return x, found

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
            content: F, and with `refine` more: [N, content_channels, h, w].
            match: int32 [N, 2, h+2, w+2], from the matcher or a slice of it.
            weight: S' (Eq. 9), [N, 1, h, w].
            values: V at 1, 2 and 4 times the matching grid, [1|N, C, s*Hk, s*Wk].
            warp_masks: published variant only: [1|N, 9, s*h, s*w]; otherwise empty.
            accumulator: [N, channels, 4h, 4w].
        """
        x, _ = self.tower(content, match, values, warp_masks)
        return accumulator + x * as_features(upscale_nearest(weight), self.scales[0].get_submodule("head"))


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
        sr: Tensor = self.conv2(lrelu(self.conv1(accumulator))).to(base.dtype) + base
        return sr
