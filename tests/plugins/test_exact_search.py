"""The exhaustive search in C++ against NumPy.

`python tests/plugins/test_exact_search.py measure` prints how fast it is; see `measure`.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

SOURCE = Path(__file__).parents[2] / "plugins" / "patch_match" / "exact.cpp"
COMPILER = os.environ.get("CXX") or shutil.which("g++")
# As plugins/cpu_library.py has them.
FLAGS = ("-std=c++17", "-O3", "-ffp-contract=off", "-fPIC", "-shared", "-pthread", "-Wall", "-Wextra", "-Werror")
LEAST = -np.finfo(np.float32).max
PATHS = {"best": 0, "portable": 1, "avx2": 2, "avx_vnni": 3, "avx512": 4}
ROOMY, TIGHT = 64 << 20, 1 << 12  # bytes of scratch: one tile; tiles as small as can be

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler on this machine")

_WRAPPERS = """
#include "exact.hpp"
#define WRAP(T)                                                                                                        \\
  extern "C" void exact_##T(const amsa::ExactGrid* grid, const T* query, const T* ref, const float* inverse_norm,      \\
                            int32_t* match, float* score, int threads, long scratch, int path) {                       \\
    amsa::exact_search(*grid, query, ref, inverse_norm, match, score, threads, {scratch, amsa::ExactPath(path)});      \\
  }
using float32 = float;
using int8 = int8_t;
WRAP(float32)
WRAP(int8)
"""


class Grid(ctypes.Structure):
    """`ExactGrid` of exact.hpp."""

    _fields_ = [(n, ctypes.c_int) for n in ("height", "width", "channels", "query_pitch", "ref_pitch", "count_y", "count_x")]


class Tables(NamedTuple):
    """A query of height x width positions and a reference of rows x cols, in tables that may be larger than needed."""

    query: NDArray[Any]
    """[height + 2, >= width + 2, C], float32 or int8."""
    ref: NDArray[Any]
    """[>= rows + 2, >= cols + 2, C]"""
    inverse_norm: NDArray[np.float32]
    """[ref's rows - 2, ref's columns - 2]"""
    size: tuple[int, int, int, int]
    """height, width, rows, cols"""


def build(folder: Path, *extra: str) -> Path:
    """Compile the search into a library of its own."""
    (folder / "wrappers.cpp").write_text(_WRAPPERS)
    library = folder / "exact.so"
    command = [COMPILER, *FLAGS, *extra, f"-I{SOURCE.parent}", "-o", library, folder / "wrappers.cpp", SOURCE]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return library


def search(
    library: ctypes.CDLL, tables: Tables, threads: int = 1, scratch: int = ROOMY, path: str = "best"
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """-> match [height, width, 2], score [height, width]."""
    height, width, rows, cols = tables.size
    channels = tables.query.shape[2]
    grid = Grid(height, width, channels, tables.query.shape[1], tables.ref.shape[1], rows, cols)
    match, score = np.empty((height, width, 2), np.int32), np.empty((height, width), np.float32)
    arrays = [np.ascontiguousarray(a) for a in (tables.query, tables.ref, tables.inverse_norm)]
    pointers = [ctypes.c_void_p(a.ctypes.data) for a in (*arrays, match, score)]
    function = getattr(library, f"exact_{tables.query.dtype}")
    function(ctypes.byref(grid), *pointers, threads, ctypes.c_long(scratch), PATHS[path])
    return match, score


def scores(tables: Tables) -> NDArray[np.float32]:
    """All scores by the definition, [height * width, rows * cols]: float64 products, then rounded, then multiplied."""
    height, width, rows, cols = tables.size

    def patches(table: NDArray[Any], h: int, w: int) -> NDArray[np.float64]:
        windows = np.lib.stride_tricks.sliding_window_view(table[: h + 2, : w + 2].astype(np.float64), (3, 3), (0, 1))
        return windows.reshape(h * w, -1)

    with np.errstate(all="ignore"):
        product = (patches(tables.query, height, width) @ patches(tables.ref, rows, cols).T).astype(np.float32)
        score = product * tables.inverse_norm[:rows, :cols].reshape(1, -1)
        return np.where(score >= LEAST, score, LEAST)


def expected(tables: Tables) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """What `search` must return where products are exact; `argmax` takes the first of equals."""
    height, width, _, cols = tables.size
    every = scores(tables)
    best = every.argmax(1)
    match = np.stack((best // cols, best % cols), -1).reshape(height, width, 2)
    return match.astype(np.int32), every.max(1).reshape(height, width)


def make(seed: int, size: tuple[int, int, int, int], channels: int, kind: str, slack: int = 0) -> Tables:
    """Tables of a kind: `integers` and `ties` (few values: many equal scores) in float32, `int8`, `int8_ties`, `normal`."""
    rng = np.random.default_rng(seed)
    height, width, rows, cols = size
    shapes = (height + 2, width + 2 + slack, channels), (rows + 2 + slack, cols + 2 + slack, channels)
    norms = (rows + slack, cols + slack)
    if kind == "normal":
        q, r = (rng.standard_normal(s, np.float32) for s in shapes)
        return Tables(q, r, (0.5 + rng.random(norms)).astype(np.float32), size)
    # Powers of two: the product with them is exact in float32 and in what it is compared with.
    inverse = np.exp2(rng.integers(-3, 1, norms)).astype(np.float32)
    if kind.startswith("int8"):
        limit = 2 if kind == "int8_ties" else 128
        padded = -channels % 32
        q, r = (np.pad(rng.integers(-limit, limit, s), ((0, 0), (0, 0), (0, padded))).astype(np.int8) for s in shapes)
        return Tables(q, r, inverse if kind == "int8_ties" else rng.random(norms, np.float32), size)
    limit = 1 if kind == "ties" else 30
    q, r = (rng.integers(-limit, limit + 1, s).astype(np.float32) for s in shapes)
    return Tables(q, r, inverse, size)


SIZES = [
    (1, 1, 1, 1),
    (1, 1, 5, 40),
    (5, 40, 1, 1),
    (5, 40, 3, 2),
    (13, 17, 11, 19),
    (2, 31, 17, 14),
    (1, 140, 2, 15),
    (3, 13, 4, 143),
    (40, 1, 23, 3),
]
KINDS = ("integers", "ties", "int8", "int8_ties")


def check_exact(library: ctypes.CDLL, path: str, channels: tuple[int, ...]) -> None:
    """Every size and kind: exactly the definition's bits, whatever the threads and the scratch memory."""
    for seed, size in enumerate(SIZES):
        for kind in KINDS:
            tables = make(seed, size, channels[seed % len(channels)], kind, slack=seed % 3)
            match, score = expected(tables)
            for threads, scratch in ((1, ROOMY), (3, ROOMY), (1, TIGHT), (2, 1 << 16)):
                found = search(library, tables, threads, scratch, path)
                where = f"{size} {kind} {tables.query.shape[2]} channels, {path}, {threads} threads, {scratch} bytes"
                np.testing.assert_array_equal(found[1], score, err_msg=where)
                np.testing.assert_array_equal(found[0], match, err_msg=where)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return ctypes.CDLL(str(build(tmp_path_factory.mktemp("exact"))))


