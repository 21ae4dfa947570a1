"""Model folders and `.amsa` files: what opens, and one clear line for everything that does not."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import amsa
from amsa import AmsaError
from amsa.manifest import FILE_NAME, GraphFile, Manifest, ModelFolder

SHIPPED = Path(amsa.__file__).parent / "weights" / "small"
GRAPHS = [f"{name}.onnx" for name in ("encode_ref", "encode_lr", "match", "match_exact", "restore", "finish")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the shipped model."""
    return Path(shutil.copytree(SHIPPED, tmp_path / "model"))


def error_of(path: Path) -> str:
    """The message of the refusal: one line that begins with the path."""
    with pytest.raises(AmsaError) as caught:
        ModelFolder.open(path)
    message = str(caught.value)
    assert message.isprintable()
    assert message.startswith(str(path))
    return message


def edit(folder: Path, change: Callable[[Any], object]) -> None:
    values = json.loads((folder / FILE_NAME).read_text())
    change(values)
    (folder / FILE_NAME).write_text(json.dumps(values))


def pack(folder: Path, archive: Path, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(archive, "w", compression) as z:
        for path in sorted(folder.iterdir()):
            z.write(path, path.name)
    return archive


# ------------------------------------------------------------------------------------------------ folders


def test_a_whole_folder(folder: Path) -> None:
    opened = ModelFolder.open(str(folder))
    assert opened.path == folder
    assert sorted(f"{name}.onnx" for name in opened.graphs) == sorted(GRAPHS)
    assert opened.graphs["match"] == (folder / "match.onnx").read_bytes()


def test_a_manifest_survives_json(folder: Path) -> None:
    manifest = ModelFolder.open(folder).manifest
    assert Manifest.from_json(manifest.to_json().encode(), "here") == manifest


@pytest.mark.parametrize("name", [FILE_NAME, *GRAPHS])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert name in error_of(folder)


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-1],
        lambda content: content + b"\0",
        lambda content: content[: len(content) // 2] + bytes([content[len(content) // 2] ^ 1]) + content[len(content) // 2 + 1 :],
    ],
    ids=["empty", "cut", "longer", "one bit"],
)
def test_an_altered_graph_is_named(folder: Path, name: str, damage: Callable[[bytes], bytes]) -> None:
    (folder / name).write_bytes(damage((folder / name).read_bytes()))
    assert f"{name} is not the file that was exported" in error_of(folder)


def test_swapped_graphs_are_noticed(folder: Path) -> None:
    (folder / "match.onnx").rename(folder / "x")
    (folder / "finish.onnx").rename(folder / "match.onnx")
    (folder / "x").rename(folder / "finish.onnx")
    assert "is not the file that was exported" in error_of(folder)


@pytest.mark.parametrize("name", ["extra.onnx", ".hidden", "match.onnx.data"])
def test_a_foreign_file_is_named(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"")
    assert name in error_of(folder)


def test_a_foreign_folder_is_named(folder: Path) -> None:
    (folder / "more").mkdir()
    assert "holds more" in error_of(folder)


def test_a_folder_in_place_of_a_graph(folder: Path) -> None:
    (folder / "match.onnx").unlink()
    (folder / "match.onnx").mkdir()
    assert "match.onnx is missing" in error_of(folder)


# ------------------------------------------------------------------------------------------------ manifests


def test_another_format(folder: Path) -> None:
    edit(folder, lambda v: v.update(format=2))
    assert "manifest format 2, this version of amsa reads 1" in error_of(folder)


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"null", b"3", b"\xff\xfe", b'{"format": 1}', b"9" * 5000],
    ids=["empty", "cut", "list", "null", "number", "binary", "fields missing", "huge number"],
)
def test_a_broken_manifest(folder: Path, text: bytes) -> None:
    (folder / FILE_NAME).write_bytes(text)
    assert f"{FILE_NAME} cannot be read" in error_of(folder)


@pytest.mark.parametrize("key", ["trained", "precision", "opset", "sizes", "config", "graphs"])
def test_a_missing_key_is_named(folder: Path, key: str) -> None:
    edit(folder, lambda v: v.pop(key))
    assert repr(key) in error_of(folder)


def test_other_sizes(folder: Path) -> None:
    edit(folder, lambda v: v["sizes"].update(scale=2))
    assert "manifest sizes" in error_of(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda g: g.pop("match"), "names graphs encode_lr, encode_ref, finish, match_exact, restore; it must name"),
        (lambda g: g.update(second=g["match"]), "names graphs"),
        (lambda g: g["match"].update(colour="red"), "colour"),
        (lambda g: g["match"].pop("sha256"), "sha256"),
        (lambda g: g["match"].update(size="29131"), "match.onnx is not the file"),
        (lambda g: g.update(match=[1]), "cannot be read"),
    ],
)
def test_odd_graph_tables(folder: Path, change: Callable[[Any], object], words: str) -> None:
    edit(folder, lambda v: change(v["graphs"]))
    assert words in error_of(folder)


