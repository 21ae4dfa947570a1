"""What a program is told that has not made a context current, and of code that the device does not run. The first test comes
before cuInit; so these have a process of their own."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest
from cuda.bindings import driver as cuda

import amsa.plugins
from amsa.plugins import launcher, nvrtc
from amsa.plugins.nvrtc import KernelError, compile_cubin

from ..cpu_driver import Control
from .gpu import ILLEGAL, SUCCESS, THREAD_LOCAL, UNSUPPORTED, context, do, stream

KERNELS = Path(amsa.plugins.__file__).parent / "deformable_sample" / "kernels.cu"
CAPABILITY = os.environ.get("AMSA_TEST_COMPUTE_CAPABILITY", "7.5")


def test_before_anything() -> None:
    assert cuda.cuMemAlloc(16)[0] == cuda.CUresult.CUDA_ERROR_NOT_INITIALIZED
    for _ in range(2):
        with pytest.raises(KernelError, match="no current CUDA context; make the device's primary context current first"):
            launcher.load_kernels("deformable_sample")
        do(cuda.cuInit(0))
    assert Control().calls("cuModuleLoadData") == 0


@pytest.mark.skipif(CAPABILITY != "7.5", reason="once is enough")
def test_kernels_belong_to_their_context() -> None:
    """A context that is made again has the address of the one before, and none of its kernels."""
    for loads in (1, 2):
        with context() as control:
            launcher.load_kernels("deformable_sample")
            launcher.load_kernels("deformable_sample")
            assert control.calls("cuModuleLoadData") == 1, loads  # counted from the context's beginning
            assert control.live("modules") == 1


@pytest.mark.skipif(CAPABILITY != "7.5", reason="once is enough")
def test_kernels_that_do_not_load_leave_nothing() -> None:
    with context() as control:
        control.fail_next("cuFuncLoad", cuda.CUresult.CUDA_ERROR_OUT_OF_MEMORY, after=1)
        with pytest.raises(KernelError, match=r"kernel deformable_sample_\w+ of deformable_sample: CUDA_ERROR_OUT_OF_MEMORY"):
            launcher.load_kernels("deformable_sample")
        assert control.live("modules") == 0
        assert launcher.load_kernels("deformable_sample")


@pytest.mark.skipif(CAPABILITY != "7.5", reason="once is enough")
def test_a_driver_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "LEAST_CUDA", (13, 1))
    text = r"the NVIDIA driver is for CUDA 13\.0, and launching needs 13\.1 or later; update the driver"
    with context() as control, pytest.raises(KernelError, match=text):
        launcher.load_kernels("deformable_sample")
    assert control.calls("cuModuleLoadData") == 0


@pytest.mark.skipif(CAPABILITY != "7.5", reason="once is enough")
def test_nvrtc_compiles() -> None:
    """Past the cache. It asks the driver for a cache of its own."""
    assert nvrtc._compile(KERNELS, "sm_75").startswith(b"\x7fELF")


@pytest.mark.skipif(CAPABILITY != "6.1", reason="with AMSA_TEST_COMPUTE_CAPABILITY=6.1 only")
def test_device_without_kernels() -> None:
    with context(), pytest.raises(KernelError, match=r"no kernels for compute capability 6\.1; there are sm_75, "):
        launcher.load_kernels("deformable_sample")


@pytest.mark.skipif(CAPABILITY != "8.9", reason="with AMSA_TEST_COMPUTE_CAPABILITY=8.9 only")
def test_newer_device() -> None:
    with context() as control:
        functions = launcher.load_kernels("deformable_sample")
        assert set(functions) == {f"deformable_sample_{kind}" for kind in ("f16", "f16_any", "f32", "f32_any")}
        assert control.calls("cuFuncLoad") == len(functions)
        unfit = cuda.CUresult.CUDA_ERROR_NO_BINARY_FOR_GPU
        expected = {"sm_75": unfit, "sm_80": SUCCESS, "sm_86": SUCCESS, "sm_89": SUCCESS, "sm_90": unfit}
        assert {a: cuda.cuModuleLoadData(compile_cubin(KERNELS, a))[0] for a in expected} == expected


PTX = b"""//
.version 8.0
.target sm_%d
.address_size 64
.visible .entry deformable_sample_f16(
.visible .entry unheard_of(
"""


@pytest.mark.skipif(CAPABILITY != "7.5", reason="for compute capability 7.5")
def test_modules() -> None:
    with context() as control:
        assert cuda.cuModuleLoadData(b"cubin")[0] == cuda.CUresult.CUDA_ERROR_INVALID_IMAGE
        assert cuda.cuModuleLoadData(PTX % 80)[0] == cuda.CUresult.CUDA_ERROR_NO_BINARY_FOR_GPU
        module = do(cuda.cuModuleLoadData(PTX % 70))
        assert do(cuda.cuModuleGetFunctionCount(module)) == 2
        names = [do(cuda.cuFuncGetName(f)) for f in do(cuda.cuModuleEnumerateFunctions(2, module))]
        assert names == [b"deformable_sample_f16", b"unheard_of"]
        function = do(cuda.cuModuleGetFunction(module, b"deformable_sample_f16"))
        bounds = cuda.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK
        assert do(cuda.cuFuncGetAttribute(bounds, function)) == 256
        assert cuda.cuModuleGetFunction(module, b"absent")[0] == cuda.CUresult.CUDA_ERROR_NOT_FOUND
        unheard = do(cuda.cuModuleGetFunction(module, b"unheard_of"))
        assert cuda.cuLaunchKernel(unheard, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0)[0] == cuda.CUresult.CUDA_ERROR_NOT_FOUND
        for grid, threads in ((0, 256), (1, 512), (1, 0)):  # its launch bounds are 256
            assert (
                cuda.cuLaunchKernel(function, grid, 1, 1, threads, 1, 1, 0, 0, 0, 0)[0] == cuda.CUresult.CUDA_ERROR_INVALID_VALUE
            )
        on, struct = stream(), ctypes.create_string_buffer(256)
        params = (ctypes.c_void_p * 1)(ctypes.addressof(struct))
        do(cuda.cuStreamBeginCapture(on, THREAD_LOCAL))  # nothing has loaded the function
        launch = function, 1, 1, 1, 256, 1, 1, 0, on, ctypes.addressof(params), 0
        assert cuda.cuLaunchKernel(*launch)[0] == UNSUPPORTED
        assert cuda.cuStreamEndCapture(on)[0] == cuda.CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
        do(cuda.cuFuncLoad(function))
        do(cuda.cuStreamBeginCapture(on, THREAD_LOCAL))
        do(cuda.cuLaunchKernel(*launch))
        graph = do(cuda.cuGraphInstantiate(do(cuda.cuStreamEndCapture(on)), 0))
        do(cuda.cuModuleUnload(module))
        assert cuda.cuGraphLaunch(graph, on)[0] == ILLEGAL
        control.reset()
        assert cuda.cuFuncLoad(function)[0] == cuda.CUresult.CUDA_ERROR_INVALID_HANDLE
        assert control.live("modules") == 0
