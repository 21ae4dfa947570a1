"""Damages files and reads them: `python tests/fuzz/child.py images|models FIRST_SEED COUNT`. Prints how often each outcome came.

Reading gives a result or raises AmsaError with one printable line. Anything else is our error and ends the process; so do more
than LIMIT bytes of address space, and more than PATIENCE seconds for a file.
"""

from __future__ import annotations

import io
import json
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from amsa.engine.backends import SHIPPED_ENGINE_MODEL, SHIPPED_MODEL
from amsa.engine.images import read_photo
from amsa.engine.inspection import inspect_path
from amsa.engine.tensorrt_build import build_engines
from amsa.engine.upscaler import Upscaler
from amsa.errors import AmsaError
from amsa.manifest import FILE_NAME, GraphFile

LIMIT = 6_000_000_000
"""A picture may have 64 megapixels: 770 MB in floats, and what decoders need besides."""
PATIENCE = 20


# ------------------------------------------------------------------------------------------------------------- damage


def damage(rng: random.Random, content: bytes) -> bytes:
    """One to four changes: bits, bytes, lengths, pieces lost, doubled, moved or cut off."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        if not data:
            break
        at = rng.randrange(len(data)) if rng.random() < 0.5 else rng.randrange(min(len(data), 200))  # headers matter most
        size = min(rng.choice((1, 2, 4, 8, 64, 1000)), len(data) - at)
        kind = rng.randrange(8)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at : at + size] = rng.randbytes(size)
        elif kind == 2:
            extreme = rng.choice((0, 1, 0x7F, 0x80, 0xFF, 0x7FFFFFFF, 0xFFFFFFFF, 0xFFFFFFFE))
            data[at : at + 4] = struct.pack(rng.choice(("<I", ">I")), extreme)
        elif kind == 3:
            del data[at : at + size]
        elif kind == 4:
            data[at:at] = data[at : at + size]
        elif kind == 5:
            data[at:at] = rng.randbytes(size)
        elif kind == 6:
            del data[at:]
        else:
            other = rng.randrange(len(data))
            data[at : at + size] = data[other : other + size]
    return bytes(data)


# ------------------------------------------------------------------------------------------------------------- images


def _pictures() -> list[tuple[str, bytes]]:
    rng = np.random.default_rng(0)
    made: list[tuple[str, bytes]] = []

    def add(suffix: str, image: Image.Image, **options: object) -> None:
        file = io.BytesIO()
        image.save(file, Image.registered_extensions()[suffix], **options)
        made.append((suffix, file.getvalue()))

    colour = Image.fromarray(rng.integers(0, 256, (40, 56, 3), np.uint8))
    gray = colour.convert("L")
    deep = Image.fromarray(rng.integers(0, 65536, (24, 30), np.uint16))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    add(".png", colour, icc_profile=rng.bytes(300))
    add(".png", colour.convert("RGBA"))
    add(".png", gray.convert("LA"), exif=exif)
    add(".png", colour.quantize(16))
    add(".png", deep)
    add(".png", gray.convert("1"))
    for extra in ({"exif": exif}, {"progressive": True}):
        add(".jpg", colour, **extra)
    add(".jpg", gray)
    add(".webp", colour, exif=exif)
    add(".webp", colour.convert("RGBA"), lossless=True)
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg"):
        add(".tif", colour, compression=compression)
    add(".tif", deep)
    add(".bmp", colour)
    add(".gif", gray)
    if ".avif" in Image.registered_extensions():
        add(".avif", colour)
    if find_spec("pi_heif") is not None:
        made.append((".heic", (Path(__file__).parents[1] / "engine/pictures/phone.heic").read_bytes()))
    # 16-bit colour, which OpenCV decodes
    import cv2

    made += [(s, cv2.imencode(s, rng.integers(0, 65536, (20, 24, 3), np.uint16))[1].tobytes()) for s in (".png", ".tif")]
    return made


def _with_checksums(png: bytes) -> bytes:
    """The chunks' checksums made right again, so that what is damaged is read."""
    data, at = bytearray(png), 8
    while at + 12 <= len(data):
        length = struct.unpack_from(">I", data, at)[0]
        if at + 12 + length > len(data):
            break
        struct.pack_into(">I", data, at + 8 + length, zlib.crc32(data[at + 4 : at + 8 + length]))
        at += 12 + length
    return bytes(data)


