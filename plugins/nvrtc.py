"""Compiles the ops' CUDA kernels to machine code with NVRTC: no toolkit, no driver and no GPU needed.

NVRTC and CUDA's headers come from the wheels of `pip install 'amsa[cuda]'`. `python -m amsa.plugins.nvrtc` compiles everything
for every architecture and prints sizes and seconds; with `--output FOLDER` it writes what the C++ plugin library carries.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import importlib.metadata
import os
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path

# Turing (RTX 20, T4), Ampere (A100; RTX 30), Ada (RTX 40), Hopper (H100), Blackwell (RTX 50)
ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_120")
# What PTX is made for: the driver compiles it for any card from this one on.
VIRTUAL = "compute_75"

_NVRTC, _HEADERS = "nvidia-cuda-nvrtc", "nvidia-cuda-runtime"
_FLAGS = ("-std=c++17",)
_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"\n]+)"', re.MULTILINE)


class KernelError(RuntimeError):
    """A kernel cannot be compiled or examined: one line that says why, then the compiler's message where there is one."""


def kernel_sources() -> list[Path]:
    """The `kernels.cu` of every op that has one."""
    return sorted(Path(__file__).resolve().parent.glob("*/kernels.cu"))


def compile_cubin(source: Path, arch: str = ARCHITECTURES[0]) -> bytes:
    """Machine code (a cubin, an ELF file) of all kernels in a `.cu` file, from the user's cache where it holds them.

    Args:
        source: the file; `#include "..."` is looked for beside the including file and beside `source`.
        arch: what to compile for, as in ARCHITECTURES; others work where NVRTC knows them. VIRTUAL gives PTX.

    Raises:
        KernelError: NVRTC's wheels are not installed, or the source does not compile; then with file and line.
        OSError: the source cannot be read.
    """
    source = source.resolve()
    cubin = cached_cubin(source, arch)
    if cubin is None:
        cubin = _compile(source, arch)
        _store(_cache_file(source, arch), cubin)
    return cubin


def cached_cubin(source: Path, arch: str = ARCHITECTURES[0]) -> bytes | None:
    """What `compile_cubin` made of the same sources before; None where the user's cache does not hold it.

    Raises:
        KernelError: NVRTC's wheels are not installed.
        OSError: the source cannot be read.
    """
    return _load(_cache_file(source.resolve(), arch))


def wheel_file(wheel: str, name: str, mend: str) -> Path:
    """Path of a file that an installed wheel brought; `name` may have wildcards. KernelError, with `mend`, without it."""
    try:
        files = importlib.metadata.files(wheel) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        path = Path(str(file.locate()))
        if file.match(name) and path.exists():
            return path
    raise KernelError(f"{name} of the wheel {wheel} is not installed; mend with: {mend}")


def wheel_versions() -> str:
    """Versions of the compiler and of CUDA's headers; both decide what comes out."""
    toolchain_files()
    return " ".join(f"{w} {importlib.metadata.version(w)}" for w in (_NVRTC, _HEADERS))


@cache
def toolchain_files() -> tuple[Path, Path]:
    """NVRTC's library and the folder of CUDA's headers. KernelError where a wheel is not installed."""
    mend = "pip install 'amsa[cuda]'"
    return wheel_file(_NVRTC, "libnvrtc.so.*", mend), wheel_file(_HEADERS, "cuda_fp16.h", mend).parent


def _included(source: Path) -> list[Path]:
    """The source and every file that it includes with quotes, directly or through others. Those not found beside the source
    or the including file are CUDA's, for which the wheel's version stands."""
    files = [source]
    for file in files:  # grows on the way
        for name in _INCLUDE.findall(file.read_text(errors="replace")):
            found = next((p for f in (file.parent, source.parent) if (p := (f / name).resolve()).is_file()), None)
            if found and found not in files:
                files.append(found)
    return files


def _cache_file(source: Path, arch: str) -> Path:
    key = hashlib.sha256(" ".join((wheel_versions(), arch, *_FLAGS)).encode())
    for file in _included(source):
        key.update(hashlib.sha256(file.read_bytes()).digest())
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "amsa"
    return folder / f"{source.parent.name}-{arch}-{key.hexdigest()[:16]}.cubin"


