"""Memory: how a cap is given, what is planned with it, and that it holds."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
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
from amsa.engine.features import features_bytes
from amsa.engine.images import PackedPhoto, Photo, from_array, read_photo, to_array, write_photo
from amsa.engine.memory import Memory, is_out_of_memory, measure, parse_bytes, resident, show_bytes
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


@linux
def test_what_a_call_needs_is_measured() -> None:
    def work() -> NDArray[np.uint8]:
        passing = np.ones(60_000_000, np.uint8)
        return passing[:20_000_000].copy()

    before = resident()
    assert 75e6 < measure(work) < 110e6
    assert resident() - before < 40e6


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
    capped = run(tmp_path, "330MB")
    assert 200e6 < capped["peak"] <= 330e6
    (note,) = capped["told"]
    assert "tiles instead of 1" in note
    assert note.endswith("to stay within the cap of 330MB")
    assert np.array_equal(capped["picture"], free["picture"])


@linux
def test_a_cap_that_nothing_fits_into(tmp_path: Path) -> None:
    report = run(tmp_path, "200MB")
    assert report["picture"] is None
    assert "not enough memory: " in report["error"]
    assert "and the cap of 200MB leaves" in report["error"]
    assert "allow more memory" in report["error"]


@linux
def test_where_memory_is_refused_smaller_tiles_are_taken(tmp_path: Path) -> None:
    free, refused = run(tmp_path), run(tmp_path, limit="200000000")
    assert refused.get("error") is None
    assert any("restoring again in tiles of" in told and "not enough memory to run restore" in told for told in refused["told"])
    assert np.array_equal(refused["picture"], free["picture"])