@pytest.mark.parametrize("path", PATHS)
def test_integers_give_the_definitions_bits(library: ctypes.CDLL, path: str) -> None:
    check_exact(library, path, channels=(1, 2, 3, 7, 16, 19, 32, 37))


def test_many_channels(library: ctypes.CDLL) -> None:
    for kind in ("integers", "int8"):
        tables = make(0, (9, 30, 12, 35), 256, kind)
        for found, wanted in zip(search(library, tables), expected(tables), strict=True):
            np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("channels", [1, 16, 37, 256])
def test_floats(library: ctypes.CDLL, channels: int) -> None:
    tables = make(channels, (13, 17, 11, 19), channels, "normal")
    every = scores(tables).astype(np.float64)
    match, score = search(library, tables)
    chosen = np.take_along_axis(every, (match[..., 0] * 19 + match[..., 1]).reshape(-1, 1), 1)[:, 0]
    best = every.max(1)
    assert (best - chosen <= 1e-5 * np.abs(best)).all()
    np.testing.assert_allclose(score.ravel(), chosen, rtol=1e-5, atol=1e-5)


def _odd_floats(channels: int = 19) -> Tables:
    """Of all magnitudes, so that sums cancel, overflow and underflow: rounding shows wherever it differs."""
    rng = np.random.default_rng(0)
    tables = make(1, (13, 17, 11, 40), channels, "normal")
    for table in tables.query, tables.ref:
        table *= np.exp2(rng.integers(-12, 12, table.shape)).astype(np.float32)
        table[rng.random(table.shape) < 0.01] = 1e-30
        table[rng.random(table.shape[:2]) < 0.02, 0] = 3e38
    return tables


@pytest.mark.parametrize("odd", [False, True])
def test_no_setting_changes_a_bit(library: ctypes.CDLL, odd: bool) -> None:
    tables = _odd_floats() if odd else make(3, (11, 37, 12, 150), 21, "normal", slack=1)
    match, score = search(library, tables)
    for path in PATHS:
        for threads, scratch in ((1, ROOMY), (3, ROOMY), (3, TIGHT), (1, 1 << 17)):
            found = search(library, tables, threads, scratch, path)
            np.testing.assert_array_equal(found[0], match)
            np.testing.assert_array_equal(found[1].view(np.int32), score.view(np.int32))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("scratch", [ROOMY, TIGHT])
