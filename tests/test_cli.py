"""The command line, beside test_command_line.py: what it leaves on the disk, and exactly what it says on stderr."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import amsa
from amsa.engine import demo
from amsa.engine.images import from_array

from .conftest import Run

SHIPPED = Path(amsa.__file__).parent / "weights" / "small"


def save(path: Path, height: int, width: int, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(path)
    return path


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with lr.png (16x20), ref.png and ref2.png (64x64)."""
    save(tmp_path / "lr.png", 16, 20)
    save(tmp_path / "ref.png", 64, 64, 1)
    save(tmp_path / "ref2.png", 64, 64, 2)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def state(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in sorted(folder.rglob("*"))}


def refused(run: Run, place: Path, *arguments: object, notes: tuple[str, ...] = ("note: ", "backend: ")) -> str:
    """Run what must be refused: exit code 2, one line `error: ..`, nothing on stdout, every file as it was."""
    before = state(place)
    code, out, err = run(*arguments)
    assert (code, out) == (2, ""), err
    lines = [line for line in err.splitlines() if not line.startswith(notes)]
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    assert "Traceback" not in err
    assert state(place) == before
    return lines[0]


# ------------------------------------------------------------------------------------------------ good paths


def test_equal_seeds_give_equal_files(run: Run, place: Path) -> None:
    for name in ("a.png", "b.png"):
        assert run("upscale", "lr.png", "ref.png", "-o", name, "--seed", 3, "--threads", 1)[0] == 0
    assert (place / "a.png").read_bytes() == (place / "b.png").read_bytes()
    assert set(state(place)) == {"lr.png", "ref.png", "ref2.png", "a.png", "b.png"}


def test_an_existing_output_is_replaced(run: Run, place: Path) -> None:
    (place / "sr.png").write_bytes(b"old")
    assert run("upscale", "lr.png", "ref.png", "ref2.png", "-o", "sr.png")[0] == 0
    assert Image.open("sr.png").size == (80, 64)


def test_an_amsa_file(run: Run, place: Path) -> None:
    with zipfile.ZipFile("m.amsa", "w") as z:
        for path in SHIPPED.iterdir():
            z.write(path, path.name)
    code, out, err = run("compare", "m.amsa", SHIPPED, "--lr", "lr.png", "--ref", "ref.png", "--json", "-o", "difference.png")
    assert code == 0, err
    report = json.loads(out)
    assert (report["psnr_y"], report["psnr_rgb"], report["max_difference"]) == (None, None, 0)
    assert np.asarray(Image.open("difference.png")).max() == 0
    assert run("inspect", "m.amsa")[0] == 0


def test_compare_in_words(run: Run, place: Path) -> None:
    code, out, err = run("compare", "ref.png", "ref2.png", "--border", 0)
    assert (code, err) == (0, "")
    for word in ("PSNR", "SSIM", "Y", "RGB", "border 0", "largest"):
        assert word in out


def published_state(config: amsa.AMSAConfig) -> dict[str, dict[str, Any]]:
    """The published files of a random network, by the converter's own renaming backwards."""
    import torch

    from amsa.model import AMSA

    state = AMSA(config).state_dict()
    files: dict[str, dict[str, Any]] = {"feature_extraction": {}, "net_map": {}, "restoration": {}}
    sizes = ("small", "medium", "large")
    for name, tensor in state.items():
        part = name.split(".")
        rest = ".".join(part)
        file = "restoration"
        if rest.startswith(("encode_lr.keys.vgg.", "encode_ref.keys.vgg.")):
            file = "feature_extraction"
            side = 1 if part[0] == "encode_lr" else 2
            rest = f"feature_extraction_image{side}.model.{'.'.join(part[3:])}"
        elif rest.startswith("encode_ref.values.vgg."):
            file, rest = "net_map", f"vgg.vgg_net.{'.'.join(part[3:])}"
        elif rest.startswith("encode_lr.content."):
            rest = f"content_extractor.{'.'.join(part[2:])}"
        elif rest.startswith("encode_ref.warp_masks."):
            rest = f"dyn_agg_restore.{sizes[int(part[2])]}_deform_conv.conv_offset_mask.{part[3]}"
        elif rest.startswith("finish."):
            rest = f"dyn_agg_restore.tail_large.{ {'conv1': 0, 'conv2': 2}[part[1]] }.{part[2]}"
        elif rest.startswith("restore.scales."):
            size, kind, tail = sizes[int(part[2])], part[3], ".".join(part[4:])
            prefix = "dyn_agg_restore."
            if kind == "aggregation":
                layer, leaf = part[4], part[5]
                theirs = {
                    "warp": f"{size}_deform_conv",
                    "aggregate": f"{size}_dyn_agg",
                    "offset_mask": f"{size}_dyn_agg.conv_offset_mask",
                }.get(layer, f"{size}_{layer}")
                rest = f"{prefix}{theirs}.{leaf}"
                if layer in ("warp", "aggregate") and leaf == "weight":
                    tensor = tensor.view(tensor.shape[0], 3, 3, -1).permute(0, 3, 1, 2)
            elif kind == "body":
                rest = f"{prefix}body_{size}.{tail}"
            else:
                rest = f"{prefix}{ {'head': 'head', 'up': 'tail'}[kind] }_{size}.0.{tail}"
        files[file][rest] = tensor.contiguous().clone()
    assert all(isinstance(t, torch.Tensor) for f in files.values() for t in f.values())
    return files


