"""The static report: occupancy against CUDA's own arithmetic, figures of small kernels, and what `--check` finds."""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest

from amsa.plugins import kernel_report, nvrtc
from amsa.plugins.kernel_report import Expectation, KernelFigures, failures, occupancy, read_cubin, roofline, roofline_table

SOURCE = """\
#include <cuda_fp16.h>
struct Params { const float* a; float* b; const __half2* h; int n; };
#define KERNEL(name, threads) extern "C" __global__ void __launch_bounds__(threads) name(const Params p)
// 2,048 bytes of shared memory; one 128-bit load of two
KERNEL(vector, 128) {
  __shared__ float4 tile[128];
  tile[threadIdx.x] = reinterpret_cast<const float4*>(p.a)[threadIdx.x];
  __syncthreads();
  float4 v = tile[threadIdx.x ^ 31];
  v.x = fmaf(v.x, v.y, __shfl_xor_sync(~0u, v.z, 1));
  const __half2 h = __hfma2(p.h[threadIdx.x], p.h[threadIdx.x], p.h[threadIdx.x]);
  v.y = __low2float(h) + __high2float(h);
  reinterpret_cast<float4*>(p.b)[threadIdx.x] = v;
}
KERNEL(scalar, 256) { p.b[threadIdx.x] = p.a[threadIdx.x]; }
// 96 values a thread, where 1,024 threads leave room for 64
KERNEL(spilling, 1024) {
  float v[96];
  for (int k = 0; k < 96; ++k) v[k] = p.a[threadIdx.x + k * 1024];
  __syncthreads();
  for (int k = 0; k < 96; ++k) p.b[threadIdx.x + (95 - k) * 1024] = v[k] * v[(k + 7) % 96];
}
// the same with room: all of them stay in registers, which leaves few threads
KERNEL(hungry, 64) {
  float v[160];
  for (int k = 0; k < 160; ++k) v[k] = p.a[threadIdx.x + k * 1024];
  __syncthreads();
  for (int k = 0; k < 160; ++k) p.b[threadIdx.x + (159 - k) * 1024] = v[k] * v[(k + 7) % 160];
}
// an array indexed at run time: no spill, but local memory all the same
KERNEL(indexed, 128) {
  float v[40];
  for (int k = 0; k < 40; ++k) v[(k * p.n) % 40] = p.a[k];
  p.b[threadIdx.x] = v[p.n];
}
extern "C" __global__ void unbounded(const Params p) { p.b[threadIdx.x] = p.a[threadIdx.x]; }
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kernels") / "kernels.cu"
    path.write_text(SOURCE)
    return path


def _absent() -> str:
    try:
        nvrtc.wheel_versions()
        for tool in ("cuobjdump", "nvdisasm"):
            nvrtc.wheel_file(f"nvidia-cuda-{tool}", f"bin/{tool}", f"pip install nvidia-cuda-{tool}")
    except nvrtc.KernelError as e:
        return str(e)
    return ""


examines = pytest.mark.skipif(bool(_absent()), reason=_absent())


@pytest.fixture
def figures(source: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, KernelFigures]]:
    """arch -> figures of SOURCE's kernels by name."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(source.parent))
    return lambda arch: {k.name: k for k in read_cubin(nvrtc.compile_cubin(source, arch), arch)}


# By hand for SM 7.5: 65,536 registers, 1,024 threads (32 warps), 16 blocks, 64 KB of shared memory.
@pytest.mark.parametrize(
    ("threads", "registers", "shared", "ratio", "limit"),
    [
        (128, 64, 0, 1.0, "threads"),  # 64 registers x 1,024 threads are exactly all
        (128, 65, 0, 0.875, "registers"),  # 2,080 a warp, in units of 256: 2,304; 16,384 in a partition: 7 warps, 28 in all
        (128, 128, 0, 0.5, "registers"),  # 4,096 a warp: 4 warps in each of the four partitions
        (128, 255, 0, 0.25, "registers"),
        (32, 32, 0, 0.5, "blocks"),  # 16 blocks of one warp
        (33, 32, 0, 1.0, "threads"),  # a warp of one thread is a warp
        (256, 32, 32 * 1024, 0.5, "shared"),
        (256, 32, 32 * 1024 + 1, 0.25, "shared"),  # rounded up to 256 bytes: one block
        (768, 32, 0, 0.75, "threads"),
        (1024, 65, 0, 0.0, "registers"),  # cannot be launched
        (64, 32, 65 * 1024, 0.0, "shared"),
    ],
)
def test_occupancy_by_hand(threads: int, registers: int, shared: int, ratio: float, limit: str) -> None:
    assert occupancy("sm_75", threads, registers, shared) == (ratio, limit)


