"""The graphs of an exported model and their tensors: one declaration for the network, the export and the runtime.

Sizes: LR is h x w (a multiple of 8, padded by the runtime), a reference at one scale H x W (a multiple of 32), and
`Hk, Wk` = H/4, W/4 the reference's matching grid. Key and value names end in the divisor or multiple of that grid.
A picture needs five of them: `match_exact` stands for `match` where it is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

SCALE = 4
"""The upscaling factor."""
LR_MULTIPLE = 8
"""LR sides are padded to this multiple: three halvings of the matching grid."""
REF_MULTIPLE = SCALE * LR_MULTIPLE
LR_MIN = 16
"""The smallest LR side, in pixels: two matching positions at the coarsest level."""
REF_MIN = 64
"""The smallest side of a reference photo, in pixels: at scale 0.8^4 six matching positions remain."""

KEY_LEVELS = (1, 2, 4, 8)
VALUE_SCALES = (1, 2, 4)
VALUES = tuple(f"value_{scale}" for scale in VALUE_SCALES)
"""The tensors that DeformableSample samples."""


@dataclass(frozen=True)
class TensorIO:
    """A graph's input or output: name, type, and dimensions; a word is dynamic, the same word means the same size."""

    name: str
    dims: tuple[int | str, ...]
    dtype: str = "float32"


@dataclass(frozen=True)
class Stage:
    name: str
    doc: str
    inputs: tuple[TensorIO, ...]
    outputs: tuple[TensorIO, ...]


PRECISIONS = {"fp32": "float32", "fp16": "float16"}
"""Precisions of a model, and the type of its features."""


def _pyramid(prefix: str, channels: int, height: str, width: str, dtype: str) -> tuple[TensorIO, ...]:
    names = ((height, width) if n == 1 else (f"{height}/{n}", f"{width}/{n}") for n in KEY_LEVELS)
    return tuple(TensorIO(f"{prefix}_{n}", (1, channels, *hw), dtype) for n, hw in zip(KEY_LEVELS, names, strict=True))


def _scaled(prefix: str, channels: tuple[int, ...], height: str, width: str, dtype: str) -> tuple[TensorIO, ...]:
    names = ((height, width) if s == 1 else (f"{s}*{height}", f"{s}*{width}") for s in VALUE_SCALES)
    return tuple(TensorIO(f"{prefix}_{s}", (1, c, *hw), dtype) for s, c, hw in zip(VALUE_SCALES, channels, names, strict=True))


def stages(
    key_channels: int,
    value_channels: tuple[int, ...],
    content_channels: int,
    width: int,
    warp_mask_from_ref: bool,
    precision: str,
    float32_keys: bool,
) -> tuple[Stage, ...]:
    """The graphs of a model with these channel counts; `width`: of the accumulator. `precision`: of the features; pictures,
    relevances and weights are float32 in any, with `float32_keys` keys and queries too.

    `warp_mask_from_ref`: the published network computes the warp's masks from the reference, pixel by pixel at the same
    place, so `encode_ref` hands them to `restore`; LR and reference must then have one size.
    """
    features = PRECISIONS[precision]
    compared = "float32" if float32_keys else features
    keys = _pyramid("key", key_channels, "Hk", "Wk", compared)
    queries = _pyramid("query", key_channels, "h", "w", compared)
    values = _scaled("value", value_channels, "Hk", "Wk", features)
    masks = _scaled("warp_mask", (9, 9, 9), "Hk", "Wk", features) if warp_mask_from_ref else ()
    tile_masks = _scaled("warp_mask", (9, 9, 9), "h", "w", features) if warp_mask_from_ref else ()
    lr = TensorIO("lr", (1, 3, "h", "w"))
    content = TensorIO("content", (1, content_channels, "h", "w"), features)
    match = TensorIO("match", (1, 2, "h+2", "w+2"), "int32")
    relevance = TensorIO("relevance", (1, 1, "h", "w"))
    accumulator = TensorIO("accumulator", (1, width, "4*h", "4*w"), features)
    match_inputs = (*queries, *keys, TensorIO("valid", (1, 2), "int32"), TensorIO("seed", (1,), "int32"))
    return (
        Stage(
            "encode_ref",
            "features of a reference at one scale",
            (TensorIO("ref", (1, 3, "4*Hk", "4*Wk")),),
            keys + values + masks,
        ),
        Stage("encode_lr", "features of the LR picture", (lr,), (*queries, content)),
        Stage(
            "match",
            "for every LR position the most relevant reference position, coarse to fine",
            match_inputs,
            (match, relevance),
        ),
        Stage("match_exact", "the same by comparing with all reference positions", match_inputs, (match, relevance)),
        Stage(
            "restore",
            "one reference's restored features, weighted, added to the accumulator",
            (content, match, TensorIO("weight", (1, 1, "h", "w")), *values, *tile_masks, accumulator),
            (TensorIO("accumulator_out", accumulator.dims, features),),
        ),
        Stage(
            "finish",
            "the picture from the accumulated features",
            (accumulator, lr),
            (TensorIO("sr", (1, 3, "4*h", "4*w")),),
        ),
    )
