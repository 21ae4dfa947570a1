"""Runs the CUDA kernels' source on the CPU: compiles it with g++, executes launch plans, and reports faults.

    device = Device([Path("kernels.cu")], build="asan", order="reversed")
    out = device.run({"x": x, "y": y}, lambda at: [Launch("saxpy", (8, 1, 1), (128, 1, 1), Saxpy(at["x"], at["y"], 2.0, 1000))])

The README says what each build sees, and what none does.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np

from amsa.plugins.launch import Launch

Build = Literal["fast", "asan", "tsan"]
Order = Literal["forward", "reversed", "shuffled"]
Buffers = Mapping[str, np.ndarray[Any, Any]]

_RUNTIME = Path(__file__).parent / "runtime"
_RUNTIME_SOURCES = (_RUNTIME / "scheduler.cpp", _RUNTIME / "driver.cpp")
# Each header, and the wheel that has it: they share one folder, but none has all that cuda_fp16.h includes.
_HEADERS = {
    "cuda_fp16.h": "nvidia-cuda-runtime",
    "crt/host_defines.h": "nvidia-cuda-crt",
    "nv/target": "nvidia-cuda-cccl",
}
# No contraction: rounding would depend on whether the processor has FMA. No strict aliasing:
# kernels look at the bits of one type as another. Frame pointers: for the sanitizers' traces.
_FLAGS = ("-std=c++17", "-ffp-contract=off", "-fno-strict-aliasing", "-fno-omit-frame-pointer")
# How kernels are compiled, how the runtime is (which only tells the sanitizers of its switches), and how both are linked.
_BUILDS: dict[Build, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "fast": (("-O2",), ("-O2",), ()),
    "asan": (
        (
            "-O1",
            "-fsanitize=address,undefined,float-cast-overflow",  # casts that do not fit: the GPU gives another integer
            "-fsanitize-sections=device_shared",  # red zones around __shared__ variables too
            "-fno-sanitize-recover=all",
        ),
        ("-O2", "-DDEVICE_ASAN"),
        ("-fsanitize=address,undefined",),
    ),
    "tsan": (("-O1", "-fsanitize=thread"), ("-O2", "-DDEVICE_TSAN"), ("-fsanitize=thread",)),
}
# A kernel that waits for what another block writes would wait for ever.
_TIMEOUT = 600.0


class KernelFault(Exception):
    """A kernel did what it must not; the message has the place, as far as it is known."""


@cache
def include_folders() -> tuple[Path, ...] | None:
    """Where the CUDA headers are: the toolkit named by CUDA_HOME, else the wheels; None where there are neither."""
    if home := os.environ.get("CUDA_HOME"):
        folder = Path(home) / "include"
        return (folder, folder / "cccl") if (folder / "cuda_fp16.h").exists() else None
    folders = []
    for header, wheel in _HEADERS.items():
        try:
            files = metadata.files(wheel) or []
        except metadata.PackageNotFoundError:
            return None
        found = [Path(str(f.locate())) for f in files if f.as_posix().endswith(f"include/{header}")]
        if not found:
            return None
        folders.append(found[0].parents[header.count("/")])
    return tuple(dict.fromkeys(folders))


def missing() -> str | None:
    """Why kernels cannot be run here, for a test to be skipped with; None where they can."""
    if platform.machine() != "x86_64" or platform.system() != "Linux":
        return "the harness switches threads with x86-64 assembly, on Linux"
    if shutil.which("g++") is None:
        return "no g++"
    if include_folders() is None:
        return f"no CUDA headers: neither a toolkit in CUDA_HOME nor the wheels {', '.join(_HEADERS.values())}"
    return None


@dataclass(frozen=True)
class Device:
    """A GPU that is made of one CPU core, with the kernels of some sources.

    Attributes:
        sources: `.cu` files, one translation unit each.
        build: "fast", "asan" (memory errors, undefined behaviour) or "tsan" (races within a block; tiny grids only).
        order: of the blocks, and of a block's threads wherever they meet; a result must not depend on it.
        seed: for the order "shuffled".
    """

    sources: Sequence[Path]
    build: Build = "fast"
    order: Order = "forward"
    seed: int = 0

    def run(self, buffers: Buffers, launches: Callable[[dict[str, int]], list[Launch]]) -> dict[str, np.ndarray[Any, Any]]:
        """Runs a launch plan.

        Args:
            buffers: what lies in the device's memory; what is to be written too (fill it with NaN to see what was not).
            launches: makes the plan from the buffers' addresses, by name. They are invented; any address in a buffer may be
                used in fields of type `c_void_p`, at any depth of the parameters.

        Returns:
            The buffers after the last launch.

        Raises:
            KernelFault: the kernel, or its launch, has a fault that this build sees.
            ValueError: an address lies in no buffer.
        """
        arrays = {name: np.ascontiguousarray(a) for name, a in buffers.items()}
        memory = _Memory({name: a.nbytes for name, a in arrays.items()})
        program = _driver(tuple(self.sources), self.build)
        shared = static_shared(program)
        with tempfile.TemporaryDirectory(prefix="amsa-cuda-") as folder:
            job, result = Path(folder) / "job", Path(folder) / "result"
            with job.open("wb") as file:
                file.write(_numbers(len(arrays)))
                for a in arrays.values():
                    file.write(_numbers(a.nbytes))
                    file.write(a.data if a.nbytes else b"")
                plan = launches(dict(memory.addresses))
                file.write(_numbers(len(plan)))
                for launch in plan:
                    file.write(_encoded(launch, memory, shared.get(launch.kernel, 0)))
            command = [str(program), str(job), str(result), self.order, str(self.seed)]
            _execute([*_fixed_addresses(), *command] if self.build == "tsan" else command)
            with result.open("rb") as file:
                return {n: np.frombuffer(bytearray(file.read(a.nbytes)), a.dtype).reshape(a.shape) for n, a in arrays.items()}


class _Memory:
    """Invented addresses, far enough apart that no arithmetic leads from one buffer into another."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self.sizes = list(sizes.values())
        self.addresses = {name: (i + 1) << 40 for i, name in enumerate(sizes)}

    def find(self, address: int) -> tuple[int, int] | None:
        """The buffer's number and the offset in it."""
        i, offset = (address >> 40) - 1, address & ((1 << 40) - 1)
        return (i, offset) if 0 <= i < len(self.sizes) and offset < max(self.sizes[i], 1) else None