@pytest.mark.parametrize("name", ["../match.onnx", "/etc/hostname", "sub/match.onnx", "./match.onnx", "..", "", "match.onnx\0"])
def test_names_that_lead_elsewhere(folder: Path, name: str) -> None:
    content = (folder / "match.onnx").read_bytes()
    (folder.parent / "match.onnx").write_bytes(content)  # the very file, out of bounds
    edit(folder, lambda v: v["graphs"]["match"].update(file=name))
    with pytest.raises(AmsaError, match=r"outside of the folder|missing"):
        ModelFolder.open(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(refined=True), "unknown field refined"),
        (lambda c: c.pop("refine"), "missing field refine"),
        (lambda c: c.update(channels=[0, 0, 0]), "channels is (0, 0, 0)"),
        (lambda c: c.update(schedule=[1]), "schedule"),
    ],
)
def test_a_config_of_another_version(folder: Path, change: Callable[[Any], object], words: str) -> None:
    edit(folder, lambda v: change(v["config"]))
    with pytest.raises(AmsaError) as caught:
        ModelFolder.open(folder)
    assert words in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_config_error_names_the_model(folder: Path) -> None:
    edit(folder, lambda v: v["config"].update(refined=True))
    error_of(folder)


@pytest.mark.parametrize(
    "text",
    [
        lambda t: t.replace('"match.onnx"', "5"),
        lambda t: t.replace('"opset": 20', '"opset": Infinity'),
        lambda t: "[" * 100_000,
    ],
    ids=["name is a number", "infinite", "deep"],
)
def test_hostile_manifests(folder: Path, text: Callable[[str], str]) -> None:
    (folder / FILE_NAME).write_text(text((folder / FILE_NAME).read_text()))
    error_of(folder)


# ------------------------------------------------------------------------------------------------ .amsa files


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_amsa_file(folder: Path, tmp_path: Path, compression: int) -> None:
    opened = ModelFolder.open(pack(folder, tmp_path / "m.amsa", compression))
    assert opened.manifest == ModelFolder.open(folder).manifest
    assert opened.graphs == ModelFolder.open(folder).graphs


def test_what_is_wrong_in_an_amsa_file(folder: Path, tmp_path: Path) -> None:
    archive = tmp_path / "m.amsa"
    (folder / "extra").touch()
    assert "holds extra" in error_of(pack(folder, archive))
    (folder / "extra").unlink()
    (folder / "match.onnx").write_bytes(b"other")
    assert "match.onnx is not the file" in error_of(pack(folder, archive))
    (folder / "match.onnx").unlink()
    assert "match.onnx is missing" in error_of(pack(folder, archive))
    (folder / FILE_NAME).unlink()
    assert f"no {FILE_NAME}" in error_of(pack(folder, archive))


def test_a_folder_zipped_with_its_name(folder: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.amsa", "w") as z:
        for path in folder.iterdir():
            z.write(path, f"model/{path.name}")
    assert f"no {FILE_NAME}" in error_of(tmp_path / "m.amsa")


@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_amsa_file(folder: Path, tmp_path: Path, part: float) -> None:
    whole = pack(folder, tmp_path / "m.amsa").read_bytes()
    (tmp_path / "m.amsa").write_bytes(whole[: int(len(whole) * part)])
    assert "neither a model folder nor an .amsa file" in error_of(tmp_path / "m.amsa")


def mutations(archive: Path) -> int:
    """Change a byte of the file a hundred times: it opens with the same graphs, or is refused. How often refused."""
    whole = archive.read_bytes()
    graphs = ModelFolder.open(archive).graphs
    rng = np.random.default_rng(0)
    messages = []
    for i in range(100):
        data = bytearray(whole)
        data[rng.integers(len(data)) if i % 2 else rng.integers(len(data) - 500, len(data))] ^= int(rng.integers(1, 256))
        archive.write_bytes(data)
        try:
            opened = ModelFolder.open(archive)
        except AmsaError as error:
            messages.append(str(error))
        else:
            assert opened.graphs == graphs
    assert all(message.isprintable() and str(archive) in message for message in messages)
    return len(messages)


def test_damaged_amsa_files(folder: Path, tmp_path: Path) -> None:
    assert mutations(pack(folder, tmp_path / "m.amsa")) > 50


def test_damaged_compressed_amsa_files(folder: Path, tmp_path: Path) -> None:
    mutations(pack(folder, tmp_path / "m.amsa", zipfile.ZIP_LZMA))


def test_an_encrypted_amsa_file(folder: Path, tmp_path: Path) -> None:
    content = bytearray(pack(folder, tmp_path / "m.amsa").read_bytes())
    at = -1
    while (at := content.find(b"PK\x01\x02", at + 1)) >= 0:
        content[at + 8] |= 1
    (tmp_path / "m.amsa").write_bytes(content)
    assert "damaged .amsa file" in error_of(tmp_path / "m.amsa")


@pytest.mark.parametrize("name", ["gone", "gone.amsa", "file/inside"])
def test_a_missing_path(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    assert "no such model folder" in error_of(tmp_path / name)


def test_graph_file() -> None:
    assert GraphFile.of("a", b"") == GraphFile("a", 0, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
