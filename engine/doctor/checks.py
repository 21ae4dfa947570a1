"""The list of all checks, how one is run, and what a machine can do by what they found."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from ...errors import AmsaError
from ...plugins.nvrtc import KernelError
from . import gpu, kernels, packages, runtime, tensorrt
from .findings import BROKEN, OK, Finding, Problem, one_line

PATIENCE = 60.0
"""Seconds for a check, where it has no other."""
REPORT = "report it as a bug, with what `amsa doctor --json` prints"
"""Mends what should not happen."""

_AGAIN = "pip install --force-reinstall --no-deps amsa"
_NVIDIA_SMI = "nvidia-smi says more; after an update of the driver: sudo reboot"
_REBUILD = "pip install --force-reinstall 'amsa[{}]'"
_NATIVE_SECONDS = 540.0  # classic TensorRT times every kernel it could take

# What mends begin with in errors of ours: "what is wrong; how to mend it". Other semicolons stand in lists.
_IMPERATIVE = re.compile(r"(add|build|call|choose|close|export|free|install|let|mend|remove|take|update|use)\b")


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
    seconds: float = PATIENCE


def _package_check(package: str, module: str, extra: str = "") -> Check:
    return Check(package, partial(packages.check_package, package, module, extra), f"pip install --force-reinstall {package}")


GROUPS: tuple[tuple[str, tuple[Check, ...]], ...] = (
    (
        "runtime",
        (
            Check("Python", runtime.check_python),
            Check("amsa", runtime.check_amsa, "pip install --force-reinstall amsa"),
            _package_check("numpy", "numpy"),
            _package_check("onnx", "onnx"),
            _package_check("onnxruntime", "onnxruntime"),
            _package_check("opencv-python-headless", "cv2"),
            _package_check("pillow", "PIL"),
            Check("C++ kernels", runtime.check_cpu_kernels, "sudo apt install --reinstall g++", 180.0),
            Check("models", runtime.check_models, _AGAIN),
            Check("picture", runtime.check_picture, _AGAIN),
        ),
    ),
    (
        "export and training",
        (
            _package_check("torch", "torch", "export"),
            _package_check("safetensors", "safetensors", "export"),
            _package_check("onnxscript", "onnxscript", "export"),
            _package_check("torchvision", "torchvision", "train"),
        ),
    ),
    (
        "photos of phones, clips, serving, clusters",
        (
            _package_check("pi-heif", "pi_heif", "heic"),
            _package_check("av", "av", "video"),
            _package_check("fastapi", "fastapi", "serve"),
            _package_check("ray", "ray", "ray"),
        ),
    ),
    (
        "GPU",
        (
            Check("driver", gpu.check_driver, _NVIDIA_SMI),
            Check("GPU", gpu.check_gpu, _NVIDIA_SMI),
            Check("CUDA binding", gpu.check_binding, "pip install --force-reinstall 'amsa[cuda]'"),
        ),
    ),
    (
        "kernels",
        (
            Check("NVRTC", kernels.check_nvrtc, "pip install --force-reinstall nvidia-cuda-nvrtc"),
            Check(
                "CUDA headers",
                partial(packages.check_wheel, "nvidia-cuda-runtime"),
                "pip install --force-reinstall nvidia-cuda-runtime",
            ),
            Check("kernels", kernels.check_kernels, REPORT),
        ),
    ),
    # Two groups, since two TensorRTs in one process would find each other's symbols.
    (
        "TensorRT",
        (
            Check("tensorrt-rtx", partial(tensorrt.check_library, "rtx"), _REBUILD.format("rtx")),
            Check("engines", tensorrt.check_engines, REPORT, 180.0),
            Check("GPU picture by tensorrt-rtx", partial(tensorrt.check_gpu_picture, "rtx"), REPORT, _NATIVE_SECONDS),
        ),
    ),
    (
        "TensorRT",
        (
            Check("tensorrt", partial(tensorrt.check_library, "tensorrt"), _REBUILD.format("tensorrt")),
            Check("GPU picture by tensorrt", partial(tensorrt.check_gpu_picture, "tensorrt"), REPORT, _NATIVE_SECONDS),
        ),
    ),
)
"""Sections and their checks; each is a process."""

ABILITIES: Mapping[str, tuple[str, ...]] = {
    "run on the CPU": ("numpy", "onnx", "onnxruntime", "opencv-python-headless", "pillow", "models", "picture"),
    "export": ("torch", "safetensors", "onnxscript"),
    "train": ("torch", "safetensors", "torchvision"),
    "build engines for any card": ("tensorrt-rtx", "engines"),
    "run engines on its GPU": ("driver", "GPU", "CUDA binding", "kernels"),
}
"""What a machine can do where these checks are OK; the last one needs a GPU picture, too."""


def examine(name: str) -> Finding:
    """Run one check in this process. Whatever it raises is a finding."""
    section, check = next((section, check) for section, checks in GROUPS for check in checks if check.name == name)

    def finding(state: str, text: str, mend: str = "") -> Finding:
        return Finding(section, name, state, one_line(text), mend or ("" if state == OK else check.mend))

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a check says itself what matters
            return finding(OK, check.function())
    except Problem as e:
        return finding(e.state, e.text, e.mend)
    except (AmsaError, KernelError) as e:
        text = " ".join(str(e).split())
        what, _, mend = text.rpartition("; ")
        return finding(BROKEN, what, mend) if _IMPERATIVE.match(mend) and what else finding(BROKEN, text)
    except Exception as e:
        return finding(BROKEN, f"{type(e).__name__}: {e}")


def abilities(findings: Sequence[Finding]) -> dict[str, bool]:
    """What the machine can do, by these findings."""
    ok = {finding.name for finding in findings if finding.state == OK}
    can = {what: ok.issuperset(names) for what, names in ABILITIES.items()}
    can["run engines on its GPU"] &= any(name.startswith("GPU picture") for name in ok)
    return can


def summary(findings: Sequence[Finding]) -> str:
    """One line that says what the machine can do and what not."""
    can = abilities(findings)
    yes, no = (", ".join(what for what, able in can.items() if able == wanted) for wanted in (True, False))
    return " ".join(filter(None, (f"This machine can: {yes}." if yes else "", f"It cannot: {no}." if no else "")))
