"""Checks of what every installation has: Python, amsa, the C++ kernels, the shipped models, and a picture by them."""

from __future__ import annotations

import platform
import sys
import time
import warnings
from pathlib import Path

from ..._version import __version__
from ...errors import AmsaError
from . import packages
from .findings import ABSENT, BROKEN, Problem
from .pictures import is_plausible, photos


def check_python() -> str:
    """Whatever runs this is found."""
    return f"{platform.python_version()} ({sys.executable})"


def check_amsa() -> str:
    """This code is the one that pip knows."""
    folder = Path(__file__).parents[2]
    installed = packages.version("amsa")
    if installed is None:
        raise Problem(ABSENT, f"{__version__} in {folder} is not installed: versions of other packages are not compared")
    if installed != __version__:
        raise Problem(BROKEN, f"{__version__} in {folder}, but pip knows version {installed}")
    return f"{__version__} ({folder})"


def check_cpu_kernels() -> str:
    """The library of the ops' CPU kernels loads; it is compiled now where there is none."""
    from ...plugins import cpu_library

    compiler = cpu_library.find_compiler()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        begin = time.perf_counter()
        library = cpu_library.cpu_library()
    if library is None:
        text = "; ".join(str(w.message) for w in told)
        if compiler is None:
            raise Problem(ABSENT, text, "sudo apt install g++")
        raise Problem(BROKEN, text, f"install {compiler} again, or let CXX name another compiler")
    seconds = time.perf_counter() - begin
    fresh = f", compiled now in {seconds:.0f} s" if seconds > 1 else ""
    return f"{library.amsa_instruction_set().decode()} ({cpu_library.library_path()}{fresh})"


def check_models() -> str:
    """The shipped models are whole, by their hashes."""
    from ...manifest import ModelFolder
    from ..backends import SHIPPED_ENGINE_MODEL, SHIPPED_MODEL

    texts = []
    for path in (SHIPPED_MODEL, SHIPPED_ENGINE_MODEL):
        try:
            folder = ModelFolder.open(path)
        except AmsaError as e:
            raise Problem(BROKEN, str(e).rpartition("; ")[0] or str(e)) from e  # to export it is not the user's task
        texts.append(f"{path.name} ({folder.manifest.precision}, {len(folder.graphs)} graphs)")
    return f"{', '.join(texts)}; hashes agree"


def check_picture() -> str:
    """ONNX Runtime makes a picture of the small model that is like bicubic's."""
    import numpy as np

    from ..upscaler import Upscaler

    ref, lr, bicubic = photos()
    begin = time.perf_counter()
    upscaler = Upscaler(backend="onnxruntime")
    sr = np.asarray(upscaler.upscale(lr, [ref]))
    seconds = time.perf_counter() - begin
    if not is_plausible(sr, bicubic):
        raise Problem(BROKEN, f"ONNX Runtime ({upscaler.kernels}) makes of 16x16 pixels a picture that cannot be")
    return f"64x64 from 16x16 by ONNX Runtime ({upscaler.kernels}) in {seconds:.1f} s"
