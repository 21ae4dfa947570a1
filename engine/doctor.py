"""`amsa doctor`: what works on this machine, what is missing, and how to mend it.

A check is a small function: it returns what it found, or raises. Checks run in child processes, one for each group, which answer
with a JSON line per check: a library that ends its process or hangs is a finding, too, and the next child goes on behind it.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import json
import os
import platform
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._version import __version__
from ..errors import AmsaError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from packaging.specifiers import SpecifierSet

OK, ABSENT, BROKEN = "ok", "absent", "broken"
"""States: it works; it is not there, which may be fine; it is there and does not work."""

_LEAST_CUDA = (12, 4)  # of the driver; plugins/launcher.py calls cuFuncLoad
_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE
_LEAST_PSNR = 45.0  # dB, between a GPU's picture and the CPU's of one float16 model
_PLAUSIBLE_PSNR = 20.0  # dB, between a picture and what bicubic makes of the same LR: garbage has 10
_LR_SIZES, _REF_SIZES = "16x16/16x16/32x32", "8x8/16x16/32x32"
_PATIENCE = 60.0  # seconds for a check, where it has no other
_LONGEST = 400  # characters of a text

# What mends begin with in errors of ours: "what is wrong; how to mend it". Other semicolons stand in lists.
_IMPERATIVE = re.compile(r"(add|build|call|choose|close|export|free|install|let|mend|remove|take|update|use)\b")
_AGAIN = "pip install --force-reinstall --no-deps amsa"
_DRIVER_MEND = "install NVIDIA's driver for CUDA {} or later (Ubuntu: sudo ubuntu-drivers install; in a container: --gpus all)"


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        section: the group it is shown in.
        name: of the check.
        state: OK, ABSENT or BROKEN.
        text: what was found, with versions and names; one line.
        mend: where not OK: what to do, a command where one does it.
    """

    section: str
    name: str
    state: str
    text: str
    mend: str = ""


class _Problem(Exception):
    """Ends a check with another state than OK. Without a mend, the check's own is shown."""

    def __init__(self, state: str, text: str, mend: str = "") -> None:
        super().__init__(text)
        self.state, self.text, self.mend = state, text, mend


# ------------------------------------------------------------------------------------------------ runtime


def _python() -> str:
    return f"{platform.python_version()} ({sys.executable})"


