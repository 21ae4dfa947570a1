"""`amsa doctor`: what it finds on this machine, and that whatever fails becomes one line with a mend, never a traceback."""

from __future__ import annotations

import ctypes
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from amsa import AmsaError, cli
from amsa.engine import backends, doctor
from amsa.engine.doctor import ABSENT, BROKEN, OK, Finding, checks, examine_machine, gpu, packages
from amsa.engine.doctor.checks import ABILITIES, GROUPS, Check, examine
from amsa.engine.doctor.findings import Problem
from amsa.engine.doctor.pictures import compare
from amsa.plugins import cpu_library, nvrtc
from amsa.plugins.nvrtc import KernelError

from ..cuda.cpu_driver import run_on_driver

NAMES = [check.name for _, group in GROUPS for check in group]
CLASSIC = GROUPS[-1]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `amsa` with arguments; returns exit code, stdout, stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["amsa", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as e:
            code = e.code if isinstance(e.code, int) else int(e.code is not None)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let doctor have no checks but those of some sections."""

    def choose(*sections: str) -> None:
        monkeypatch.setattr(checks, "GROUPS", tuple(group for group in GROUPS if group[0] in sections))

    return choose


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], str]], Finding]:
    """What becomes of a check."""

    def run_it(function: Callable[[], str]) -> Finding:
        monkeypatch.setattr(checks, "GROUPS", (("section", (Check("name", function, "the mend"),)),))
        return examine("name")

    return run_it


def tensorrt_that(monkeypatch: pytest.MonkeyPatch, folder: Path, source: str, seconds: float = 60.0) -> list[Finding]:
    """What doctor finds of classic TensorRT, whose module does this when it is imported."""
    (folder / "tensorrt.py").write_text(source)
    monkeypatch.syspath_prepend(str(folder))
    section, group = CLASSIC
    monkeypatch.setattr(checks, "GROUPS", ((section, tuple(replace(c, seconds=seconds) for c in group)),))
    return list(examine_machine())


def check_one_line(finding: Finding) -> None:
    assert finding.state in (OK, ABSENT, BROKEN)
    assert finding.text
    assert "\n" not in finding.text
    assert "Traceback" not in finding.text
    assert bool(finding.mend) == (finding.state != OK), finding


# ------------------------------------------------------------------------------------------------ this machine


def check_this_machine(findings: dict[str, Finding]) -> None:
    for finding in findings.values():
        check_one_line(finding)
    for package in ("numpy", "onnxruntime", "opencv-python-headless", "pillow", "torch", "onnx", "torchvision", "cuda-bindings"):
        if package in findings:
            assert findings[package].state == OK
            assert findings[package].text.startswith(importlib.metadata.version(package))
    assert findings["models"].text == "small (fp32, 6 graphs), small_fp16 (fp16, 6 graphs); hashes agree"
    assert re.match(r"64x64 from 16x16 by ONNX Runtime \(.*\) in \d+\.\d s$", findings["picture"].text)
    assert findings["tensorrt"].state == (ABSENT if find_spec("tensorrt") is None else OK)


def test_this_machine(run: Run, only: Callable[..., None]) -> None:
    """All but what imports torch."""
    sections = ("runtime", "GPU", "kernels", "TensorRT")
    only(*sections)
    code, out, err = run("doctor", "--json")
    values = json.loads(out)
    findings = {f["name"]: Finding(**f) for f in values["findings"]}
    assert (code, err) == (int(any(f.state == BROKEN for f in findings.values())), "")
    assert [*findings] == [c.name for section, group in GROUPS for c in group if section in sections]
    check_this_machine(findings)
    if cpu_library.cpu_library() is not None:
        assert findings["C++ kernels"].text.endswith(f"({cpu_library.library_path()})")
    if find_spec("tensorrt_rtx") is not None:
        assert findings["tensorrt-rtx"].text.endswith("plugins PatchMatch, DeformableSample")
        assert findings["engines"].text.startswith("5 with 10 plugins built for sm75 and checked in ")
    if not no_driver():
        pytest.skip("the rest is about machines with no GPU")
    assert code == 0
    assert {n for n, f in findings.items() if f.state == ABSENT} >= {"driver", "GPU", "GPU picture by tensorrt-rtx"}
    assert findings["kernels"].text.startswith("deformable_sample for sm_75: ")
    assert values["abilities"] == {
        "run on the CPU": True,
        "export": False,  # torch was not looked at
        "train": False,
        "build engines for any card": find_spec("tensorrt_rtx") is not None,
        "run engines on its GPU": False,
    }


@pytest.mark.slow
def test_all_of_this_machine(run: Run) -> None:
    """As many lines as findings, section headings and a summary; and no terminal's colours."""
    begin = time.perf_counter()
    code, out, err = run("doctor")
    seconds = time.perf_counter() - begin
    *lines, last = out.splitlines()
    sections = dict.fromkeys(section for section, _ in GROUPS)
    assert [line for line in lines if not line.startswith("  ")] == [*sections]
    rows = [re.fullmatch(r"  (ok|absent|broken) +(\S.*?)  +(\S.*)", line) for line in lines if line.startswith("  ")]
    assert [row[2] for row in rows if row] == NAMES
    for row in rows:
        assert row is not None
        assert ("mend: " in row[3]) == (row[1] != OK), row[0]
    assert last.startswith("This machine can: run on the CPU, export, train")
    assert (err, "\x1b" in out) == ("", False)
    if no_driver():
        assert code == 0
        assert last.endswith("It cannot: run engines on its GPU.")
        assert seconds < 120  # 10 on an idle machine of two cores


def no_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return True
    return False


def test_every_package_is_asked_for() -> None:
    """No check for what setup.cfg does not name."""
    functions = [check.function for _, group in GROUPS for check in group if isinstance(check.function, partial)]
    asked = [f.args for f in functions if f.func is packages.check_package] + [
        (package, "", extra)
        for package, extra in (
            ("cuda-bindings", "cuda"),
            ("nvidia-cuda-nvrtc", "cuda"),
            ("nvidia-cuda-runtime", "cuda"),
            ("tensorrt-rtx", "rtx"),
            ("tensorrt", "tensorrt"),
        )
    ]
    assert len(asked) == 18
    for package, _, *extra in asked:
        assert str(packages.asked_for(package, extra[0] if extra else "")), package


# ------------------------------------------------------------------------------------------------ what a check raises


@pytest.mark.parametrize(
    ("error", "text", "mend"),
    [
        (AmsaError("no onnx; install it with: pip install 'amsa[rtx]'"), "no onnx", "install it with: pip install 'amsa[rtx]'"),
        (AmsaError("another engine: a is lost; b is lost"), "another engine: a is lost; b is lost", "the mend"),
        (KernelError("x.cu does not compile\nx.cu(1): error\n  int a"), "x.cu does not compile x.cu(1): error int a", "the mend"),
        (ValueError("several\nlines"), "ValueError: several lines", "the mend"),
        (OSError(2, "No such file"), "FileNotFoundError: [Errno 2] No such file", "the mend"),
        (KeyError(), "KeyError:", "the mend"),
        (RuntimeError("x" * 1000), f"RuntimeError: {'x' * 383}...", "the mend"),
    ],
)
def test_errors_are_findings(checked: Callable[[Callable[[], str]], Finding], error: Exception, text: str, mend: str) -> None:
    def fail() -> str:
        raise error

    assert checked(fail) == Finding("section", "name", BROKEN, text, mend)


def test_warnings_are_not_printed(checked: Callable[[Callable[[], str]], Finding], recwarn: pytest.WarningsRecorder) -> None:
    def warn() -> str:
        warnings.warn("of somebody else", stacklevel=1)
        return "found"

    assert checked(warn) == Finding("section", "name", OK, "found")
    assert len(recwarn) == 0


# ------------------------------------------------------------------------------------------------ processes that end


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("import os; os.abort()", "ended by signal 6 (SIGABRT)"),
        ("import ctypes; ctypes.string_at(0)", "ended by signal 11 (SIGSEGV)"),
        ("import os; print('libnvinfer is lost', file=__import__('sys').stderr); os.abort()", "(SIGABRT): libnvinfer is lost"),
        ("import sys; sys.exit(3)", "ended with exit code 3"),
        ("import sys; sys.exit()", "ended with exit code 0"),
        ("import os; os.kill(os.getpid(), 34)", "ended by signal 34"),
    ],
)
def test_a_library_that_ends_its_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: str, text: str) -> None:
    """And the checks behind it are done all the same."""
    first, second = tensorrt_that(monkeypatch, tmp_path, source)
    assert (first.name, first.state) == ("tensorrt", BROKEN)
    assert text in first.text
    assert "pip install --force-reinstall 'amsa[tensorrt]'" in first.mend
    assert second.name == "GPU picture by tensorrt"
    for finding in (first, second):
        check_one_line(finding)


