"""The C++ plugins from Python, by way of plugin_shim.cpp, and memory of the device that they work on."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amsa.plugins import OPS, PATCH_MATCH, OpSpec

FLOAT, HALF, INT32 = 0, 1, 3  # nvinfer1::DataType
LINEAR, HWC8, CHW32, HWC = 0, 2, 5, 8  # nvinfer1::TensorFormat
FIELD_TYPES = {int: 5, str: 6}  # nvinfer1::PluginFieldType
ATTRIBUTES: dict[str, dict[str, Any]] = {
    "PatchMatch": {"iterations": 2, "schedule": "fast", "level": 1, "pad": 1, "init_scale": 2, "arithmetic": "int8"},
    "DeformableSample": {"scale": 2, "groups": 2},
}
POINTER = ctypes.c_void_p
TOLD = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_int, ctypes.POINTER(ctypes.c_ubyte), ctypes.c_size_t)

driver = ctypes.CDLL("libcuda.so.1")


def open_shim(who: str, with_log: bool = True) -> ctypes.CDLL:
    shim = ctypes.CDLL(os.environ[f"AMSA_TEST_SHIM_{who}"])
    for function in ("create", "create_again", "clone", "attach"):
        getattr(shim, function).restype = POINTER
    shim.take_log.restype = ctypes.c_char_p
    shim.workspace.restype = ctypes.c_size_t
    assert shim.open_library(os.environ["AMSA_TEST_PLUGIN_LIBRARY"].encode(), int(with_log)) == len(OPS), shim.take_log()
    return shim


shim = open_shim("RTX")


def call(function: str, *arguments: Any) -> None:
    status = getattr(driver, function)(*arguments)
    assert status == 0, f"{function}: {status}"


def calls(function: str) -> int:
    """How often the driver's function was called."""
    driver.amsa_test_calls.restype = ctypes.c_uint64
    return int(driver.amsa_test_calls(function.encode()))


def log() -> list[str]:
    return shim.take_log().decode().splitlines()


def create(op: OpSpec, **attributes: Any) -> POINTER:
    """A plugin from exactly these attributes; null where the library refuses."""
    values = attributes.values()
    n = len(attributes)
    return POINTER(
        shim.create(
            op.name.encode(),
            n,
            (ctypes.c_char_p * n)(*(name.encode() for name in attributes)),
            (ctypes.c_int32 * n)(*(v if isinstance(v, int) else 0 for v in values)),
            (ctypes.c_char_p * n)(*(v.encode() if isinstance(v, str) else None for v in values)),
        )
    )


def fields(plugin: POINTER) -> list[tuple[str, int, bytes]]:
    told: list[tuple[str, int, bytes]] = []

    @TOLD
    def tell(name: bytes, kind: int, data: Any, size: int) -> None:
        told.append((name.decode(), kind, bytes(data[:size])))

    shim.fields(plugin, tell)
    return told


def allocate(size: int) -> int:
    """Device memory, which holds bytes of ones: floats that are not numbers."""
    at = ctypes.c_uint64()
    call("cuMemAlloc_v2", ctypes.byref(at), ctypes.c_size_t(max(size, 1)))
    return at.value


def upload(array: np.ndarray[Any, Any]) -> int:
    at = allocate(array.nbytes)
    call("cuMemcpyHtoD_v2", ctypes.c_uint64(at), POINTER(array.ctypes.data), ctypes.c_size_t(array.nbytes))
    return at


def download(at: int, shape: tuple[int, ...], dtype: type) -> np.ndarray[Any, Any]:
    array = np.empty(shape, dtype)
    call("cuMemcpyDtoH_v2", POINTER(array.ctypes.data), ctypes.c_uint64(at), ctypes.c_size_t(array.nbytes))
    return array


class Attached:
    """A plugin that is attached to a context, with a stream, and scratch memory for inputs of these shapes at most."""

    def __init__(self, op: OpSpec, largest: Sequence[Sequence[int]], **attributes: Any) -> None:
        self.op = op
        plugin = create(op, **attributes)
        self.plugin = POINTER(shim.attach(plugin))
        shim.destroy(plugin)
        if not self.plugin:
            raise RuntimeError(" ".join(log()))
        self.stream = POINTER()
        call("cuStreamCreate", ctypes.byref(self.stream), 1)
        size = shim.workspace(self.plugin, len(largest), *self._shapes(largest))
        self.scratch = upload(np.full(size, 0xFF, np.uint8))

    @staticmethod
    def _shapes(shapes: Sequence[Sequence[int]]) -> tuple[Any, Any]:
        sizes = [n for shape in shapes for n in shape]
        return (ctypes.c_int * len(shapes))(*map(len, shapes)), (ctypes.c_int64 * len(sizes))(*sizes)

    def enqueue(self, half: bool, shapes: Sequence[Sequence[int]], inputs: Sequence[int], outputs: Sequence[int]) -> None:
        """RuntimeError with what was logged where the plugin reports a failure."""
        pointers = (POINTER * len(inputs))(*inputs), (POINTER * len(outputs))(*outputs)
        arguments = int(half), len(shapes), *self._shapes(shapes), *pointers, POINTER(self.scratch), self.stream
        if shim.enqueue(self.plugin, *arguments):
            raise RuntimeError(" ".join(log()))

    def run(self, *inputs: Tensor, shape: Sequence[int]) -> list[Tensor]:
        """The outputs, in the order and the shapes that the op declares. `shape`: of the first of them."""
        half = inputs[0].dtype == torch.float16
        given = [upload((t.permute(0, 2, 3, 1) if t.is_floating_point() else t).contiguous().numpy()) for t in inputs]
        n, c, height, width = shape
        if self.op is PATCH_MATCH:
            described: list[tuple[tuple[int, ...], type]] = [
                ((n, c, height, width), np.int32),
                ((n, 1, height, width), np.float32),
            ]
        else:
            described = [((n, height, width, c), np.float16 if half else np.float32)]
        made = [allocate(int(np.prod(s)) * np.dtype(t).itemsize) for s, t in described]
        self.enqueue(half, [t.shape for t in inputs], given, made)
        call("cuStreamSynchronize", self.stream)
        outputs = [torch.from_numpy(download(at, s, t)) for at, (s, t) in zip(made, described, strict=True)]
        return outputs if self.op is PATCH_MATCH else [outputs[0].permute(0, 3, 1, 2)]
