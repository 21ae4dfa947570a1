"""The stages as modules over flat tensors, in the order that `stages.py` declares: what is exported and what runs."""

from __future__ import annotations

from torch import Tensor, nn

from ..stages import KEY_LEVELS, VALUE_SCALES, Stage
from .network import AMSA

_LEVELS, _SCALES = len(KEY_LEVELS), len(VALUE_SCALES)


class _EncodeRef(nn.Module):
    def __init__(self, model: AMSA) -> None:
        super().__init__()
        self.encode_ref = model.encode_ref

    def forward(self, ref: Tensor) -> tuple[Tensor, ...]:
        keys, values, masks = self.encode_ref(ref)
        return (*keys, *values, *masks)


class _EncodeLR(nn.Module):
    def __init__(self, model: AMSA) -> None:
        super().__init__()
        self.encode_lr = model.encode_lr

    def forward(self, lr: Tensor) -> tuple[Tensor, ...]:
        queries, content = self.encode_lr(lr)
        return (*queries, content)


class _Match(nn.Module):
    def __init__(self, model: AMSA) -> None:
        super().__init__()
        self.match = model.match

    def forward(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        match: tuple[Tensor, Tensor] = self.match(tensors[:_LEVELS], tensors[_LEVELS : 2 * _LEVELS], *tensors[2 * _LEVELS :])
        return match


class _MatchExact(_Match):
    def forward(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        queries, keys = tensors[:_LEVELS], tensors[_LEVELS : 2 * _LEVELS]
        match: tuple[Tensor, Tensor] = self.match(queries, keys, *tensors[2 * _LEVELS :], exact=True)
        return match


class _Restore(nn.Module):
    def __init__(self, model: AMSA) -> None:
        super().__init__()
        self.restore = model.restore

    def forward(self, content: Tensor, match: Tensor, weight: Tensor, *tensors: Tensor) -> Tensor:
        *masks, accumulator = tensors[_SCALES:]
        restored: Tensor = self.restore(content, match, weight, tensors[:_SCALES], tuple(masks), accumulator)
        return restored


class _Finish(nn.Module):
    def __init__(self, model: AMSA) -> None:
        super().__init__()
        self.finish = model.finish

    def forward(self, accumulator: Tensor, lr: Tensor) -> Tensor:
        sr: Tensor = self.finish(accumulator, lr)
        return sr


_MODULES = {
    "encode_ref": _EncodeRef,
    "encode_lr": _EncodeLR,
    "match": _Match,
    "match_exact": _MatchExact,
    "restore": _Restore,
    "finish": _Finish,
}


def stage_modules(model: AMSA) -> list[tuple[Stage, nn.Module]]:
    """Every stage with its module, in evaluation mode; the weights are shared with `model`."""
    return [(stage, _MODULES[stage.name](model).eval()) for stage in model.config.stages(model.precision)]
