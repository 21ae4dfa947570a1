"""A real GPU in place of the harness: the same `run`, so that the harness's tests of the kernels run on it unchanged."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from amsa.engine.gpu.cuda import Cuda, CudaError, open_cuda
from amsa.plugins.launch import Launch
from amsa.plugins.launcher import launch_all


@cache
def missing() -> str | None:
    """Why there is no GPU to test on, for a test to be skipped with; None where there is one."""
    try:
        open_cuda()
    except CudaError as e:
        return str(e)
    return None


def is_real() -> bool:
    """Whether the driver is NVIDIA's, not the one on the CPU that proves these tests themselves."""
    return "AMSA_ON_CPU_DRIVER" not in os.environ


class Gpu:
    """Runs an op's launch plans on the GPU.

    Args:
        op: the op's folder, as "patch_match".
    """

    def __init__(self, op: str) -> None:
        self._op = op
        self._cuda: Cuda = open_cuda()

    def run(self, buffers: dict[str, Any], launches: Callable[[dict[str, int]], list[Launch]]) -> dict[str, Any]:
        """Copies arrays to the GPU, launches what `launches` makes of their addresses, and returns them as they are then."""
        arrays = {name: np.ascontiguousarray(a) for name, a in buffers.items()}
        cuda = self._cuda
        with cuda.current():
            stream = cuda.stream()
            at = {name: cuda.allocate(max(a.nbytes, 1)) for name, a in arrays.items()}
            hosts = {name: cuda.pinned(max(a.nbytes, 1)) for name, a in arrays.items()}
            try:
                for name, a in arrays.items():
                    if a.nbytes:
                        hosts[name][:] = a.reshape(-1).view(np.uint8)
                        cuda.to_device(at[name], hosts[name], stream)
                launch_all(self._op, launches(dict(at)), ctypes.c_void_p(cuda.handle(stream)))
                for name, a in arrays.items():
                    if a.nbytes:
                        cuda.to_host(hosts[name], at[name], stream)
                cuda.synchronize(stream)
            finally:
                for address in at.values():
                    cuda.free(address)
                cuda.destroy_stream(stream)
            return {name: hosts[name][: a.nbytes].view(a.dtype).reshape(a.shape).copy() for name, a in arrays.items()}
