"""Thumbnails of picture files: what they show, and which files are refused."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from amsa.engine.images import read_photo, read_thumbnail, resize_bicubic
from amsa.errors import AmsaError


def ramp(height: int, width: int) -> NDArray[np.uint8]:
    """Red grows to the right, green downwards."""
    y, x = np.mgrid[0:height, 0:width]
    return np.dstack([255 * x // width, 255 * y // height, np.full_like(x, 90)]).astype(np.uint8)


def write(path: Path, kind: str) -> Path:
    rgb = ramp(300, 400)
    if kind == "16 bits":
        cv2.imwrite(str(path), rgb[..., ::-1].astype(np.uint16) * 257)
    elif kind == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned clockwise
        Image.fromarray(rgb.transpose(1, 0, 2)[::-1].copy()).save(path, exif=exif)
    else:
        Image.fromarray(rgb).convert(kind).save(path)
    return path


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.png", "RGB"),
        ("a.jpg", "RGB"),
        ("a.jpg", "L"),
        ("a.png", "P"),
        ("a.png", "RGBA"),
        ("a.tif", "RGB"),
        ("a.webp", "RGB"),
        ("a.png", "16 bits"),
        ("a.png", "1"),
        ("a.jpg", "turned"),
    ],
)
def test_a_thumbnail_is_the_photo_shrunk(tmp_path: Path, name: str, kind: str) -> None:
    path = write(tmp_path / name, kind)
    thumbnail = read_thumbnail(path, 100)
    assert (thumbnail.shape, thumbnail.dtype) == ((75, 100, 3), np.float32)
    expected = resize_bicubic(read_photo(path).rgb, 75, 100)
    assert np.abs(thumbnail - expected).mean() < (0.02 if kind != "1" else 0.1)  # dithered


def test_a_jpeg_is_not_decoded_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(ramp(1200, 1600)).save(tmp_path / "a.jpg")
    sizes = []
    load = Image.Image.load
    monkeypatch.setattr(Image.Image, "load", lambda image: (sizes.append(image.size), load(image))[1])
    assert read_thumbnail(tmp_path / "a.jpg", 128).shape == (96, 128, 3)
    assert max(max(size) for size in sizes) <= 400


def test_small_pictures_stay_as_they_are_and_can_be_refused(tmp_path: Path) -> None:
    Image.fromarray(ramp(30, 40)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_thumbnail(tmp_path / "a.png", 100), read_photo(tmp_path / "a.png").rgb)
    with pytest.raises(AmsaError, match=r"a\.png is 40x30 pixels; at least 64"):
        read_thumbnail(tmp_path / "a.png", 100, 64)


@pytest.mark.parametrize("content", [b"", b"hello", None])
def test_files_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(ramp(300, 400)).save(path)
    path.write_bytes(path.read_bytes()[:2000] if content is None else content)
    with pytest.raises(AmsaError, match=r"a\.jpg"):
        read_thumbnail(path, 100)
