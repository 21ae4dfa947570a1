"""The declaration of DeformableSample (paper, Eq. 6 to 8, without the weights w_j)."""

from __future__ import annotations

from ..spec import AttributeSpec, OpSpec, Shape, TensorSpec, check_shape


def _infer_shapes(value: Shape, match: Shape, offset_mask: Shape, *, scale: int, groups: int) -> tuple[Shape]:
    batch = match[0]
    check_shape("DeformableSample", "value", value, 4, batch)
    check_shape("DeformableSample", "match", match, 4, batch, 2)
    check_shape("DeformableSample", "offset_mask", offset_mask, 4, batch)
    if value[1] % groups != 0:
        raise ValueError(f"DeformableSample: value has {value[1]} channels; they must divide into {groups} groups")
    if offset_mask[1] not in (9 * groups, 27 * groups):
        raise ValueError(
            f"DeformableSample: offset_mask has {offset_mask[1]} channels; it must have {9 * groups} (masks) or "
            f"{27 * groups} (offsets and masks)"
        )
    height, width = scale * (match[2] - 2), scale * (match[3] - 2)
    if offset_mask[2] != height or offset_mask[3] != width:
        raise ValueError(
            f"DeformableSample: offset_mask is {offset_mask[2]}x{offset_mask[3]}; "
            f"with this match and scale it must be {height}x{width}"
        )
    return ((batch, 9 * value[1], height, width),)


DEFORMABLE_SAMPLE = OpSpec(
    name="DeformableSample",
    doc="""Samples reference features where the matches point, at nine taps moved by learned offsets (Eq. 6 to 8).

Tap (i, j), i, j in 0..2, of output pixel p reads the match m of the patch anchored at p//scale - (i, j), and samples
the value at scale*m + p mod scale + scale*(i, j) + (i, j) - 1 + offset, bilinearly, zero outside, times the sigmoid of
its mask logit. Coordinates are float32 whatever the type of the features. A 1x1 convolution over the nine taps' channels
completes the deformable convolution.""",
    inputs=(
        TensorSpec("value", "T", "[1|N, C, Hv, Wv]", "reference features at `scale` times the matching grid"),
        TensorSpec(
            "match",
            "int32",
            "[N, 2, h+2, w+2]",
            "match (y, x) of the patch anchored at each position from -2 to h-1; where no patch exists, the position itself",
        ),
        TensorSpec(
            "offset_mask",
            "T",
            "[1|N, 9*groups or 27*groups, scale*h, scale*w]",
            "18*groups offsets (y, x interleaved) where there are 27*groups channels, then 9*groups mask logits",
        ),
    ),
    outputs=(TensorSpec("samples", "T", "[N, 9*C, scale*h, scale*w]", "channel tap*C + c"),),
    attributes=(
        AttributeSpec("scale", int, "output pixels per match on a side", (1, 2, 4)),
        AttributeSpec("groups", int, "offset groups: channels divide into this many, each with its own offsets and masks"),
    ),
    infer_shapes=_infer_shapes,
)
