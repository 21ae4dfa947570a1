"""VGG16 and VGG19 with ImageNet weights from torchvision, which downloads them once into its cache."""

from __future__ import annotations

import torch
from torch import nn

from ..errors import AmsaError
from ..model.features import VGGKeys, VGGToConv3, VGGValues
from ..model.network import AMSA


def imagenet_features(name: str, pretrained: bool, seed: int) -> nn.Sequential:
    """The convolutional part of torchvision's `vgg16` or `vgg19`; random weights from a seed where not pretrained.

    AmsaError where torchvision is missing or the weights can neither be found nor downloaded.
    """
    try:
        from torchvision import models
    except ModuleNotFoundError as e:
        raise AmsaError("the recipe needs torchvision's VGG; install it with: pip install 'amsa[train]'") from e
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            features = models.get_model(name, weights="IMAGENET1K_V1" if pretrained else None).features
        except OSError as e:  # no network, or no place to write
            raise AmsaError(
                f"torchvision's {name} weights cannot be fetched ({e}); put them into {torch.hub.get_dir()}/checkpoints, or set "
                "imagenet = false in the recipe"
            ) from e
    assert isinstance(features, nn.Sequential)
    return features


def begin_with_imagenet(model: AMSA) -> None:
    """Fill match keys (VGG16) and reference values (VGG19) of a `vgg` network with ImageNet weights."""
    for module in model.modules():
        if isinstance(module, (VGGKeys, VGGValues)):
            _copy(module.vgg, imagenet_features("vgg16" if isinstance(module, VGGKeys) else "vgg19", True, 0))


def _copy(target: VGGToConv3, source: nn.Sequential) -> None:
    convolutions = [m for m in source if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        for ours, theirs in zip((m for m in target.modules() if isinstance(m, nn.Conv2d)), convolutions, strict=False):
            assert ours.weight.shape == theirs.weight.shape
            ours.weight.copy_(theirs.weight)
            assert ours.bias is not None
            assert theirs.bias is not None
            ours.bias.copy_(theirs.bias)
