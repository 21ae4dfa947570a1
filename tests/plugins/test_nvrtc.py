"""Kernels are compiled with NVRTC alone: for every architecture, once, with messages that say where."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from amsa.plugins import nvrtc


def _absent() -> str:
    try:
        nvrtc.wheel_versions()
    except nvrtc.KernelError as e:
        return str(e)
    return ""


compiles = pytest.mark.skipif(bool(_absent()), reason=_absent())

SOURCE = """\
#include "../common.cuh"
struct Params { const float4* from; float4* to; };
extern "C" __global__ void __launch_bounds__(THREADS) copy(const Params p) { p.to[threadIdx.x] = p.from[threadIdx.x]; }
"""


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A kernel that includes a header, which includes a second beside it; an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "deeper").mkdir()
    (tmp_path / "op").mkdir()
    (tmp_path / "common.cuh").write_text('#include <cuda_fp16.h>\n#include "deeper/threads.cuh"\n')
    (tmp_path / "deeper" / "threads.cuh").write_text("#define THREADS 128\n")
    (tmp_path / "op" / "kernels.cu").write_text(SOURCE)
    return tmp_path / "op" / "kernels.cu"


def _count_compilations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    calls: list[str] = []
    compile_ = nvrtc._compile

    def counted(source: Path, arch: str) -> bytes:
        calls.append(arch)
        return compile_(source, arch)

    monkeypatch.setattr(nvrtc, "_compile", counted)
    return calls


@compiles
@pytest.mark.parametrize("arch", nvrtc.ARCHITECTURES)
def test_every_architecture(source: Path, arch: str) -> None:
    cubin = nvrtc.compile_cubin(source, arch)
    assert cubin[:4] == b"\x7fELF"
    flags = int.from_bytes(cubin[48:52], "little")
    assert flags >> 8 & 0xFF == int(arch.removeprefix("sm_"))
    assert b".text.copy\0" in cubin


@compiles
@pytest.mark.parametrize("kernels", nvrtc.kernel_sources(), ids=lambda p: p.parent.name)
@pytest.mark.parametrize("arch", [pytest.param(a, marks=[] if a == "sm_75" else pytest.mark.slow) for a in nvrtc.ARCHITECTURES])
def test_the_kernels_of_the_ops(kernels: Path, arch: str) -> None:
    assert nvrtc.compile_cubin(kernels, arch)[:4] == b"\x7fELF"


@compiles
def test_ptx(source: Path) -> None:
    ptx = nvrtc.compile_cubin(source, nvrtc.VIRTUAL).decode()
    assert ".target sm_75" in ptx
    assert ".entry copy" in ptx
    assert ptx.endswith("\n")


@compiles
def test_all_kernels_into_a_folder(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "kernel_sources", lambda: [source])
    nvrtc.main(["--output", str(tmp_path / "new" / "kernels")])
    written = {file.name: file.read_bytes() for file in (tmp_path / "new" / "kernels").iterdir()}
    assert written == {
        **{f"op.{arch}.cubin": nvrtc.compile_cubin(source, arch) for arch in nvrtc.ARCHITECTURES},
        "op.compute_75.ptx": nvrtc.compile_cubin(source, "compute_75"),
    }


@compiles
def test_compiled_once(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _count_compilations(monkeypatch)
    first = nvrtc.compile_cubin(source)
    assert nvrtc.compile_cubin(source) == first
    assert calls == ["sm_75"]
    nvrtc.compile_cubin(source, "sm_80")
    assert calls == ["sm_75", "sm_80"]
    assert len(list((source.parents[1] / "cache" / "amsa").iterdir())) == 2  # and nothing left beside


@compiles
@pytest.mark.parametrize("changed", ["op/kernels.cu", "common.cuh", "deeper/threads.cuh"])
def test_a_change_of_any_file_compiles_again(source: Path, changed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _count_compilations(monkeypatch)
    nvrtc.compile_cubin(source)
    file = source.parents[1] / changed
    file.write_text(file.read_text() + "\n// changed\n")
    nvrtc.compile_cubin(source)
    assert len(calls) == 2


@compiles
@pytest.mark.parametrize("other", [{"_FLAGS": ("-std=c++17", "--fmad=false")}, {"wheel_versions": lambda: "another"}])
def test_other_flags_or_compiler_compile_again(source: Path, other: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _count_compilations(monkeypatch)
    nvrtc.compile_cubin(source)
    for name, value in other.items():
        monkeypatch.setattr(nvrtc, name, value)
    nvrtc.compile_cubin(source)
    assert len(calls) == 2


@compiles
@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"", lambda data: bytes(len(data))])
def test_a_damaged_cache_is_mended(source: Path, damage: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _count_compilations(monkeypatch)
    cubin = nvrtc.compile_cubin(source)
    (cached,) = (source.parents[1] / "cache" / "amsa").iterdir()
    good = cached.read_bytes()
    cached.write_bytes(damage(good))
    assert nvrtc.compile_cubin(source) == cubin
    assert len(calls) == 2
    assert cached.read_bytes() == good


@compiles
def test_a_cache_that_cannot_be_written_is_told(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(source))  # a file, not a folder
    with pytest.warns(UserWarning, match=r"cannot be written .*: kernels are compiled again every time"):
        assert nvrtc.compile_cubin(source)[:4] == b"\x7fELF"


@compiles
def test_an_error_says_file_and_line(source: Path) -> None:
    source.write_text(SOURCE + "\n__device__ int f() { return missing; }\n")
    with pytest.raises(nvrtc.KernelError) as e:
        nvrtc.compile_cubin(source)
    first, *log = str(e.value).splitlines()
    assert first.startswith(f"{source} does not compile for sm_75")
    assert log[0] == f'{source}(5): error: identifier "missing" is undefined'


@compiles
def test_an_error_in_a_header_says_file_and_line(source: Path) -> None:
    header = source.parents[1] / "deeper" / "threads.cuh"
    header.write_text("#define THREADS 128\n#error stop\n")
    with pytest.raises(nvrtc.KernelError, match=re.escape("deeper/threads.cuh(2): catastrophic error: #error directive: stop")):
        nvrtc.compile_cubin(source)


@compiles
def test_a_warning_of_the_compiler_is_told(source: Path) -> None:
    source.write_text(SOURCE + "\n__device__ int f() { int unused; return 0; }\n")
    with pytest.warns(UserWarning, match=r'kernels\.cu\(5\): warning .*variable "unused" was declared but never referenced'):
        nvrtc.compile_cubin(source)


@compiles
def test_an_unknown_architecture(source: Path) -> None:
    with pytest.raises(nvrtc.KernelError, match=r"does not compile for sm_10[^0-9](.|\n)*invalid value for --gpu-architecture"):
        nvrtc.compile_cubin(source, "sm_10")


@pytest.mark.parametrize("wheel", ["_NVRTC", "_HEADERS"])
def test_without_the_wheels(source: Path, wheel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, wheel, "amsa-no-such-wheel")
    nvrtc.toolchain_files.cache_clear()
    with pytest.raises(nvrtc.KernelError) as e:
        nvrtc.compile_cubin(source)
    nvrtc.toolchain_files.cache_clear()
    assert "\n" not in str(e.value)
    assert str(e.value).endswith("is not installed; mend with: pip install 'amsa[cuda]'")


def test_a_wheel_whose_file_was_deleted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    record = importlib.metadata.PackagePath("lib/libnvrtc.so.13")
    record.dist = importlib.metadata.PathDistribution(tmp_path / "x.dist-info")
    monkeypatch.setattr(importlib.metadata, "files", lambda wheel: [record])
    with pytest.raises(nvrtc.KernelError, match=r"libnvrtc\.so\.\* .* mend with: pip install it"):
        nvrtc.wheel_file("x", "libnvrtc.so.*", "pip install it")
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libnvrtc.so.13").touch()
    assert nvrtc.wheel_file("x", "libnvrtc.so.*", "").samefile(tmp_path / "lib" / "libnvrtc.so.13")


@compiles
def test_the_table(source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(nvrtc, "kernel_sources", lambda: [source])
    nvrtc.main()
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[:2] for row in rows] == [["op", arch] for arch in nvrtc.ARCHITECTURES]
    assert all(int(row[2].replace(",", "")) > 1000 and float(row[3]) > 0 for row in rows)


@compiles
def test_needs_no_driver_and_no_torch(source: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from amsa.plugins.nvrtc import compile_cubin;"
        "compile_cubin(Path(sys.argv[1])); assert 'torch' not in sys.modules;"
        "assert 'libcuda.so' not in Path('/proc/self/maps').read_text()"
    )
    subprocess.run([sys.executable, "-c", code, source], check=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
