"""Checks of TensorRT-RTX and classic TensorRT: the library, engines for other cards, and a picture by this machine's GPU."""

from __future__ import annotations

import tempfile
import time

from . import packages
from .findings import ABSENT, BROKEN, Problem
from .gpu import gpu_architecture
from .pictures import compare, photos

_LR_SIZES, _REF_SIZES = "16x16/16x16/32x32", "8x8/16x16/32x32"


def _require(runtime: str) -> str:
    """The version and its range, without importing it. Absent where it is not installed."""
    from ..tensorrt_module import RUNTIMES

    if not packages.is_installed(RUNTIMES[runtime]):
        raise Problem(ABSENT, f"{RUNTIMES[runtime]} is not installed", f"pip install 'amsa[{runtime}]'")
    package = RUNTIMES[runtime].replace("_", "-")
    version = packages.version(package)
    return packages.in_range(package, runtime, version) if version else ""


def check_library(runtime: str) -> str:
    """A runtime can be imported and takes our plugins."""
    from ...plugins import DOMAIN, OPS, VERSION
    from ..tensorrt_module import RUNTIMES, import_tensorrt

    text = _require(runtime)
    trt = import_tensorrt(runtime)
    text = text or packages.in_range(RUNTIMES[runtime].replace("_", "-"), runtime, str(trt.__version__))
    registry = trt.get_plugin_registry()
    if lost := [op.name for op in OPS if registry.get_creator(op.name, str(VERSION), DOMAIN) is None]:
        raise Problem(BROKEN, f"{text}; it does not take the plugins {', '.join(lost)}")
    return f"{text}, plugins {', '.join(op.name for op in OPS)}"


def check_engines() -> str:
    """Builds the shipped model's engines, for small pictures and with no GPU; `build_engines` asserts what they are."""
    from ..backends import SHIPPED_ENGINE_MODEL
    from ..tensorrt_build import build_engines

    _require("rtx")
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="amsa-doctor-") as folder:
        built = build_engines(SHIPPED_ENGINE_MODEL, ["sm75"], lr_sizes=_LR_SIZES, ref_sizes=_REF_SIZES, output=folder)
    plugins = sum(engine.sidecar.plugins for engine in built)
    return f"{len(built)} with {plugins} plugins built for sm75 and checked in {time.perf_counter() - begin:.1f} s"


def check_gpu_picture(runtime: str) -> str:
    """Builds engines for the GPU, upscales a picture with them and compares it with ONNX Runtime's."""
    from ..backends import SHIPPED_ENGINE_MODEL
    from ..tensorrt_build import NATIVE, build_engines
    from ..upscaler import Upscaler

    _require(runtime)
    gpu_architecture()  # without kernels for the GPU no TensorRT helps
    if runtime == "rtx":
        _require_served()
    ref, lr, _ = photos()
    with tempfile.TemporaryDirectory(prefix="amsa-doctor-") as folder:
        build_engines(SHIPPED_ENGINE_MODEL, [NATIVE], runtime=runtime, lr_sizes=_LR_SIZES, ref_sizes=_REF_SIZES, output=folder)
        sr = Upscaler(SHIPPED_ENGINE_MODEL, "tensorrt", engines=folder).upscale(lr, [ref])
    return compare(sr, Upscaler(SHIPPED_ENGINE_MODEL, "onnxruntime").upscale(lr, [ref]))


def _require_served() -> None:
    """Absent where TensorRT-RTX makes no engines for this machine's GPU."""
    from ..tensorrt_module import gpu, import_tensorrt, rtx_targets

    capability, targets = gpu()[0], rtx_targets(import_tensorrt("rtx"))
    if capability not in targets:
        text = f"TensorRT-RTX does not serve {capability}, but {', '.join(targets)}; classic TensorRT serves it"
        raise Problem(ABSENT, text, "pip install 'amsa[tensorrt]', and then: amsa build MODEL --target native --runtime tensorrt")
