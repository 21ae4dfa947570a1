"""`amsa upscale` of a clip."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import av
import pytest
from PIL import Image

from .clips import make_clip, pictures


def amsa(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "amsa", "upscale", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With clip.mp4 (3 frames of 32x24) and ref.png."""
    make_clip(tmp_path / "clip.mp4", pictures(3), sound=True)
    Image.fromarray(pictures(1, 64, 72, seed=1)[0]).save(tmp_path / "ref.png")
    return tmp_path


def test_a_clip(folder: Path) -> None:
    done = amsa("clip.mp4", "ref.png", "-o", "out.mkv", "--codec", "hevc", "--crf", 30, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("out.mkv: 128x96, 3 frames in ")
    assert "backend: onnxruntime" in done.stderr
    with av.open(str(folder / "out.mkv")) as container:
        assert [s.codec_context.name for s in container.streams] == ["hevc", "aac"]


def test_for_machines(folder: Path) -> None:
    done = amsa("clip.mp4", "ref.png", "-o", "out.mp4", "--json", cwd=folder)
    report = json.loads(done.stdout)
    assert (report["width"], report["height"], report["frames"], report["resumed"]) == (128, 96, 3, 0)
    assert done.stderr == ""


def test_references_from_a_folder(folder: Path) -> None:
    """Two scenes, and among the photos one of each: they are chosen, and again after an interruption."""
    (folder / "refs").mkdir()
    scenes = [pictures(60, 16, 16, seed, step=0)[0] for seed in (3, 4)]
    make_clip(folder / "clip.mp4", [scenes[i >= 30] for i in range(60)])
    for seed in range(8):
        large = Image.fromarray(pictures(1, 16, 16, seed, step=0)[0]).resize((96, 96), Image.Resampling.BICUBIC)
        large.save(folder / "refs" / f"{seed}.png")
    (folder / "refs" / "broken.png").write_bytes((folder / "refs" / "3.png").read_bytes()[:100])
    arguments = "clip.mp4", "--refs", "refs", "--max-refs", "2", "-o", "out.mp4"
    stopped = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, "upscale", *arguments], capture_output=True, text=True, check=False, cwd=folder
    )
    assert stopped.returncode == 130, stopped.stderr
    (line,) = [line for line in stopped.stderr.splitlines() if line.startswith("references: ")]
    assert line in ("references: 3.png, 4.png; of 9 candidates", "references: 4.png, 3.png; of 9 candidates")
    assert "note: left out of the references: refs/broken.png is cut short" in stopped.stderr
    done = amsa(*arguments, "--json", cwd=folder)
    report = json.loads(done.stdout)
    assert (report["frames"], report["resumed"], report["candidates"]) == (60, 48, 9)
    assert sorted(report["references"]) == ["refs/3.png", "refs/4.png"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("clip.mp4", "ref.png", "-o", "out.png"), "names no video format"),
        (("clip.mp4", "-o", "out.mp4"), "no reference photo"),
        (("clip.mp4", "ref.png", "-o", "out.mp4", "--explain", "maps"), "--explain: for pictures; clip.mp4 is a clip"),
        (("clip.mp4", "ref.png", "-o", "out.mp4", "--stats"), "--stats: for pictures"),
        (("ref.png", "ref.png", "-o", "out.png", "--crf", 3), "--crf: for a clip, and ref.png is none"),
        (("absent.mp4", "ref.png", "-o", "out.mp4"), "absent.mp4 does not exist"),
    ],
)
def test_refused(folder: Path, arguments: tuple[object, ...], words: str) -> None:
    before = sorted(folder.iterdir())
    done = amsa(*arguments, cwd=folder)
    errors = [line for line in done.stderr.splitlines() if not line.startswith("backend: ")]
    assert (done.returncode, len(errors)) == (2, 1), done.stderr
    assert errors[0].startswith("error: ")
    assert words in errors[0]
    assert sorted(folder.iterdir()) == before


INTERRUPTED = """
import os, signal
from amsa.cli import main, terminal

signal.signal(signal.SIGINT, signal.default_int_handler)  # of a job in the background it is ignored
say = terminal.err.print

def say_and_interrupt(text):
    say(text)
    if text.startswith("frame 49 of 60"):  # as it is told, the first 48 are saved
        os.kill(os.getpid(), signal.SIGINT)

terminal.err.print = say_and_interrupt
main()
"""


def test_interrupted(folder: Path) -> None:
    """Ctrl-C after the first segment: it says that the same command goes on, and that does."""
    make_clip(folder / "clip.mp4", pictures(60, 16, 16))
    command = [sys.executable, "-c", INTERRUPTED, "upscale", "clip.mp4", "ref.png", "-o", "out.mp4"]
    stopped = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert stopped.returncode == 130, stopped.stderr
    assert "interrupted; the same command goes on from the last segment" in stopped.stderr
    done = amsa("clip.mp4", "ref.png", "-o", "out.mp4", cwd=folder)
    assert "60 frames, 48 of them done before in " in done.stdout


def test_without_pyav(folder: Path) -> None:
    program = (
        "import sys\n"
        "sys.modules['av'] = None\n"
        "from amsa import AmsaError\n"
        "try:\n"
        "    import amsa.engine.video\n"
        "except AmsaError as e:\n"
        "    print(e)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "video needs PyAV; install it with: pip install 'amsa[video]'\n"