def test_convert(run: Run, place: Path) -> None:
    import torch

    for name, content in published_state(amsa.AMSAConfig.published(8, 1, 4)).items():
        torch.save(content, place / f"{name}.pth")
    paths = ["restoration.pth", "feature_extraction.pth", "net_map.pth"]
    code, out, err = run("convert", *paths, "-o", "m.safetensors")
    assert (code, out, err) == (0, "m.safetensors: published, 8 channels, 1 blocks, 4 groups\n", "")
    assert set(state(place)) == {"lr.png", "ref.png", "ref2.png", "m.safetensors", *paths}
    code, out, _ = run("inspect", "m.safetensors", "--json")
    report = json.loads(out)
    assert code == 0
    assert (report["graphs"], report["config"]["variant"]) == ([], "published")
    assert "trained" in report["title"]
    assert "published protocol" in " ".join(report["needs"])
    whole = (place / "m.safetensors").read_bytes()
    assert "missing: the VGG19 values" in refused(run, place, "convert", *paths[:2], "-o", "m.safetensors")
    assert "such" in refused(run, place, "convert", *paths[:2], "gone.pth", "-o", "m.safetensors")
    assert "gone" in refused(run, place, "convert", *paths, "-o", "gone/m.safetensors")
    assert (place / "m.safetensors").read_bytes() == whole


def test_help_and_usage(run: Run, place: Path) -> None:
    assert run("--help")[0] == 0
    before = state(place)
    for line in ("upscale lr.png", "upscale lr.png ref.png", "upscale lr.png -o s.png", "nonsense"):
        code, _, err = run(*line.split())
        assert code == 2
        assert "Traceback" not in err
    assert state(place) == before


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(("height", "width"), [(15, 20), (20, 15), (1, 1)])
def test_an_lr_photo_that_is_too_small(run: Run, place: Path, height: int, width: int) -> None:
    save(place / "tiny.png", height, width)
    message = refused(run, place, "upscale", "tiny.png", "ref.png", "-o", "sr.png")
    assert f"tiny.png is {width}x{height}" in message
    assert "16" in message


@pytest.mark.parametrize(("height", "width"), [(63, 64), (64, 63), (1, 1)])
def test_a_reference_that_is_too_small(run: Run, place: Path, height: int, width: int) -> None:
    save(place / "tiny.png", height, width)
    message = refused(run, place, "upscale", "lr.png", "ref.png", "tiny.png", "-o", "sr.png")
    assert f"tiny.png is {width}x{height}" in message
    assert "64" in message


@pytest.mark.parametrize("how", ["symlink", "hard link", "another spelling"])
def test_an_output_that_is_an_input_by_another_name(run: Run, place: Path, how: str) -> None:
    target = place / "other.png"
    if how == "symlink":
        target.symlink_to(place / "ref.png")
    elif how == "hard link":
        target.hardlink_to(place / "ref.png")
    else:
        (place / "sub").mkdir()
        target = Path("sub") / ".." / "ref.png"
    assert "choose another output" in refused(run, place, "upscale", "lr.png", "ref.png", "-o", target)


