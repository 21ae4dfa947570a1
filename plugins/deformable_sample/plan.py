"""DeformableSample's launch: shapes, attributes and addresses in, one launch out."""

from __future__ import annotations

import ctypes

from ..launch import INT_MAX, Launch, check_addressable
from ..spec import Shape
from .spec import DEFORMABLE_SAMPLE

_THREADS = 256  # kThreads of kernels.cu
_ITEM = {"float16": 2, "float32": 4}


class SampleParams(ctypes.Structure):
    """`SampleParams` of kernels.cu."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("value", "match", "offset_mask", "out")),
        *(
            (name, ctypes.c_int)
            for name in ("vectors", "value_shared", "offset_mask_shared", "c", "rows", "cols", "height", "width")
        ),
        *((name, ctypes.c_int) for name in ("scale", "groups", "with_offsets")),
    ]


def deformable_sample_plan(
    value: Shape,
    match: Shape,
    offset_mask: Shape,
    addresses: tuple[int, int, int, int],
    *,
    dtype: str,
    scale: int,
    groups: int,
) -> list[Launch]:
    """The launches of one call; none where the output is empty.

    Args:
        value, match, offset_mask: shapes as the op declares them, NCHW; in memory `match` is that and the features are HWC.
        addresses: of value, match, offset_mask and the output, aligned to 16 bytes.
        dtype: "float16" or "float32", of value, offset_mask and the output.
        scale, groups: the op's attributes.

    Raises:
        ValueError: shapes or attributes do not fit, or a tensor has more than 2^31 - 1 elements in one batch element.
    """
    DEFORMABLE_SAMPLE.check_attributes(scale=scale, groups=groups)
    ((n, _, height, width),) = DEFORMABLE_SAMPLE.infer_shapes(value, match, offset_mask, scale=scale, groups=groups)
    c, rows, cols = value[1:]
    for name, shape in (("value", value), ("offset_mask", offset_mask), ("the output", (n, 9 * c, height, width))):
        check_addressable("DeformableSample", name, shape)
    lanes = 16 // _ITEM[dtype]
    whole = c // groups % lanes == 0  # a vector's channels share one offset
    vectors = 9 * c * height * width // (lanes if whole else 1)
    if n * vectors == 0:
        return []
    params = SampleParams(
        *addresses,
        vectors,
        int(value[0] == 1),
        int(offset_mask[0] == 1),
        c,
        rows,
        cols,
        height,
        width,
        scale,
        groups,
        int(offset_mask[1] == 27 * groups),
    )
    name = f"deformable_sample_f{8 * _ITEM[dtype]}" + ("" if whole else "_any")
    blocks = -(-vectors // _THREADS)
    assert blocks <= INT_MAX
    return [Launch(name, (blocks, n, 1), (_THREADS, 1, 1), params)]