def images(first: int, count: int, folder: Path) -> Iterator[Callable[[], object]]:
    """Damaged pictures; some under another format's name."""
    pictures = _pictures()
    for seed in range(first, first + count):
        rng = random.Random(seed)
        suffix, content = pictures[seed % len(pictures)]
        content = damage(rng, content)
        if suffix == ".png" and rng.random() < 0.5:
            content = _with_checksums(content)
        path = folder / f"{seed}{rng.choice((suffix, suffix, suffix, '.jpg', '.png'))}"
        path.write_bytes(content)
        yield lambda path=path: read_photo(path)


# ------------------------------------------------------------------------------------------------------------- models


def _vouch(folder: Path, stage: str) -> None:
    """The manifest says that a damaged graph is right."""
    manifest = json.loads((folder / FILE_NAME).read_text())
    graph = GraphFile.of(f"{stage}.onnx", (folder / f"{stage}.onnx").read_bytes())
    manifest["graphs"][stage] = {"file": graph.file, "size": graph.size, "sha256": graph.sha256}
    (folder / FILE_NAME).write_text(json.dumps(manifest))


def _run(path: Path) -> object:
    rng = np.random.default_rng(0)
    lr, ref = rng.integers(0, 256, (16, 16, 3), np.uint8), rng.integers(0, 256, (64, 64, 3), np.uint8)
    return Upscaler(path, threads=1).upscale(lr, [ref])


def _build_engines(folder: Path) -> None:
    """The shipped model's for SM 7.5; none where TensorRT-RTX is not installed."""
    if find_spec("tensorrt_rtx") is not None:
        build_engines(SHIPPED_ENGINE_MODEL, ["sm75"], output=folder)


def models(first: int, count: int, folder: Path) -> Iterator[Callable[[], object]]:
    """Damaged manifests, graphs (with the right hash, or not), zips, checkpoints, engines and their sidecars."""
    whole = folder / "whole"
    _build_engines(whole)
    engines = sorted(whole.glob("**/*.engine"))
    stages = sorted(p.stem for p in SHIPPED_MODEL.glob("*.onnx"))
    checkpoint = SHIPPED_MODEL.with_name("small.safetensors")
    for seed in range(first, first + count):
        rng = random.Random(seed)
        kind = ("manifest", "graph", "vouched", "zip", "checkpoint", "engine", "sidecar")[seed % 7]
        path = folder / f"{seed}"
        if kind in ("manifest", "graph", "vouched"):
            shutil.copytree(SHIPPED_MODEL, path)
            stage = rng.choice(stages)
            target = path / (FILE_NAME if kind == "manifest" else f"{stage}.onnx")
            target.write_bytes(damage(rng, target.read_bytes()))
            if kind == "vouched":
                _vouch(path, stage)
            yield lambda path=path: (inspect_path(path), _run(path))
        elif kind == "zip":
            path = path.with_suffix(".amsa")
            file = io.BytesIO()
            with zipfile.ZipFile(file, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
                for part in sorted(SHIPPED_MODEL.iterdir()):
                    archive.writestr(zipfile.ZipInfo(part.name), part.read_bytes())
            path.write_bytes(damage(rng, file.getvalue()))
            yield lambda path=path: (inspect_path(path), _run(path))
        elif kind == "checkpoint":
            path = path.with_suffix(".safetensors")
            path.write_bytes(damage(rng, checkpoint.read_bytes()))
            yield lambda path=path: inspect_path(path)
        else:
            source = rng.choice(engines) if engines else None
            path.mkdir()
            target = path / (source.name if source else "encode_lr.engine")
            target.write_bytes(source.read_bytes() if source else rng.randbytes(5000))
            sidecar = source.with_suffix(".json") if source else None
            if sidecar is not None and sidecar.exists():
                shutil.copy(sidecar, path)
            damaged = path / sidecar.name if kind == "sidecar" and sidecar is not None and sidecar.exists() else target
            damaged.write_bytes(damage(rng, damaged.read_bytes()))
            yield lambda path=path: inspect_path(path)


# --------------------------------------------------------------------------------------------------------------- run


def main() -> None:
    """Reads the files and prints the outcomes as JSON."""
    kind, first, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as scratch:
        seed = first
        for read in {"images": images, "models": models}[kind](first, count, Path(scratch)):
            print(f"{kind} {seed}", file=sys.stderr, flush=True)
            signal.alarm(PATIENCE)
            try:
                read()
                outcomes["read"] += 1
            except AmsaError as e:
                message = str(e)
                if not message.strip() or not message.isprintable():
                    raise SystemExit(f"{kind} {seed}: not one printable line: {message!r}") from e
                outcomes["refused"] += 1
            signal.alarm(0)
            for made in Path(scratch).glob(f"{seed}*"):
                shutil.rmtree(made) if made.is_dir() else made.unlink()
            seed += 1
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main()