ORACLE = r"""
#include <climits>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include "cuda_occupancy.h"
// in: major minor threads_per_sm shared_per_sm reserved, threads registers shared; out: blocks
int main() {
  int major, minor, sm_threads, sm_shared, reserved, threads, registers, shared;
  while (std::scanf("%d %d %d %d %d", &major, &minor, &sm_threads, &sm_shared, &reserved) == 5 &&
         std::scanf("%d %d %d", &threads, &registers, &shared) == 3) {
    cudaOccDeviceProp d;
    std::memset(static_cast<void*>(&d), 0, sizeof d);
    d.computeMajor = major, d.computeMinor = minor, d.maxThreadsPerBlock = 1024, d.maxThreadsPerMultiprocessor = sm_threads;
    d.regsPerBlock = d.regsPerMultiprocessor = 65536, d.warpSize = 32, d.numSms = 1;
    d.sharedMemPerBlock = 48 * 1024, d.sharedMemPerMultiprocessor = sm_shared, d.sharedMemPerBlockOptin = sm_shared - reserved;
    d.reservedSharedMemPerBlock = reserved;
    cudaOccFuncAttributes f;
    std::memset(static_cast<void*>(&f), 0, sizeof f);
    f.maxThreadsPerBlock = 1024, f.numRegs = registers, f.sharedSizeBytes = shared, f.partitionedGCConfig = PARTITIONED_GC_OFF;
    f.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN, f.maxDynamicSharedSizeBytes = 0;
    cudaOccDeviceState s;
    std::memset(static_cast<void*>(&s), 0, sizeof s);
    s.carveoutConfig = SHAREDMEM_CARVEOUT_MAX_SHARED;
    cudaOccResult r;
    const int error = cudaOccMaxActiveBlocksPerMultiprocessor(&r, &d, &f, &s, threads, 0);
    std::printf("%d\n", error ? -error : r.activeBlocksPerMultiprocessor);
  }
}
"""


