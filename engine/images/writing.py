"""Photos to files: Pillow writes, except 16-bit colour, for which there are two small encoders here."""

import io
import secrets
import struct
import tempfile
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...errors import AmsaError
from .exif import EXIF_PREFIX, without_layout
from .photo import BAND, Photo, Samples, StrPath, kind_of_path, reason, shown, to_array

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}  # the suffixes that are written
FORMATS |= {".tif": "TIFF", ".tiff": "TIFF", ".avif": "AVIF", ".bmp": "BMP"}
_LOSSY: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"quality": 95},
    "AVIF": {"quality": 95, "subsampling": "4:4:4"},
}
_MAX_SIDE = {"JPEG": 65500, "WEBP": 16383, "AVIF": 65536}
_MAX_JPEG_EXIF = 65533


def check_writable(path: StrPath) -> None:
    """Raise AmsaError unless a photo can be put at ``path``: known suffix, existing folder that takes new files."""
    name, target, folder = shown(path), Path(path), Path(path).parent
    _format(path)
    try:
        if target.exists() and not target.is_file():
            raise AmsaError(f"{name} is {kind_of_path(target)}; give a file name")
        if not folder.exists():
            raise AmsaError(f"{name} cannot be written: the folder {shown(folder)} does not exist; create it first")
        with tempfile.TemporaryFile(dir=folder):
            pass  # the one test that read-only mounts and access lists cannot fool
    except (OSError, ValueError) as error:
        raise AmsaError(f"{name} cannot be written ({reason(error)}); choose another folder") from error


def check_format(path: StrPath, photo: Photo, scale: int = 1) -> None:
    """Raise AmsaError unless the format that the suffix names can hold ``photo`` enlarged ``scale`` times.

    `write_photo` checks this, too late for a long job: call it first with the input photo and the scale.
    """
    kind, deep, alpha = _format(path), photo.bits == 16, photo.alpha is not None
    side, max_side = scale * max(photo.height, photo.width), _MAX_SIDE.get(kind, 2**31 - 1)
    problem = ""
    if deep and kind not in ("PNG", "TIFF"):
        problem = "holds 8 bits and the photo has 16; write a .png or .tif"
    elif alpha and kind in ("JPEG", "BMP"):
        problem = "holds no transparency and the photo has some; write a .png or .tif"
    elif deep and alpha and photo.gray and kind == "TIFF":
        problem = "with 16-bit gray and transparency is read by few programs; write a .png"
    elif side > max_side:
        problem = f"holds at most {max_side} pixels a side, not {side}; write a .png or .tif"
    elif kind == "JPEG" and len(photo.exif or b"") > _MAX_JPEG_EXIF:
        problem = "has no room for EXIF data as long as the photo's; write a .png"
    if problem:
        raise AmsaError(f"{shown(path)}: {kind} {problem}")


def write_photo(path: StrPath, photo: Photo) -> None:
    """Write ``photo`` in the format that the suffix of ``path`` names, with its depth, alpha, ICC profile and EXIF.

    The file appears whole or not at all, and one that was there stays until then. JPEG, WebP and AVIF are written at
    quality 95, JPEG and AVIF with chroma at full resolution. Warns where BMP or TIFF has no place for ICC or EXIF.
    Raises AmsaError as `check_format` does, or if the folder takes no file.
    """
    name, target, data = shown(path), Path(path), encode_photo(path, photo)
    part = target.with_name(f".amsa-{secrets.token_hex(8)}{target.suffix}")
    try:
        try:
            part.write_bytes(data)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise AmsaError(f"{name} cannot be written ({reason(error)}); check the folder and the free space") from error


def encode_photo(path: StrPath, photo: Photo) -> bytes:
    """Return what `write_photo` would write to ``path``, of which only the suffix matters; raises and warns as that does."""
    check_format(path, photo)
    name, kind = shown(path), _format(path)
    try:
        return _encode(photo, kind, name)
    except (OSError, ValueError, KeyError, struct.error, MemoryError) as error:  # KeyError: a Pillow without AVIF
        raise AmsaError(f"{name} cannot be encoded as {kind} ({reason(error)}); write a .png") from error


def _format(path: StrPath) -> str:
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise AmsaError(f"{shown(path)} names no format that is written; end it in one of {', '.join(FORMATS)}")
    return FORMATS[suffix]


def _encode(photo: Photo, kind: str, name: str) -> bytes:
    pixels = to_array(photo)
    if kind == "TIFF":
        return _encode_tiff(pixels, photo, name)
    if photo.bits == 16:
        return _encode_png_16(pixels, photo)
    metadata = {key: value for key, value in (("icc_profile", photo.icc), ("exif", photo.exif)) if value}
    if kind == "BMP" and metadata:
        warnings.warn(f"{name}: BMP holds no ICC profile or EXIF; they are left out", stacklevel=4)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **_LOSSY.get(kind, {}), **metadata)
    return file.getvalue()


def _encode_png_16(pixels: Samples, photo: Photo) -> bytes:
    """Encode by hand: OpenCV would leave out the ICC profile, EXIF, and alpha next to gray."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, channels = np.atleast_3d(pixels).shape
    packed, compressor = bytearray(), zlib.compressobj()
    for first in range(0, height, BAND):
        # A row is a filter number and bytes; filter 1 (Sub) keeps their differences to the pixel on the left.
        samples = np.atleast_3d(pixels[first : first + BAND]).astype(">u2")
        rows, step = samples.reshape(len(samples), -1).view(np.uint8), 2 * channels
        filtered = np.hstack([np.ones((len(samples), 1), np.uint8), rows[:, :step], rows[:, step:] - rows[:, :-step]])
        packed += compressor.compress(filtered.data)
    packed += compressor.flush()
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    chunks = [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header)]
    if photo.icc:
        chunks.append(chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(photo.icc)))
    if photo.exif:
        chunks.append(chunk(b"eXIf", photo.exif.removeprefix(EXIF_PREFIX)))
    return b"".join([*chunks, chunk(b"IDAT", bytes(packed)), chunk(b"IEND", b"")])


def _encode_tiff(pixels: Samples, photo: Photo, name: str) -> bytes:
    """Encode without compression. EXIF is a TIFF that lacks pixels: Pillow writes the tags, the pixels follow."""
    height, width, channels = np.atleast_3d(pixels).shape
    data = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    # 259: no compression, 262: gray or RGB, 278: one strip, 273: its offset, to which Pillow adds what comes before
    layout: dict[int, Any] = {256: width, 257: height, 258: (photo.bits,) * channels, 259: 1, 277: channels}
    layout |= {262: 1 if photo.gray else 2, 273: 0, 278: height, 279: len(data)}
    layout |= {338: 2} if photo.alpha is not None else {}  # alpha that is not premultiplied
    layout |= {34675: photo.icc} if photo.icc else {}

    def head(tags: Image.Exif) -> bytes:
        for tag, value in layout.items():
            tags[tag] = value
        return tags.tobytes().removeprefix(EXIF_PREFIX)

    exif = Image.Exif()
    try:
        exif.load(photo.exif or b"")
        return head(without_layout(exif)) + data
    except Exception:  # Pillow cannot write again every tag it reads; a result without EXIF is better than none
        warnings.warn(f"{name}: the EXIF data does not fit into a TIFF and is left out", stacklevel=5)
        return head(without_layout(Image.Exif())) + data