def _amsa() -> str:
    folder = Path(__file__).parents[1]
    installed = _version("amsa")
    if installed is None:
        raise _Problem(ABSENT, f"{__version__} in {folder} is not installed: versions of other packages are not compared")
    if installed != __version__:
        raise _Problem(BROKEN, f"{__version__} in {folder}, but pip knows version {installed}")
    return f"{__version__} ({folder})"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _asked_for(package: str, extra: str) -> SpecifierSet:
    """The versions of a package that amsa asks for, by itself ("") or for an extra; all where it is not installed."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet
    from packaging.utils import canonicalize_name

    try:
        lines = importlib.metadata.requires("amsa") or []
    except importlib.metadata.PackageNotFoundError:
        lines = []
    for requirement in map(Requirement, lines):
        marker = requirement.marker
        # Without an extra a marker on extras is false; so what every installation needs is asked for by none.
        if canonicalize_name(requirement.name) == package and (marker.evaluate({"extra": extra}) if marker else not extra):
            return requirement.specifier
    return SpecifierSet()


def _in_range(package: str, extra: str, version: str) -> str:
    """The version with the range that it lies in. Broken where it lies outside."""
    asked = _asked_for(package, extra)
    if not asked.contains(version, prereleases=True):
        raise _Problem(BROKEN, f"{version}, and amsa needs {asked}", f"pip install '{package}{asked}'")
    return f"{version} ({asked})" if str(asked) else version


def _package(package: str, module: str, extra: str = "") -> str:
    """A package that an extra asks for, or amsa itself: it is there, its version fits, it can be imported."""
    if find_spec(module) is None:
        mend = f"pip install 'amsa[{extra}]'" if extra else f"pip install '{package}{_asked_for(package, '')}'"
        raise _Problem(ABSENT if extra else BROKEN, "not installed", mend)
    version = _version(package)
    text = _in_range(package, extra, version) if version else ""
    imported = importlib.import_module(module)
    return text or _in_range(package, extra, str(imported.__version__))  # another package brought the module


def _cpu_kernels() -> str:
    from ..plugins import cpu_library

    compiler = cpu_library._compiler()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        begin = time.perf_counter()
        library = cpu_library.cpu_library()
    if library is None:
        text = "; ".join(str(w.message) for w in told)
        if compiler is None:
            raise _Problem(ABSENT, text, "sudo apt install g++")
        raise _Problem(BROKEN, text, f"install {compiler} again, or let CXX name another compiler")
    seconds = time.perf_counter() - begin
    fresh = f", compiled now in {seconds:.0f} s" if seconds > 1 else ""
    return f"{library.amsa_instruction_set().decode()} ({cpu_library.library_path()}{fresh})"


def _models() -> str:
    from ..manifest import ModelFolder
    from .backends import SHIPPED_ENGINE_MODEL, SHIPPED_MODEL

    texts = []
    for path in (SHIPPED_MODEL, SHIPPED_ENGINE_MODEL):
        try:
            folder = ModelFolder.open(path)
        except AmsaError as e:
            raise _Problem(BROKEN, str(e).rpartition("; ")[0] or str(e)) from e  # to export it is not the user's task
        texts.append(f"{path.name} ({folder.manifest.precision}, {len(folder.graphs)} graphs)")
    return f"{', '.join(texts)}; hashes agree"


def _photos() -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """A reference of waves, 64x64, the LR picture of the same, 16x16, and what bicubic makes of that."""
    import numpy as np
    from PIL import Image

    y, x = np.mgrid[:64, :64]
    ref = (128 + 100 * np.sin(np.stack((x / 5, y / 7, (x + y) / 9), axis=-1))).astype(np.uint8)
    small = Image.fromarray(ref).resize((16, 16), Image.Resampling.BICUBIC)
    return ref, np.asarray(small), np.asarray(small.resize((64, 64), Image.Resampling.BICUBIC))


def _picture() -> str:
    import numpy as np

    from .metrics import psnr
    from .upscaler import Upscaler

    ref, lr, bicubic = _photos()
    begin = time.perf_counter()
    upscaler = Upscaler(backend="onnxruntime")
    sr = np.asarray(upscaler.upscale(lr, [ref]))
    seconds = time.perf_counter() - begin
    if sr.shape != bicubic.shape or psnr(sr, bicubic) < _PLAUSIBLE_PSNR:
        raise _Problem(BROKEN, f"ONNX Runtime ({upscaler.kernels}) makes of 16x16 pixels a picture that cannot be")
    return f"64x64 from 16x16 by ONNX Runtime ({upscaler.kernels}) in {seconds:.1f} s"


# ------------------------------------------------------------------------------------------------ GPU


def _cuda_library() -> ctypes.CDLL:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as e:
        if "libcuda.so.1: cannot open shared object file: No such file" not in str(e):
            raise _Problem(BROKEN, f"libcuda.so.1 cannot be loaded: {e}", _DRIVER_MEND.format(_needed_cuda()[0])) from e
        card = "though there is an NVIDIA card" if _has_card() else "and no NVIDIA card is to be seen"
        raise _Problem(ABSENT, f"no NVIDIA driver (libcuda.so.1), {card}", _DRIVER_MEND.format(_needed_cuda()[0])) from e


def _has_card() -> bool:
    """Whether a graphics card of NVIDIA's is on the PCI bus."""
    for device in Path("/sys/bus/pci/devices").glob("*"):
        try:
            if (device / "vendor").read_text().strip() == "0x10de" and (device / "class").read_text().startswith("0x03"):
                return True
        except OSError:
            continue
    return False


def _needed_cuda() -> tuple[str, tuple[int, int], str]:
    """The CUDA version that the driver must be for, in words and as numbers, and what needs it."""
    nvrtc = _version("nvidia-cuda-nvrtc")
    # A driver runs what any compiler of its major version made.
    needed, why = max((_LEAST_CUDA, "amsa's launcher"), ((int(nvrtc.split(".")[0]), 0) if nvrtc else (0, 0), f"NVRTC {nvrtc}"))
    return f"{needed[0]}.{needed[1]}", needed, why


