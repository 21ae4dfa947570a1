"""`amsa upscale FOLDER`: a folder of everything that people have, broken files among it, killed half-way and started again."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from .conftest import Run

JOURNAL = ".amsa-run.jsonl"


def picture(height: int, width: int, channels: int = 3, seed: int = 0, dtype: type = np.uint8) -> NDArray[Any]:
    """Noise, gray with one channel."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, np.iinfo(dtype).max + 1, (height, width, channels), dtype)
    return pixels[..., 0] if channels == 1 else pixels


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with in/0.png .. in/7.png (16x16) and ref.png (64x64)."""
    (tmp_path / "in").mkdir()
    for i in range(8):
        Image.fromarray(picture(16, 16, seed=i)).save(tmp_path / "in" / f"{i}.png")
    Image.fromarray(picture(64, 64)).save(tmp_path / "ref.png")
    return tmp_path


# ------------------------------------------------------------------------------------------------ 200 files

NAMES = [
    "{}",
    "photo {}",
    "größe {}",
    "写真{}",
    "[{}]",
    "-o {}",
    "a.b.{}",
    "{} 'quoted' \"twice\"",
    "$HOME {}",
    "😀{}",
    "line\n{}",
]
FOLDERS = ["", "album", "album/more", "émigré", "[x]", "with space", "dir.png"]
KINDS: dict[str, Callable[[Path, NDArray[Any]], object]] = {
    ".png": lambda p, a: Image.fromarray(a).save(p),
    ".PNG": lambda p, a: Image.fromarray(a[..., 0]).save(p),
    ".jpg": lambda p, a: Image.fromarray(a).save(p),
    ".JPG": lambda p, a: Image.fromarray(a[..., 0]).save(p, quality=60),
    ".jpeg": lambda p, a: Image.fromarray(a).save(p, exif=_turned()),
    ".webp": lambda p, a: Image.fromarray(np.dstack([a, a[..., :1]])).save(p),
    ".tif": lambda p, a: Image.fromarray(a).save(p, compression="tiff_lzw"),
    ".tiff": lambda p, a: Image.fromarray(a[..., 0].astype(np.uint16) * 257).save(p),
    ".bmp": lambda p, a: Image.fromarray(a).convert("P").save(p),
    ".avif": lambda p, a: Image.fromarray(a).save(p),
    "-alpha.png": lambda p, a: Image.fromarray(np.dstack([a, a[..., :1]])).save(p),
    "-gray-alpha.png": lambda p, a: Image.fromarray(a[..., :2], "LA").save(p),
    "-palette.png": lambda p, a: Image.fromarray(a).convert("P").save(p, transparency=3),
    "-bits.png": lambda p, a: Image.fromarray(a[..., 0]).convert("1").save(p),
    "-16.png": lambda p, a: p.write_bytes(cv2.imencode(".png", a.astype(np.uint16) * 257)[1].tobytes()),
}


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter
    return exif


def write_good(folder: Path, count: int) -> dict[str, tuple[int, int]]:
    """Write pictures of all kinds, names and depths of folders; returns the width and height of each, upright."""
    kinds, sizes = list(KINDS), {}
    for i in range(count):
        kind, height, width = kinds[i % len(kinds)], 16 + i % 9, 16 + i % 7
        path = folder / FOLDERS[i % len(FOLDERS)] / (NAMES[i % len(NAMES)].format(i) + kind)
        path.parent.mkdir(parents=True, exist_ok=True)
        KINDS[kind](path, picture(height, width, seed=i))
        sizes[path.relative_to(folder).as_posix()] = (height, width) if kind == ".jpeg" else (width, height)
    assert len(sizes) == count
    return sizes


def bomb(path: Path) -> None:
    """A PNG whose header claims 100 megapixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 10_000, 10_000, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b""))


