"""What a launch plan consists of. A plan is a pure function from shapes, attributes and addresses to a list of these."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Launch:
    """One kernel launch.

    Attributes:
        kernel: the kernel's name, as in its `.cu` file.
        grid, block: blocks and threads, (x, y, z).
        params: the one struct that the kernel takes, by value; addresses in it are plain integers.
        shared: bytes of dynamic shared memory.
    """

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    params: ctypes.Structure
    shared: int = 0


INT_MAX = 2**31 - 1


def check_addressable(op: str, name: str, shape: Sequence[int]) -> None:
    """Raise ValueError unless one batch element of a tensor can be indexed with 32 bits and a batch fits a grid."""
    if math.prod(shape[1:]) > INT_MAX:
        size = "x".join(map(str, shape[1:]))
        raise ValueError(f"{op}: {name} has {size} elements; the kernels index at most 2^31 - 1: use smaller tiles")
    if shape[0] > 65535:
        raise ValueError(f"{op}: {name} has batch {shape[0]}; the kernels take at most 65535")