def _driver() -> str:
    library = _cuda_library()
    version = ctypes.c_int()
    if status := library.cuDriverGetVersion(ctypes.byref(version)):
        raise _Problem(BROKEN, f"cuDriverGetVersion: error {status}")
    found = version.value // 1000, version.value % 1000 // 10
    words, needed, why = _needed_cuda()
    text = f"for CUDA {found[0]}.{found[1]}"
    with suppress(OSError):  # WSL has no kernel module of this name
        text = f"{Path('/sys/module/nvidia/version').read_text().strip()}, {text}"
    if found < needed:
        raise _Problem(BROKEN, f"{text}; {why} needs {words}", _DRIVER_MEND.format(words))
    return text


def _device() -> tuple[ctypes.CDLL, ctypes.c_int]:
    """The driver, initialized, and the first GPU. Absent without a driver or GPU."""
    from ..plugins.launcher import _check

    try:
        library = _cuda_library()
    except _Problem as e:
        raise _Problem(e.state, "no driver, so no GPU", "as for the driver") from e
    if (status := library.cuInit(0)) == _NO_DEVICE:
        raise _Problem(ABSENT, "the driver finds no GPU", "unset CUDA_VISIBLE_DEVICES if it is set; in a container: --gpus all")
    _check(status, "cuInit")
    device = ctypes.c_int()
    _check(library.cuDeviceGet(ctypes.byref(device), 0), "cuDeviceGet")
    return library, device


def _has_gpu() -> bool:
    try:
        _device()
    except _Problem as e:
        if e.state == BROKEN:
            raise
        return False
    return True


def _architecture() -> str:
    """What the GPU's kernels are compiled for. Broken where there are none for it."""
    from ..plugins.launcher import _architecture
    from ..plugins.nvrtc import KernelError

    _, device = _device()
    try:
        return _architecture(device)
    except KernelError as e:
        mend = "update amsa (pip install --upgrade amsa) if the card is newer than these; the CPU works all the same"
        raise _Problem(BROKEN, str(e), mend) from e


def _gpu() -> str:
    from ..plugins.launcher import _MAJOR, _MINOR, _check

    library, device = _device()
    name, memory, count = ctypes.create_string_buffer(256), ctypes.c_size_t(), ctypes.c_int()
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(library.cuDeviceGetName(name, len(name), device), "cuDeviceGetName")
    _check(library.cuDeviceTotalMem_v2(ctypes.byref(memory), device), "cuDeviceTotalMem")
    _check(library.cuDeviceGetCount(ctypes.byref(count)), "cuDeviceGetCount")
    _check(library.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device), "cuDeviceGetAttribute")
    _check(library.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device), "cuDeviceGetAttribute")
    text = f"{name.value.decode()}, {memory.value / 1e9:.1f} GB, compute capability {major.value}.{minor.value}"
    others = f"; the first of {count.value}, CUDA_VISIBLE_DEVICES chooses another" if count.value > 1 else ""
    try:
        return f"{text} (kernels for {_architecture()}){others}"
    except _Problem as e:
        raise _Problem(e.state, f"{text}: {e.text}{others}", e.mend) from e


def _binding() -> str:
    from .gpu.cuda import BINDINGS, _installed, open_cuda

    name = next((name for name, module in BINDINGS.items() if _installed(module)), None)
    if name is None:
        raise _Problem(ABSENT, f"neither of {' and '.join(BINDINGS)} is installed", "pip install 'amsa[cuda]'")
    text = f"{name} {_in_range(name, 'cuda', _version(name) or '0')}"
    if not _has_gpu():
        return text
    cuda = open_cuda(name)
    with cuda.current():
        free, _ = cuda.memory()
    return f"{text} opens {cuda.device}, {free / 1e9:.1f} GB free{'' if cuda.captures else ', has no CUDA graphs'}"


# ------------------------------------------------------------------------------------------------ kernels


def _wheel(package: str) -> str:
    version = _version(package)
    if version is None:
        raise _Problem(ABSENT, "not installed", "pip install 'amsa[cuda]'")
    return _in_range(package, "cuda", version)


def _nvrtc() -> str:
    from ..plugins.nvrtc import _toolchain_files

    text = _wheel("nvidia-cuda-nvrtc")
    _wheel("nvidia-cuda-runtime")  # for the headers; a check of its own says what is wrong with it
    library = ctypes.CDLL(str(_toolchain_files()[0]))
    major, minor = ctypes.c_int(), ctypes.c_int()
    if status := library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)):
        raise _Problem(BROKEN, f"nvrtcVersion: error {status}")
    return f"{text}, compiler {major.value}.{minor.value}"


