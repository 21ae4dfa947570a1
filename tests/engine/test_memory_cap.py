"""Memory: how a cap is given, what is planned with it, and that it holds."""

from __future__ import annotations

import json
import subprocess
import sys
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from amsa import AmsaError, Upscaler
from amsa.config import AMSAConfig
from amsa.engine import memory, planning
from amsa.engine.features import Reference, ScaleFeatures, features_bytes
from amsa.engine.images import PackedPhoto, from_array, read_photo, to_array, write_photo
from amsa.engine.memory import Memory, is_out_of_memory, parse_bytes, show_bytes
from amsa.engine.planning import LARGE_TILE, Plan
from amsa.engine.restoration import Order
from amsa.engine.tiling import TILE, cut
from amsa.engine.upscaler import Stats
from amsa.model import AMSA, save_checkpoint

linux = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux tells what a process holds")


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


# ------------------------------------------------------------------------------------------------ how it is given


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2GB", 2 * 10**9),
        ("1500 mb", 15 * 10**8),
        ("1.5GiB", 3 << 29),
        (4096, 4096),
        ("4096", 4096),
        (" 10 KiB ", 10240),
        ("1B", 1),
    ],
)
def test_bytes(text: int | str, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "2 GB free", "GB", "-1", "0", "0GB", "2TB", "1e9", "nan", "2,5GB", -5, "0.5"])
def test_what_is_no_amount_of_memory(text: int | str) -> None:
    with pytest.raises(AmsaError, match="give bytes, or a number with KB, MB, GB, KiB, MiB or GiB, as in 2GB"):
        Upscaler(max_memory=text)


def test_bytes_as_they_are_shown() -> None:
    assert [show_bytes(n) for n in (640_400_000, 2_480_000_000, 31e9)] == ["640MB", "2.48GB", "31GB"]
    assert parse_bytes(show_bytes(2.48e9)) == 2_480_000_000


# ------------------------------------------------------------------------------------------------ what there is


MEASURE = """
import numpy as np
from amsa.engine.memory import measure, resident
def work():
    passing = np.ones(60_000_000, np.uint8)
    return passing[:20_000_000].copy()
before = resident()
print(measure(work), resident() - before)
"""


@linux
def test_what_a_call_needs_is_measured() -> None:
    """In a process of its own: what others have freed could be used again."""
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    need, kept = map(int, done.stdout.split())
    assert 75e6 < need < 110e6
    assert kept < 40e6


@linux
def test_what_is_free_is_the_least_of_machine_and_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = memory.available()
    for version, names in (("2", ("memory.max", "memory.current", "inactive_file")), ("1", memory.VERSION_1[1:])):
        group = tmp_path / version / "outer" / "inner"
        group.mkdir(parents=True)
        (group / names[0]).write_text("max" if version == "2" else "9223372036854771712")
        (group / names[1]).write_text("400000")
        (group / "memory.stat").write_text(f"cache 7\n{names[2]} 30000\n")
        outer = group.parent
        (outer / names[0]).write_text("1000000\n")
        (outer / names[1]).write_text("900000\n")
        (outer / "memory.stat").write_text(f"{names[2]} 50000\n")
    groups = tmp_path / "cgroup"
    monkeypatch.setattr(memory, "GROUPS", groups)
    for line, root in (("0::/outer/inner", "VERSION_2"), ("5:cpu,memory:/outer/inner", "VERSION_1")):
        groups.write_text(f"3:cpuset:/\n{line}\n")
        names = getattr(memory, root)
        monkeypatch.setattr(memory, root, (str(tmp_path / root[-1]), *names[1:]))
        assert memory.available() == 150_000  # the outer group's, with the files that it only keeps
    groups.write_text("0::/gone\n")
    assert memory.available() > 0.5 * machine