def _numbers(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}Q", *values)


def _encoded(launch: Launch, memory: _Memory, static_shared: int) -> bytes:
    """A launch as driver.cpp reads it."""
    name, params = launch.kernel.encode(), bytes(launch.params)
    places = []
    for offset, field in _pointers(type(launch.params), 0, "params"):
        (address,) = struct.unpack_from("<Q", params, offset)
        if address == 0:
            continue
        place = memory.find(address)
        if place is None:
            raise ValueError(f"{launch.kernel}: {field} is {address:#x}, which lies in no buffer")
        places.append((offset, *place))
    sizes = _numbers(*launch.grid, *launch.block, launch.shared, static_shared)
    relocations = _numbers(len(places), *(n for place in places for n in place))
    return _numbers(len(name)) + name + sizes + _numbers(len(params)) + params + relocations


def _pointers(kind: Any, offset: int, name: str) -> Iterator[tuple[int, str]]:
    """Offset and name of each `c_void_p` of a ctypes type."""
    if kind is ctypes.c_void_p:
        yield offset, name
    elif issubclass(kind, ctypes.Structure):
        for field, inner, *_ in (f for base in reversed(kind.__mro__) for f in vars(base).get("_fields_", ())):
            yield from _pointers(inner, offset + getattr(kind, field).offset, f"{name}.{field}")
    elif issubclass(kind, ctypes.Array):
        for i in range(kind._length_):
            yield from _pointers(kind._type_, offset + i * ctypes.sizeof(kind._type_), f"{name}[{i}]")
    elif not issubclass(kind, ctypes._SimpleCData) or kind in (ctypes.c_char_p, ctypes.c_wchar_p, ctypes.py_object):
        raise TypeError(f"{name}: a launch's parameters hold numbers and c_void_p, not {kind.__name__}")


def _driver(sources: tuple[Path, ...], build: Build) -> Path:
    """The program that runs jobs with these kernels; compiled where the cache has none."""
    return _cached("driver", (*_BUILDS[build][2], *map(str, _objects(sources, _RUNTIME_SOURCES, build))), [])


def shared_library(name: str, kernels: Sequence[Path], runtime: Sequence[Path], link_flags: Sequence[str]) -> Path:
    """A library with these kernels, in the build "fast", the scheduler and more of the runtime; from the cache, as all.

    Only what is declared so is visible outside of it."""
    objects = _objects(kernels, (_RUNTIME_SOURCES[0], *runtime), "fast", ("-fPIC", "-fvisibility=hidden"))
    return _cached(name, ("-shared", *map(str, objects), *link_flags), [])