def _kernels() -> str:
    """Compiles the kernels of one op for the GPU, or else for the oldest card; on a GPU it loads them, too."""
    from ..plugins.launcher import _check, load_kernels
    from ..plugins.nvrtc import ARCHITECTURES, _cache_file, _load, compile_cubin, kernel_sources

    for package in ("nvidia-cuda-nvrtc", "nvidia-cuda-runtime"):
        if _version(package) is None:
            raise _Problem(ABSENT, f"{package} is not installed", "pip install 'amsa[cuda]'")
    gpu = _has_gpu()
    architecture = _architecture() if gpu else ARCHITECTURES[0]
    source = kernel_sources()[0]
    cached = _load(_cache_file(source, architecture)) is not None
    begin = time.perf_counter()
    cubin = compile_cubin(source, architecture)
    how = "from the cache" if cached else f"compiled in {time.perf_counter() - begin:.1f} s"
    text = f"{source.parent.name} for {architecture}: {len(cubin):,} bytes, {how}"
    if not gpu:
        return text
    library, device = _device()
    context = ctypes.c_void_p()
    _check(library.cuDevicePrimaryCtxRetain(ctypes.byref(context), device), "cuDevicePrimaryCtxRetain")
    _check(library.cuCtxSetCurrent(context), "cuCtxSetCurrent")
    return f"{text}; {len(load_kernels(source.parent.name))} loaded on the GPU"


# ------------------------------------------------------------------------------------------------ TensorRT


def _require_tensorrt(runtime: str) -> str:
    """The version and its range, without importing it. Absent where it is not installed."""
    from .tensorrt_module import RUNTIMES

    if find_spec(RUNTIMES[runtime]) is None:
        raise _Problem(ABSENT, f"{RUNTIMES[runtime]} is not installed", f"pip install 'amsa[{runtime}]'")
    package = RUNTIMES[runtime].replace("_", "-")
    version = _version(package)
    return _in_range(package, runtime, version) if version else ""


def _tensorrt(runtime: str) -> str:
    from ..plugins import DOMAIN, OPS, VERSION
    from .tensorrt_module import RUNTIMES, import_tensorrt

    text = _require_tensorrt(runtime)
    trt = import_tensorrt(runtime)
    text = text or _in_range(RUNTIMES[runtime].replace("_", "-"), runtime, str(trt.__version__))
    registry = trt.get_plugin_registry()
    if lost := [op.name for op in OPS if registry.get_creator(op.name, str(VERSION), DOMAIN) is None]:
        raise _Problem(BROKEN, f"{text}; it does not take the plugins {', '.join(lost)}")
    return f"{text}, plugins {', '.join(op.name for op in OPS)}"


def _require_builder(runtime: str) -> None:
    _require_tensorrt(runtime)
    if find_spec("onnx") is None:
        raise _Problem(ABSENT, "building engines needs onnx, which is not installed", f"pip install 'amsa[{runtime}]'")


def _engines() -> str:
    """Builds the shipped model's engines, for small pictures and with no GPU; `build_engines` asserts what they are."""
    from .backends import SHIPPED_ENGINE_MODEL
    from .tensorrt_build import build_engines

    _require_builder("rtx")
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="amsa-doctor-") as folder:
        built = build_engines(SHIPPED_ENGINE_MODEL, ["sm75"], lr_sizes=_LR_SIZES, ref_sizes=_REF_SIZES, output=folder)
    plugins = sum(engine.sidecar.plugins for engine in built)
    return f"{len(built)} with {plugins} plugins built for sm75 and checked in {time.perf_counter() - begin:.1f} s"


def _gpu_picture(runtime: str) -> str:
    """Builds engines for the GPU, upscales a picture with them and compares it with ONNX Runtime's."""
    from .backends import SHIPPED_ENGINE_MODEL
    from .tensorrt_build import NATIVE, build_engines
    from .upscaler import Upscaler

    _require_builder(runtime)
    _device()
    ref, lr, _ = _photos()
    with tempfile.TemporaryDirectory(prefix="amsa-doctor-") as folder:
        build_engines(SHIPPED_ENGINE_MODEL, [NATIVE], runtime=runtime, lr_sizes=_LR_SIZES, ref_sizes=_REF_SIZES, output=folder)
        sr = Upscaler(SHIPPED_ENGINE_MODEL, "tensorrt", engines=folder).upscale(lr, [ref])
    return _compare(sr, Upscaler(SHIPPED_ENGINE_MODEL, "onnxruntime").upscale(lr, [ref]))