def cut(path: Path, kind: str) -> None:
    """All but the end of a picture."""
    Image.fromarray(picture(64, 64)).save(path, kind)
    path.write_bytes(path.read_bytes()[:-2000])


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut.png": (lambda p: cut(p, "PNG"), "cut short"),
    "cut.jpg": (lambda p: cut(p, "JPEG"), "cut short"),
    "cut.webp": (lambda p: cut(p, "WEBP"), "damaged"),
    "cut.tif": (lambda p: cut(p, "TIFF"), "cut short"),
    "empty.png": (lambda p: p.touch(), "is empty"),
    "text.jpg": (lambda p: p.write_text("hello"), "no picture"),
    "zeros.bmp": (lambda p: p.write_bytes(bytes(1000)), "no picture"),
    "signature.png": (lambda p: p.write_bytes(b"\x89PNG\r\n\x1a\n"), "damaged"),
    "folder.png": (lambda p: p.mkdir(), "is a folder"),
    "nowhere.png": (lambda p: p.symlink_to("absent.png"), "does not exist"),
    "itself.png": (lambda p: p.symlink_to(p.name), "symbolic links"),
    "pipe.png": (os.mkfifo, "not a regular file"),
    "small.png": (lambda p: Image.fromarray(picture(8, 8)).save(p), "8x8"),
    "narrow.png": (lambda p: Image.fromarray(picture(15, 90)).save(p), "90x15"),
    "bomb.png": (bomb, "10000x10000"),
    "cmyk.jpg": (lambda p: Image.fromarray(picture(16, 16)).convert("CMYK").save(p), "is CMYK"),
    "float.tif": (lambda p: Image.fromarray(np.ones((16, 16), np.float32)).save(p), "float"),
    "animation.gif": (lambda p: Image.fromarray(picture(16, 16)).save(p), "add --format png"),
    "deep.jpg": (lambda p: Image.fromarray(np.full((16, 16), 999, np.uint16)).save(p, "PNG"), "8 bits and the photo has 16"),
    "clear.jpg": (lambda p: Image.fromarray(picture(16, 16, 4)).save(p, "PNG"), "no transparency"),
}


def journal(output: Path) -> list[dict[str, Any]]:
    """The whole lines of a journal, but for its header."""
    try:
        lines = (output / JOURNAL).read_bytes().split(b"\n")[1:-1]
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines]


