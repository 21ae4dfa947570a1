"""libamsa_plugins.so: built with CMake, loaded by TensorRT-RTX and by plain dlopen, the Python plugins' equal in every answer."""

from __future__ import annotations

import ctypes
import json
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from amsa.engine.backends import SHIPPED_MODEL
from amsa.engine.plan_facts import PlanFacts, read_plan
from amsa.plugins import DOMAIN, OPS, VERSION
from amsa.plugins.nvrtc import ARCHITECTURES, VIRTUAL

from ..cuda.cpu_driver import run_on_driver
from . import plugin_library

if why := plugin_library.missing():
    pytest.skip(why, allow_module_level=True)


CHECKS = Path(__file__).parent / "on_driver" / "check_plugin_library.py"


@pytest.fixture(scope="module")
def for_the_checks() -> dict[str, str]:
    """What the checks on the CPU driver are told: where the library is, and shims whose names are TensorRT's and another."""
    return {
        "AMSA_TEST_PLUGIN_LIBRARY": str(plugin_library.library()),
        "AMSA_TEST_SHIM_RTX": str(plugin_library.shim("shim_tensorrt_rtx")),
        "AMSA_TEST_SHIM_CLASSIC": str(plugin_library.shim("shim_classic")),
    }


def test_on_the_cpu_driver(for_the_checks: dict[str, str]) -> None:
    run_on_driver(CHECKS, **for_the_checks)


EVERY = ", ".join((VIRTUAL, *ARCHITECTURES))


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ("8.7", "attached"),  # runs what is made for 8.6
        ("10.0", "attached"),  # nothing is made for 10.x, so it runs the PTX
        ("7.0", f"DeformableSample: no kernels for compute capability 7.0; there are {EVERY}"),
    ],
)
def test_kernels_are_picked_for_the_device(for_the_checks: dict[str, str], capability: str, expected: str) -> None:
    told = {"AMSA_TEST_COMPUTE_CAPABILITY": capability, "AMSA_TEST_EXPECTED": expected}
    run_on_driver(CHECKS, "-k", "test_kernels_for_a_device", **for_the_checks, **told)


# ------------------------------------------------------------------------------------------------ in TensorRT-RTX

needs_tensorrt = pytest.mark.skipif(
    find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed: pip install 'amsa[rtx]'"
)


