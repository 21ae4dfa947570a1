"""That pycuda loads this driver, copies and waits."""

from __future__ import annotations

import ctypes

import numpy as np


def test_copies() -> None:
    ctypes.CDLL("libcuda.so.1", ctypes.RTLD_GLOBAL)  # a pycuda that was built where there was no driver does not ask for it
    import pycuda.driver as driver

    driver.init()
    context = driver.Device(0).retain_primary_context()
    context.push()
    assert driver.Device(0).compute_capability() == (7, 5)
    stream, memory, out = driver.Stream(1), driver.mem_alloc(64), np.zeros(16, np.float32)
    staging = driver.pagelocked_empty(16, np.float32)
    staging[:] = 3
    driver.memcpy_htod_async(memory, staging, stream)
    driver.memcpy_dtoh_async(out, memory, stream)
    done = driver.Event(driver.event_flags.DISABLE_TIMING).record(stream)
    assert not out.any()
    done.synchronize()
    assert (out == 3).all()
    memory.free()
    driver.Context.pop()
