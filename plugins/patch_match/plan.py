"""PatchMatch's launches: shapes, attributes and addresses in, launches out; and how much scratch memory they need."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from typing import Any

from ..launch import Launch, check_addressable
from ..spec import Shape
from .schedule import steps
from .spec import PATCH_MATCH, PROPAGATIONS

_THREADS, _WARPS = 128, 4  # kThreads, kWarps of kernels.cu
_ITEM = {"float16": 2, "float32": 4}
# Vectors a lane can hold, as far as kernels are compiled for it.
ROUNDS = {"f16": (1, 3, 9), "f32": (3, 9), "int8": (1, 5)}
# Threads that look for the largest value and quantize: as many as fill a large card once.
_STRIDING_BLOCKS = 512


class MatchParams(ctypes.Structure):
    """`MatchParams` of kernels.cu."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("query", "ref", "valid", "init", "match", "relevance", "energy", "inverse_norm")),
        *((name, ctypes.c_void_p) for name in ("field_from", "score_from", "field_to", "score_to", "settled", "largest")),
        *((name, ctypes.c_void_p) for name in ("query_int8", "ref_int8")),
        *((name, ctypes.c_int) for name in ("query_shared", "valid_shared", "init_shared", "c", "c_int8", "query_rows")),
        *((name, ctypes.c_int) for name in ("query_cols", "ref_rows", "ref_cols", "height", "width", "init_rows", "init_cols")),
        *(
            (name, ctypes.c_int)
            for name in ("level", "pad", "init_scale", "schedule", "lr", "turn", "iteration", "first", "last")
        ),
    ]


@dataclass(frozen=True)
class Addresses:
    """Of the tensors, aligned to 16 bytes: query and ref HWC, the rest as the op declares them; and of the scratch memory."""

    query: int
    ref: int
    valid: int
    init: int
    match: int
    relevance: int
    scratch: int