def test_what_is_not_a_number_never_wins(library: ctypes.CDLL, path: str, scratch: int) -> None:
    tables = make(2, (9, 12, 8, 21), 5, "integers")
    tables.ref[3, 4] = np.nan  # 9 positions
    tables.ref[7, 9:11, 2] = np.inf  # with a zero or an opposite infinity: NaN; otherwise +-Inf
    tables.ref[7, 10, 2] = -np.inf
    tables.query[2, 2, 1] = np.nan
    tables.inverse_norm[0, 0] = np.nan
    tables.inverse_norm[1, 1] = -np.inf
    tables.inverse_norm[5, 17] = np.inf
    match, score = expected(tables)
    found = search(library, tables, 2, scratch, path)
    np.testing.assert_array_equal(found[1], score)
    np.testing.assert_array_equal(found[0], match)
    hidden = score[0:3, 0:3] == LEAST  # the query patches that hold NaN
    assert hidden.all()
    assert (match[0:3, 0:3] == 0).all()


def test_a_tie_between_tiles_goes_to_the_first(library: ctypes.CDLL) -> None:
    # Everything equal: the first position, although tiles right of it and threads elsewhere find the same score.
    tables = Tables(*(np.ones(s, np.float32) for s in ((22, 150, 1), (32, 302, 1), (30, 300))), (20, 148, 30, 300))
    for threads, scratch in ((1, ROOMY), (3, ROOMY), (3, TIGHT)):
        assert (search(library, tables, threads, scratch)[0] == 0).all()
    # Two best ones: below left and above right of each other, on different tiles.
    tables.inverse_norm[3, 290] = tables.inverse_norm[20, 2] = 2
    for threads, scratch in ((1, ROOMY), (3, ROOMY), (3, TIGHT)):
        assert (search(library, tables, threads, scratch)[0] == (3, 290)).all()


@pytest.mark.slow
def test_sanitizers_find_nothing(tmp_path: Path) -> None:
    runtime = subprocess.run([str(COMPILER), "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    if not Path(runtime.stdout.strip()).is_absolute():
        pytest.skip("no AddressSanitizer on this machine")
    flags = "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"
    built = build(tmp_path, *flags)
    environment = os.environ | {"LD_PRELOAD": runtime.stdout.strip(), "ASAN_OPTIONS": "detect_leaks=0", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "check", str(built)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.strip() == "checked"


def _least(work: Callable[[], object], times: int) -> float:
    """CPU seconds of the fastest run; those of other processes do not count."""
    seconds = []
    for _ in range(times):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return min(seconds)


def measure(folder: Path) -> None:
    """Print CPU times on one thread, against torch (unfold, matmul, max, all in float32) in the same process.

    Of int8 with 16 channels the tables have 32.

    The last lines are a strip of query rows against the whole reference, scaled to 250 rows by the row pairs.
    """
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(1)
    library = ctypes.CDLL(str(build(folder)))
    a = torch.randn(1024, 1024)
    print(f"torch matmul, 1024^3: {2 * 1024**3 / _least(lambda: a @ a, 5) / 1e9:.0f} GFLOP/s")
    for side, channels in ((40, 256), (80, 256), (40, 16), (80, 16)):
        tables = make(0, (side, side, side, side), channels, "normal")
        q, r = (torch.from_numpy(t).permute(2, 0, 1)[None] for t in (tables.query, tables.ref))
        inverse = torch.from_numpy(tables.inverse_norm).flatten()

        def unfolded(q: torch.Tensor = q, r: torch.Tensor = r, inverse: torch.Tensor = inverse) -> object:
            return ((F.unfold(q, 3)[0].T @ F.unfold(r, 3)[0]) * inverse).max(1)

        theirs = _least(unfolded, 5)
        line = f"{side}x{side}, C={channels}: torch {theirs * 1e3:.1f} ms"
        kinds = (("float32", tables), ("int8", make(0, tables.size, channels, "int8")))
        for kind, t in kinds:
            for path in ("best", "avx2"):
                ours = _least(lambda t=t, path=path: search(library, t, path=path), 5)  # type: ignore[misc]
                line += f"; {kind} {path} {ours * 1e3:.1f} ms ({theirs / ours:.1f}x)"
        print(line, flush=True)
    rows = 48
    for kind, path in (("normal", "best"), ("normal", "avx2"), ("int8", "best"), ("int8", "avx2")):
        tables = make(0, (rows, 250, 250, 250), 256, kind)
        seconds = _least(lambda t=tables, path=path: search(library, t, path=path), 3)  # type: ignore[misc]
        rate = 2 * 252 * 252 * 252 * (rows + 2) * 256 / seconds / 1e9
        whole = seconds * 252 / (rows + 2)
        print(f"{kind} {path}: {rows}x250 against 250x250, C=256: {seconds:.2f} s ({rate:.0f} GFLOP/s); 250x250: {whole:.1f} s")


if __name__ == "__main__":
    import tempfile

    if sys.argv[1:2] == ["measure"]:
        with tempfile.TemporaryDirectory() as scratch_folder:
            measure(Path(scratch_folder))
    else:
        for each in PATHS:
            check_exact(ctypes.CDLL(sys.argv[2]), each, channels=(1, 3, 16, 19))
        print("checked")
