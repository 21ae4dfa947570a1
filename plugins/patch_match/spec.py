"""The declaration of PatchMatch (paper, section 3.1)."""

from __future__ import annotations

from ..spec import AttributeSpec, OpSpec, Shape, TensorSpec, check_shape

PROPAGATIONS = ("published", "paper", "fast")
SCHEDULES = (*PROPAGATIONS, "exact")
ARITHMETICS = ("float", "int8")

# Up to here a pixel's inner product of int8 features, C * 127^2, is below 2^24: exact even in float32, in any order.
INT8_CHANNELS = 1040


def _infer_shapes(
    query: Shape, ref: Shape, valid: Shape, init: Shape, *, pad: int, init_scale: int, arithmetic: str = "float", **_: object
) -> tuple[Shape, Shape]:
    batch = ref[0]
    check_shape("PatchMatch", "query", query, 4, batch)
    check_shape("PatchMatch", "ref", ref, 4, batch)
    check_shape("PatchMatch", "valid", valid, 2, batch, 2)
    check_shape("PatchMatch", "init", init, 4, batch, 2)
    if query[1] != ref[1]:
        raise ValueError(f"PatchMatch: query has {query[1]} channels and ref {ref[1]}; they must be equal")
    if arithmetic == "int8" and query[1] > INT8_CHANNELS:
        raise ValueError(f"PatchMatch: query has {query[1]} channels; int8 arithmetic takes at most {INT8_CHANNELS}")
    for name, shape in (("query", query), ("ref", ref)):
        if pad == 0 and (shape[2] < 3 or shape[3] < 3):
            raise ValueError(f"PatchMatch: {name} is {shape[2]}x{shape[3]}; without padding both sides must be at least 3")
    if init_scale == 2 and (query[2] % 2 != 0 or query[3] % 2 != 0):
        raise ValueError(f"PatchMatch: query is {query[2]}x{query[3]}; with a coarser init both sides must be even")
    height, width = query[2] - 2 + 2 * pad, query[3] - 2 + 2 * pad
    expected = (height, width) if init_scale == 1 else (query[2] // 2, query[3] // 2)
    if init[2] != expected[0] or init[3] != expected[1]:
        raise ValueError(f"PatchMatch: init is {init[2]}x{init[3]}; it must be {expected[0]}x{expected[1]}")
    return (batch, 2, height, width), (batch, 1, height, width)


PATCH_MATCH = OpSpec(
    name="PatchMatch",
    doc="""Approximate nearest neighbours of 3x3 feature patches by propagation (Embedded PatchMatch, Eq. 1 to 5).

The score of two positions is the inner product of their 3x3xC patches, the reference patch L2-normalised, accumulated
in float32. A step compares nine candidates per position in row-major order of the taps; the highest score wins, ties
go to the first. LR propagation takes the matches of the eight neighbours at a dilation (reflected at the border), Ref
propagation the eight neighbours of the position's own match. Positions are patch centres with pad 1 (zeros outside the
picture) and top-left corners with pad 0.""",
    inputs=(
        TensorSpec("query", "T", "[1|N, C, Hq, Wq]", "features of the LR picture at this level"),
        TensorSpec("ref", "T", "[N, C, Hr, Wr]", "features of the reference at this level"),
        TensorSpec(
            "valid",
            "int32",
            "[1|N, 2]",
            "rows and columns of level 0's reference features that are picture; what lies beyond counts as zero and is "
            "never matched. This level's share is ceil(valid / 2^level)",
        ),
        TensorSpec("init", "int32", "[1|N, 2, Hi, Wi]", "matches (y, x) to start from, on this grid or the next coarser one"),
    ),
    outputs=(
        TensorSpec(
            "match",
            "int32",
            "[N, 2, Hq-2+2*pad, Wq-2+2*pad]",
            "position (y, x) in the reference of each position's match",
        ),
        TensorSpec(
            "relevance",
            "float32",
            "[N, 1, Hq-2+2*pad, Wq-2+2*pad]",
            "the match's score, not divided by the query patch's norm",
        ),
    ),
    attributes=(
        AttributeSpec("iterations", int, "how often the schedule's steps are repeated (M of the paper)"),
        AttributeSpec(
            "schedule",
            str,
            "order and reach of the steps: 'paper' (per dilation an LR then a Ref propagation, dilations up to sqrt(N)/8 of "
            "this level, clamped at the reference's border), 'fast' (from the largest dilation down, an LR propagation with a "
            "neighbour's match shifted by the step back, then a Ref propagation of dilation 1), 'published' (all LR, then all "
            "Ref dilations, reach from level 0, jittered and wrapped around) or 'exact' (no propagation: the best of all "
            "positions; iterations and init are not used)",
            SCHEDULES,
        ),
        AttributeSpec("level", int, "the grid is 2^level times coarser than level 0", (0, 1, 2, 3)),
        AttributeSpec("pad", int, "1: patches are centred and padded with zeros; 0: only whole patches", (0, 1)),
        AttributeSpec(
            "init_scale", int, "2: init comes from the next coarser level and is handed over; 1: from this grid", (1, 2)
        ),
        AttributeSpec(
            "arithmetic",
            str,
            "'float', or 'int8': both features quantized with one scale each, sums in integers, so that equal inputs give equal "
            "bits everywhere",
            ARITHMETICS,
            "float",
        ),
    ),
    infer_shapes=_infer_shapes,
)