def test_occupancy_is_that_of_cuda(tmp_path: Path) -> None:
    compiler = shutil.which("g++")
    try:
        headers = nvrtc.wheel_file("nvidia-cuda-runtime", "cuda_occupancy.h", "")
    except nvrtc.KernelError:
        pytest.skip("no wheel nvidia-cuda-runtime")
    if compiler is None:
        pytest.skip("no g++")
    (tmp_path / "oracle.cpp").write_text(ORACLE)
    oracle = tmp_path / "oracle"
    subprocess.run([compiler, "-w", f"-I{headers.parent}", tmp_path / "oracle.cpp", "-o", oracle], check=True)
    cases = [
        (arch, *figures)
        for arch in nvrtc.ARCHITECTURES
        for figures in product(
            (1, 32, 48, 96, 128, 160, 256, 512, 768, 1024), range(1, 256, 7), (0, 1, 2048, 8100, 20000, 48 * 1024)
        )
    ]
    lines = []
    for arch, *figures in cases:
        sm, number = kernel_report.MULTIPROCESSORS[arch], int(arch[3:])
        lines.append(" ".join(map(str, (number // 10, number % 10, sm.threads, sm.shared, sm.reserved, *figures))))
    done = subprocess.run([oracle], input="\n".join(lines), capture_output=True, text=True, check=True)
    expected = [int(n) for n in done.stdout.split()]
    assert len(expected) == len(cases)
    for (arch, threads, registers, shared), blocks in zip(cases, expected, strict=True):
        warps = kernel_report.MULTIPROCESSORS[arch].threads // 32
        ratio = occupancy(arch, threads, registers, shared)[0]
        assert ratio == blocks * -(-threads // 32) / warps, (arch, threads, registers, shared)


@examines
@pytest.mark.parametrize("arch", nvrtc.ARCHITECTURES)
def test_figures(figures: Callable[[str], dict[str, KernelFigures]], arch: str) -> None:
    kernels = figures(arch)
    assert {n: k.threads for n, k in kernels.items()} == {
        "vector": 128, "scalar": 256, "spilling": 1024, "hungry": 64, "indexed": 128, "unbounded": 0,
    }  # fmt: skip
    vector = kernels["vector"]
    assert (vector.shared, vector.stack, vector.spills, vector.loads) == (2048, 0, (0, 0), (1, 2))
    counted = {kind: vector.instructions[kind] for kind in ("LDG.128", "LDG.32", "STG.128", "LDS.128", "STS.128", "FFMA", "SHFL")}
    assert counted == dict.fromkeys(counted, 1)
    assert vector.instructions["BAR"] == 1
    assert vector.instructions["HFMA2"] == 1  # those that only make a constant are moves
    assert kernels["scalar"].loads == (0, 1)
    assert kernels["scalar"].shared == 0
    assert kernels["hungry"].registers > 160
    assert kernels["spilling"].registers == 64
    stored, loaded = kernels["spilling"].spills
    assert stored == loaded > 4 * 32
    assert kernels["indexed"].stack == 160
    assert kernels["indexed"].spills == (160, 4)


@examines
def test_what_check_finds(figures: Callable[[str], dict[str, KernelFigures]]) -> None:
    kernels = figures("sm_75")
    expectations = {"vector": Expectation(vector_loads=1), "scalar": Expectation(vector_loads=1), "gone": Expectation()}
    found = dict(line.split(": ", 1) for line in failures(list(kernels.values()), expectations))
    assert found.pop("gone") == "no such kernel, but something is expected of it"
    assert found.pop("scalar") == "0 loads of 128 bits; 1 wanted"
    assert found.pop("spilling").startswith("spills; ")
    assert found.pop("indexed") == "spills; 160 bytes stored to local memory and 4 loaded, per thread"
    assert found.pop("hungry").endswith("on sm_75, limited by registers; 50% wanted")
    assert found.pop("unbounded") == "declares no launch bounds"
    assert not found


def test_dynamic_shared_memory_counts() -> None:
    kernel = KernelFigures("k", "sm_75", 256, 32, 1024, 0, Counter())
    assert not failures([kernel], {})
    assert failures([kernel], {"k": Expectation(shared=40 * 1024)}) == [
        "k: occupancy 25% on sm_75, limited by shared; 50% wanted"
    ]


@examines
def test_the_report(source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(source.parent))
    monkeypatch.setattr(kernel_report, "kernel_sources", lambda: [source])
    monkeypatch.setattr(kernel_report, "WORKLOADS", [("480x320", lambda: [("vector", 616e6, 1e9)])])
    assert kernel_report.main([]) == 0
    text = capsys.readouterr().out
    assert text.startswith("sm_75: estimate from the compiled code, not measured\n")
    assert "\n480x320 on RTX 2080 Ti: estimate, not measured\n" in text
    assert "spilling: spills" not in text
    assert kernel_report.main(["--check"]) == 1
    assert "\nspilling: spills" in capsys.readouterr().out
    monkeypatch.setattr(kernel_report, "failures", lambda kernels: [])
    assert kernel_report.main(["--check"]) == 0
    assert capsys.readouterr().out.endswith("\ncheck: ok\n")
    monkeypatch.setattr(kernel_report, "kernel_sources", list)
    assert kernel_report.main(["--check"]) == 1


@examines
def test_not_a_cubin() -> None:
    with pytest.raises(nvrtc.KernelError, match="cuobjdump fails"):
        read_cubin(b"nothing", "sm_75")


def test_without_the_wheels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc.importlib.metadata, "files", lambda wheel: [])
    with pytest.raises(nvrtc.KernelError, match=r"mend with: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm$"):
        read_cubin(b"", "sm_75")


def test_roofline() -> None:
    assert roofline(616e9, 0) == (1, 0, 0)  # 616 GB/s
    memory, single, half = roofline(616e6, 13.447e9)  # 13.45 TFLOP/s, 26.9 in half precision
    assert (memory, single, half) == pytest.approx((1e-3, 1e-3, 0.5e-3), rel=1e-3)


def test_roofline_table() -> None:
    work = [("bound by memory", 61.6e6, 1e6), ("bound by arithmetic", 1e6, 13.447e9), ("bound by memory", 61.6e6, 1e6)]
    rows = {line[:32].strip(): [float(x) for x in line[32:].split()] for line in roofline_table(work).splitlines()[1:]}
    assert rows["bound by memory"] == pytest.approx([2, 123.2, 0, 200, 0.15, 0.07, 200], abs=0.01)
    assert rows["bound by arithmetic"] == pytest.approx([1, 1, 13.45, 1.62, 1000, 500, 1000], rel=0.01)
    assert rows["total"][0] == 3
    assert rows["total"][-1] == pytest.approx(1200, rel=0.01)  # each launch by its own bound
    assert roofline_table([]).splitlines()[1].split()[:2] == ["total", "0"]