@pytest.mark.parametrize("target", ["gone/d.png", "lr.png/d.png", "d.xyz", "d", "folder.png"])
def test_a_difference_picture_that_cannot_be_written(run: Run, place: Path, target: str) -> None:
    (place / "folder.png").mkdir()
    refused(run, place, "compare", "ref.png", "ref2.png", "-o", target)


@pytest.mark.parametrize(
    "arguments",
    [
        ("ref.png", "ref2.png", "-o", "ref.png"),
        (SHIPPED, SHIPPED, "--lr", "lr.png", "--ref", "ref.png", "-o", "lr.png"),
    ],
    ids=["pictures", "models"],
)
def test_a_difference_picture_over_an_input(run: Run, place: Path, arguments: tuple[object, ...]) -> None:
    refused(run, place, "compare", *arguments)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("compare", "gone.png", "ref.png"), "gone.png"),
        (("compare", "ref.png", "gone.png", "-o", "d.png"), "gone.png"),
        (("compare", "lr.png", "ref.png", "-o", "d.png"), "give pictures of one size"),
        (("compare", "ref.png", "ref2.png", "--border", 32), "border"),
        (("compare", SHIPPED, SHIPPED), "add --lr and --ref"),
        (("compare", SHIPPED, SHIPPED, "--lr", "lr.png"), "both --lr and --ref"),
        (("compare", SHIPPED, SHIPPED, "--ref", "ref.png"), "both --lr and --ref"),
        (("compare", "ref.png", "ref2.png", "--lr", "lr.png", "--ref", "ref.png"), "ref.png: neither a model"),
        (("inspect", "ref.png"), "ref.png: neither a model"),
        (("inspect", "."), "no manifest.json"),
        (("inspect", "empty.safetensors"), "empty.safetensors"),
        (("upscale", "lr.png", "ref.png", "-o", "s.png", "-m", "empty.safetensors"), "empty.safetensors"),
        (("upscale", "lr.png", "ref.png", "-o", "s.png", "-m", "."), "no manifest.json"),
        (("upscale", "lr.png", "ref.png", "-o", "s.png", "--seed", 2**31), "seed"),
        (("upscale", "two\nlines.png", "ref.png", "-o", "s.png"), "lines.png"),
        (("upscale", "lr.png", "ref.png", "-o", "s.png", "-m", "two\nlines"), "two lines"),
        (("export", "empty.safetensors", "-o", "model"), "empty.safetensors"),
        (("export", "nonsense", "-o", "model"), "nonsense: no such file"),
        (("export", "small", "-o", "foreign"), "not an exported model"),
        (("export", "small", "-o", "gone/m.onnx", "--single-file", 1), "gone: no such folder"),
        (("convert", "empty.safetensors", "-o", "m.safetensors"), "empty.safetensors"),
        (("demo", "-o", "lr.png"), "lr.png: cannot be made a folder"),
        (("demo", "-o", "lr.png/sub"), "cannot be made a folder"),
        (("demo", "-m", "gone", "-o", "foreign"), "gone: no such model"),
    ],
    ids=lambda value: " ".join(map(str, value)).replace(str(SHIPPED), "MODEL") if isinstance(value, tuple) else "",
)
def test_refusals(run: Run, place: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[object, ...], word: str) -> None:
    (place / "foreign").mkdir()
    (place / "foreign" / "thesis.txt").write_text("years of work")
    (place / "empty.safetensors").touch()
    views = [from_array(np.asarray(Image.open(place / f"{name}.png"))) for name in ("ref", "ref2")]
    monkeypatch.setattr(demo, "load_pair", lambda: views)
    assert word in refused(run, place, *arguments)


@pytest.mark.parametrize("manifest", ['{"name": "a web application"}', None], ids=["of something else", "beside other files"])
def test_an_export_spares_foreign_files(run: Run, place: Path, monkeypatch: pytest.MonkeyPatch, manifest: str | None) -> None:
    from amsa.export import folder as folder_module

    monkeypatch.setattr(folder_module, "export_graph", lambda *_: pytest.fail("exported"))
    if manifest is None:
        shutil.copytree(SHIPPED, place / "web")
    else:
        (place / "web").mkdir()
        (place / "web" / "manifest.json").write_text(manifest)
    (place / "web" / "thesis.txt").write_text("years of work")
    assert "web" in refused(run, place, "export", "small", "-o", "web")