def in_tensorrt(command: str, *arguments: str | Path) -> Any:
    """What `in_tensorrt.py` prints."""
    script = Path(__file__).parent / "in_tensorrt.py"
    done = subprocess.run([sys.executable, script, command, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@needs_tensorrt
@pytest.mark.parametrize("how", ["load", "open", "open, load", "load, open", "load, unload, load"])
def test_creators_are_the_python_ones(how: str) -> None:
    found = in_tensorrt("creators", plugin_library.library(), how)
    assert found == in_tensorrt("creators", "python", "")
    kinds = {int: "INT32", str: "CHAR"}
    assert [c["name"] for c in found] == [op.name for op in OPS]
    assert {(c["version"], c["namespace"]) for c in found} == {(str(VERSION), DOMAIN)}
    assert [c["fields"] for c in found] == [[[a.name, kinds[a.type], 0] for a in op.attributes] for op in OPS]


@needs_tensorrt
@pytest.mark.parametrize(("before", "opened"), [("", len(OPS)), ("python", 0)])
def test_it_registers_itself_where_it_is_only_opened(before: str, opened: int) -> None:
    """Unless the ops are there; nothing of it stays when it is closed; and TensorRT has nothing to complain about."""
    assert in_tensorrt("open_and_close", plugin_library.library(), before) == [opened, 0, []]


@needs_tensorrt
def test_layers_are_the_python_ones() -> None:
    """Types and shapes of the outputs, of sizes known and unknown, with no complaint."""
    found, complaints = in_tensorrt("layers", plugin_library.library())
    assert complaints == []
    assert [found, []] == in_tensorrt("layers", "python")
    assert found[0] == ["PatchMatch", ["PLUGIN_V3"], [[1, 2, 24, 32], [1, 1, 24, 32]], ["INT32", "FLOAT"]]
    assert found[-1] == ["DeformableSample", ["PLUGIN_V3"], [[-1, 9 * 32, -1, -1]], ["HALF"]]


@needs_tensorrt
def test_a_builder_loads_it_for_itself() -> None:
    assert in_tensorrt("in_builder", plugin_library.library()) == [["PLUGIN_V3"], []]


MISFITS: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("PatchMatch", {}, {"schedule": "slow"}, "schedule is 'slow'; it must be one of 'published', 'paper', 'fast', 'exact'"),
    ("PatchMatch", {}, {"level": None}, "attribute level is missing"),
    ("PatchMatch", {"init": (1, 2, 12, 15)}, {}, "init is 12x15; it must be 12x16"),
    ("PatchMatch", {"ref": ("n", 8, "y", "x")}, {}, "query has 16 channels and ref 8; they must be equal"),
    ("PatchMatch", {"valid": (3, 2)}, {}, "valid has batch 3; it must be 1 or 1"),
    ("PatchMatch", {"query": (1, 16, 23, "w")}, {}, "query is 23x?; with a coarser init both sides must be even"),
    ("PatchMatch", {"init": (1, 2, 12)}, {}, "init has 3 dimensions; it must have 4"),
    ("DeformableSample", {}, {"groups": 0}, "groups is 0; it must be at least 1"),
    ("DeformableSample", {}, {"groups": 5}, "value has 32 channels; they must divide into 5 groups"),
    ("DeformableSample", {"match": (1, 2, 11, 12)}, {}, "offset_mask is 16x20; with this match and scale it must be 18x20"),
    (
        "DeformableSample",
        {"offset_mask": (1, 107, "y", "x")},
        {},
        "offset_mask has 107 channels; it must have 36 (masks) or 108 (offsets and masks)",
    ),
]


@needs_tensorrt
@pytest.mark.parametrize("how", ["load", "open"])
def test_misfits_are_told_in_one_line(how: str) -> None:
    """In TensorRT's log, whether it loaded the library or some program only opened it."""
    cases = json.dumps([case[:3] for case in MISFITS])
    found = in_tensorrt("misfits", plugin_library.library(), how, cases)
    assert found == [[False, [f"{op}: {line}"]] for op, _, _, line in MISFITS]
    assert found == in_tensorrt("misfits", "python", "", cases)


@needs_tensorrt
def test_an_engine_can_carry_the_library() -> None:
    (without, absent), (carrying, present) = in_tensorrt("embed", plugin_library.library())
    assert (absent, present) == (False, True)
    assert carrying - without > plugin_library.library().stat().st_size


def without_numbers(facts: PlanFacts) -> tuple[PlanFacts, Counter[Any]]:
    """TensorRT numbers the tensors that it makes up, differently in every build."""
    tensors = Counter((re.sub(r"__mye\d+", "", name), kind) for name, kind in facts.tensors.items())
    last = Counter(re.sub(r"__mye\d+", "", name) for name in facts.channels_last)
    return replace(facts, tensors={}, channels_last=frozenset()), tensors + last


@needs_tensorrt
@pytest.mark.parametrize("model", ["small", "small_fp16"])
def test_engines_of_the_shipped_models_are_the_python_ones(model: str, tmp_path: Path) -> None:
    """`amsa build` through the C++ plugins, all that it asserts of an engine included; and what the engines' plans hold."""
    folder = SHIPPED_MODEL.with_name(model)
    assert in_tensorrt("build", plugin_library.library(), folder, tmp_path / "cpp") == [False] * len(OPS)
    assert in_tensorrt("build", "python", folder, tmp_path / "python") == [True] * len(OPS)
    for stage, count in (("match", 4), ("restore", 6)):
        cpp, python = (next((tmp_path / by).glob(f"*/{stage}.engine")) for by in ("cpp", "python"))
        found, expected = read_plan(cpp.read_bytes(), cpp), read_plan(python.read_bytes(), python)
        assert without_numbers(found) == without_numbers(expected)
        assert cpp.stat().st_size == python.stat().st_size
        assert len(found.plugins) == count
        for plugin in found.plugins:
            assert plugin.inputs[0] in found.channels_last
            is_half = model == "small_fp16" and stage == "restore"  # keys are float32 in either
            assert found.tensors[plugin.inputs[0]] == ("half" if is_half else "float")


# ------------------------------------------------------------------------------------------------ the file itself


def test_exports_and_needs_nothing_else() -> None:
    def lines(*command: str) -> list[str]:
        return subprocess.run(
            [*command, str(plugin_library.library())], capture_output=True, text=True, check=True
        ).stdout.splitlines()

    assert sorted(line.split()[-1] for line in lines("nm", "-D", "--defined-only")) == ["getCreators", "setLoggerFinder"]
    needed = re.findall(r"\(NEEDED\).*\[(\w+)", "\n".join(lines("readelf", "-d")))
    assert set(needed) <= {"libstdc", "libgcc_s", "libc", "libm", "libdl", "ld"}


def test_loads_without_a_driver() -> None:
    """And says so where a plugin is to run; on stderr, as no TensorRT is there that has a log."""
    try:
        ctypes.CDLL("libcuda.so.1")
        pytest.skip("this machine has a driver")
    except OSError:
        pass
    program = """
import ctypes, sys
shim = ctypes.CDLL(sys.argv[1])
shim.create.restype = shim.attach.restype = ctypes.c_void_p
assert shim.open_library(sys.argv[2].encode(), 0) == 2
names, numbers, texts = (ctypes.c_char_p * 2)(b"scale", b"groups"), (ctypes.c_int32 * 2)(1, 1), (ctypes.c_char_p * 2)()
plugin = shim.create(b"DeformableSample", 2, names, numbers, texts)
assert plugin and not shim.attach(ctypes.c_void_p(plugin))
"""
    command = [sys.executable, "-c", program, plugin_library.shim("shim_classic"), plugin_library.library()]
    done = subprocess.run(command, capture_output=True, text=True)
    expected = "DeformableSample: no NVIDIA driver on this machine (libcuda.so.1); engines can be built, not run\n"
    assert (done.returncode, done.stderr) == (0, expected)


def configure(build: Path, *options: str) -> str:
    """What CMake says when it refuses, in one line."""
    done = subprocess.run(["cmake", "-S", plugin_library.PLUGINS, "-B", build, *options], capture_output=True, text=True)
    assert done.returncode != 0
    return " ".join(done.stderr.split())


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    python = tmp_path / "bin" / "python"  # one without NVIDIA's wheels
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path], check=True)
    headers = f"-DTENSORRT_INCLUDE_DIR={plugin_library.headers()}"
    told = configure(tmp_path / "a", headers, f"-DPython3_EXECUTABLE={python}")
    assert "cannot compile CUDA kernels: libnvrtc.so.* of the wheel nvidia-cuda-nvrtc is not installed; mend with: " in told
    told = configure(tmp_path / "b", "-DTENSORRT_INCLUDE_DIR=/nowhere", f"-DPython3_EXECUTABLE={python}")
    assert "TensorRT's headers are not in /nowhere: " in told
