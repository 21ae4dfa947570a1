"""What the network's parts share."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


def lrelu(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.1)


def as_features(x: Tensor, conv: Any) -> Tensor:
    """Pictures and what is computed in float32, in the type of a convolution's weights: float16 in a model of that precision."""
    features: Tensor = x.to(conv.weight.dtype)
    return features


def conv3(c_in: int, c_out: int) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 3, padding=1)
