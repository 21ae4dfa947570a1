"""The harness: kernels without a fault compute what NumPy does, in all builds and orders, and seeded faults are reported."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amsa.plugins.launch import Launch

from . import harness
from .harness import Build, Device, KernelFault, Order, missing

pytestmark = pytest.mark.skipif(missing() is not None, reason=missing() or "")

HERE = Path(__file__).parent
ADDRESS, INT, FLOAT = ctypes.c_void_p, ctypes.c_int, ctypes.c_float
BUILDS: tuple[Build, ...] = ("fast", "asan", "tsan")
ORDERS: tuple[Order, ...] = ("forward", "reversed", "shuffled")
Array = np.ndarray[Any, Any]
Run = Callable[..., dict[str, Array]]


class Saxpy(ctypes.Structure):
    _fields_ = (("x", ADDRESS), ("y", ADDRESS), ("a", FLOAT), ("n", INT))


class Reduce(ctypes.Structure):
    _fields_ = (("x", ADDRESS), ("sums", ADDRESS), ("n", INT))


class Transpose(ctypes.Structure):
    _fields_ = (("in", ADDRESS), ("out", ADDRESS), ("height", INT), ("width", INT))


class Halves(ctypes.Structure):
    _fields_ = (("a", ADDRESS), ("b", ADDRESS), ("c", ADDRESS), ("fused", ADDRESS), ("rounded", ADDRESS), ("n", INT))


class Dots(ctypes.Structure):
    _fields_ = (("rows", ADDRESS), ("vector", ADDRESS), ("dots", ADDRESS), ("largest", ADDRESS), ("n", INT))


class Conversions(ctypes.Structure):
    _fields_ = (*((name, ADDRESS) for name in ("x", "nearest", "down", "root", "bits", "bits_as_float")), ("n", INT))


class Shuffles(ctypes.Structure):
    _fields_ = (("out", ADDRESS),)


class Fault(ctypes.Structure):
    _fields_ = (("data", ADDRESS), ("n", INT))


class Pair(ctypes.Structure):
    _fields_ = (("faults", Fault * 2), ("other", ADDRESS))


@pytest.fixture(params=[(b, o) for b in BUILDS for o in ORDERS], ids=lambda p: "-".join(p))
def run(request: pytest.FixtureRequest) -> Run:
    """Runs one of samples.cu: (kernel, grid, block, buffers, params from addresses, shared bytes) -> buffers."""
    build, order = request.param

    def run(
        kernel: str,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        buffers: dict[str, Array],
        params: Callable[[dict[str, int]], ctypes.Structure],
        shared: int = 0,
    ) -> dict[str, Array]:
        (gx, gy, gz), (bx, by, bz) = (*grid, 1, 1)[:3], (*block, 1, 1)[:3]
        device = Device([HERE / "samples.cu"], build, order, seed=7)
        return device.run(buffers, lambda at: [Launch(kernel, (gx, gy, gz), (bx, by, bz), params(at), shared)])

    return run


def test_saxpy(run: Run) -> None:
    x, y = np.arange(100, dtype=np.float32), np.full(100, 0.5, np.float32)
    # 7 elements in, to a part of the buffer that starts there
    found = run("saxpy", (3,), (32,), {"x": x, "y": y}, lambda at: Saxpy(at["x"], at["y"] + 28, 2, 93))
    assert found["y"].dtype == np.float32
    np.testing.assert_array_equal(found["y"], np.concatenate((y[:7], 2 * x[:93] + 0.5)))
    np.testing.assert_array_equal(found["x"], x)


@pytest.mark.parametrize("kernel", ["block_sum", "warp_sums"])
def test_reductions(run: Run, kernel: str) -> None:
    x = np.random.default_rng(0).integers(-99, 99, 300).astype(np.float32)
    found = run(kernel, (3,), (128,), {"x": x, "sums": np.zeros(3, np.float32)}, lambda at: Reduce(at["x"], at["sums"], 300))
    np.testing.assert_array_equal(found["sums"], [x[:128].sum(), x[128:256].sum(), x[256:].sum()])


@pytest.mark.parametrize("block", [(8, 8), (12, 5)])
def test_dynamic_shared_memory(run: Run, block: tuple[int, int]) -> None:
    x = np.random.default_rng(0).random((13, 21), np.float32)
    found = run(
        "transpose",
        (-(-21 // block[0]), -(-13 // block[1])),
        block,
        {"in": x, "out": np.full((21, 13), np.nan, np.float32)},
        lambda at: Transpose(at["in"], at["out"], *x.shape),
        shared=4 * block[0] * block[1],
    )
    np.testing.assert_array_equal(found["out"], x.T)


def test_half(run: Run) -> None:
    rng = np.random.default_rng(0)
    # Exponents of all sizes: products that cancel, subnormal and infinite results.
    a, b, c = ((rng.standard_normal(512) * 2.0 ** rng.integers(-12, 9, 512)).astype(np.float16) for _ in range(3))
    c[:64] = -a[:64] * b[:64]
    c[64:128] = 65504
    empty = np.full(512, np.nan, np.float16)
    buffers = {"a": a, "b": b, "c": c, "fused": empty, "rounded": empty}
    found = run("half_arithmetic", (2,), (128,), buffers, lambda at: Halves(*(at[n] for n in buffers), 512))
    with np.errstate(over="ignore"):
        rounded = (a * b).astype(np.float32) + c.astype(np.float32)
        np.testing.assert_array_equal(found["rounded"], rounded.astype(np.float16))
        # float64 holds products and sums of these numbers, so one rounding is left
        fused = (a.astype(np.float64) * b.astype(np.float64) + c.astype(np.float64)).astype(np.float16)
        np.testing.assert_array_equal(found["fused"], fused)
    assert (found["fused"] != found["rounded"]).any()


def test_int8_dots(run: Run) -> None:
    rng = np.random.default_rng(0)
    rows, vector = rng.integers(-128, 128, (70, 16), np.int8), rng.integers(-128, 128, 16, np.int8)
    buffers = {"rows": rows, "vector": vector, "dots": np.zeros(70, np.int32), "largest": np.full(1, -(2**31), np.int32)}
    found = run("int8_dots", (3,), (32,), buffers, lambda at: Dots(*(at[n] for n in buffers), 70))
    expected = rows.astype(np.int32) @ vector.astype(np.int32)
    np.testing.assert_array_equal(found["dots"], expected)
    assert found["largest"] == expected.max()


def test_conversions(run: Run) -> None:
    x = np.array([0.5, 1.5, -2.5, -0.1, 3.99, 3e9, -3e9, np.nan, np.inf, -(2.0**31)], np.float32)
    whole = np.zeros(10, np.int32)
    buffers = {"x": x, "nearest": whole, "down": whole, "root": np.zeros(10, np.float32), "bits": whole}
    found = run("conversions", (1,), (32,), buffers, lambda at: Conversions(*(at[n] for n in buffers), at["bits"], 10))
    low, high = -(2**31), 2**31 - 1  # as PTX converts: to even, saturated, NaN to 0
    np.testing.assert_array_equal(found["nearest"], [0, 2, -2, 0, 4, high, low, 0, high, low])
    np.testing.assert_array_equal(found["down"], [0, 1, -3, -1, 3, high, low, 0, high, low])
    np.testing.assert_allclose(found["root"], np.sqrt(np.abs(x)), rtol=2e-7)
    assert found["bits"].all()


def test_shuffles_and_votes(run: Run) -> None:
    found = run("shuffles", (1,), (64,), {"out": np.zeros((8, 64), np.int32)}, lambda at: Shuffles(at["out"]))["out"]
    i = np.arange(64)
    lane, warp = i % 32, i // 32
    np.testing.assert_array_equal(found[0], i // 8 * 8 + 3)
    np.testing.assert_array_equal(found[1], np.where(i % 16 < 2, i, i - 2))
    np.testing.assert_array_equal(found[2], np.where(lane + 5 < 32, i + 5, i))
    np.testing.assert_array_equal(found[3], i ^ 9)
    np.testing.assert_array_equal(found[4], np.where(lane < 16, i ^ 3, i ^ 1))
    np.testing.assert_array_equal(found[5], 11)
    np.testing.assert_array_equal(found[6], np.where(lane < 16, 3, 0))
    np.testing.assert_array_equal(found[7], np.where(warp == 0, 0, 9))


# ---- Faults ------------------------------------------------------------------------------------------------------------------


def _run_fault(
    kernel: str,
    build: Build = "fast",
    order: Order = "forward",
    n: int = 32,
    shared: int = 0,
    grid: tuple[int, int, int] = (1, 1, 1),
    block: tuple[int, int, int] = (64, 1, 1),
    data: Array | None = None,
    seed: int = 0,
) -> Array:
    data = np.ones(64, np.float32) if data is None else data
    launch = Device([HERE / "faults.cu"], build, order, seed).run
    return launch({"data": data}, lambda at: [Launch(kernel, grid, block, Fault(at["data"], n), shared)])["data"]


def _line(kernel: str) -> int:
    """The line that has the comment "fault", in a kernel of faults.cu."""
    lines = (HERE / "faults.cu").read_text().splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith(f"AMSA_KERNEL({kernel},"))
    return next(i for i, line in enumerate(lines[begin:], begin + 1) if "// fault" in line)


@pytest.mark.parametrize(
    ("kernel", "build", "words", "options"),
    [
        ("read_out_of_bounds", "asan", "heap-buffer-overflow", {}),
        ("write_out_of_bounds", "asan", "heap-buffer-overflow", {}),
        ("byte_out_of_bounds", "asan", "heap-buffer-overflow", {"data": np.zeros(61, np.int8), "n": 61}),
        ("static_shared_overrun", "asan", "global-buffer-overflow", {"n": 8}),
        ("dynamic_shared_overrun", "asan", "heap-buffer-overflow", {"shared": 256}),
        ("misaligned_load", "asan", "misaligned address", {"data": np.zeros(256, np.float32)}),
        ("misaligned_ldg", "asan", "misaligned address", {}),
        ("int_overflow", "asan", "signed integer overflow", {"n": 2**30}),
        ("cast_out_of_range", "asan", "outside the range", {"data": np.full(64, 3e9, np.float32)}),
        ("dropped_barrier", "tsan", "data race", {}),
        ("dropped_second_barrier", "tsan", "data race", {}),
        ("shuffle_as_barrier", "tsan", "data race", {}),
        ("unguarded_sum", "tsan", "data race", {}),
        ("shuffle_without_half_the_warp", "fast", "__shfl_xor_sync: the mask names lane 16, which has exited", {}),
        ("shuffles_at_two_places", "fast", "__shfl_xor_sync: thread .* is at __shfl_xor_sync, faults.cu", {}),
        ("shuffle_outside_its_mask", "fast", r"reads lane \d+, which is not in the mask", {}),
        ("barriers_at_two_places", "fast", "__syncthreads: thread .* is at __syncthreads, faults.cu", {}),
        ("barrier_after_exit", "fast", r"__syncthreads: (not all threads come: 32|thread \(32, 0, 0\) has exited)", {}),
        ("barrier_against_shuffle", "fast", "waits for ever", {"block": (32, 1, 1)}),
    ],
)
@pytest.mark.parametrize("order", ["forward", "reversed"])
def test_faults_are_reported(kernel: str, build: Build, words: str, options: dict[str, Any], order: Order) -> None:
    with pytest.raises(KernelFault, match=words) as caught:
        _run_fault(kernel, build, order, **options)
    place = f"faults.cu:{_line(kernel)}"
    if kernel.endswith("_two_places"):  # the line of either; they are named both
        place = "faults.cu:"
    assert place in str(caught.value)


def test_uninitialised_shared_memory_is_nan() -> None:
    found = _run_fault("uninitialised_shared", shared=256, grid=(2, 1, 1))
    np.testing.assert_array_equal(np.isnan(found), np.arange(64) % 2 == 0)


def test_orders_include_the_blocks() -> None:
    last = [_run_fault("blocks_in_order", order=order, grid=(5, 1, 1))[0] for order in ORDERS]
    assert last[:2] == [4, 0]
    assert len({_run_fault("blocks_in_order", order="shuffled", seed=seed, grid=(5, 1, 1))[0] for seed in range(8)}) > 1


@pytest.mark.parametrize(("build", "words"), [("fast", "died of signal 11"), ("asan", r"faults\.cu:\d+.*null pointer")])
def test_null_stays_null(build: Build, words: str) -> None:
    device = Device([HERE / "faults.cu"], build)
    with pytest.raises(KernelFault, match=words):
        device.run({}, lambda at: [Launch("blocks_in_order", (1, 1, 1), (1, 1, 1), Fault(None, 1))])


def test_waiting_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "_TIMEOUT", 0.5)
    with pytest.raises(KernelFault, match="still running after"):
        _run_fault("waits_for_another_block", data=np.zeros(64, np.int32), grid=(2, 1, 1))


# ---- Launches ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"block": (65, 1, 1)}, "a block of 65 threads; its launch bounds are 64"),
        ({"block": (64, 32, 1)}, r"a block of \(64, 32, 1\)"),
        ({"block": (0, 1, 1)}, r"a block of \(0, 1, 1\)"),
        ({"grid": (1, 65536, 1)}, r"a grid of \(1, 65536, 1\)"),
        ({"grid": (1, 1, 65536)}, r"a grid of \(1, 1, 65536\)"),
        ({"grid": (1, 0, 1)}, r"a grid of \(1, 0, 1\)"),
        ({"shared": 9153}, "40000 bytes of static and 9153 of dynamic shared memory"),
    ],
)
def test_launches_that_the_hardware_refuses(options: dict[str, Any], words: str) -> None:
    with pytest.raises(KernelFault, match=words):
        _run_fault("much_static_shared", **options)


@pytest.mark.parametrize("build", BUILDS)
def test_all_of_the_shared_memory(build: Build) -> None:
    assert _run_fault("much_static_shared", build, shared=9152).tolist() == [1] * 64


def test_unknown_kernel() -> None:
    with pytest.raises(KernelFault, match="no kernel nothing"):
        _run_fault("nothing")


def test_parameters_of_another_size() -> None:
    device = Device([HERE / "faults.cu"])
    assert ctypes.sizeof(Reduce) == 24
    with pytest.raises(KernelFault, match="parameters take 24 bytes, the kernel's 16"):
        device.run({}, lambda at: [Launch("int_overflow", (1, 1, 1), (1, 1, 1), Reduce())])


class Derived(Fault):
    _fields_ = (("more", ADDRESS * 2), ("text", ctypes.c_char_p))  # type: ignore[assignment]


def test_parameters_hold_numbers_and_addresses_only() -> None:
    device = Device([HERE / "faults.cu"])
    with pytest.raises(TypeError, match=r"params\.text: .* not c_char_p"):
        device.run({}, lambda at: [Launch("int_overflow", (1, 1, 1), (1, 1, 1), Derived())])
    with pytest.raises(ValueError, match=r"params\.more\[1\] is 0x7"):
        device.run({}, lambda at: [Launch("int_overflow", (1, 1, 1), (1, 1, 1), Derived(more=(0, 7)))])


@pytest.mark.parametrize("address", [1, 100, (1 << 40) - 1, (1 << 40) + 256, 2 << 40])
def test_addresses_outside_all_buffers(address: int) -> None:
    device = Device([HERE / "faults.cu"])
    params = Pair((Fault(0, 1), Fault(address, 1)))
    with pytest.raises(ValueError, match=r"some_kernel: params.faults\[1\].data is 0x\w+, which lies in no buffer"):
        device.run({"data": np.zeros(64, np.float32)}, lambda at: [Launch("some_kernel", (1, 1, 1), (1, 1, 1), params)])


def test_several_launches() -> None:
    x = np.arange(64, dtype=np.float32)

    def plan(at: dict[str, int]) -> list[Launch]:
        return [Launch("saxpy", (1, 1, 1), (64, 1, 1), Saxpy(at["x"], at["x"], 1, 64)) for _ in range(3)]

    np.testing.assert_array_equal(Device([HERE / "samples.cu"]).run({"x": x}, plan)["x"], 8 * x)


def test_sources_that_do_not_compile(tmp_path: Path) -> None:
    source = tmp_path / "wrong.cu"
    source.write_text("AMSA_KERNEL(wrong, int, 32) { undeclared = p; }\n")
    with pytest.raises(RuntimeError, match=r"wrong\.cu:1.*undeclared"):
        Device([source]).run({}, lambda at: [])


def test_a_changed_header_is_compiled_again(tmp_path: Path) -> None:
    source, header = tmp_path / "kernel.cu", tmp_path / "value.cuh"
    source.write_text('#include "value.cuh"\nstruct P { float* out; };\nAMSA_KERNEL(fill, P, 1) { *p.out = kValue; }\n')
    for value in (1, 2):
        header.write_text(f"constexpr float kValue = {value};\n")
        out = Device([source]).run(
            {"out": np.zeros(1, np.float32)}, lambda at: [Launch("fill", (1, 1, 1), (1, 1, 1), Shuffles(at["out"]))]
        )
        assert out["out"] == value
