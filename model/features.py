"""Feature extractors: match keys and queries (paper, section 3: HR and LR Feature Extractor) and reference values.

The LR side (student) and the reference side (teacher) are trained by contrastive learning and knowledge distillation, so
that features of a blurred and of a sharp picture of one thing agree.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..stages import KEY_LEVELS
from .layers import as_features
from .resample import halve, upscale_bicubic

# VGG's convolutions up to conv3_1: name, input and output channels; pooling comes before conv2_1 and conv3_1.
_VGG_LAYERS = (
    ("conv1_1", 3, 64),
    ("conv1_2", 64, 64),
    ("conv2_1", 64, 128),
    ("conv2_2", 128, 128),
    ("conv3_1", 128, 256),
)
_POOL_BEFORE = ("conv2_1", "conv3_1")
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


class VGGToConv3(nn.Module):
    """VGG's first five convolutions (the same in VGG16 and VGG19), on pictures in [0, 1]."""

    def __init__(self) -> None:
        super().__init__()
        for name, c_in, c_out in _VGG_LAYERS:
            setattr(self, name, nn.Conv2d(c_in, c_out, 3, padding=1))
        self.register_buffer("mean", torch.tensor(_IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, picture: Tensor) -> dict[str, Tensor]:
        """[N, 3, H, W] -> every convolution's output before its ReLU, by name."""
        x = as_features((picture - self.get_buffer("mean")) / self.get_buffer("std"), self.get_submodule("conv1_1"))
        outputs: dict[str, Tensor] = {}
        for name, _, _ in _VGG_LAYERS:
            if name in _POOL_BEFORE:
                x = F.max_pool2d(x, 2)
            conv: Tensor = self.get_submodule(name)(x)
            outputs[name] = conv
            x = F.relu(conv)
        return outputs


def unit(x: Tensor) -> Tensor:
    """L2-normalise over channels at every position, in float32 (1e-12 would underflow in float16)."""
    norm = torch.linalg.vector_norm(x.float(), dim=1, keepdim=True)
    normalised: Tensor = x.float() / norm.clamp_min(1e-12)  # F.normalize, without the Expand it exports
    return normalised.to(x.dtype)


class VGGKeys(nn.Module):
    """Match keys at 1/1, 1/2, 1/4, 1/8 of the matching grid, each from a shrunken picture (HR / 4 = the matching grid)."""

    def __init__(self, unit_levels: int) -> None:
        super().__init__()
        self.vgg = VGGToConv3()
        self.unit_levels = unit_levels
        """How many levels, finest first, are normalised per position: the published code does it at the finest only."""

    def forward(self, pictures: list[Tensor]) -> tuple[Tensor, ...]:
        """Pictures at each level's resolution, finest first, [N, 3, 4*Hk, 4*Wk] -> keys [N, 256, Hk, Wk]."""
        keys = (self.vgg(p)["conv3_1"] for p in pictures)
        return tuple(unit(k) if level < self.unit_levels else k for level, k in enumerate(keys))

    @staticmethod
    def pyramid_of_ref(ref: Tensor) -> list[Tensor]:
        """The reference halved three times."""
        pictures = [ref]
        for _ in KEY_LEVELS[1:]:
            pictures.append(halve(pictures[-1]))
        return pictures

    @staticmethod
    def pyramid_of_lr(lr: Tensor, round_to_8_bits: bool) -> list[Tensor]:
        """LR upscaled x4, and LR halved one to three times, each then upscaled x4.

        `round_to_8_bits`: the published code upscales with PIL, which rounds to 8 bits.
        """
        upscaled = upscale_bicubic(lr)
        if round_to_8_bits:
            upscaled = (upscaled.clamp(0, 1) * 255).round() / 255
        pictures, small = [upscaled], lr
        for _ in KEY_LEVELS[1:]:
            small = halve(small)
            size = (4 * small.shape[2], 4 * small.shape[3])
            pictures.append(F.interpolate(small, size=size, mode="bicubic"))
        return pictures


class VGGValues(nn.Module):
    """Reference values V (Eq. 6): VGG19's relu3_1, relu2_1, relu1_1, at 1, 2 and 4 times the matching grid."""

    def __init__(self) -> None:
        super().__init__()
        self.vgg = VGGToConv3()

    def forward(self, ref: Tensor) -> tuple[Tensor, ...]:
        features = self.vgg(ref)
        return tuple(F.relu(features[name]) for name in ("conv3_1", "conv2_1", "conv1_1"))


class CompactKeys(nn.Module):
    """A small key net on pictures of twice the matching grid, shared by both sides: both see LR's blur.

    The reference is blurred but not shrunk to the matching grid, so that its keys are those of an LR picture taken at any
    sub-pixel phase: that halves the error of refined positions (0.24 to 0.10 pixels of the doubled grid for RGB windows
    of 9x9 under known shifts).

    Args:
        channels: of the keys.
        fine_channels: of the keys at twice the matching grid, by which positions are refined; 0: none.
    """

    def __init__(self, channels: int, fine_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1, stride=2)
        self.conv3 = nn.Conv2d(32, channels, 3, padding=1)
        self.conv_fine = nn.Conv2d(16, fine_channels, 3, padding=1) if fine_channels else None

    def forward(self, blurred: Tensor) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """[N, 3, 2*Hk, 2*Wk] -> keys at 1/1 .. 1/8 of Hk x Wk, normalised per position, and finer keys at twice it."""
        x = F.leaky_relu(self.conv1(as_features(blurred - 0.5, self.conv1)), 0.1)
        # Not normalised: where there is little to see, distances are small and say little.
        fine = self.conv_fine(x) if self.conv_fine is not None else None
        levels = [self.conv3(F.leaky_relu(self.conv2(x), 0.1))]
        for _ in KEY_LEVELS[1:]:
            levels.append(F.avg_pool2d(levels[-1], 2))
        return tuple(map(unit, levels)), fine


class CompactValues(nn.Module):
    """Learned reference values at 1, 2 and 4 times the matching grid.

    At x4 three channels are the reference's own high frequencies, what its blurred picture lacks: the detail to transfer.
    With keys the last channels are what the LR side is compared with: keys at x1, finer keys at x2.

    Args:
        channels: of the values at x1, x2, x4, all together.
        compared: how many of them are compared, as `AMSAConfig.compared_channels`.
    """

    def __init__(self, channels: tuple[int, int, int], compared: tuple[int, int, int]) -> None:
        super().__init__()
        c1, c2, c4 = (c - k for c, k in zip(channels, compared, strict=True))
        self.conv4a = nn.Conv2d(3, 16, 3, padding=1)
        self.conv4b = nn.Conv2d(16, c4 - 3, 3, padding=1)
        self.conv2 = nn.Conv2d(c4, c2, 3, padding=1, stride=2)
        self.conv1 = nn.Conv2d(c2, c1, 3, padding=1, stride=2)

    def forward(self, ref: Tensor, blurred: Tensor, key: Tensor, fine: Tensor | None) -> tuple[Tensor, ...]:
        """[N, 3, 4*Hk, 4*Wk], blurred [N, 3, 2*Hk, 2*Wk], its keys -> values."""
        high = ref - F.interpolate(blurred, size=ref.shape[2:], mode="bilinear")
        learned = F.leaky_relu(self.conv4b(F.leaky_relu(self.conv4a(as_features(ref - 0.5, self.conv4a)), 0.1)), 0.1)
        v4 = torch.cat((learned, as_features(high, self.conv4a)), 1)
        v2 = F.leaky_relu(self.conv2(v4), 0.1)
        v1 = F.leaky_relu(self.conv1(v2), 0.1)
        if fine is None:
            return v1, v2, v4
        return torch.cat((v1, as_features(key, self.conv1)), 1), torch.cat((v2, as_features(fine, self.conv2)), 1), v4
