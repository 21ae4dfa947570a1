"""Arrays of other libraries on this GPU, used where they are: DLPack (torch, CuPy, JAX), CUDA array interface (pycuda, Numba)."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from ...errors import AmsaError
from .cuda import DEVICE, LEGACY_STREAM, Cuda
from .memory import DeviceArray, contiguous_strides

_CUDA, _INTEGER, _FLOAT = 2, 0, 2  # DLDeviceType, DLDataTypeCode


def borrow(array: Any, cuda: Cuda, stream: Any) -> DeviceArray:
    """An array of another library as one of ours, sharing its memory; `stream` waits for what its library has still to do for it.

    Args:
        array: has `__dlpack__` or `__cuda_array_interface__`; float32, float16 or int32.
        cuda: the GPU.
        stream: ours.

    Raises:
        AmsaError: no array of this GPU, or of another type.
    """
    if hasattr(array, "__dlpack__") and hasattr(array, "__dlpack_device__"):
        kind, device = array.__dlpack_device__()
        if int(kind) != _CUDA or int(device) != DEVICE:
            raise AmsaError(
                f"the array is on device {int(kind)}:{int(device)}; it must be on the GPU in use, 2:{DEVICE}, or a numpy array"
            )
        return _from_dlpack(array.__dlpack__(stream=cuda.handle(stream)))
    interface = getattr(array, "__cuda_array_interface__", None)
    if interface is None:
        raise AmsaError(f"{type(array).__name__} is neither a numpy array nor one on the GPU")
    # Version 2 does not say which stream the array is made on: it may be the default one.
    producer = interface.get("stream") if interface["version"] >= 3 else LEGACY_STREAM
    if producer is not None:
        cuda.wait_stream(stream, int(producer))
    dtype, shape = _known(np.dtype(interface["typestr"])), tuple(interface["shape"])
    strides = interface.get("strides") or contiguous_strides(shape, dtype)
    return DeviceArray(array, int(interface["data"][0]), shape, tuple(strides), dtype)


def _known(dtype: np.dtype[Any]) -> np.dtype[Any]:
    if dtype not in (np.float32, np.float16, np.int32):
        raise AmsaError(f"the array is {dtype}; it must be float32, float16 or int32")
    return dtype


class _Tensor(ctypes.Structure):  # DLTensor of DLPack's header
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


def _from_dlpack(capsule: Any) -> DeviceArray:
    """The array in a capsule. The capsule stays unconsumed, so that its own end gives the memory back: it is the owner."""
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    tensor = _Tensor.from_address(get(capsule, b"dltensor"))
    kinds = {(_FLOAT, 32): np.float32, (_FLOAT, 16): np.float16, (_INTEGER, 32): np.int32}
    kind = kinds.get((tensor.code, tensor.bits)) if tensor.lanes == 1 else None
    if kind is None:
        raise AmsaError(
            f"the array has {tensor.bits}-bit elements of DLPack's type {tensor.code}; it must be float32, float16 or int32"
        )
    dtype: np.dtype[Any] = np.dtype(kind)
    shape = tuple(tensor.shape[: tensor.ndim])
    strides = contiguous_strides(shape, dtype)
    if tensor.strides:
        strides = tuple(n * dtype.itemsize for n in tensor.strides[: tensor.ndim])
    return DeviceArray(capsule, (tensor.data or 0) + tensor.byte_offset, shape, strides, dtype)
