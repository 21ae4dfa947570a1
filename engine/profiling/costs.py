"""What a layer must at least compute and move: multiply-accumulates and bytes from the shapes of its inputs and outputs.

Convolutions, matrix products and the two custom ops are counted, as in training/evaluation/complexity.py, whose sums they must
reach (tests/engine/profiling). What else a network does (sums, activations, resampling) is counted in bytes only.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log2, prod

import numpy as np

from ...config import AMSAConfig
from ...plugins.patch_match.schedule import TAPS, steps

Shape = tuple[int, ...]

PATCH = 3
"""Side of the patches that PatchMatch compares."""
CORNERS = 4
"""That DeformableSample reads for each sampled channel."""
CONVOLUTIONS = ("Conv", "FusedConv", "NhwcFusedConv", "ConvInteger", "QLinearConv")
PRODUCTS = ("MatMul", "FusedMatMul", "Gemm", "MatMulInteger")
VIEWS = ("Shape", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Flatten", "Size")
"""Operators that read no more than a shape, and leave the data where it is."""

_SIZES = {"float": 4, "float16": 2, "bfloat16": 2, "double": 8, "bool": 1}


def element_size(dtype: str) -> int:
    """Bytes of an element of a type as ONNX Runtime's profile names it: "float", "int64", ..."""
    return _SIZES.get(dtype) or int(np.dtype(dtype).itemsize)


def conv_macs(weight: Shape, output: Shape) -> int:
    """Of a convolution with weights [Cout, Cin / groups, kh, kw] that makes [N, Cout, H, W]."""
    return output[0] * prod(output[2:]) * prod(weight)


def product_macs(a: Shape, output: Shape) -> int:
    """Of a matrix product with a first factor that is not transposed."""
    return prod(output) * a[-1] if a else 0


def sample_macs(value: Shape, offset_mask: Shape) -> int:
    """Of DeformableSample: four corners for each of 9 taps and C channels."""
    return CORNERS * len(TAPS) * value[1] * max(value[0], offset_mask[0]) * prod(offset_mask[2:])


def match_macs(config: AMSAConfig, exact: bool, query: Shape, ref: Shape, finest: tuple[int, int]) -> int:
    """Of one level of PatchMatch: every candidate of every step, even one that an earlier step has scored already.

    Args:
        config: has the schedule.
        exact: whether every position is compared with every other.
        query, ref: features of this level, [N, C, h, w] and [N, C, H, W].
        finest: rows and columns of the query features at the finest level.
    """
    grid, level = (query[2], query[3]), round(log2(finest[0] / query[2]))
    positions = grid[0] * grid[1] if level else (grid[0] - PATCH + 1) * (grid[1] - PATCH + 1)  # coarser levels pad
    if exact:
        candidates = (ref[2] - PATCH + 1) * (ref[3] - PATCH + 1)
    else:
        valid = (ref[2] << level, ref[3] << level)
        candidates = len(TAPS) * len(steps(config.schedule, config.iterations[-1 - level], level, grid, valid))
    return query[0] * positions * candidates * PATCH**2 * query[1]


def node_macs(op: str, inputs: Sequence[Shape], outputs: Sequence[Shape], weight: Shape | None) -> int | None:
    """Of an ONNX node; None: it is none of those that are counted. `weight`: a convolution's, where the graph was read;
    those at hand may be padded to what the processor's registers hold."""
    if op in CONVOLUTIONS:
        return conv_macs(weight or inputs[3 if op == "QLinearConv" else 1], outputs[0])
    if op in PRODUCTS:
        return product_macs(inputs[0], outputs[0])
    if op == "DeformableSample":
        return CORNERS * prod(outputs[0])
    if op == "DeformableConv":  # samples, and the 1x1 convolution behind them (engine/cpu_graphs.py)
        samples = inputs[3][1] * prod(outputs[0][2:]) * outputs[0][0]
        return samples * (CORNERS + outputs[0][1])
    return None