def test_a_library_that_hangs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first, _ = tensorrt_that(monkeypatch, tmp_path, "import time; time.sleep(100)", seconds=2.0)
    assert (first.state, first.text) == (BROKEN, "no answer after 2 s")
    check_one_line(first)


def test_a_library_that_fails_at_the_end_of_its_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every check was answered by then; so it is a finding of its own."""
    findings = tensorrt_that(monkeypatch, tmp_path, "import atexit, os; atexit.register(os.abort)")
    assert [f.name for f in findings] == ["tensorrt", "GPU picture by tensorrt", "end of TensorRT"]
    assert findings[-1].state == BROKEN
    assert findings[-1].text.startswith("after GPU picture by tensorrt the process ended by signal 6 (SIGABRT)")
    check_one_line(findings[-1])


def test_what_libraries_print_is_no_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = "import os; print('loading'); os.system('echo loading'); raise ImportError('libnvinfer.so.10: no such file')"
    first, _ = tensorrt_that(monkeypatch, tmp_path, source)
    assert first.text == "tensorrt is installed but cannot be loaded (libnvinfer.so.10: no such file)"
    assert first.mend == "install it again: pip install 'amsa[tensorrt]'"


def test_something_broken_is_exit_code_1(
    run: Run, only: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "numpy.py").write_text("raise RuntimeError")  # in the folder that it is called in: of no importance
    monkeypatch.chdir(tmp_path)
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    (tmp_path / "path" / "torch.py").write_text("import os; os.abort()")
    monkeypatch.syspath_prepend(str(tmp_path / "path"))
    only("export and training")
    code, out, err = run("doctor")
    assert (code, err) == (1, "")
    assert "  broken  torch                        ended by signal 6 (SIGABRT)" in out
    assert "mend: pip install --force-reinstall torch\n" in out
    assert "  ok      onnxscript                   " in out
    assert "torchvision                  RuntimeError: operator torchvision::nms does not exist; mend: pip install" in out
    assert out.endswith("It cannot: run on the CPU, export, train, build engines for any card, run engines on its GPU.\n")
    assert "Traceback" not in out


def test_without_what_doctor_itself_needs(tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text("raise ImportError('libopenblas.so: cannot open shared object file')")
    command = [sys.executable, "-m", "amsa", "doctor"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: libopenblas.so: cannot open shared object file; amsa is not installed as a whole")
    assert len(done.stderr.splitlines()) == 1


# ------------------------------------------------------------------------------------------------ runtime


def test_amsa_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "version", lambda package: None)

    def nothing(package: str) -> Any:
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "requires", nothing)
    assert examine("amsa").state == ABSENT
    assert "is not installed: versions of other packages are not compared" in examine("amsa").text
    assert examine("pillow") == Finding("runtime", "pillow", OK, __import__("PIL").__version__)


def test_amsa_of_two_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "version", lambda package: "0.0.1")
    assert examine("amsa").state == BROKEN
    assert examine("amsa").text.endswith("but pip knows version 0.0.1")


def test_a_package_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "version", lambda package: "1.2.0")
    assert examine("onnxruntime") == Finding(
        "runtime", "onnxruntime", BROKEN, "1.2.0, and amsa needs >=1.20", "pip install 'onnxruntime>=1.20'"
    )


def test_packages_that_are_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda module: None)
    assert examine("numpy") == Finding("runtime", "numpy", BROKEN, "not installed", "pip install 'numpy>=1.26'")
    section = "export and training"
    assert examine("torch") == Finding(section, "torch", ABSENT, "not installed", "pip install 'amsa[export]'")
    assert examine("torchvision") == Finding(section, "torchvision", ABSENT, "not installed", "pip install 'amsa[train]'")


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No compiled CPU kernels, neither in the package nor in the cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(cpu_library, "_name", lambda: "cpu-none.so")
    for function in (cpu_library.library_path, cpu_library.cpu_library):
        monkeypatch.setattr(cpu_library, function.__name__, function.__wrapped__)


@pytest.mark.usefixtures("no_library")
def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_library, "find_compiler", lambda: None)
    finding = examine("C++ kernels")
    assert (finding.state, finding.mend) == (ABSENT, "sudo apt install g++")
    assert finding.text.startswith("no C++ compiler, so no CPU kernels: ")
    assert finding.text.endswith("many times slower")


@pytest.mark.usefixtures("no_library")
def test_a_compiler_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "false")
    finding = examine("C++ kernels")
    assert (finding.state, finding.mend) == (BROKEN, "install false again, or let CXX name another compiler")
    assert finding.text.startswith("the CPU kernels cannot be built (false exits with 1)")


@pytest.mark.parametrize("which", ["SHIPPED_MODEL", "SHIPPED_ENGINE_MODEL"])
def test_altered_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, which: str) -> None:
    model = Path(shutil.copytree(getattr(backends, which), tmp_path / "small"))
    content = bytearray((model / "match.onnx").read_bytes())
    content[100] ^= 1
    (model / "match.onnx").write_bytes(content)
    monkeypatch.setattr(backends, which, model)
    text = f"{model}: match.onnx is not the file that was exported (its hash differs)"
    assert examine("models") == Finding("runtime", "models", BROKEN, text, "pip install --force-reinstall --no-deps amsa")


def test_a_picture_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    fake = SimpleNamespace(kernels="C++ kernels", upscale=lambda lr, refs: noise)
    monkeypatch.setattr("amsa.engine.upscaler.Upscaler", lambda **settings: fake)
    finding = examine("picture")
    assert (finding.state, finding.text) == (BROKEN, "ONNX Runtime (C++ kernels) makes of 16x16 pixels a picture that cannot be")


# ------------------------------------------------------------------------------------------------ GPU and kernels


def pretend_driver(monkeypatch: pytest.MonkeyPatch, version: int, nvrtc_version: str | None) -> None:
    def get_version(pointer: Any) -> int:
        pointer._obj.value = version
        return 0

    known = packages.version
    monkeypatch.setattr(gpu, "_cuda_library", lambda: SimpleNamespace(cuDriverGetVersion=get_version))
    monkeypatch.setattr(packages, "version", lambda p: nvrtc_version if p == "nvidia-cuda-nvrtc" else known(p))


@pytest.mark.parametrize(
    ("version", "nvrtc_version", "why"),
    [
        (12090, "13.2.86", "for CUDA 12.9; NVRTC 13.2.86 needs 13.0"),
        (13000, "14.0.1", "for CUDA 13.0; NVRTC 14.0.1 needs 14.0"),
        (12030, "12.9.86", "for CUDA 12.3; amsa's launcher needs 12.4"),
        (12030, None, "for CUDA 12.3; amsa's launcher needs 12.4"),
        (12040, None, ""),
        (13000, "13.2.86", ""),
        (14010, "13.2.86", ""),
    ],
)
def test_the_drivers_version(monkeypatch: pytest.MonkeyPatch, version: int, nvrtc_version: str | None, why: str) -> None:
    pretend_driver(monkeypatch, version, nvrtc_version)
    finding = examine("driver")
    check_one_line(finding)
    if not why:
        assert finding.state == OK
        assert finding.text.endswith(f"for CUDA {version // 1000}.{version % 1000 // 10}")
        return
    assert finding.state == BROKEN
    assert finding.text.endswith(why)
    assert finding.mend.startswith(f"install NVIDIA's driver for CUDA {why.split()[-1]} or later")


def test_a_driver_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "libcuda.so.1").write_bytes(b"no library")
    load = ctypes.CDLL
    monkeypatch.setattr(ctypes, "CDLL", lambda name: load(str(tmp_path / name)))
    finding = examine("driver")
    assert finding.state == BROKEN
    assert finding.text.startswith("libcuda.so.1 cannot be loaded: ")
    check_one_line(finding)


def test_no_binding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amsa.engine.gpu.cuda.installed_binding", lambda: None)
    text = "neither of cuda-bindings and pycuda is installed"
    assert examine("CUDA binding") == Finding("GPU", "CUDA binding", ABSENT, text, "pip install 'amsa[cuda]'")


@pytest.mark.parametrize(
    ("wheel", "states"),
    [
        ("nvidia-cuda-nvrtc", {"NVRTC": ABSENT, "CUDA headers": OK, "kernels": ABSENT}),
        ("nvidia-cuda-runtime", {"NVRTC": ABSENT, "CUDA headers": ABSENT, "kernels": ABSENT}),
    ],
)
def test_no_wheels(monkeypatch: pytest.MonkeyPatch, wheel: str, states: dict[str, str]) -> None:
    known = packages.version
    monkeypatch.setattr(packages, "version", lambda p: None if p == wheel else known(p))
    found = {name: examine(name) for name in states}
    assert {name: f.state for name, f in found.items()} == states
    assert {f.mend for f in found.values() if f.state == ABSENT} == {"pip install 'amsa[cuda]'"}


@pytest.mark.skipif(find_spec("nvidia") is None, reason="NVRTC is not installed: pip install 'amsa[cuda]'")
def test_kernels_are_compiled_or_cached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert re.search(r" bytes, compiled in \d+\.\d s", examine("kernels").text)
    assert " bytes, from the cache" in examine("kernels").text
    source = tmp_path / "op" / "kernels.cu"
    source.parent.mkdir()
    source.write_text("__device__ int a = b;")
    monkeypatch.setattr(nvrtc, "kernel_sources", lambda: [source])
    finding = examine("kernels")
    assert finding.state == BROKEN
    assert "does not compile for sm_75" in finding.text
    assert 'identifier "b" is undefined' in finding.text
    check_one_line(finding)


@pytest.mark.parametrize("capability", ["7.5", "6.1", "9.0"])
def test_on_the_cpu_driver(capability: str) -> None:
    run_on_driver(Path(__file__).parent / "on_driver" / "check_doctor.py", AMSA_TEST_COMPUTE_CAPABILITY=capability)


# ------------------------------------------------------------------------------------------------ TensorRT


def test_no_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda module: None)
    for runtime, names in (("rtx", ["tensorrt-rtx", "engines"]), ("tensorrt", ["tensorrt", "GPU picture by tensorrt"])):
        for name in names:
            module = {"rtx": "tensorrt_rtx"}.get(runtime, runtime)
            text, mend = f"{module} is not installed", f"pip install 'amsa[{runtime}]'"
            assert examine(name) == Finding("TensorRT", name, ABSENT, text, mend)


def test_tensorrt_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not even imported."""
    monkeypatch.setattr(packages, "find_spec", lambda module: SimpleNamespace())
    monkeypatch.setattr(packages, "version", lambda package: "1.8.0.5")
    monkeypatch.setattr("amsa.engine.tensorrt_module.import_tensorrt", None)
    assert examine("tensorrt-rtx") == Finding(
        "TensorRT", "tensorrt-rtx", BROKEN, "1.8.0.5, and amsa needs <1.8,>=1.7", "pip install 'tensorrt-rtx<1.8,>=1.7'"
    )