def test_elsewhere_a_cap_is_refused_and_nothing_is_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "PROCESS", Path("/nonexistent"))
    with pytest.raises(AmsaError, match="a cap on memory needs Linux"):
        Upscaler(max_memory="2GB")
    monkeypatch.setattr(memory, "available", lambda: pytest.fail("asked what is free"))
    Upscaler().upscale(picture(16, 16), [picture(64, 64, 1)])


# ------------------------------------------------------------------------------------------------ that it holds


PROGRAM = """
import json, sys, warnings
from pathlib import Path
import numpy as np
from amsa import AmsaError, Upscaler
from amsa.engine.images import read_photo, write_photo

def held(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))

lr, ref, output, cap, limit = sys.argv[1:]
lr, ref = read_photo(lr), read_photo(ref)
upscaler = Upscaler(threads=1, max_memory=cap or None)
if limit:
    import resource
    upscaler.upscale_photo(read_photo(sys.argv[1]), [upscaler.encode_reference(ref)])  # libraries and graphs are loaded
    upscaler.close()
    resource.setrlimit(resource.RLIMIT_AS, (held("VmSize") + int(limit),) * 2)
report = {}
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    try:
        write_photo(output, upscaler.upscale_photo(lr, [ref]))
    except AmsaError as e:
        report["error"] = str(e)
report |= {"peak": held("VmHWM"), "told": [str(w.message) for w in told]}
print(json.dumps(report))
"""


def assert_same(found: NDArray[Any], expected: NDArray[Any]) -> None:
    """8-bit pictures from tiles and parts of other sizes: convolutions round otherwise by 1e-6, which few levels show."""
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert (found != expected).mean() < 1e-3