def _compare(gpu: Any, cpu: Any) -> str:
    """How near two pictures (uint8, [H, W, 3]) are, in words. Broken where they are not."""
    import numpy as np

    from .metrics import psnr

    decibels = psnr(gpu, cpu)
    equal = np.mean((gpu == cpu).all(axis=-1))
    text = f"against ONNX Runtime on the CPU: PSNR {decibels:.1f} dB, {equal:.1%} of the pixels are equal"
    if decibels < _LEAST_PSNR:
        raise _Problem(BROKEN, f"{text}; at least {_LEAST_PSNR:.0f} dB are expected")
    return text


# ------------------------------------------------------------------------------------------------ all of them


@dataclass(frozen=True)
class Check:
    """A check.

    Attributes:
        name: unique among all checks.
        function: returns what it found, in words; or raises.
        mend: where it does not work, and nothing better is known.
        seconds: after so many it counts as hanging.
    """

    name: str
    function: Callable[[], str]
    mend: str = ""
    seconds: float = _PATIENCE


def _package_check(package: str, module: str, extra: str = "") -> Check:
    return Check(package, partial(_package, package, module, extra), f"pip install --force-reinstall {package}")


_REPORT = "report it as a bug, with what `amsa doctor --json` prints"
_NVIDIA_SMI = "nvidia-smi says more; after an update of the driver: sudo reboot"
_REBUILD = "pip install --force-reinstall 'amsa[{}]'"
_NATIVE_SECONDS = 540.0  # classic TensorRT times every kernel it could take

GROUPS: tuple[tuple[str, tuple[Check, ...]], ...] = (
    (
        "runtime",
        (
            Check("Python", _python),
            Check("amsa", _amsa, "pip install --force-reinstall amsa"),
            _package_check("numpy", "numpy"),
            _package_check("onnxruntime", "onnxruntime"),
            _package_check("opencv-python-headless", "cv2"),
            _package_check("pillow", "PIL"),
            Check("C++ kernels", _cpu_kernels, "sudo apt install --reinstall g++", 180.0),
            Check("models", _models, _AGAIN),
            Check("picture", _picture, _AGAIN),
        ),
    ),
    (
        "export and training",
        (
            _package_check("torch", "torch", "export"),
            _package_check("safetensors", "safetensors", "export"),
            _package_check("onnx", "onnx", "export"),
            _package_check("onnxscript", "onnxscript", "export"),
            _package_check("torchvision", "torchvision", "train"),
        ),
    ),
    (
        "GPU",
        (
            Check("driver", _driver, _NVIDIA_SMI),
            Check("GPU", _gpu, _NVIDIA_SMI),
            Check("CUDA binding", _binding, "pip install --force-reinstall 'amsa[cuda]'"),
        ),
    ),
    (
        "kernels",
        (
            Check("NVRTC", _nvrtc, "pip install --force-reinstall nvidia-cuda-nvrtc"),
            Check("CUDA headers", partial(_wheel, "nvidia-cuda-runtime"), "pip install --force-reinstall nvidia-cuda-runtime"),
            Check("kernels", _kernels, _REPORT),
        ),
    ),
    # Two groups, since two TensorRTs in one process would find each other's symbols.
    (
        "TensorRT",
        (
            Check("tensorrt-rtx", partial(_tensorrt, "rtx"), _REBUILD.format("rtx")),
            Check("engines", _engines, _REPORT, 180.0),
            Check("GPU picture by tensorrt-rtx", partial(_gpu_picture, "rtx"), _REPORT, _NATIVE_SECONDS),
        ),
    ),
    (
        "TensorRT",
        (
            Check("tensorrt", partial(_tensorrt, "tensorrt"), _REBUILD.format("tensorrt")),
            Check("GPU picture by tensorrt", partial(_gpu_picture, "tensorrt"), _REPORT, _NATIVE_SECONDS),
        ),
    ),
)
"""Sections and their checks; each is a process."""