def wait_for(what: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


def start(*arguments: object) -> subprocess.Popen[str]:
    """`amsa upscale` in a process of its own."""
    # A shell's background jobs ignore Ctrl-C, and what they start does, too.
    program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from amsa.cli import main; main()"
    command = [sys.executable, "-c", program, "upscale", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def files(output: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder, with what would differ if it were written again."""
    found = {p.relative_to(output).as_posix(): p.lstat() for p in output.rglob("*") if not p.is_dir()}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in found.items()}


def test_two_hundred_files_killed_and_resumed(run: Run, tmp_path: Path) -> None:
    with warnings.catch_warnings(action="ignore"):  # Pillow finds the bomb and modes odd
        sizes = write_good(tmp_path / "in", 180)
        for i, (name, (make, _)) in enumerate(BROKEN.items()):
            make(tmp_path / "in" / FOLDERS[i % 3] / name)
    Image.fromarray(picture(64, 64)).save(tmp_path / "ref.png")
    output = tmp_path / "out"
    arguments = (tmp_path / "in", tmp_path / "ref.png", "-o", output, "--workers", 2, "--threads", 2)

    child = start(*arguments)
    wait_for(lambda: len(journal(output)) >= 60 or child.poll() is not None)
    child.kill()
    child.communicate()
    workers = {int(entry["worker"].split(":")[1]) for entry in journal(output)}
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), 20)  # they end with it
    done = journal(output)
    assert 60 <= len(done) < 180
    before = files(output)
    assert {entry["file"] for entry in done} >= before.keys() - {JOURNAL} - {n for n in before if n.startswith(".amsa-parts/")}
    with (output / JOURNAL).open("ab") as file:  # as if killed while it was written
        file.write(b'{"file": "photo 1.PNG", "lr": [3')

    code, out, err = run("upscale", *arguments)
    assert code == 1
    kept = sum(entry["file"] in before for entry in done)  # the last one may not have been in place yet
    assert f"{180 - kept} done, {kept} skipped, 20 failed in" in out
    assert f"{kept} of 198 pictures are done already" in err
    after = files(output)
    assert after.keys() == {*sizes, JOURNAL, "failures.json"}  # no partial file, none too many
    written = {name for name in sizes if before.get(name) != after[name]}
    assert len(written) == 180 - kept  # nothing was done twice
    entries = journal(output)
    assert len(entries) == len(done) + len(written)
    for name, (width, height) in sizes.items():
        with Image.open(output / name) as result:
            assert result.size == (4 * width, 4 * height), name

    failed = json.loads((output / "failures.json").read_text())
    reasons = {Path(failure["path"]).name: failure["reason"] for failure in failed}
    assert len(failed) == 20
    assert reasons.keys() == BROKEN.keys()
    for name, (_, word) in BROKEN.items():
        assert word in reasons[name], reasons[name]
        assert "fault of amsa" not in reasons[name]
        assert sum(line.startswith("failed: ") and name in line for line in err.splitlines()) == 1
    assert "Traceback" not in err


# ------------------------------------------------------------------------------------------------ the command


def test_the_summary_for_machines(run: Run, photos: Path) -> None:
    (photos / "in" / "bad.png").touch()
    code, out, err = run("upscale", photos / "in", photos / "ref.png", "-o", photos / "out", "--json", "--threads", 1)
    report = json.loads(out)
    assert (code, report["done"], report["skipped"], report["left"]) == (1, 8, 0, 0)
    assert report["opened"] == {"backend": "onnxruntime", "device": "CPU", "trained": True}
    assert [failure["path"] for failure in report["failed"]] == [str(photos / "in" / "bad.png")]
    assert err == ""
    (photos / "in" / "bad.png").unlink()
    code, out, err = run("upscale", photos / "in", photos / "ref.png", "-o", photos / "out", "--json")
    assert (code, json.loads(out)["skipped"], json.loads(out)["opened"]) == (0, 8, None)


def test_cufed5_by_a_rule_and_in_one_format(run: Run, photos: Path) -> None:
    for path in (photos / "in").iterdir():
        path.unlink()
    for name in ("000", "001"):
        Image.fromarray(picture(16, 16)).save(photos / "in" / f"{name}_0.jpg")
        for i in (1, 2):
            Image.fromarray(picture(64, 64, seed=i)).save(photos / "in" / f"{name}_{i}.png")
    rule = ("--ref-rule", "{}_0.*:{}_[1-9].*")
    code, out, err = run("upscale", photos / "in", *rule, "-o", photos / "out", "--format", "png", "--threads", 1)
    assert (code, "2 done, 0 skipped, 0 failed" in out) == (0, True), err
    assert sorted(path.name for path in (photos / "out").glob("*.png")) == ["000_0.png", "001_0.png"]


def test_pairs_with_a_reference_that_cannot_be_read(run: Run, photos: Path) -> None:
    (photos / "bad.png").write_text("no picture")
    (photos / "pairs.csv").write_text("lr,ref\nin/0.png,ref.png\nin/1.png,bad.png\nin/2.png,absent.png\n")
    code, out, err = run("upscale", photos / "in", "--pairs", photos / "pairs.csv", "-o", photos / "out", "--threads", 1)
    assert (code, "1 done, 0 skipped, 2 failed" in out) == (1, True), err
    assert f"failed: {photos / 'in' / '1.png'}: {photos / 'bad.png'} is damaged or no picture" in err
    assert f"failed: {photos / 'in' / '2.png'}: {photos / 'absent.png'} does not exist" in err
    assert "note: pictures passed over: 5;" in err


def test_ctrl_c(photos: Path) -> None:
    for i in range(8, 100):
        (photos / "in" / f"{i}.png").write_bytes((photos / "in" / "0.png").read_bytes())
    child = start(photos / "in", photos / "ref.png", "-o", photos / "out", "--workers", 2, "--threads", 2)
    wait_for(lambda: len(journal(photos / "out")) >= 3 or child.poll() is not None)
    os.killpg(child.pid, signal.SIGINT)  # as a terminal does
    out, err = child.communicate(timeout=60)
    assert child.returncode == 130, err
    done = len(journal(photos / "out"))
    assert 3 <= done < 100
    assert f"{done} done, 0 skipped, 0 failed in" in out
    assert f"interrupted: {100 - done} pictures are left; the same command does them" in err
    assert "Traceback" not in err
    assert "its worker" not in err
    assert len(list((photos / "out").glob("*.png"))) == done
    assert [path.name for path in (photos / "out").glob(".*")] == [JOURNAL]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["in", "ref.png", "-o", "in"], "choose another output folder"),
        (["in", "ref.png", "-o", "sr.png"], "in is a folder: its results need a folder"),
        (["in", "-o", "out"], "give references in one way"),
        (["in", "ref.png", "-o", "out", "--ref-rule", "{}:{}"], "give references in one way"),
        (["in", "--ref-rule", "x", "-o", "out"], "a rule is 'LR:REFERENCES'"),
        (["in", "--pairs", "absent.csv", "-o", "out"], "absent.csv cannot be read"),
        (["in", "absent.png", "-o", "out"], "absent.png does not exist"),
        (["in", "ref.png", "-o", "out", "--format", "gif"], "format gif is not written"),
        (["in", "ref.png", "-o", "out", "--stats"], "--stats is for one picture"),
        (["in", "ref.png", "-o", "out", "-m", "absent"], "absent: no such model"),
        (["in/0.png", "ref.png", "-o", "sr.png", "--workers", "2", "--format", "png"], "--format, --workers: for a folder"),
        (["in/0.png", "-o", "sr.png"], "no reference photo"),
    ],
)
def test_what_is_refused(run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], word: str) -> None:
    monkeypatch.chdir(photos)
    code, out, err = run("upscale", *arguments)
    assert (code, out, len(err.splitlines())) == (2, "", 1), err
    assert err.startswith("error: ")
    assert word in err
    assert not list(photos.rglob("sr.png"))