def run(folder: Path, cap: str = "", limit: str = "", lr: tuple[int, int] = (96, 128), ref: tuple[int, int] = (640, 800)) -> Any:
    """Upscale in a process of its own: its peak of resident memory, warnings, error, and the picture."""
    paths = [folder / name for name in ("lr.png", "ref.png", f"sr-{cap}-{limit}.png")]
    Image.fromarray(picture(*lr)).save(paths[0])
    Image.fromarray(picture(*ref, 1)).save(paths[1])
    done = subprocess.run([sys.executable, "-c", PROGRAM, *paths, cap, limit], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    report["picture"] = to_array(read_photo(paths[2])) if paths[2].exists() else None
    return report


@linux
def test_the_peak_stays_below_the_cap(tmp_path: Path) -> None:
    free = run(tmp_path)
    assert (free["peak"] > 400e6, free["told"]) == (True, [])
    capped = run(tmp_path, "400MB")
    assert 250e6 < capped["peak"] <= 400e6
    (note,) = capped["told"]
    assert "tiles instead of 1" in note
    assert note.endswith("to stay within the cap of 400MB")
    assert_same(capped["picture"], free["picture"])


@linux
def test_a_cap_that_nothing_fits_into(tmp_path: Path) -> None:
    report = run(tmp_path, "200MB")
    assert report["picture"] is None
    assert "not enough memory: " in report["error"]
    assert "and within the cap of 200MB there is room for" in report["error"]
    assert "allow more memory" in report["error"]


@linux
def test_where_the_system_refuses_memory(tmp_path: Path) -> None:
    refused = run(tmp_path, limit="420000000")
    assert all("not enough memory to " in told for told in refused["told"])
    # How much libraries take of the limit differs from run to run: one line, or the same picture. What is refused for certain
    # is in the next test.
    if refused["picture"] is None:
        assert refused["error"].startswith("not enough memory to ")
    else:
        assert_same(refused["picture"], run(tmp_path)["picture"])


def test_where_memory_is_refused_smaller_parts_and_tiles_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    upscaler, refused = Upscaler(), []
    lr, ref = picture(80, 80), picture(1024, 800, 1)
    expected = upscaler.upscale(lr, [ref])
    backend: Any = upscaler.backend_in_use
    run = backend.run

    def short(stage: str, inputs: dict[str, Any]) -> Any:
        most = {"encode_ref": 500_000, "finish": 16 * 72 * 72}.get(stage, 10**9)
        if next(iter(inputs.values())).shape[2] * next(iter(inputs.values())).shape[3] > most:
            refused.append(stage)
            raise RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Failed to allocate memory for requested buffer")
        return run(stage, inputs)

    monkeypatch.setattr(backend, "run", short)
    with pytest.warns(UserWarning, match="not enough memory to run") as told:
        found = upscaler.upscale(lr, [ref])
    assert set(refused) == {"encode_ref", "finish"}
    texts = [str(warning.message) for warning in told]
    assert "reading a reference again in parts of 0.41 megapixels: not enough memory to run encode_ref" in texts[0]
    assert "restoring again in tiles of 20 LR pixels: not enough memory to run finish" in texts[-1]
    assert_same(found, expected)


# ------------------------------------------------------------------------------------------------ what is planned

CONFIG = AMSAConfig.small()
SCRATCH = {"encode_ref": 300.0, "encode_lr": 1200.0, "restore": 20_000.0, "finish": 3000.0}


def plan_with(room: float, references: Sequence[Reference] = ()) -> Plan:
    class Fixed(Memory):
        def room(self) -> int:
            return int(room) - sum(held(reference) for reference in references)

    def held(reference: Reference) -> int:
        keys, values = features_bytes(CONFIG, "fp32", reference.size)
        features = reference.features
        return values * features.held + keys * bool(features._keys)

    return Plan(Fixed(None), CONFIG, "fp32", 128, lambda: None, SCRATCH, references=references)


def reference(height: int, width: int) -> Reference:
    def encode(words: tuple[str, ...]) -> dict[str, int]:
        return {name: 1 for name in ("key_1", "value_1") if name.startswith(words)}

    return Reference(ScaleFeatures(np.array([[height // 4, width // 4]]), encode), (height, width))


def lr_features(whole: bool) -> Any:
    class Features:
        pass

    features = Features()
    features.whole = whole  # type: ignore[attr-defined]
    return features


def test_with_room_all_is_kept_in_usual_tiles() -> None:
    refs = [reference(512, 640), reference(384, 512)]
    plan = plan_with(5e9, refs)
    assert plan.lr_parts((96, 128)) == (pytest.approx((5e9 - 18e6) / 4 / 1200, rel=0.01), True)
    assert plan.keeps_values((96, 128), refs[0])
    assert plan.ref_part((3200, 3200), ("key_", "value_"), "it") == 2**20
    order = plan.order((270, 480), lr_features(True), refs)
    assert (len(order.windows), order.group, order.keep) == (8, 1, True)


def test_smaller_tiles_before_references_are_encoded_again() -> None:
    refs = [reference(512, 640), reference(384, 512)]
    with pytest.warns(UserWarning, match=r"restoring in \d+ tiles instead of 8, to stay within"):
        order = plan_with(450e6, refs).order((270, 480), lr_features(True), refs)
    assert (order.group, order.keep) == (1, True)
    assert order.windows[0].area * 23_000 <= 450e6 - 106 * (512 * 640 + 384 * 512)


def test_one_reference_at_a_time_where_all_leave_no_room() -> None:
    refs = [reference(2048, 2048), reference(1600, 1600), reference(1280, 1280)]  # 445, 271, 174 MB
    for ref in refs:
        ref.features.values()
    plan = plan_with(900e6, refs)
    with pytest.warns(
        UserWarning, match=r"instead of 8, encoding references again for each of \d+ groups of tiles, to stay within"
    ):
        order = plan.order((270, 480), lr_features(True), refs)
    assert not order.keep
    assert not any(ref.features.held for ref in refs)
    window = order.windows[0].area
    assert 445e6 + window * 23_000 + order.group * window * 1024 <= 900e6
    assert order.group > 1


def test_values_are_not_kept_where_matching_needs_the_room() -> None:
    refs = [reference(2048, 2048), reference(1600, 1600)]
    plan = plan_with(700e6, refs)
    assert plan.keeps_values((96, 128), refs[0])
    refs[0].features.keys()
    refs[0].features.drop_keys()
    assert refs[0].features.held
    assert not plan.keeps_values((96, 128), refs[1])
    refs[1].features.keys(with_values=False)
    assert not refs[1].features.held
    plan.check_match((1000, 1000), (1600, 1600))  # drops what is kept rather than to refuse
    assert not refs[0].features.held


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda p, r: p.ref_part((4000, 4000), ("key_", "value_"), "a reference of 4000x4000"),
            "a reference of 4000x4000 needs 1.86GB",
        ),
        (lambda p, r: p.check_match((2000, 2000), (64, 64)), "matching 2000x2000 with 64x64 pixels needs 960MB"),
        (
            lambda p, r: p.order((96, 96), lr_features(True), r),
            r"largest reference needs 1.9GB, .* room for 800MB, which is enough for references of 6.4 megapixels;",
        ),
    ],
)
def test_what_does_not_fit_is_told(call: Callable[[Plan, Sequence[Reference]], object], message: str) -> None:
    refs = [reference(4096, 4096)]
    with pytest.raises(AmsaError, match=message) as caught:
        call(plan_with(800e6, refs), refs)
    assert "scale the pictures down, or allow more memory" in str(caught.value)
    assert "\n" not in str(caught.value)


@linux
def test_larger_tiles_where_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    lr, refs = (272, 480), [(1088, 1920)]
    need = {tile: int(planning.generous(CONFIG, "fp32", tile, lr, refs)) + 1 for tile in (TILE, LARGE_TILE)}
    free, given = Upscaler(threads=1), Upscaler(threads=1, tile=64)
    monkeypatch.setattr(planning.Planner, "_measure", lambda *_: 1.0)
    for room, tile, tight in (
        (need[LARGE_TILE], LARGE_TILE, False),
        (need[LARGE_TILE] - 2, TILE, False),
        (need[TILE], TILE, False),
        (need[TILE] - 2, TILE, True),
    ):
        monkeypatch.setattr(Memory, "room", lambda _, room=room: room)
        for upscaler, expected in ((free, (tile, tight)), (given, (64, False))):
            with upscaler.backend_in_use.call() as on:
                plan = upscaler._planner.plan(on, lr, refs, 1)
            assert (plan.tile, plan.tight) == expected


@linux
def test_nothing_is_measured_where_there_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "measure", lambda _: pytest.fail("measured"))
    sr = Upscaler(max_memory="20GB").upscale_photo(from_array(picture(16, 16)), [from_array(picture(64, 64, 1))])
    assert not isinstance(sr, PackedPhoto)


# ------------------------------------------------------------------------------------------------ what is planned is done


@pytest.fixture(scope="module", params=["small", pytest.param("published", marks=pytest.mark.slow)])
def upscaler(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Upscaler:
    shallow = {"small": replace(CONFIG, blocks=(1, 1, 1, 1)), "published": AMSAConfig.published(8, 1, 4)}[request.param]
    model = AMSA(replace(shallow, ref_scales=2))
    model.reset_parameters(0)
    path = tmp_path_factory.mktemp(request.param) / "m.safetensors"
    save_checkpoint(path, model, {})
    return Upscaler(path, skip=0)


@linux
@pytest.mark.parametrize("gray", [False, True])
def test_every_saving_gives_the_same_picture(upscaler: Upscaler, monkeypatch: pytest.MonkeyPatch, gray: bool) -> None:
    lr = from_array(picture(46, 50)[..., 0] if gray else picture(46, 50).astype(np.uint16) * 257)
    refs = [from_array(picture(64, 96, 1)), from_array(picture(80, 64, 2))]
    expected, usual = upscaler.upscale_photo(lr, refs), Stats()
    windows = cut(46, 50, upscaler.config.halo, side=25 + upscaler.config.halo)
    assert len(windows) == 4
    monkeypatch.setattr(planning, "generous", lambda *_: float("inf"))
    monkeypatch.setattr(planning.Planner, "_measure", lambda *_: 1.0)
    monkeypatch.setattr(Plan, "lr_parts", lambda *_: (1, False))
    monkeypatch.setattr(Plan, "keeps_values", lambda *_: False)
    monkeypatch.setattr(Plan, "order", lambda *_: Order(windows, group=3, keep=False))
    steps: list[tuple[int, int, str]] = []
    outputs: list[weakref.ref[NDArray[np.float32]]] = []
    run_stage = upscaler.backend_in_use.run

    def run(stage: str, inputs: Any) -> Any:
        if stage == "restore":  # sums of a group of windows are kept, but not in what the backend has given out
            assert not any(output() is not None for output in outputs)
        made = run_stage(stage, inputs)
        outputs.extend(weakref.ref(made[name]) for name in made if name == "accumulator_out")
        return made

    monkeypatch.setattr(upscaler.backend_in_use, "run", run)
    saved = upscaler.upscale_photo(lr, refs, stats=usual, progress=lambda *step: steps.append(step))
    assert len(outputs) == usual.calls["restore"]
    assert isinstance(saved, PackedPhoto)
    assert (saved.bits, saved.gray, saved.height, saved.width) == (lr.bits, lr.gray, 184, 200)
    off = np.abs(to_array(saved).astype(int) - to_array(expected).astype(int))
    assert off.max() <= (1 if lr.bits == 8 else 2)
    assert (off > 0).mean() < 0.01 * (lr.bits // 8) ** 4
    np.testing.assert_allclose(saved.rgb, expected.rgb, atol=0.6 / (255 if lr.bits == 8 else 65535) + 1e-5)
    assert sum("reading a reference" in what for _, _, what in steps) > len(refs) * upscaler.config.ref_scales
    assert [done for done, _, _ in steps] == sorted(done for done, _, _ in steps)
    assert all(done <= total for done, total, _ in steps)


@linux
def test_a_reference_whose_features_do_not_fit_is_encoded_for_every_picture(
    upscaler: Upscaler, monkeypatch: pytest.MonkeyPatch
) -> None:
    lr, ref = picture(16, 20), picture(80, 64, 1)
    expected = upscaler.upscale(lr, [ref])
    size = (16, 20) if upscaler.config.published_protocol else None
    monkeypatch.setattr(planning.Planner, "keeps", lambda *_: False)
    with pytest.warns(UserWarning, match=r"^castle: its features do not fit into memory; they are made again for every picture"):
        encoded = upscaler.encode_reference(ref, size, "castle")
    assert not encoded.scales
    assert np.array_equal(upscaler.upscale(lr, [encoded]), expected)


def test_packed_photos(tmp_path: Path) -> None:
    for samples in (picture(20, 30), picture(20, 30)[..., 0], picture(20, 30).astype(np.uint16) * 257 + 3):
        whole, packed = from_array(samples), PackedPhoto(samples, icc=b"profile")
        assert np.array_equal(packed.rgb, whole.rgb)
        assert (packed.height, packed.width, packed.gray, packed.bits) == (20, 30, whole.gray, whole.bits)
        assert np.array_equal(to_array(packed), samples)
        write_photo(tmp_path / "a.png", packed)
        assert np.array_equal(to_array(read_photo(tmp_path / "a.png")), samples)
    alpha = np.linspace(0, 1, 600, dtype=np.float32).reshape(20, 30)
    both = to_array(PackedPhoto(picture(20, 30), alpha))
    assert np.array_equal(both, to_array(replace(from_array(picture(20, 30)), alpha=alpha)))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (RuntimeError("[ONNXRuntimeError] : 6 : Failed to allocate memory for requested buffer of size 40"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"), True),
        (RuntimeError("Non-zero status code returned while running DeformableConv node: not enough memory"), True),
        (RuntimeError("Got invalid dimensions for input"), False),
    ],
)
def test_who_says_that_memory_is_out(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) == expected
