"""The driver itself, through cuda.bindings."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from cuda.bindings import driver as cuda

from ..cpu_driver import Control
from .gpu import (
    GLOBAL,
    ILLEGAL,
    INVALID,
    NOT_READY,
    SUCCESS,
    THREAD_LOCAL,
    UNSUPPORTED,
    context,
    do,
    download,
    event,
    new,
    now,
    stream,
    upload,
)

ONE, TWO = np.full(64, 1, np.float32), np.full(64, 2, np.float32)
HOST_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@pytest.fixture(autouse=True)
def control() -> Iterator[Control]:
    with context() as control:
        yield control


# ------------------------------------------------------------------------------------------------ when work runs


def test_nothing_runs_before_something_waits() -> None:
    first, second = stream(), stream()
    out, other = np.zeros_like(ONE), np.zeros_like(ONE)
    download(out, new(ONE, first), first)
    download(other, new(TWO, second), second)
    assert not out.any()
    do(cuda.cuStreamSynchronize(second))
    assert not out.any()
    assert np.array_equal(other, TWO)
    do(cuda.cuCtxSynchronize())
    assert np.array_equal(out, ONE)


def test_a_dependency_that_is_missing_reads_what_was_there_before() -> None:
    writer, reader, done = stream(), stream(), event()
    memory, stale, right = new(ONE, writer), np.zeros_like(ONE), np.zeros_like(ONE)
    do(cuda.cuEventRecord(done, writer))
    upload(memory, TWO, writer)
    download(stale, memory, reader)
    do(cuda.cuStreamSynchronize(reader))
    assert np.isnan(stale).all()
    do(cuda.cuStreamWaitEvent(reader, done, 0))
    download(right, memory, reader)
    do(cuda.cuStreamSynchronize(reader))
    assert np.array_equal(right, ONE)  # up to the event, and no further
    do(cuda.cuStreamSynchronize(writer))
    assert np.array_equal(now(memory, ONE), TWO)


def test_staging_memory_that_is_reused_too_early_is_read_too_late() -> None:
    on, staging = stream(), ONE.copy()
    memory = new(staging, on)
    staging[:] = 7
    do(cuda.cuStreamSynchronize(on))
    assert (now(memory, ONE) == 7).all()


def test_queries_are_not_ready_at_first_and_get_on() -> None:
    on, done = stream(), event()
    new(ONE, on)
    do(cuda.cuEventRecord(done, on))
    assert [cuda.cuEventQuery(done)[0] for _ in range(3)] == [NOT_READY, NOT_READY, SUCCESS]
    new(ONE, on)
    assert [cuda.cuStreamQuery(on)[0] for _ in range(2)] == [NOT_READY, SUCCESS]


def test_the_legacy_stream_waits_for_blocking_streams_only() -> None:
    blocking, other = do(cuda.cuStreamCreate(0)), stream()
    seen, unseen = new(ONE, blocking), new(ONE, other)
    assert np.array_equal(now(seen, ONE), ONE)
    assert np.isnan(now(unseen, ONE)).all()
    upload(seen, TWO, 0)
    out = np.zeros_like(ONE)
    download(out, seen, blocking)
    do(cuda.cuStreamSynchronize(blocking))
    assert np.array_equal(out, TWO)


def test_time_between_events() -> None:
    on, start, end = stream(), event(), event()
    do(cuda.cuEventRecord(start, on))
    do(cuda.cuEventRecord(end, on))
    assert cuda.cuEventElapsedTime(start, end)[0] == NOT_READY
    do(cuda.cuEventSynchronize(end))
    assert do(cuda.cuEventElapsedTime(start, end)) >= 0


def test_a_destroyed_stream_finishes_its_work() -> None:
    on = stream()
    memory = new(ONE, on)
    do(cuda.cuStreamDestroy(on))
    assert cuda.cuStreamSynchronize(on)[0] == cuda.CUresult.CUDA_ERROR_INVALID_HANDLE
    do(cuda.cuCtxSynchronize())
    assert np.array_equal(now(memory, ONE), ONE)


def test_host_functions_run_in_order_and_may_not_call_the_driver() -> None:
    on, told = stream(), []
    memory = new(ONE, on)
    out = np.zeros_like(ONE)

    @HOST_FUNCTION
    def tell(_: int) -> None:
        told.append((threading.get_ident(), float(out[0]), cuda.cuMemAlloc(16)[0]))

    download(out, memory, on)
    do(cuda.cuLaunchHostFunc(on, cuda.CUhostFn(ctypes.cast(tell, ctypes.c_void_p).value), 0))
    upload(memory, TWO, on)
    assert told == []
    do(cuda.cuStreamSynchronize(on))
    ((thread, value, status),) = told
    assert (value, status) == (1.0, cuda.CUresult.CUDA_ERROR_NOT_PERMITTED)
    assert thread != threading.get_ident()


def test_threads_that_wait_for_one_stream() -> None:
    on, release = stream(), threading.Event()

    @HOST_FUNCTION
    def wait(_: int) -> None:
        assert release.wait(60)

    do(cuda.cuLaunchHostFunc(on, cuda.CUhostFn(ctypes.cast(wait, ctypes.c_void_p).value), 0))
    memory = new(ONE, on)
    found = []

    def follow() -> None:
        do(cuda.cuCtxSetCurrent(do(cuda.cuDevicePrimaryCtxRetain(0))))
        do(cuda.cuStreamSynchronize(on))
        found.append(now(memory, ONE))
        do(cuda.cuDevicePrimaryCtxRelease(0))

    threads = [threading.Thread(target=follow) for _ in range(2)]
    for thread in threads:
        thread.start()
    release.set()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert all(np.array_equal(f, ONE) for f in found)


# ------------------------------------------------------------------------------------------------ memory


def test_memory_is_aligned_and_holds_no_numbers_before_and_after(control: Control) -> None:
    memory = do(cuda.cuMemAlloc(256))
    assert int(memory) % 256 == 0
    view = np.ctypeslib.as_array((ctypes.c_float * 64).from_address(int(memory)))
    assert np.isnan(view).all()
    view[:] = 1
    do(cuda.cuMemFree(memory))
    assert np.isnan(view).all()
    assert int(do(cuda.cuMemAlloc(256))) != int(memory)


def test_what_is_alive_is_counted(control: Control) -> None:
    kinds = "allocations", "bytes", "host_allocations", "streams", "events", "graphs"

    def live() -> list[int]:
        return [control.live(kind) for kind in kinds]

    on, done = stream(), event()
    memory, host = do(cuda.cuMemAlloc(1000)), do(cuda.cuMemAllocHost(10))
    do(cuda.cuStreamBeginCapture(on, GLOBAL))
    graph = do(cuda.cuStreamEndCapture(on))
    executable = do(cuda.cuGraphInstantiate(graph, 0))
    assert live() == [1, 1000, 1, 1, 1, 2]
    do(cuda.cuMemFree(memory))
    do(cuda.cuMemFreeHost(host))
    do(cuda.cuGraphExecDestroy(executable))
    do(cuda.cuGraphDestroy(graph))
    do(cuda.cuEventDestroy(done))
    do(cuda.cuStreamDestroy(on))
    assert live() == [0] * 6
    assert cuda.cuMemFree(memory)[0] == INVALID


def test_memory_that_goes_with_its_context_is_still_a_leak(control: Control) -> None:
    memory = do(cuda.cuMemAlloc(1000))
    do(cuda.cuDevicePrimaryCtxRelease(0))
    assert cuda.cuMemAlloc(1)[0] == cuda.CUresult.CUDA_ERROR_CONTEXT_IS_DESTROYED
    do(cuda.cuDevicePrimaryCtxRetain(0))
    assert control.live("allocations") == 1
    assert cuda.cuMemFree(memory)[0] == INVALID


def test_work_goes_with_its_context_too() -> None:
    on, done, out = stream(), event(), np.zeros_like(ONE)
    download(out, new(ONE, on), on)
    do(cuda.cuEventRecord(done, on))
    do(cuda.cuDevicePrimaryCtxRelease(0))
    do(cuda.cuDevicePrimaryCtxRetain(0))
    do(cuda.cuEventSynchronize(done))
    assert not out.any()


def test_memory_runs_out(control: Control) -> None:
    control.set_memory(1000)
    memory = do(cuda.cuMemAlloc(600))
    assert do(cuda.cuMemGetInfo()) == (400, 1000)
    assert cuda.cuMemAlloc(401)[0] == cuda.CUresult.CUDA_ERROR_OUT_OF_MEMORY
    do(cuda.cuMemFree(memory))
    do(cuda.cuMemAlloc(1000))


def test_copies_outside_of_an_allocation_are_refused() -> None:
    on, memory, short = stream(), do(cuda.cuMemAlloc(256)), do(cuda.cuMemAlloc(16))
    out = np.zeros(65, np.float32)
    assert cuda.cuMemcpyDtoHAsync(out.ctypes.data, memory, 260, on)[0] == INVALID
    assert cuda.cuMemcpyDtoHAsync(out.ctypes.data, int(memory) + 4, 256, on)[0] == INVALID
    assert cuda.cuMemcpyDtoHAsync(out.ctypes.data, out.ctypes.data, 16, on)[0] == INVALID
    assert cuda.cuMemcpyDtoDAsync(short, memory, 17, on)[0] == INVALID
    assert cuda.cuMemsetD8Async(short, 0, 17, on)[0] == INVALID
    assert cuda.cuMemsetD32Async(int(memory) + 2, 0, 1, on)[0] == INVALID
    assert cuda.cuMemcpyHtoD(short, out.ctypes.data, 17)[0] == INVALID
    do(cuda.cuStreamSynchronize(on))


def test_memory_that_is_freed_too_early_is_an_error_that_stays() -> None:
    on, memory = stream(), do(cuda.cuMemAlloc(64))
    host = do(cuda.cuMemAllocHost(64))
    do(cuda.cuMemcpyHtoDAsync(memory, host, 64, on))
    do(cuda.cuMemFreeHost(host))  # waits for nothing
    assert cuda.cuStreamSynchronize(on)[0] == ILLEGAL
    assert cuda.cuMemAlloc(16)[0] == ILLEGAL
    assert cuda.cuStreamQuery(on)[0] == ILLEGAL


def test_freeing_waits_for_all_work() -> None:
    first, second = stream(), stream()
    memory, out = new(ONE, first), np.zeros_like(ONE)
    done = event()
    do(cuda.cuEventRecord(done, first))
    do(cuda.cuStreamWaitEvent(second, done, 0))
    download(out, memory, second)
    do(cuda.cuMemFree(memory))
    assert np.array_equal(out, ONE)
    do(cuda.cuCtxSynchronize())


def test_fills() -> None:
    on, memory = stream(), do(cuda.cuMemAlloc(16))
    do(cuda.cuMemsetD8Async(memory, 3, 16, on))
    do(cuda.cuMemsetD32Async(int(memory) + 4, 0x01020304, 2, on))
    do(cuda.cuStreamSynchronize(on))
    assert now(memory, np.zeros(16, np.uint8)).tolist() == [3] * 4 + [4, 3, 2, 1] * 2 + [3] * 4


# ------------------------------------------------------------------------------------------------ boxes

HOST, DEVICE = cuda.CUmemorytype.CU_MEMORYTYPE_HOST, cuda.CUmemorytype.CU_MEMORYTYPE_DEVICE


def box(depth: int, source: np.ndarray[Any, Any], memory: Any) -> Any:
    """Rows 2 to 5, bytes 3 to 8 of planes 1 to ... go to row 1, byte 4 of plane 0 in planes of 7 rows of 20 bytes."""
    copy = cuda.CUDA_MEMCPY3D() if depth > 1 else cuda.CUDA_MEMCPY2D()
    copy.srcMemoryType, copy.srcHost, copy.srcPitch = HOST, source.ctypes.data, source.strides[-2]
    copy.dstMemoryType, copy.dstDevice, copy.dstPitch = DEVICE, memory, 20
    copy.srcXInBytes, copy.srcY, copy.dstXInBytes, copy.dstY = 3, 2, 4, 1
    copy.WidthInBytes, copy.Height = 6, 4
    if depth > 1:
        copy.srcZ, copy.srcHeight, copy.dstHeight, copy.Depth = 1, source.shape[-2], 7, depth
    return copy


@pytest.mark.parametrize("depth", [1, 2])
def test_boxes(depth: int) -> None:
    on, rng = stream(), np.random.default_rng(0)
    source = rng.integers(0, 255, (4, 9, 16) if depth > 1 else (9, 16), np.uint8)
    expected = np.full((3, 7, 20) if depth > 1 else (7, 20), 0xFF, np.uint8)
    memory = do(cuda.cuMemAlloc(expected.nbytes))
    call = cuda.cuMemcpy3DAsync if depth > 1 else cuda.cuMemcpy2DAsync
    do(call(box(depth, source, memory), on))
    assert (now(memory, expected) == 0xFF).all()
    do(cuda.cuStreamSynchronize(on))
    planes = (slice(0, depth),) if depth > 1 else ()
    from_planes = (slice(1, 1 + depth),) if depth > 1 else ()
    expected[(*planes, slice(1, 5), slice(4, 10))] = source[(*from_planes, slice(2, 6), slice(3, 9))]
    assert np.array_equal(now(memory, expected), expected)


@pytest.mark.parametrize("depth", [1, 2])
def test_boxes_that_do_not_fit(depth: int) -> None:
    on, source = stream(), np.zeros((4, 9, 16) if depth > 1 else (9, 16), np.uint8)
    memory = do(cuda.cuMemAlloc(20 * 7 * depth))
    call = cuda.cuMemcpy3DAsync if depth > 1 else cuda.cuMemcpy2DAsync
    changes = [("dstPitch", 9), ("srcPitch", 8), ("dstY", 4), ("dstDevice", 0), *([("dstHeight", 4)] if depth > 1 else [])]
    for name, value in changes:
        copy = box(depth, source, memory)
        setattr(copy, name, value)
        assert call(copy, on)[0] == INVALID, name
    do(call(box(depth, source, memory), on))


# ------------------------------------------------------------------------------------------------ captures


def capture(on: Any, work: Callable[[], None], mode: Any = GLOBAL) -> Any:
    do(cuda.cuStreamBeginCapture(on, mode))
    work()
    return do(cuda.cuStreamEndCapture(on))


def test_a_captured_graph_is_replayed_on_what_is_there_then() -> None:
    on, staging, out = stream(), ONE.copy(), np.zeros_like(ONE)
    memory = do(cuda.cuMemAlloc(ONE.nbytes))

    def work() -> None:
        upload(memory, staging, on)
        download(out, memory, on)

    graph = capture(on, work)
    executable = do(cuda.cuGraphInstantiate(graph, 0))
    do(cuda.cuGraphDestroy(graph))
    do(cuda.cuStreamSynchronize(on))
    assert not out.any()  # captured, not queued
    for value in (3, 4):
        staging[:] = value
        do(cuda.cuGraphLaunch(executable, on))
        assert not (out == value).any()
        do(cuda.cuStreamSynchronize(on))
        assert (out == value).all()


def test_streams_fork_and_join_in_a_capture() -> None:
    on, other, fork, joined = stream(), stream(), event(), event()
    memory, out = do(cuda.cuMemAlloc(ONE.nbytes)), np.zeros_like(ONE)

    def work(join: bool = True) -> None:
        upload(memory, ONE, on)
        do(cuda.cuEventRecord(fork, on))
        do(cuda.cuStreamWaitEvent(other, fork, 0))
        upload(memory, TWO, other)
        if join:
            do(cuda.cuEventRecord(joined, other))
            do(cuda.cuStreamWaitEvent(on, joined, 0))
        download(out, memory, on)

    executable = do(cuda.cuGraphInstantiate(capture(on, work), 0))
    do(cuda.cuGraphLaunch(executable, on))
    do(cuda.cuStreamSynchronize(on))
    assert np.array_equal(out, TWO)
    do(cuda.cuStreamBeginCapture(on, GLOBAL))
    work(join=False)
    assert cuda.cuStreamEndCapture(on)[0] == cuda.CUresult.CUDA_ERROR_STREAM_CAPTURE_UNJOINED
    assert cuda.cuEventSynchronize(joined)[0] == cuda.CUresult.CUDA_ERROR_CAPTURED_EVENT


def test_branches_of_a_graph_that_do_not_wait_for_each_other_run_in_any_order() -> None:
    on, other, fork, joined = stream(), stream(), event(), event()
    memory = do(cuda.cuMemAlloc(ONE.nbytes))

    def work() -> None:
        do(cuda.cuEventRecord(fork, on))
        do(cuda.cuStreamWaitEvent(other, fork, 0))
        upload(memory, ONE, on)
        upload(memory, TWO, other)
        do(cuda.cuEventRecord(joined, other))
        do(cuda.cuStreamWaitEvent(on, joined, 0))

    do(cuda.cuGraphLaunch(do(cuda.cuGraphInstantiate(capture(on, work), 0)), on))
    do(cuda.cuStreamSynchronize(on))
    last = ONE if os.environ.get("AMSA_TEST_ORDER") == "reversed" else TWO
    assert np.array_equal(now(memory, ONE), last)


def test_a_capture_does_not_wait_for_what_is_outside() -> None:
    on, other, done = stream(), stream(), event()
    do(cuda.cuEventRecord(done, other))
    do(cuda.cuStreamBeginCapture(on, GLOBAL))
    assert cuda.cuStreamWaitEvent(on, done, 0)[0] == cuda.CUresult.CUDA_ERROR_STREAM_CAPTURE_ISOLATION
    assert cuda.cuStreamEndCapture(on)[0] == cuda.CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED


FORBIDDEN: dict[str, Callable[[Any, Any, Any], Any]] = {
    "synchronize": lambda on, memory, host: cuda.cuStreamSynchronize(on),
    "query": lambda on, memory, host: cuda.cuStreamQuery(on),
    "allocate": lambda on, memory, host: cuda.cuMemAlloc(16),
    "free": lambda on, memory, host: cuda.cuMemFree(memory),
    "allocate_host": lambda on, memory, host: cuda.cuMemAllocHost(16),
    "free_host": lambda on, memory, host: cuda.cuMemFreeHost(host),
    "load": lambda on, memory, host: cuda.cuModuleLoadData(b"cubin"),
    "synchronize_all": lambda on, memory, host: cuda.cuCtxSynchronize(),
    "copy_now": lambda on, memory, host: cuda.cuMemcpyHtoD(memory, host, 16),
    "legacy_work": lambda on, memory, host: cuda.cuMemcpyHtoDAsync(memory, host, 16, 0),
}


@pytest.mark.parametrize("call", FORBIDDEN.values(), ids=FORBIDDEN.keys())
@pytest.mark.parametrize("mode", [GLOBAL, THREAD_LOCAL], ids=lambda mode: mode.name.lower()[23:])
def test_calls_that_a_capture_forbids(mode: Any, call: Callable[[Any, Any, Any], Any]) -> None:
    on, memory, host = stream(), do(cuda.cuMemAlloc(16)), do(cuda.cuMemAllocHost(16))
    do(cuda.cuStreamBeginCapture(on, mode))
    assert call(on, memory, host)[0] == UNSUPPORTED
    assert do(cuda.cuStreamIsCapturing(on)) == cuda.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_INVALIDATED
    status = cuda.CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
    assert cuda.cuMemcpyHtoDAsync(memory, host, 16, on)[0] == status
    assert cuda.cuStreamEndCapture(on)[0] == status
    do(cuda.cuStreamSynchronize(on))
    do(cuda.cuMemFree(memory))


@pytest.mark.parametrize(("mode", "status"), [(GLOBAL, UNSUPPORTED), (THREAD_LOCAL, SUCCESS)], ids=["global", "thread_local"])
def test_calls_of_other_threads_during_a_capture(mode: Any, status: Any) -> None:
    on, found = stream(), []

    def allocate() -> None:
        do(cuda.cuCtxSetCurrent(do(cuda.cuDevicePrimaryCtxRetain(0))))
        found.append(cuda.cuMemAlloc(16)[0])
        do(cuda.cuDevicePrimaryCtxRelease(0))

    do(cuda.cuStreamBeginCapture(on, mode))
    thread = threading.Thread(target=allocate)
    thread.start()
    thread.join()
    assert found == [status]
    assert (cuda.cuStreamEndCapture(on)[0] == SUCCESS) == (status == SUCCESS)


def test_a_graph_whose_memory_was_freed_is_not_launched() -> None:
    on, memory = stream(), do(cuda.cuMemAlloc(ONE.nbytes))
    executable = do(cuda.cuGraphInstantiate(capture(on, lambda: upload(memory, ONE, on)), 0))
    do(cuda.cuGraphLaunch(executable, on))
    do(cuda.cuMemFree(memory))
    assert cuda.cuGraphLaunch(executable, on)[0] == ILLEGAL
    assert cuda.cuStreamSynchronize(on)[0] == ILLEGAL


# ------------------------------------------------------------------------------------------------ for tests


def test_functions_fail_when_they_are_told_to(control: Control) -> None:
    control.fail_next("cuMemAlloc", cuda.CUresult.CUDA_ERROR_OUT_OF_MEMORY, after=1)
    statuses = [cuda.cuMemAlloc(16)[0] for _ in range(3)]
    assert statuses == [SUCCESS, cuda.CUresult.CUDA_ERROR_OUT_OF_MEMORY, SUCCESS]
    assert control.calls("cuMemAlloc") == 3
    assert control.live("allocations") == 2
    control.reset()
    assert control.calls("cuMemAlloc") == control.live("allocations") == 0


def test_a_thread_without_a_context() -> None:
    found = []
    thread = threading.Thread(target=lambda: found.append(cuda.cuMemAlloc(16)[0]))
    thread.start()
    thread.join()
    assert found == [cuda.CUresult.CUDA_ERROR_INVALID_CONTEXT]


def test_errors_have_names_and_what_is_missing_is_told() -> None:
    assert do(cuda.cuGetErrorName(cuda.CUresult(700))) == b"CUDA_ERROR_ILLEGAL_ADDRESS"
    assert do(cuda.cuGetErrorString(cuda.CUresult(2))) == b"out of memory"
    assert do(cuda.cuDeviceGetName(16, 0)).split(b"\0")[0] == b"CPU"
    major = cuda.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
    assert do(cuda.cuDeviceGetAttribute(major, 0)) == 7
    assert cuda.cuDeviceGet(1)[0] == cuda.CUresult.CUDA_ERROR_INVALID_DEVICE