def _objects(kernels: Sequence[Path], runtime: Sequence[Path], build: Build, more: tuple[str, ...] = ()) -> list[Path]:
    folders = include_folders()
    if folders is None:
        raise RuntimeError(missing())
    kernel_flags, runtime_flags, _ = _BUILDS[build]
    include = [flag for f in folders for flag in ("-isystem", str(f))]
    as_kernel = (*_FLAGS, *more, "-g", *kernel_flags, *include)
    as_kernel += ("-x", "c++", "-include", str(_RUNTIME / "device.hpp"), "-Wno-attributes")
    as_runtime = (*_FLAGS, *more, *runtime_flags, *include)
    objects = [_cached("runtime", (*as_runtime, "-c", s.name), [s]) for s in runtime]
    return objects + [_cached("kernels", (*as_kernel, "-c", s.name), [s, _RUNTIME / "device.hpp"]) for s in kernels]


def _cached(name: str, arguments: Sequence[str], sources: Sequence[Path]) -> Path:
    """What g++ makes of the arguments, in the first source's folder; made once for each content of sources and headers."""
    digest = hashlib.sha256("\0".join((_compiler(), *arguments)).encode())
    files = sorted(set().union(*(_with_headers(s.resolve()) for s in sources)))
    for file in files:
        digest.update(str(file).encode() + b"\0" + file.read_bytes())  # the path too: faults name it
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "amsa" / "tests"
    made = folder / f"{name}-{digest.hexdigest()[:20]}"
    if not made.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            output = Path(scratch) / f"{name}.o"
            command = ["g++", *arguments, "-o", str(output)]
            done = subprocess.run(command, cwd=sources[0].parent if sources else folder, capture_output=True, text=True)
            if done.returncode != 0:
                raise RuntimeError("g++ failed:\n" + "\n".join(done.stderr.splitlines()[:20]))
            output.replace(made)
    return made


def _with_headers(file: Path) -> set[Path]:
    """A source and all that it includes with quotation marks."""
    found, left = set(), [file]
    while left:
        path = left.pop()
        if path not in found:
            found.add(path)
            names = re.findall(r'^\s*#\s*include\s*"([^"]+)"', path.read_text(), re.MULTILINE)
            left += [p for n in names if (p := (path.parent / n).resolve()).exists()]
    return found


@cache
def _compiler() -> str:
    return subprocess.run(["g++", "--version"], capture_output=True, text=True, check=True).stdout


@cache
def static_shared(program: Path) -> dict[str, int]:
    """Bytes of `__shared__` variables that each kernel declares, by the symbols of a binary: `kernel(Params)::name`."""
    symbols = subprocess.run(["nm", "-S", "-C", str(program)], capture_output=True, text=True, check=True).stdout
    ends = {name: at for at, name in re.findall(r"^(\w+) \w __(start|stop)_device_shared$", symbols, re.MULTILINE)}
    if len(ends) < 2:
        return {}
    begin, end = (int(ends[e], 16) for e in ("start", "stop"))
    sizes: dict[str, int] = {}
    for address, size, name in re.findall(r"^(\w+) (\w+) \w (.*)$", symbols, re.MULTILINE):
        owner = re.match(r"(?:\w+::)*(\w+)\(.*\)::", name.replace("(anonymous namespace)::", ""))
        if begin <= int(address, 16) < end and owner:
            sizes[owner[1]] = sizes.get(owner[1], 0) + int(size, 16)
    return sizes


@cache
def _fixed_addresses() -> tuple[str, ...]:
    """A prefix that switches off random addresses, where that is allowed: some ThreadSanitizers do not start with all of them."""
    prefix = ("setarch", platform.machine(), "-R")
    allowed = shutil.which("setarch") and subprocess.run([*prefix, "true"], capture_output=True).returncode == 0
    return prefix if allowed else ()


def _execute(command: list[str]) -> None:
    environment = {
        **os.environ,
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "TSAN_OPTIONS": "halt_on_error=1:atexit_sleep_ms=0",  # else it waits a second for threads that there are not
    }
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT)
    except subprocess.TimeoutExpired:
        raise KernelFault(f"still running after {_TIMEOUT:.0f} s") from None
    if done.returncode == 0:
        return
    if done.returncode < 0:
        died = f"died of signal {-done.returncode}; the asan build may say where"
    else:
        died = f"ended with {done.returncode}"
    raise KernelFault(_useful(done.stderr) or died)


def _useful(report: str) -> str:
    """What is wrong, and those places that are in kernels, from the runtime's line or a sanitizer's pages."""
    what = r"^device: |runtime error: |Sanitizer: |^(?:READ|WRITE) of size |^  (?:Previous )?(?:atomic )?(?:read|write) of size "
    where = r"^\s*#\d+ .*\.cuh?:\d+"
    variable = r"^\s*(?:Location is |0x\w+ is located |\S.* is located .* (?:global variable|shared))"
    wanted = re.compile(f"{what}|{where}|{variable}", re.IGNORECASE)
    lines = [line.strip() for line in report.splitlines() if wanted.search(line)]
    return "\n".join(lines[:12]) or "\n".join(report.splitlines()[:12])