def test_tensorrt_without_our_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = SimpleNamespace(get_creator=lambda name, version, domain: None if name == "PatchMatch" else object())
    module = SimpleNamespace(__version__="10.3", get_plugin_registry=lambda: registry)
    monkeypatch.setattr(packages, "find_spec", lambda module: SimpleNamespace())
    monkeypatch.setattr("amsa.engine.tensorrt_module.import_tensorrt", lambda runtime: module)
    finding = examine("tensorrt")
    assert (finding.state, finding.text) == (BROKEN, "10.3 (>=10); it does not take the plugins PatchMatch")
    check_one_line(finding)


def test_engines_that_are_not_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*arguments: Any, **settings: Any) -> Any:
        raise AmsaError("match: TensorRT-RTX 1.7 built another engine than was asked for: a is lost; it is float")

    monkeypatch.setattr(packages, "find_spec", lambda module: SimpleNamespace())
    monkeypatch.setattr("amsa.engine.tensorrt_build.build_engines", build)
    finding = examine("engines")
    assert finding.state == BROKEN
    assert finding.text.endswith("than was asked for: a is lost; it is float")
    assert finding.mend.startswith("report it as a bug")


def test_pictures_compared() -> None:
    cpu = np.full((64, 64, 3), 100, np.uint8)
    near, far = cpu.copy(), cpu.copy()
    near[:16] += 1
    far[:16] += 40
    start = "against ONNX Runtime on the CPU: PSNR"
    assert compare(cpu, cpu) == f"{start} inf dB, 100.0% of the pixels are equal"
    assert compare(near, cpu) == f"{start} 54.8 dB, 75.0% of the pixels are equal"
    with pytest.raises(Problem, match=r"PSNR 22\.8 dB, 75\.0% of the pixels are equal; at least 45 dB are expected"):
        compare(far, cpu)