_ABILITIES: Mapping[str, tuple[str, ...]] = {
    "run on the CPU": ("numpy", "onnxruntime", "opencv-python-headless", "pillow", "models", "picture"),
    "export": ("torch", "safetensors", "onnx", "onnxscript"),
    "train": ("torch", "safetensors", "torchvision"),
    "build engines for any card": ("tensorrt-rtx", "engines"),
    "run engines on its GPU": ("driver", "GPU", "CUDA binding", "kernels"),
}


def examine(name: str) -> Finding:
    """Run one check in this process. Whatever it raises is a finding."""
    section, check = next((section, check) for section, checks in GROUPS for check in checks if check.name == name)

    def finding(state: str, text: str, mend: str = "") -> Finding:
        return Finding(section, name, state, _one_line(text), mend or ("" if state == OK else check.mend))

    from ..plugins.nvrtc import KernelError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a check says itself what matters
            return finding(OK, check.function())
    except _Problem as e:
        return finding(e.state, e.text, e.mend)
    except (AmsaError, KernelError) as e:
        text = " ".join(str(e).split())
        what, _, mend = text.rpartition("; ")
        return finding(BROKEN, what, mend) if _IMPERATIVE.match(mend) and what else finding(BROKEN, text)
    except Exception as e:
        return finding(BROKEN, f"{type(e).__name__}: {e}")


def examine_machine() -> Iterator[Finding]:
    """Run all checks, in child processes; yields each finding as soon as there is one. None is left out, whatever happens."""
    for section, checks in GROUPS:
        left = list(checks)
        while left:
            yield from _in_child(section, left)


def _in_child(section: str, left: list[Check]) -> Iterator[Finding]:
    """Start a child on these checks and take those off that it answered; where it ended, also the one it did so in."""
    # Modules come from where this process finds them, and not from the folder it is in.
    command = [sys.executable, "-P", "-m", __name__, *(check.name for check in left)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    last = ""
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            command, bufsize=0, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, env=environment
        ) as child,
    ):
        assert child.stdout is not None
        try:
            while left:
                if not select.select([child.stdout], [], [], left[0].seconds)[0]:
                    last = f"no answer after {left[0].seconds:.0f} s"
                    break
                line = child.stdout.readline()
                if not line:
                    break
                yield Finding(**json.loads(line))
                last, name = "", left.pop(0).name
            if not last:
                try:
                    last = _ending(child.wait(_PATIENCE), bool(left))
                except subprocess.TimeoutExpired:
                    last = f"did not end after {_PATIENCE:.0f} s"
        finally:
            child.kill()
        if last:
            errors.seek(0)
            said = [line for line in errors.read().decode(errors="replace").splitlines() if line.strip()]
            text = _one_line(": ".join((last, *said[-1:])))
            if left:
                check = left.pop(0)
                yield Finding(section, check.name, BROKEN, text, check.mend)
            else:
                yield Finding(section, f"end of {section}", BROKEN, f"after {name} the process {text}", _REPORT)


def _ending(code: int, early: bool) -> str:
    """How a process ended, in words; nothing where it ended well."""
    if code >= 0:
        return f"ended with exit code {code}" if code or early else ""
    try:
        return f"ended by signal {-code} ({signal.Signals(-code).name})"
    except ValueError:
        return f"ended by signal {-code}"


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 3]}..."


def abilities(findings: Sequence[Finding]) -> dict[str, bool]:
    """What the machine can do, by these findings."""
    ok = {finding.name for finding in findings if finding.state == OK}
    can = {what: ok.issuperset(names) for what, names in _ABILITIES.items()}
    can["run engines on its GPU"] &= any(name.startswith("GPU picture") for name in ok)
    return can


def summary(findings: Sequence[Finding]) -> str:
    """One line that says what the machine can do and what not."""
    can = abilities(findings)
    yes, no = (", ".join(what for what, able in can.items() if able == wanted) for wanted in (True, False))
    return " ".join(filter(None, (f"This machine can: {yes}." if yes else "", f"It cannot: {no}." if no else "")))


def main() -> None:
    """A child of `examine_machine`: runs the checks it is given, and answers with a JSON line for each."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # what libraries print is no answer
        for name in sys.argv[1:]:
            answers.write(json.dumps(asdict(examine(name))) + "\n")
            answers.flush()


if __name__ == "__main__":
    main()
