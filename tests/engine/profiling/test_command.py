"""`amsa profile`: a good run, and one clear line for every kind of bad input."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from amsa import cli

Run = Callable[..., tuple[int, str, str]]
SIZES = ("--lr", "20x16", "--ref", "80x64")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `amsa profile` with arguments; returns exit code, stdout, stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["amsa", "profile", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as e:
            code = e.code if isinstance(e.code, int) else int(e.code is not None)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def photos(tmp_path: Path) -> tuple[Path, Path]:
    rng = np.random.default_rng(0)
    for name, (height, width) in {"lr": (16, 20), "ref": (64, 80)}.items():
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(tmp_path / f"{name}.png")
    return tmp_path / "lr.png", tmp_path / "ref.png"


def test_sizes(run: Run, tmp_path: Path) -> None:
    code, out, err = run(*SIZES, "--ref", "64x96", "--threads", 1, "--runs", 2, "-o", tmp_path / "new" / "folder")
    assert code == 0, err
    assert "LR 20x16 to 80x64, references 80x64, 64x96" in out
    assert "PatchMatch" in out
    assert "that float32 matrix products reach here" in out
    assert "note: The pictures are noise with a 1/f spectrum" in err
    values = json.loads((tmp_path / "new" / "folder" / "profile.json").read_text())
    (measured,) = values["measured"]
    assert len(measured["latency"]["milliseconds"]) == 2
    assert measured["peak_gflops"] > 0
    assert measured["peak_gbs"] > 0
    assert sum(layer["macs"] or 0 for layer in measured["layers"]) > 1e8


def test_photos_for_machines(run: Run, photos: tuple[Path, Path]) -> None:
    code, out, _ = run(*photos, "--threads", 1, "--runs", 1, "--json", "--no-layers", "--skip", 0)
    values = json.loads(out)
    assert (code, values["lr"], values["refs"]) == (0, [20, 16], [[80, 64]])
    assert values["restored"] == 5
    assert values["measured"][0]["layers"] == []
    assert not any("noise" in note for note in values["notes"])


def test_an_untrained_variant(run: Run) -> None:
    code, out, err = run(*SIZES, "-m", "small", "--threads", 1, "--runs", 1, "--no-layers", "--json")
    assert code == 0, err
    values = json.loads(out)
    assert (values["model"], values["trained"]) == ("small", False)
    assert values["measured"][0]["label"] == "torch eager fp32"


def test_what_cannot_be_measured_is_the_exit_code(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "")
    monkeypatch.setenv("PATH", "/nonexistent")
    code, out, err = run(*SIZES, "--threads", 1, "--runs", 1, "--no-layers", "--against", "torch-compile")
    assert code == 1
    assert "onnxruntime fp32" in out
    assert "note: torch-compile: torch.compile needs a C++ compiler" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "give an LR photo and reference photos, or sizes: --lr 480x270 --ref 1920x1080"),
        (("--lr", "20x16"), "give an LR photo and reference photos, or sizes"),
        (("--ref", "80x64"), "give an LR photo and reference photos, or sizes"),
        (("{lr}",), "give a reference photo behind the LR photo"),
        (("{lr}", "{ref}", *SIZES), "give either photos or sizes (--lr and --ref), not both"),
        (("{ref}", "{lr}"), "lr.png is 20x16 pixels; at least 64 on each side are needed"),
        (("{lr}", "gone.png"), "gone.png"),
        (("{folder}", "{ref}"), "is a model; give it with --model"),
        (("--lr", "20", "--ref", "80x64"), "'20' is not a size; write WIDTHxHEIGHT"),
        (("--lr", "20x15", "--ref", "80x64"), "--lr 20x15: at least 16 pixels on each side are needed"),
        (("--lr", "20x16", "--ref", "80x0"), "--ref 80x0: at least 64 pixels on each side are needed"),
        (("--lr", "20x16", "--ref", "99999x99999"), "a reference has 99999x99999 pixels; at most 64 megapixels"),
        ((*SIZES, "-m", "gone"), "gone: no such model"),
        ((*SIZES, "--backend", "cuda"), "unknown backend 'cuda'"),
        ((*SIZES, "--skip", "2"), "skip is 2.0; it must be from 0"),
        ((*SIZES, "--matching", "best"), "unknown matching 'best'"),
        ((*SIZES, "--against", "gone"), "gone: neither a model nor one of torch, torch-compile, torch-fp16"),
        ((*SIZES, "-m", "paper", "--backend", "onnxruntime"), "export it first: amsa export paper -o paper"),
        ((*SIZES, "-o", "{lr}"), "lr.png: files cannot be written there"),
    ],
)
def test_what_is_refused(arguments: tuple[str, ...], words: str, run: Run, photos: tuple[Path, Path]) -> None:
    names = {"lr": photos[0], "ref": photos[1], "folder": photos[0].parent}
    code, out, err = run(*(argument.format(**names) for argument in arguments))
    lines = [line for line in err.splitlines() if not line.startswith("note: ")]
    assert (code, out, len(lines)) == (2, "", 1), err
    assert lines[0].startswith("error: ")
    assert words in lines[0]


def test_pytorch_that_is_not_installed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else find(name))
    code, _, err = run(*SIZES, "--against", "torch")
    assert (code, err) == (2, "error: this command needs torch; install with: pip install 'amsa[export]'\n")
