"""Imports TensorRT-RTX or classic TensorRT with our plugins registered: the one place that knows how."""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import AmsaError
from ..plugins.tensorrt import load_plugins

RUNTIMES = {"rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}
"""Runtimes by the name users give them, and their Python modules."""
_WANTED = "libtensorrt_rtx.so"
_LOADED: set[str] = set()  # libraries that this process loaded through links
_LOGGERS: dict[str, Any] = {}


def import_tensorrt(runtime: str) -> Any:
    """The module `tensorrt_rtx` or `tensorrt`, able to parse and to deserialize graphs with our ops.

    Args:
        runtime: a key of RUNTIMES.

    Raises:
        AmsaError: an unknown runtime, one that is not installed, or one that cannot be loaded.
    """
    if runtime not in RUNTIMES:
        raise AmsaError(f"unknown runtime {runtime!r}; choose one of {', '.join(RUNTIMES)}")
    module = RUNTIMES[runtime]
    if module not in sys.modules and find_spec(module) is None:
        raise AmsaError(f"{module} is not installed; install it with: pip install 'amsa[{runtime}]'")
    if runtime == "rtx":
        _make_findable()
    try:
        trt = importlib.import_module(module)
    except (ImportError, OSError) as e:
        raise AmsaError(
            f"{module} is installed but cannot be loaded ({e}); install it again: pip install 'amsa[{runtime}]'"
        ) from e
    load_plugins(trt, process_logger(trt))
    return trt


def _make_findable() -> None:
    """Let TensorRT-RTX's parser find `libtensorrt_rtx.so`: it opens that for the first plugin, or ends the process.

    The wheel brings the file as `.so.1` only, and the parser looks beside itself. So the libraries are loaded through a folder of
    links that has both names: what is beside a library is decided by the path it was loaded from.
    """
    spec = find_spec("tensorrt_rtx_libs")
    folder = Path(next(iter(spec.submodule_search_locations or []), "")) if spec else None
    libraries = sorted(folder.glob("libtensorrt*_rtx.so.[0-9]*")) if folder else []
    main = next((library for library in libraries if library.name.startswith(f"{_WANTED}.")), None)
    if main is None or (main.parent / _WANTED).exists():
        _require_findable(main)  # installed in another way, or mended by hand
        return
    links = _links_folder(main)
    if any(str(links / library.name) in _LOADED for library in libraries):
        return
    if {"tensorrt_rtx", "tensorrt_rtx_bindings", "tensorrt_rtx_libs"} & set(sys.modules):
        _require_findable(main)
        return
    try:
        links.mkdir(parents=True, exist_ok=True)
        for name, library in [(_WANTED, main), *((library.name, library) for library in libraries)]:
            beside = links / f".{name}-{os.getpid()}"
            beside.unlink(missing_ok=True)
            beside.symlink_to(library)
            beside.replace(links / name)
    except OSError as e:
        raise AmsaError(
            f"{links} cannot be written ({e.strerror}); TensorRT-RTX needs it: let XDG_CACHE_HOME name another"
        ) from e
    for library in sorted(libraries, key=lambda path: path != main):  # the parser's comes after the one it needs
        ctypes.CDLL(str(links / library.name), mode=ctypes.RTLD_GLOBAL)
        _LOADED.add(str(links / library.name))


def _require_findable(main: Path | None) -> None:
    """AmsaError unless the parser will find the library: beside itself, or where the system looks."""
    if main is not None and (main.parent / _WANTED).exists():
        return
    try:
        ctypes.CDLL(_WANTED)
    except OSError as e:
        if main is None:
            raise AmsaError(f"{_WANTED} cannot be found ({e}); add its folder to LD_LIBRARY_PATH") from e
        raise AmsaError(
            "tensorrt_rtx was imported before amsa could prepare its libraries; call amsa.engine.tensorrt_module.import_tensorrt "
            f"first, or once: ln -s {main.name} {main.parent / _WANTED}"
        ) from e


def _links_folder(main: Path) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "amsa"
    return cache / f"tensorrt-rtx-{hashlib.sha256(os.fsencode(main.resolve())).hexdigest()[:16]}"


def gpu() -> tuple[str, str]:
    """What an engine for this machine's GPU depends on: its compute capability ("sm75"), and in words GPU, driver and CUDA.

    Raises:
        AmsaError: no NVIDIA driver, or no GPU.
    """
    none = "there is no NVIDIA GPU here"
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as e:
        raise AmsaError(f"{none} (no driver: libcuda.so.1)") from e
    device, version, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(128)
    if any(
        (
            cuda.cuInit(0),
            cuda.cuDeviceGet(ctypes.byref(device), 0),
            cuda.cuDriverGetVersion(ctypes.byref(version)),
            cuda.cuDeviceGetName(name, len(name), device),
            cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, device),
            cuda.cuDeviceGetAttribute(ctypes.byref(minor), 76, device),
        )
    ):
        raise AmsaError(f"{none} (the driver reports none)")
    try:
        driver = Path("/sys/module/nvidia/version").read_text().strip()
    except OSError:
        driver = "unknown"
    cuda_version = f"{version.value // 1000}.{version.value % 1000 // 10}"
    return f"sm{major.value}{minor.value}", f"{name.value.decode()}, driver {driver}, CUDA {cuda_version}"


def rtx_targets(trt: Any) -> tuple[str, ...]:
    """Compute capabilities that the module `tensorrt_rtx` builds engines for, ascending, as "sm75". Not all are served: sm90
    is not."""
    return tuple(name.lower() for name in trt.ComputeCapability.__members__ if name.startswith("SM"))


def process_logger(trt: Any) -> Any:
    """The one logger of this process (TensorRT ignores a second one). `take_errors()` and `take_warnings()` hand out what was
    logged since; `clear()` forgets it."""
    if trt.__name__ not in _LOGGERS:
        severity = trt.Logger.Severity

        class Logger(trt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.clear()

            def clear(self) -> None:
                self.errors: list[str] = []
                self.warnings: list[str] = []

            def log(self, level: Any, message: str) -> None:
                if level in (severity.INTERNAL_ERROR, severity.ERROR):
                    self.errors.append(message)
                elif level == severity.WARNING:
                    self.warnings.append(message)

            def take_errors(self) -> list[str]:
                taken, self.errors = self.errors, []
                return taken

            def take_warnings(self) -> list[str]:
                taken, self.warnings = self.warnings, []
                return taken

        _LOGGERS[trt.__name__] = Logger()
    return _LOGGERS[trt.__name__]