def test_garbage_graphs_print_one_line(run: Run, place: Path) -> None:
    """ONNX Runtime has a log of its own on stderr: nothing of it may show."""
    from amsa.manifest import GraphFile

    shutil.copytree(SHIPPED, place / "model")
    values = json.loads((place / "model" / "manifest.json").read_text())
    graph = GraphFile.of("encode_lr.onnx", b"\x08\x09garbage")
    values["graphs"]["encode_lr"] = {"file": graph.file, "size": graph.size, "sha256": graph.sha256}
    (place / "model" / "manifest.json").write_text(json.dumps(values))
    (place / "model" / "encode_lr.onnx").write_bytes(b"\x08\x09garbage")
    assert "cannot load encode_lr.onnx" in refused(run, place, "upscale", "lr.png", "ref.png", "-o", "sr.png", "-m", "model")


@pytest.mark.parametrize("header", ["config", "deep"])
def test_inspect_of_odd_checkpoints(run: Run, place: Path, header: str) -> None:
    metadata = {"__metadata__": {"amsa": json.dumps({"config": {"colour": 1}})}}
    text = json.dumps(metadata) if header == "config" else "[" * 100_000
    (place / "odd.safetensors").write_bytes(struct.pack("<Q", len(text)) + text.encode())
    assert "odd.safetensors" in refused(run, place, "inspect", "odd.safetensors")


# ------------------------------------------------------------------------------------------------ warnings and failures


def test_warnings_become_notes(run: Run, place: Path) -> None:
    frames = [Image.open(place / "lr.png").convert("P"), Image.open(place / "lr.png").rotate(90).convert("P")]
    frames[0].save(place / "two.gif", save_all=True, append_images=frames[1:])
    code, _, err = run("upscale", "two.gif", "ref.png", "-o", "sr.png")
    assert code == 0
    assert "note: two.gif has several frames; only the first is read" in err.splitlines()
    assert all(line.startswith(("note: ", "backend: ")) for line in err.splitlines())
    frames[0].save(place / "two.gif", save_all=True, append_images=frames[1:])
    assert "tiny" in refused(run, place, "upscale", "two.gif", save(place / "tiny.png", 9, 9).name, "-o", "s.png")


def test_warnings_stay_out_of_json(run: Run, place: Path) -> None:
    frame = Image.open(place / "lr.png").convert("P")
    frame.save(place / "two.gif", save_all=True, append_images=[frame.rotate(90)])
    code, out, err = run("upscale", "two.gif", "ref.png", "-o", "sr.png", "--json")
    assert (code, json.loads(out)["width"]) == (0, 80)
    assert err == "note: two.gif has several frames; only the first is read\n"


def failing(raised: BaseException) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise raised

    return fail


def test_no_memory(run: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amsa.Upscaler, "upscale_photo", failing(MemoryError()))
    (place / "sr.png").write_bytes(b"old")
    assert "not enough memory" in refused(run, place, "upscale", "lr.png", "ref.png", "-o", "sr.png")


def test_interruption(run: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amsa.Upscaler, "upscale_photo", failing(KeyboardInterrupt()))
    (place / "sr.png").write_bytes(b"old")
    before = state(place)
    code, out, err = run("upscale", "lr.png", "ref.png", "-o", "sr.png")
    assert (code, out) == (130, "")
    assert "Traceback" not in err
    assert "error: " not in err
    assert state(place) == before


def test_a_full_disk(run: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "sr.png").write_bytes(b"old")
    monkeypatch.setattr(Path, "replace", failing(OSError(28, "No space left on device")))
    assert "No space left on device" in refused(run, place, "upscale", "lr.png", "ref.png", "-o", "sr.png")


def test_a_bug_of_ours_is_exit_code_1(place: Path) -> None:
    program = (
        "import sys, amsa, amsa.cli\n"
        "def fail(*_, **__): raise RuntimeError('a bug')\n"
        "amsa.Upscaler.upscale_photo = fail\n"
        "sys.argv = ['amsa', 'upscale', 'lr.png', 'ref.png', '-o', 'sr.png']\n"
        "amsa.cli.main()\n"
    )
    before = state(place)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("RuntimeError: a bug")
    assert state(place) == before
