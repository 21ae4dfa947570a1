"""The command line: every command's good path, and one clear line for every kind of bad input."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import amsa
from amsa.engine import demo
from amsa.engine.images import from_array

from .conftest import Run

SHIPPED = Path(amsa.__file__).parent / "weights" / "small"


def write_picture(path: Path, height: int, width: int, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), np.uint8))
    coarse.resize((width, height), Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with lr.png (16x20) and ref.png (64x72)."""
    write_picture(tmp_path / "lr.png", 16, 20)
    write_picture(tmp_path / "ref.png", 64, 72, seed=1)
    return tmp_path


def check_refused(result: tuple[int, str, str], *words: str) -> None:
    """Exit code 2 and exactly one line `error: ..` beside notes, which holds the words."""
    code, _, err = result
    lines = [line for line in err.splitlines() if not line.startswith(("backend: ", "note: ")) and line.strip()]
    assert code == 2
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]


# ------------------------------------------------------------------------------------------------ good paths


def test_upscale(run: Run, photos: Path) -> None:
    code, out, err = run("upscale", photos / "lr.png", photos / "ref.png", "-o", photos / "sr.png", "--stats")
    assert code == 0, err
    assert "80x64 from 20x16" in out
    assert "peak memory" in out
    assert "backend: onnxruntime (CPU; " in err
    assert Image.open(photos / "sr.png").size == (80, 64)


def test_names_that_the_terminal_cannot_show(photos: Path) -> None:
    (photos / "lr.png").rename(photos / "caf\u00e9.png")
    command = [
        sys.executable,
        "-m",
        "amsa",
        "upscale",
        photos / "caf\u00e9.png",
        photos / "ref.png",
        "-o",
        photos / "gro\u00df.png",
    ]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii:strict"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, "gro\\xdf.png: 80x64" in done.stdout) == (0, True), done
    assert (photos / "gro\u00df.png").exists()


def test_upscale_for_machines(run: Run, photos: Path) -> None:
    refs = [photos / "ref.png", write_picture(photos / "ref2.png", 80, 64, seed=2)]
    code, out, err = run("upscale", photos / "lr.png", *refs, "-o", photos / "sr.tif", "--json", "--seed", 7)
    report = json.loads(out)
    assert (code, report["width"], report["height"], report["backend"]) == (0, 80, 64, "onnxruntime")
    assert set(report["seconds"]) == {"prepare", "encode_lr", "encode_ref", "match", "fusion", "restore", "finish", "total"}
    assert err == ""


@pytest.mark.parametrize("installed", [True, False])
def test_demo(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: bool) -> None:
    find = importlib.util.find_spec
    if not installed:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorrt_rtx" else find(name))
    elif find("tensorrt_rtx") is None:
        pytest.skip("tensorrt_rtx is not installed: pip install 'amsa[rtx]'")
    left, right = (np.asarray(Image.open(write_picture(tmp_path / f"{s}.png", 64, 96, s))) for s in (1, 2))
    monkeypatch.setattr(demo, "load_pair", lambda: (from_array(left), from_array(right)))
    code, out, err = run("demo", "-o", tmp_path / "out" / "demo")
    assert code == 0, err
    assert "bicubic" in out
    names = {p.name for p in (tmp_path / "out" / "demo").iterdir()}
    pictures = {"lr.png", "bicubic.png", "sr.png", "reference.png", "truth.png", "side_by_side.png"}
    assert names == pictures | ({"engines"} if installed else set())
    assert Image.open(tmp_path / "out" / "demo" / "sr.png").size == (96, 64)
    trained = json.loads((SHIPPED / "manifest.json").read_text())["trained"]
    assert ("untrained" in err) == (not trained)
    last = out.splitlines()[-1]
    if installed:
        assert "built and checked; to be run on such a card: here, there is no NVIDIA driver" in last
        assert re.search(r"match +│ \d+ +│ 4 ", out)
        built = {p.name for p in (tmp_path / "out" / "demo" / "engines" / "rtx-sm75-fp16").glob("*.engine")}
        assert built == {f"{stage}.engine" for stage in ("encode_ref", "encode_lr", "match", "restore", "finish")}
    else:
        assert last.startswith("TensorRT engines: not built")
        assert last.endswith("pip install 'amsa[rtx]'")


