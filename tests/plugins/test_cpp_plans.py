"""The C++ plans and declarations equal Python's: launch for launch, byte for byte, message for message."""

from __future__ import annotations

import ctypes
import hashlib
import os
import random
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

import amsa.plugins
from amsa.plugins import DEFORMABLE_SAMPLE, DOMAIN, OPS, PATCH_MATCH, VERSION, OpSpec
from amsa.plugins.deformable_sample.plan import deformable_sample_plan
from amsa.plugins.patch_match.plan import ROUNDS, Addresses, patch_match_plan, patch_match_scratch
from amsa.plugins.patch_match.spec import ARITHMETICS, SCHEDULES

COMPILER = os.environ.get("CXX") or shutil.which("g++")
if COMPILER is None:
    pytest.skip("no C++ compiler", allow_module_level=True)

PLUGINS = Path(amsa.plugins.__file__).parent
SOURCE = Path(__file__).parent / "plan_library.cpp"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "amsa" / "tests"
FLAGS = ("-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-fsanitize=undefined", "-fno-sanitize-recover", "-shared", "-fPIC")

Call = tuple[list[tuple[int, ...]], dict[str, Any]]  # input shapes, attributes


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    assert COMPILER is not None
    digest = hashlib.sha256(" ".join((COMPILER, *FLAGS)).encode())
    for file in (SOURCE, *sorted(PLUGINS.glob("*.hpp")), *sorted(PLUGINS.glob("*/*.hpp"))):
        digest.update(file.read_bytes())
    built = CACHE / f"plans-{digest.hexdigest()[:16]}.so"
    if not built.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            made = Path(scratch) / built.name
            subprocess.run([COMPILER, *FLAGS, f"-I{PLUGINS}", SOURCE, "-o", made], check=True)
            made.replace(built)
    loaded = ctypes.CDLL(str(built))
    loaded.plan.restype = loaded.declaration.restype = ctypes.c_char_p
    return loaded


TOLD = ctypes.CFUNCTYPE(
    None, ctypes.c_char_p, *[ctypes.POINTER(ctypes.c_uint)] * 2, ctypes.c_uint, ctypes.POINTER(ctypes.c_ubyte), ctypes.c_size_t
)


def in_cpp(library: ctypes.CDLL, op: OpSpec, call: Call, addresses: list[int], dtype: str) -> Any:
    """Launches, output shapes and scratch size of a call as the C++ plan has them; or the error's message."""
    shapes, attributes = call
    told: list[tuple[Any, ...]] = []

    @TOLD
    def tell(kernel: bytes, grid: Any, block: Any, shared: int, params: Any, size: int) -> None:
        told.append((kernel.decode(), tuple(grid[:3]), tuple(block[:3]), shared, bytes(params[:size])))

    sizes = [n for shape in shapes for n in shape]
    numbers = [value if isinstance(value, int) else 0 for value in attributes.values()]
    texts = [value.encode() if isinstance(value, str) else None for value in attributes.values()]
    message = library.plan(
        op.name.encode(),
        (ctypes.c_int * len(shapes))(*map(len, shapes)),
        (ctypes.c_int64 * len(sizes))(*sizes),
        (ctypes.c_uint64 * len(addresses))(*addresses),
        len(addresses),
        int(dtype == "float16"),
        len(attributes),
        (ctypes.c_char_p * len(attributes))(*(name.encode() for name in attributes)),
        (ctypes.c_int64 * len(attributes))(*numbers),
        (ctypes.c_char_p * len(attributes))(*texts),
        tell,
    )
    return told if message is None else message.decode()


def in_python(op: OpSpec, call: Call, addresses: list[int], dtype: str) -> Any:
    shapes, attributes = call
    try:
        op.check_attributes(**attributes)
        launches = (
            patch_match_plan(*shapes, Addresses(*addresses), dtype=dtype, **attributes)
            if op is PATCH_MATCH
            else deformable_sample_plan(*shapes, (*addresses,), dtype=dtype, **attributes)  # type: ignore[arg-type]
        )
    except ValueError as e:
        return str(e)
    told = [(x.kernel, x.grid, x.block, x.shared, bytes(x.params)) for x in launches]
    none = (0, 0, 0)
    for shape in op.infer_shapes(*shapes, **attributes):
        told.append(("shape", none, none, 0, bytes((ctypes.c_int64 * len(shape))(*shape))))
    scratch = patch_match_scratch(*shapes[:2], **attributes) if op is PATCH_MATCH else 0
    return [*told, ("scratch", none, none, 0, bytes(ctypes.c_int64(scratch)))]