def _load(path: Path) -> bytes | None:
    """What `_store` wrote, or None. A file cut short by a full disk or a crash counts as none: its checksum is wrong."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    cubin, checksum = data[:-32], data[-32:]
    return cubin if hashlib.sha256(cubin).digest() == checksum else None


def _store(path: Path, cubin: bytes) -> None:
    """Writes beside and renames. The checksum stands after the ELF file, where tools that read cubins do not mind it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            beside = Path(scratch) / path.name
            beside.write_bytes(cubin + hashlib.sha256(cubin).digest())
            beside.replace(path)
    except OSError as e:
        warnings.warn(f"{path.parent} cannot be written ({e.strerror}): kernels are compiled again every time", stacklevel=3)


@cache
def load_nvrtc() -> ctypes.CDLL:
    """NVRTC's library. KernelError where it is not installed, or cannot be loaded.

    Its built-in functions are loaded before: 13.0.88 looks for them by name alone, and not in its own folder.
    """
    library, _ = toolchain_files()
    try:
        for builtins in library.parent.glob("libnvrtc-builtins.so.*"):
            ctypes.CDLL(str(builtins))
        return ctypes.CDLL(str(library))
    except OSError as e:
        raise KernelError(f"NVRTC cannot be loaded: {e}") from e


def _compile(source: Path, arch: str) -> bytes:
    nvrtc, (_, headers) = load_nvrtc(), toolchain_files()
    options = [os.fsencode(o) for o in (*_FLAGS, f"--gpu-architecture={arch}", f"-I{source.parent}", f"-I{headers}")]
    program = ctypes.c_void_p()
    # The whole path as the program's name: messages show it, and "../x.cuh" is found from it.
    code = nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.read_bytes(), os.fsencode(source), 0, None, None)
    if code:
        raise KernelError(f"NVRTC cannot start on {source} (error {code})")
    try:
        code = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
        log = _fetch(nvrtc, program, "ProgramLog").rstrip(b"\0").decode(errors="replace").strip()
        if code:
            raise KernelError(f"{source} does not compile for {arch} (NVRTC's error {code})\n{log}".rstrip())
        if log:
            warnings.warn(f"{source} for {arch}: {log}", stacklevel=3)
        return _fetch(nvrtc, program, "PTX").rstrip(b"\0") if arch == VIRTUAL else _fetch(nvrtc, program, "CUBIN")
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _fetch(nvrtc: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> bytes:
    """One of a program's results; NVRTC has a pair of functions for each, nvrtcGet...Size and nvrtcGet...."""
    size = ctypes.c_size_t()
    code = nvrtc[f"nvrtcGet{what}Size"](program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    code = code or nvrtc[f"nvrtcGet{what}"](program, buffer)
    if code:
        raise KernelError(f"NVRTC does not hand out its {what} (error {code})")
    return buffer.raw


def write_all(folder: Path) -> None:
    """Every op's kernels for every architecture, as `<op>.<arch>.cubin`, and as PTX, `<op>.<VIRTUAL>.ptx`."""
    folder.mkdir(parents=True, exist_ok=True)
    for source in kernel_sources():
        for arch in (*ARCHITECTURES, VIRTUAL):
            code = compile_cubin(source, arch)
            (folder / f"{source.parent.name}.{arch}.{'ptx' if arch == VIRTUAL else 'cubin'}").write_bytes(code)


def main(words: Sequence[str] = ()) -> None:
    """Compiles every op's kernels for every architecture, past the cache, and prints a table; or writes them into a folder."""
    parser = argparse.ArgumentParser(prog="python -m amsa.plugins.nvrtc", description=main.__doc__)
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="write the kernels there instead")
    parser.add_argument("--compiler", action="store_true", help="only print which compiler there is")
    arguments = parser.parse_args(words)
    if arguments.output:
        write_all(arguments.output)
        return
    print(wheel_versions())
    if arguments.compiler:
        return
    print(f"{'kernels of':<20}{'arch':<8}{'bytes':>9}{'seconds':>9}")
    for source in kernel_sources():
        for arch in ARCHITECTURES:
            start = time.perf_counter()
            size = len(_compile(source, arch))
            print(f"{source.parent.name:<20}{arch:<8}{size:>9,}{time.perf_counter() - start:>9.2f}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KernelError as e:
        sys.exit(str(e))
