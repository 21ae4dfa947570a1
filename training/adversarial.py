"""Perceptual and adversarial losses (Eq. 11): VGG19's relu5_1, and WGAN with gradient penalty (Gulrajani et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .imagenet import imagenet_features

# torchvision's VGG19 up to relu5_1 has 30 layers.
_RELU5_1 = 30
# Weight of the penalty, and Adam's betas for the critic: Gulrajani et al. 2017, algorithm 1.
_PENALTY = 10.0
CRITIC_BETAS = (0.0, 0.9)


class Perceptual(nn.Module):
    """Mean squared difference of two pictures' relu5_1 features (the paper names the layer, not the norm).

    Args:
        imagenet: use torchvision's ImageNet weights; otherwise random ones, which only tests want.
        seed: of the random ones.
    """

    def __init__(self, imagenet: bool, seed: int) -> None:
        super().__init__()
        layers = imagenet_features("vgg19", imagenet, seed)[:_RELU5_1]
        # An in-place ReLU would spoil the features that the gradient needs.
        self.layers = nn.Sequential(*(nn.ReLU() if isinstance(m, nn.ReLU) else m for m in layers)).requires_grad_(False)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1), persistent=False)

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        """Two pictures [N, 3, H, W] in [0, 1] -> a scalar."""
        features = [self.layers((x - self.get_buffer("mean")) / self.get_buffer("std")) for x in (sr, hr)]
        distance: Tensor = F.mse_loss(*features)
        return distance


class Critic(nn.Module):
    """Scores pictures of any size from 32: higher is more real. No batch normalisation, as the penalty is per picture.

    Args:
        width: channels of the first layer; they double four times.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for i in range(5):
            after = width << i
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.LeakyReLU(0.2)]
            layers += [nn.Conv2d(after, after, 3, stride=2, padding=1), nn.LeakyReLU(0.2)]
            before = after
        self.layers = nn.Sequential(*layers)
        self.score = nn.Linear(before, 1)

    def reset_parameters(self, seed: int) -> None:
        """He's initialisation from a seed."""
        generator = torch.Generator().manual_seed(seed)
        for m in self.modules():
            if isinstance(m, (nn.Conv2d, nn.Linear)):
                with torch.no_grad():
                    std = (2 / m.weight[0].numel()) ** 0.5
                    m.weight.copy_(torch.randn(m.weight.shape, generator=generator) * std)
                    assert m.bias is not None
                    m.bias.zero_()

    def forward(self, picture: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N]."""
        scores: Tensor = self.score(self.layers(picture - 0.5).mean((2, 3))).squeeze(1)
        return scores


def critic_loss(critic: Critic, real: Tensor, fake: Tensor, mix: Tensor) -> Tensor:
    """How badly the critic tells pictures apart, and how far its slope between them is from 1.

    Args:
        critic: what is trained. real, fake: [N, 3, H, W], detached.
        mix: [N, 1, 1, 1] in [0, 1], where between real and fake the slope is measured.
    """
    between = torch.lerp(fake, real, mix).requires_grad_()
    (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    penalty = (slope.flatten(1).norm(dim=1) - 1).square().mean()
    loss: Tensor = critic(fake).mean() - critic(real).mean() + _PENALTY * penalty
    return loss


def mixing(seed: Sequence[int], n: int) -> Tensor:
    """Random numbers [n, 1, 1, 1] in [0, 1) from a seed."""
    return torch.from_numpy(np.random.default_rng(seed).random((n, 1, 1, 1), np.float32))