def fitting(op: OpSpec, rng: random.Random) -> Call:
    """A call whose shapes and attributes fit; small, empty or large."""
    n, largest = rng.choice((1, 1, 2, 3)), rng.choice((8, 40, 700))
    shared = [rng.choice((1, n)) for _ in range(3)]
    if op is PATCH_MATCH:
        pad, init_scale = rng.randint(0, 1), rng.randint(1, 2)
        schedule, arithmetic = rng.choice(SCHEDULES), rng.choice(ARITHMETICS)
        c = rng.choice((1, 3, 8, 16, 27, 32, 64, 96, 128, 250, 256, 1024))
        query = [rng.randint(3, largest + 3) // init_scale * init_scale + 2 * (init_scale - 1) for _ in range(2)]
        ref = [rng.randint(3 - 3 * pad, largest + 3) for _ in range(2)]
        init = [q // 2 if init_scale == 2 else q - 2 + 2 * pad for q in query]
        attributes: dict[str, Any] = {"iterations": rng.randint(1, 8), "schedule": schedule, "level": rng.randint(0, 3)}
        attributes |= {"pad": pad, "init_scale": init_scale}
        if arithmetic != "float" or rng.random() < 0.5:
            attributes["arithmetic"] = arithmetic
        return [(shared[0], c, *query), (n, c, *ref), (shared[1], 2), (shared[2], 2, *init)], attributes
    scale, groups = rng.choice((1, 2, 4)), rng.choice((1, 2, 3, 8))
    c = groups * rng.choice((0, 1, 2, 4, 8, 9, 16))
    h, w = (rng.randint(0, largest) for _ in range(2))
    learned = groups * rng.choice((9, 27))
    value = (shared[0], c, rng.randint(0, largest), rng.randint(0, largest))
    return [value, (n, 2, h + 2, w + 2), (shared[1], learned, scale * h, scale * w)], {"scale": scale, "groups": groups}


def spoilt(call: Call, rng: random.Random) -> Call:
    """The call with one thing changed, which may or may not make it a misfit."""
    shapes, attributes = [list(shape) for shape in call[0]], dict(call[1])
    if rng.random() < 0.1:
        shapes[0][1] = shapes[1][1] = 1041
    elif rng.random() < 0.3:
        name = rng.choice(list(attributes))
        text = isinstance(attributes[name], str)
        attributes[name] = rng.choice(
            ["", "slow", "it's", 'a "b"', "tab\tline\n", "exact", "int8"] if text else [-3, 0, 1, 2, 3, 7]
        )
    else:
        shape = rng.choice(shapes)
        i = rng.randrange(len(shape))
        if rng.random() < 0.15:
            shape[:] = shape[: i + 1] if i + 1 < len(shape) else [*shape, 1]
        else:
            shape[i] = rng.choice((0, 1, 2, shape[i] + 1, shape[i] + 2, 1041, 70_000, 2**31 - 1, 2**40))
    return [tuple(shape) for shape in shapes], attributes


def addresses_for(op: OpSpec) -> list[int]:
    count = len(op.inputs) + len(op.outputs) + (op is PATCH_MATCH)
    return [0x7F00_0000_0000 + 0x1234_5000 * (i + 1) for i in range(count)]


REASONS = {
    PATCH_MATCH.name: (
        "it must be one of 'published', 'paper', 'fast', 'exact'",
        "it must be at least 1",
        "it must be one of 0, 1, 2, 3",
        "there is no CUDA kernel for schedule",
        "they must be equal",
        "int8 arithmetic takes at most 1040",
        "without padding both sides must be at least 3",
        "with a coarser init both sides must be even",
        "init is .*; it must be ",
        "ref is empty",
    ),
    DEFORMABLE_SAMPLE.name: (
        "it must be one of 1, 2, 4",
        "it must be at least 1",
        "they must divide into",
        r"\(offsets and masks\)",
        "with this match and scale it must be",
    ),
}
COMMON_REASONS = (
    "dimensions?; it must have",
    "has batch .*; it must be 1 or",
    "channels?; it must have",
    "use smaller tiles",
    "at most 65535",
)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_plans_are_equal(library: ctypes.CDLL, op: OpSpec, dtype: str) -> None:
    rng = random.Random(f"{op.name} {dtype}")
    kernels, messages = set(), set()
    for case in range(1200):
        call = fitting(op, rng)
        if case % 2:
            call = spoilt(call, rng)
        expected = in_python(op, call, addresses_for(op), dtype)
        assert in_cpp(library, op, call, addresses_for(op), dtype) == expected, call
        if isinstance(expected, str):
            messages.add(expected)
        else:
            kernels |= {launch[0] for launch in expected[: -1 - len(op.outputs)]}
    # The cases are worth something: they reach every kernel for this type, and every way of not fitting.
    floats = f"f{dtype[-2:]}"
    if op is PATCH_MATCH:
        steps = [f"step_{kind}_{r}" for kind in (floats, "int8") for r in (*ROUNDS[kind], 0)]
        names = ["clear", *(f"{what}_{floats}" for what in ("largest", "quantize", "energy")), f"energy_{floats}_any"]
        assert kernels == {
            f"patch_match_{name}" for name in (*names, "energy_int8", "norm", "norm_int8", *steps, f"step_{floats}_any")
        }
    else:
        assert kernels == {f"deformable_sample_{floats}", f"deformable_sample_{floats}_any"}
    for reason in (*REASONS[op.name], *COMMON_REASONS):
        assert any(re.search(reason, message) for message in messages), reason


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_declarations_are_equal(library: ctypes.CDLL, op: OpSpec) -> None:
    lines = [f"{op.name} {op.torch_name} {DOMAIN} {VERSION}"]
    lines += [f"input {t.name} {t.dtype}" for t in op.inputs] + [f"output {t.name} {t.dtype}" for t in op.outputs]
    for a in op.attributes:
        words = ["attribute", a.name, a.type.__name__, *map(repr, a.choices or ())]
        lines.append(" ".join(words + ([] if a.default is None else ["default", repr(a.default)])))
    assert library.declaration(op.name.encode()).decode().splitlines() == lines