def _padded_channels(c: int) -> int:
    return -(-c // 16) * 16  # whole vectors of int8


def _scratch(query: Shape, ref: Shape, positions: int, arithmetic: str) -> dict[str, int]:
    """Offsets of the scratch memory's parts, and under "" where it ends."""
    n, c, rows, cols = ref
    parts = {"energy": 4 * n * rows * cols, "inverse_norm": 4 * n * rows * cols}
    for buffer in ("0", "1"):
        parts |= {f"field{buffer}": 8 * n * positions, f"score{buffer}": 4 * n * positions}
    parts["settled"] = 4 * n * positions
    if arithmetic == "int8":
        parts["largest"] = 8 * n
        parts["query_int8"] = n * query[2] * query[3] * _padded_channels(c)
        parts["ref_int8"] = n * rows * cols * _padded_channels(c)
    offsets, end = {}, 0
    for name, size in parts.items():
        offsets[name], end = end, end + -(-size // 256) * 256
    return {**offsets, "": end}


def patch_match_scratch(query: Shape, ref: Shape, *, pad: int, arithmetic: str = "float", **_: Any) -> int:
    """Bytes of scratch memory that `patch_match_plan` needs, whatever the schedule."""
    positions = (query[2] - 2 + 2 * pad) * (query[3] - 2 + 2 * pad)
    return _scratch(query, ref, positions, arithmetic)[""]


def patch_match_plan(
    query: Shape,
    ref: Shape,
    valid: Shape,
    init: Shape,
    addresses: Addresses,
    *,
    dtype: str,
    iterations: int,
    schedule: str,
    level: int,
    pad: int,
    init_scale: int,
    arithmetic: str = "float",
) -> list[Launch]:
    """The launches of one call; none where the output is empty.

    What depends on the values of `valid` is decided in the kernels: with the published schedule the plan has the steps for a
    reference that is picture throughout, and those beyond the valid size's reach do nothing.

    Args:
        query, ref, valid, init: shapes as the op declares them, NCHW.
        addresses: where the tensors are.
        dtype: "float16" or "float32", of query and ref.
        iterations, schedule, level, pad, init_scale, arithmetic: the op's attributes; there is no kernel for "exact".

    Raises:
        ValueError: shapes do not fit, attributes are unknown, or a tensor has more than 2^31 - 1 elements in one batch element.
    """
    attributes: dict[str, Any] = {"iterations": iterations, "schedule": schedule, "level": level, "pad": pad}
    attributes |= {"init_scale": init_scale, "arithmetic": arithmetic}
    PATCH_MATCH.check_attributes(**attributes)
    if schedule not in PROPAGATIONS:
        raise ValueError(f"PatchMatch: there is no CUDA kernel for schedule {schedule!r}; take one of {', '.join(PROPAGATIONS)}")
    (n, _, height, width), _ = PATCH_MATCH.infer_shapes(query, ref, valid, init, **attributes)
    c, rows, cols = ref[1:]
    for name, shape in (("query", query), ("ref", ref), ("init", init), ("the output", (n, 2, height, width))):
        check_addressable("PatchMatch", name, shape)
    if math.prod(ref) == 0 or n * height * width == 0:
        if n * height * width:
            raise ValueError("PatchMatch: ref is empty; there is nothing to match")
        return []

    parts = _scratch(query, ref, height * width, arithmetic)
    at = {name: addresses.scratch + offset for name, offset in parts.items()}
    int8 = arithmetic == "int8"
    common: dict[str, Any] = {
        **{name: getattr(addresses, name) for name in ("query", "ref", "valid", "init", "match", "relevance")},
        **{name: at[name] for name in ("energy", "inverse_norm", "settled")},
        **({name: at[name] for name in ("largest", "query_int8", "ref_int8")} if int8 else {}),
        "query_shared": int(query[0] == 1),
        "valid_shared": int(valid[0] == 1),
        "init_shared": int(init[0] == 1),
        "c": c,
        "c_int8": _padded_channels(c),
        "query_rows": query[2],
        "query_cols": query[3],
        "ref_rows": rows,
        "ref_cols": cols,
        "height": height,
        "width": width,
        "init_rows": init[2],
        "init_cols": init[3],
        "level": level,
        "pad": pad,
        "init_scale": init_scale,
        "schedule": PROPAGATIONS.index(schedule),  # Schedule of kernels.cu
    }
    floats = f"f{8 * _ITEM[dtype]}"
    kind, channels, lanes = ("int8", common["c_int8"], 16) if int8 else (floats, c, 16 // _ITEM[dtype])
    whole = channels % lanes == 0

    def launch(kernel: str, blocks: int, images: int = n, z: int = 1, threads: int = _THREADS, **step: Any) -> Launch:
        return Launch(f"patch_match_{kernel}", (blocks, images, z), (threads, 1, 1), MatchParams(**common, **step))

    launches = []
    if int8:
        launches.append(launch("clear", 1, threads=32))
        largest_map = max(query[2] * query[3], rows * cols) * common["c_int8"]
        blocks = min(-(-largest_map // _THREADS), _STRIDING_BLOCKS)
        launches += [launch(f"{what}_{floats}", blocks, z=2) for what in ("largest", "quantize")]
    launches.append(launch(f"energy_{kind}" + ("" if whole else "_any"), -(-rows * cols // _WARPS)))
    launches.append(launch("norm_int8" if int8 else "norm", -(-rows * cols // _THREADS)))

    vectors = -(-9 * channels // (32 * lanes))
    rounds = next((r for r in ROUNDS[kind] if r >= vectors), 0)
    step_kernel = f"step_{kind}_{rounds if whole else 'any'}"
    path = steps(schedule, iterations, level, (query[2], query[3]), (rows << level, cols << level))
    per_iteration = len(path) // iterations
    for i, step in enumerate(path):
        buffers = [at[f"{kind_of}{b}"] for b in (i % 2, 1 - i % 2) for kind_of in ("field", "score")]
        launches.append(
            launch(
                step_kernel,
                -(-height * width // _WARPS),
                **dict(zip(("field_from", "score_from", "field_to", "score_to"), buffers, strict=True)),
                lr=int(step.lr),
                turn=step.dilation.bit_length() - 1,
                iteration=i // per_iteration,
                first=int(i == 0),
                last=int(i == len(path) - 1),
            )
        )
    return launches