def test_compare_pictures(run: Run, photos: Path) -> None:
    other = write_picture(photos / "other.png", 64, 72, seed=9)
    code, out, _ = run("compare", photos / "ref.png", other, "-o", photos / "difference.png")
    assert code == 0
    assert "PSNR" in out
    assert Image.open(photos / "difference.png").size == (72, 64)
    code, out, _ = run("compare", photos / "ref.png", photos / "ref.png", "--json")
    assert json.loads(out)["psnr_y"] is None  # infinite
    assert json.loads(out)["ssim_y"] == 1


def test_compare_models(run: Run, photos: Path) -> None:
    code, out, err = run("compare", SHIPPED, SHIPPED, "--lr", photos / "lr.png", "--ref", photos / "ref.png", "--json")
    assert code == 0, err
    assert json.loads(out)["max_difference"] == 0


def test_inspect(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("inspect", SHIPPED)
    assert code == 0
    for word in ("encode_ref", "restore", "amsa::PatchMatch", "ref_scales = 5"):
        assert word in out
    report = json.loads(run("inspect", SHIPPED, "--json")[1])
    assert [g["name"] for g in report["graphs"]] == ["encode_ref", "encode_lr", "match", "match_exact", "restore", "finish"]


@pytest.mark.slow
def test_export_and_inspect_a_checkpoint(run: Run, tmp_path: Path, photos: Path) -> None:
    from amsa.model import AMSA, AMSAConfig, save_checkpoint

    model = AMSA(AMSAConfig.small())
    model.reset_parameters(5)
    save_checkpoint(tmp_path / "m.safetensors", model, {"trained": True})
    assert "checkpoint, small" in run("inspect", tmp_path / "m.safetensors")[1]
    code, out, err = run("export", tmp_path / "m.safetensors", "-o", tmp_path / "model.amsa")
    assert code == 0, err
    assert "other matches" in out
    assert "0.00%" in out
    pair = ("--lr", photos / "lr.png", "--ref", photos / "ref.png")
    code, out, err = run("compare", tmp_path / "model.amsa", tmp_path / "m.safetensors", *pair, "--json")
    assert code == 0, err
    assert json.loads(out)["max_difference"] < 0.5  # of 255


@pytest.mark.parametrize("bodies", [True, False])
def test_export_with_and_without_function_bodies(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bodies: bool) -> None:
    from amsa import export
    from amsa.export import single_file

    class Written:
        def SerializeToString(self) -> bytes:
            return b"graph"

    asked = []
    monkeypatch.setattr(single_file, "export_graph", lambda *arguments: (asked.append(arguments[-1]), Written())[1])
    monkeypatch.setattr(export, "check_single_file", lambda *_: export.FileParity(0.0, 99.0))
    code, _, err = run("export", "small", "-o", tmp_path / "m.onnx", "--single-file", 1, *([] if bodies else ["--no-bodies"]))
    assert (code, asked) == (0, [bodies]), err


@pytest.mark.slow
def test_a_model_without_function_bodies(run: Run, tmp_path: Path) -> None:
    """Compared with PyTorch as any other, and TensorRT builds it."""
    code, out, err = run("export", SHIPPED.with_suffix(".safetensors"), "-o", tmp_path / "model", "--no-bodies")
    assert code == 0, err
    assert "0.00%" in out
    assert "function bodies are not in the files" in run("inspect", tmp_path / "model")[1]
    if importlib.util.find_spec("tensorrt_rtx") is not None:
        code, out, err = run("build", tmp_path / "model", "--target", "sm75", "--json")
        assert code == 0, err
        assert [e["plugins"] for e in json.loads(out)["engines"]] == [0, 0, 4, 6, 0]


def test_version(run: Run) -> None:
    assert run("--version") == (0, f"{amsa.__version__}\n", "")


def test_start_is_light() -> None:
    program = "import sys, amsa, amsa.cli; print([m for m in ('torch', 'onnxruntime', 'cv2', 'onnx', 'PIL') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"


# ------------------------------------------------------------------------------------------------ bad pictures


def bomb(path: Path) -> None:
    """A PNG whose header claims 100 megapixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 10_000, 10_000, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


BAD_PICTURES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda p: None, "No such file"),
    "empty": (lambda p: p.write_bytes(b""), "empty"),
    "truncated": (lambda p: p.write_bytes(write_picture(p, 80, 80).read_bytes()[:900]), "bad.png"),
    "text": (lambda p: p.write_text("hello"), "bad.png"),
    "one pixel": (lambda p: write_picture(p, 1, 1), "1x1"),
    "bomb": (bomb, "10000x10000"),
    "folder": (lambda p: p.mkdir(), "folder"),
}


@pytest.mark.parametrize("role", ["lr", "ref"])
@pytest.mark.parametrize("kind", BAD_PICTURES)
def test_bad_pictures(run: Run, photos: Path, kind: str, role: str) -> None:
    make, word = BAD_PICTURES[kind]
    make(photos / "bad.png")
    before = sorted(photos.iterdir())
    paths = {"lr": photos / "lr.png", "ref": photos / "ref.png", role: photos / "bad.png"}
    check_refused(
        run("upscale", paths["lr"], paths["ref"], "-o", photos / "sr.png"), "bad.png", word if kind != "missing" else ""
    )
    assert sorted(photos.iterdir()) == before


# ------------------------------------------------------------------------------------------------ bad outputs


@pytest.mark.parametrize("target", ["absent/sr.png", "lr.png/sr.png", "sr.xyz", "sr", "folder.png"])
def test_outputs_that_cannot_be_written(run: Run, photos: Path, target: str) -> None:
    (photos / "folder.png").mkdir()
    before = sorted(photos.rglob("*"))
    check_refused(run("upscale", photos / "lr.png", photos / "ref.png", "-o", photos / target))
    assert sorted(photos.rglob("*")) == before


@pytest.mark.parametrize("name", ["lr.png", "ref.png"])
def test_the_same_path_in_and_out(run: Run, photos: Path, name: str) -> None:
    before = (photos / name).read_bytes()
    check_refused(run("upscale", photos / "lr.png", photos / "ref.png", "-o", photos / name), name, "choose another output")
    assert (photos / name).read_bytes() == before


def test_formats_that_would_lose_depth(run: Run, photos: Path) -> None:
    Image.fromarray(np.full((16, 16), 999, np.uint16)).save(photos / "deep.png")
    check_refused(run("upscale", photos / "deep.png", photos / "ref.png", "-o", photos / "sr.jpg"), "sr.jpg", "8 bits")
    assert not (photos / "sr.jpg").exists()


# ------------------------------------------------------------------------------------------------ bad models


def alter(name: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)

    return change


def edit_manifest(old: str, new: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        text = (folder / "manifest.json").read_text()
        assert old in text
        (folder / "manifest.json").write_text(text.replace(old, new))

    return change


BAD_MODELS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no manifest": (lambda m: (m / "manifest.json").unlink(), "no manifest.json"),
    "missing graph": (lambda m: (m / "match.onnx").unlink(), "match.onnx is missing"),
    "altered graph": (alter("restore.onnx"), "restore.onnx is not the file that was exported"),
    "truncated graph": (lambda m: (m / "finish.onnx").write_bytes(b"x"), "finish.onnx is not the file"),
    "foreign file": (lambda m: (m / "virus.onnx").write_bytes(b"x"), "virus.onnx"),
    "broken json": (lambda m: (m / "manifest.json").write_text("{"), "cannot be read"),
    "other format": (edit_manifest('"format": 1', '"format": 9'), "manifest format 9"),
    "unknown field": (edit_manifest('"refine"', '"refined"'), "unknown field refined"),
    "other graph": (edit_manifest('"finish": {', '"end": {'), "names graphs"),
    "outside": (edit_manifest('"finish.onnx"', '"../finish.onnx"'), "outside of the folder"),
}


@pytest.mark.parametrize("kind", BAD_MODELS)
def test_bad_model_folders(run: Run, photos: Path, kind: str) -> None:
    change, word = BAD_MODELS[kind]
    shutil.copytree(SHIPPED, photos / "model")
    change(photos / "model")
    check_refused(run("upscale", photos / "lr.png", photos / "ref.png", "-o", photos / "sr.png", "-m", photos / "model"), word)
    check_refused(run("inspect", photos / "model"), word)
    assert not (photos / "sr.png").exists()


def test_a_graph_in_anothers_place(run: Run, photos: Path) -> None:
    from amsa.manifest import GraphFile

    shutil.copytree(SHIPPED, photos / "model")
    content = (photos / "model" / "match.onnx").read_bytes()
    (photos / "model" / "finish.onnx").write_bytes(content)
    graph = GraphFile.of("finish.onnx", content)
    manifest = json.loads((photos / "model" / "manifest.json").read_text())
    manifest["graphs"]["finish"] = {"file": graph.file, "size": graph.size, "sha256": graph.sha256}
    (photos / "model" / "manifest.json").write_text(json.dumps(manifest))
    result = run("upscale", photos / "lr.png", photos / "ref.png", "-o", photos / "sr.png", "-m", photos / "model")
    check_refused(result, "finish.onnx is another graph")


def test_an_honest_manifest_over_garbage(run: Run, photos: Path) -> None:
    from amsa.manifest import GraphFile

    shutil.copytree(SHIPPED, photos / "model")
    manifest = json.loads((photos / "model" / "manifest.json").read_text())
    graph = GraphFile.of("match.onnx", b"garbage")
    manifest["graphs"]["match"] = {"file": graph.file, "size": graph.size, "sha256": graph.sha256}
    (photos / "model" / "manifest.json").write_text(json.dumps(manifest))
    (photos / "model" / "match.onnx").write_bytes(b"garbage")
    result = run("upscale", photos / "lr.png", photos / "ref.png", "-o", photos / "sr.png", "-m", photos / "model")
    check_refused(result, "cannot load match.onnx")
    assert not (photos / "sr.png").exists()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["-m", "absent"], "no such model"),
        (["-m", "lr.png"], "neither a model folder nor an .amsa file"),
        (["--backend", "torch"], "the torch backend cannot run"),
        (["--backend", "cuda"], "choose one of auto, onnxruntime, torch"),
        (["--seed", "-1"], "seed is -1"),
    ],
)
def test_models_and_backends_that_do_not_fit(
    run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], word: str
) -> None:
    monkeypatch.chdir(photos)
    check_refused(run("upscale", "lr.png", "ref.png", "-o", "sr.png", *arguments), word)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["compare", "lr.png", "ref.png"], "lr.png is 20x16 and ref.png is 72x64"),
        (["compare", "lr.png", str(SHIPPED)], "add --lr and --ref"),
        (["compare", str(SHIPPED), str(SHIPPED), "--lr", "lr.png"], "both --lr and --ref"),
        (["inspect", "lr.png"], "neither a model folder nor an .amsa file"),
        (["inspect", "absent"], "no such model"),
        (["inspect", "absent.safetensors"], "not a checkpoint"),
        (["export", "absent.safetensors", "-o", "model"], "no such file"),
        (["export", "small", "-o", "."], "not an exported model"),
        (["export", "small", "-o", "model.onnx"], "--single-file"),
        (["export", "small", "-o", "absent/model"], "create it first"),
        (["export", "small", "-o", "lr.png"], "is a file"),
        (["export", "small", "-o", "model", "--single-file", "2"], ".onnx"),
        (["export", "small", "-o", "model.onnx", "--single-file", "0"], "at least one reference"),
        (["convert", "lr.png", "ref.png", "-o", "m.safetensors"], "lr.png"),
        (["convert", "lr.png", "-o", "m.pth"], ".safetensors"),
    ],
)
def test_other_commands_refuse(run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], word: str) -> None:
    monkeypatch.chdir(photos)
    before = sorted(photos.iterdir())
    check_refused(run(*arguments), word)
    assert sorted(photos.iterdir()) == before


# ------------------------------------------------------------------------------------------------ what is not the user's fault


def test_a_bug_of_ours_is_not_hidden(run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(amsa.Upscaler, "upscale_photo", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        run("upscale", photos / "lr.png", photos / "ref.png", "-o", photos / "sr.png")


def test_the_runtime_needs_no_torch(photos: Path) -> None:
    program = (
        "import sys\n"
        "for m in ('torch', 'onnxscript', 'safetensors', 'skimage'): sys.modules[m] = None\n"
        "sys.argv = ['amsa', 'upscale', 'lr.png', 'ref.png', '-o', 'sr.png']\n"
        "from amsa.cli import main; main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=photos)
    assert done.returncode == 0, done.stderr
    assert Image.open(photos / "sr.png").size == (80, 64)


def test_commands_name_the_extra_they_need(photos: Path) -> None:
    program = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        f"sys.argv = ['amsa', 'export', 'small', '-o', {str(photos / 'model')!r}]\n"
        "from amsa.cli import main; main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    check_refused((done.returncode, done.stdout, done.stderr), "torch", "amsa[export]")