# ------------------------------------------------------------------------------------------------ what a machine can do


def findings_but(*broken: str) -> list[Finding]:
    return [Finding("", name, BROKEN if name in broken else OK, "") for name in NAMES]


@pytest.mark.parametrize(
    ("broken", "cannot"),
    [
        ((), []),
        (("C++ kernels",), []),
        (("picture",), ["run on the CPU"]),
        (("onnxscript",), ["export"]),
        (("torchvision",), ["train"]),
        (("engines", "kernels"), ["build engines for any card", "run engines on its GPU"]),
        (("GPU picture by tensorrt",), []),
        (("GPU picture by tensorrt", "GPU picture by tensorrt-rtx"), ["run engines on its GPU"]),
    ],
)
def test_abilities(broken: tuple[str, ...], cannot: list[str]) -> None:
    findings = findings_but(*broken)
    assert [what for what, able in doctor.abilities(findings).items() if not able] == cannot
    text = doctor.summary(findings)
    assert ("It cannot: " in text, "\n" in text) == (bool(cannot), False)
    assert text.endswith(f"It cannot: {', '.join(cannot)}." if cannot else "run engines on its GPU.")


def test_names() -> None:
    """They are unique, and abilities name them."""
    assert len(set(NAMES)) == len(NAMES)
    assert {name for names in ABILITIES.values() for name in names} <= set(NAMES)
    assert json.loads(json.dumps(asdict(Finding("a", "b", OK, "c")))) == {
        "section": "a", "name": "b", "state": "ok", "text": "c", "mend": "",
    }  # fmt: skip
