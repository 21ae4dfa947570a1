"""Photos in and out: files and arrays on one side, float32 pixels in [0, 1] on the other, 8 or 16 bits deep.

Pillow reads and writes, except where it would drop the low byte of 16-bit colour: OpenCV decodes that, and the two
small encoders at the end of this file write it.
"""

import contextlib
import io
import os
import secrets
import struct
import tempfile
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ..errors import AmsaError

StrPath = str | os.PathLike[str]
Samples = NDArray[np.unsignedinteger[Any]]  # uint8 or uint16

MAX_PIXELS = 64_000_000
_BAND = 256  # rows that are converted at a time

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}  # the suffixes that are written
FORMATS |= {".tif": "TIFF", ".tiff": "TIFF", ".avif": "AVIF", ".bmp": "BMP"}
_READABLE = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "AVIF")  # the rest is rare or, as EPS, runs programs
_LOSSY: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"quality": 95},
    "AVIF": {"quality": 95, "subsampling": "4:4:4"},
}
_MAX_SIDE = {"JPEG": 65500, "WEBP": 16383, "AVIF": 65536}
_MAX_JPEG_EXIF = 65533

# Pillow mode -> the mode whose samples are taken, and why others are refused
_MODES = {"1": "L", "L": "L", "LA": "LA", "La": "LA", "RGB": "RGB", "RGBX": "RGB", "RGBA": "RGBA", "RGBa": "RGBA"}
_MODES |= {"P": "RGB", "PA": "RGBA", "YCbCr": "RGB"}
_REFUSED = dict.fromkeys(("I", "F"), "has 32-bit samples; save it with 8 or 16 bits, unsigned")
_REFUSED |= {mode: f"is {mode}; convert it to RGB first" for mode in ("CMYK", "LAB", "HSV")}

_EXIF_PREFIX = b"Exif\0\0"
_ORIENTATION = 0x0112
_SUB_IFDS = (0x8769, 0x8825)  # EXIF, GPS
# EXIF orientation -> transpose, then reverse rows, then reverse columns
_UPRIGHT = {2: (0, 0, 1), 3: (0, 1, 1), 4: (0, 1, 0), 5: (1, 0, 0), 6: (1, 0, 1), 7: (1, 1, 1), 8: (1, 1, 0)}
# A TIFF keeps EXIF among the tags that lay out its own pixels; these are the latter, and XMP, IPTC, Photoshop and ICC.
_LAYOUT_TAGS = {*range(254, 267), 273, 274, *range(277, 282), 284, *range(288, 294), 301, 317, *range(320, 348)}
_LAYOUT_TAGS |= {*range(512, 533), 700, 33723, 34377, 34675, 37724}


@dataclass(frozen=True)
class Photo:
    """An upright picture and what its file said about it.

    ``rgb`` is float32 HWC in [0, 1] with 3 channels, which are equal if ``gray``. ``alpha`` is float32 HW in [0, 1], or
    None. ``bits`` is the depth of a sample in the file, 8 or 16. ``icc`` and ``exif`` are raw bytes, kept and never
    applied, except for the EXIF orientation: the pixels are turned and the tag says 1.
    """

    rgb: NDArray[np.float32]
    alpha: NDArray[np.float32] | None = None
    gray: bool = False
    bits: int = 8
    icc: bytes | None = None
    exif: bytes | None = None

    @property
    def height(self) -> int:
        return int(self.rgb.shape[0])

    @property
    def width(self) -> int:
        return int(self.rgb.shape[1])


class PackedPhoto(Photo):
    """A photo that is kept as its samples, in a quarter or half of the memory: uint8 or uint16, HW (gray) or HW3.

    ``rgb`` is made anew whenever it is asked for.
    """

    samples: Samples

    def __init__(
        self, samples: Samples, alpha: NDArray[np.float32] | None = None, icc: bytes | None = None, exif: bytes | None = None
    ) -> None:
        bits, gray = 8 * samples.dtype.itemsize, samples.ndim == 2
        fields = {"samples": samples, "alpha": alpha, "gray": gray, "bits": bits, "icc": icc, "exif": exif}
        for name, value in fields.items():
            object.__setattr__(self, name, value)  # as a frozen dataclass does

    @property
    def rgb(self) -> NDArray[np.float32]:
        return _photo(self.samples).rgb

    @property
    def height(self) -> int:
        return int(self.samples.shape[0])

    @property
    def width(self) -> int:
        return int(self.samples.shape[1])


def read_photo(path: StrPath, *, max_pixels: int = MAX_PIXELS, content: bytes | None = None) -> Photo:
    """Read a PNG, JPEG, WebP, TIFF, BMP, GIF or AVIF file, upright and at its full 8 or 16 bits.

    ``content`` is what the file holds, where that is in memory: then nothing is opened, and ``path`` only names it in errors.

    Warns where a part of the file is left out: further frames, damaged EXIF, the low bits of a 10- or 12-bit AVIF.
    Raises AmsaError if the file cannot be opened, is not such a picture, is damaged, has over ``max_pixels`` pixels
    (judged by its header, before anything is decoded), or has samples with no exact RGB or gray reading.
    """
    with _opened(path, max_pixels, content) as (image, name, file):
        # The second picture in a phone's MPO file is a preview or gain map of the first, not a frame.
        if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
            warnings.warn(f"{name} has several frames; only the first is read", stacklevel=2)
        return _from_image(image, name, file)


def read_thumbnail(path: StrPath, side: int, min_side: int = 1) -> NDArray[np.float32]:
    """Read a picture shrunk to at most ``side`` pixels on its longer side, upright: float32 HWC RGB in [0, 1].

    For looking at many files: of a JPEG little more is decoded than is asked for, and depth, alpha and profile are left
    behind. Raises AmsaError as `read_photo` does, and where the file's picture has under ``min_side`` pixels on a side.
    """
    with _opened(path, MAX_PIXELS) as (image, name, file):
        if min(image.size) < min_side:
            raise _too_small(name, image.width, image.height, min_side)
        if image.mode in ("L", "RGB"):  # others cannot be shrunk as they are
            image.thumbnail((side, side), Image.Resampling.BICUBIC, reducing_gap=2.0)
            return _from_image(image, name).rgb
        rgb = _from_image(image, name, file).rgb
    factor = min(1.0, side / max(rgb.shape[:2]))
    return resize_bicubic(rgb, *(max(1, round(factor * length)) for length in rgb.shape[:2]))


def from_array(array: NDArray[Any] | Image.Image, name: str = "array") -> Photo:
    """Make a Photo from a uint8 or uint16 array, HW (gray) or HWC with C = 2 (gray, alpha), 3 or 4, or a Pillow image.

    A Pillow image is turned upright and keeps its ICC profile and EXIF, as in `read_photo`; its colours have 8 bits,
    whatever its file had. Raises AmsaError, with ``name`` in it, for another dtype, shape or Pillow mode.
    """
    if isinstance(array, Image.Image):
        with _decoding(name):
            return _from_image(array, name)
    if not isinstance(array, np.ndarray):
        raise AmsaError(f"{name} is a {type(array).__name__}; give a numpy array or a PIL.Image")
    if array.dtype.kind != "u" or array.dtype.itemsize > 2:
        raise AmsaError(f"{name} has dtype {array.dtype}; give uint8 (0 to 255) or uint16 (0 to 65535)")
    if array.size == 0 or array.shape[2:] not in [(), (2,), (3,), (4,)] or array.ndim < 2:
        shapes = "(H, W) for gray or (H, W, C) with C = 2 (gray, alpha), 3 or 4 (RGB, RGBA)"
        raise AmsaError(f"{name} has shape {array.shape}; give {shapes}")
    return _photo(array)


def to_array(photo: Photo) -> Samples:
    """Return the photo's samples, uint8 or uint16 by its ``bits``: HW (gray), HW2 (gray, alpha), HW3 or HW4.

    Values outside [0, 1] are clipped, the rest rounded half up. The inverse of `from_array`.
    """
    if isinstance(photo, PackedPhoto) and photo.alpha is None:
        return photo.samples
    colours, dtype = (photo.rgb[..., :1] if photo.gray else photo.rgb), np.uint16 if photo.bits == 16 else np.uint8
    samples: Samples = np.empty((*colours.shape[:2], colours.shape[2] + (photo.alpha is not None)), dtype)
    for first in range(0, photo.height, _BAND):  # what floats need besides is a band's
        rows = slice(first, first + _BAND)
        floats = colours[rows] if photo.alpha is None else np.dstack([colours[rows], photo.alpha[rows]])
        samples[rows] = np.clip(floats, 0, 1) * np.float32(np.iinfo(dtype).max) + np.float32(0.5)
    return samples[..., 0] if samples.shape[2] == 1 else samples


def require_size(photo: Photo, name: StrPath, min_side: int) -> None:
    """Raise AmsaError, with ``name`` in it, unless both sides of the photo have at least ``min_side`` pixels."""
    if min(photo.height, photo.width) < min_side:
        raise _too_small(_name(name), photo.width, photo.height, min_side)


def resize_bicubic(rgb: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Resize float32 HW or HWC to ``height`` x ``width``: bicubic, with antialiasing when it shrinks.

    Works in float32, so 16-bit photos lose nothing. Next to sharp edges values overshoot the range of the input.
    """

    def resize(channel: NDArray[np.float32]) -> NDArray[np.float32]:
        image = Image.fromarray(np.ascontiguousarray(channel, dtype=np.float32))  # mode F
        return np.array(image.resize((width, height), Image.Resampling.BICUBIC))

    if rgb.ndim == 2:
        return resize(rgb)
    resized = np.empty((height, width, rgb.shape[2]), np.float32)
    for c in range(rgb.shape[2]):
        resized[..., c] = resize(rgb[..., c])
    return resized


def check_writable(path: StrPath) -> None:
    """Raise AmsaError unless a photo can be put at ``path``: known suffix, existing folder that takes new files."""
    name, target, folder = _name(path), Path(path), Path(path).parent
    _format(path)
    try:
        if target.exists() and not target.is_file():
            raise AmsaError(f"{name} is {_kind_of_path(target)}; give a file name")
        if not folder.exists():
            raise AmsaError(f"{name} cannot be written: the folder {_name(folder)} does not exist; create it first")
        with tempfile.TemporaryFile(dir=folder):
            pass  # the one test that read-only mounts and access lists cannot fool
    except (OSError, ValueError) as error:
        raise AmsaError(f"{name} cannot be written ({_reason(error)}); choose another folder") from error


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
        raise AmsaError(f"{_name(path)}: {kind} {problem}")


def write_photo(path: StrPath, photo: Photo) -> None:
    """Write ``photo`` in the format that the suffix of ``path`` names, with its depth, alpha, ICC profile and EXIF.

    The file appears whole or not at all, and one that was there stays until then. JPEG, WebP and AVIF are written at
    quality 95, JPEG and AVIF with chroma at full resolution. Warns where BMP or TIFF has no place for ICC or EXIF.
    Raises AmsaError as `check_format` does, or if the folder takes no file.
    """
    name, target, data = _name(path), Path(path), encode_photo(path, photo)
    part = target.with_name(f".amsa-{secrets.token_hex(8)}{target.suffix}")
    try:
        try:
            part.write_bytes(data)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise AmsaError(f"{name} cannot be written ({_reason(error)}); check the folder and the free space") from error


def encode_photo(path: StrPath, photo: Photo) -> bytes:
    """Return what `write_photo` would write to ``path``, of which only the suffix matters; raises and warns as that does."""
    check_format(path, photo)
    name, kind = _name(path), _format(path)
    try:
        return _encode(photo, kind, name)
    except (OSError, ValueError, KeyError, struct.error, MemoryError) as error:  # KeyError: a Pillow without AVIF
        raise AmsaError(f"{name} cannot be encoded as {kind} ({_reason(error)}); write a .png") from error


def _name(path: StrPath) -> str:
    text = str(path)
    return text if text.isprintable() else repr(text)  # the message stays one line that every terminal can print


def _too_small(name: str, width: int, height: int, min_side: int) -> AmsaError:
    limit = f"at least {min_side} on each side are needed"
    return AmsaError(f"{name} is {width}x{height} pixels; {limit}: give a larger picture")


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


def _kind_of_path(path: Path) -> str:
    return "a folder" if path.is_dir() else "not a regular file"


def _format(path: StrPath) -> str:
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise AmsaError(f"{_name(path)} names no format that is written; end it in one of {', '.join(FORMATS)}")
    return FORMATS[suffix]


@contextlib.contextmanager
def _opened(path: StrPath, max_pixels: int, content: bytes | None = None) -> Iterator[tuple[Image.Image, str, BinaryIO]]:
    """Open a picture file (or its content) for decoding: the image, what to call it, and the file itself."""
    name, file_path = _name(path), Path(path)
    with _decoding(name):
        size = file_path.stat().st_size if content is None else len(content)
        if content is None and not file_path.is_file():  # reading a pipe or a device may never end
            raise AmsaError(f"{name} is {_kind_of_path(file_path)}; give a picture file")
        if size == 0:
            raise AmsaError(f"{name} is empty; copy or export it again")
        source = file_path.open("rb") if content is None else io.BytesIO(content)
        with source as file, Image.open(file, formats=_READABLE) as image:
            if image.width * image.height > max_pixels:
                limit = f"at most {max_pixels / 1e6:g} megapixels are read"
                raise AmsaError(f"{name} is {image.width}x{image.height} pixels; {limit}: scale it down or crop it")
            yield image, name, file


@contextlib.contextmanager
def _decoding(name: str) -> Iterator[None]:
    """Turn whatever opening and decoding raise into one line, and drop Pillow's remarks on odd files."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\b")
            yield
    except (AmsaError, Warning):  # a warning of ours, where warnings are errors
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise AmsaError(f"{name} does not exist; check the path") from None
    except PermissionError:
        raise AmsaError(f"{name} cannot be read: permission denied; change its permissions") from None
    except UnidentifiedImageError:
        known = ", ".join(_READABLE)
        raise AmsaError(f"{name} is damaged or no picture in a known format ({known}); save it as PNG or JPEG") from None
    except Image.DecompressionBombError as error:
        raise AmsaError(f"{name} is too large ({_reason(error)}); scale it down or crop it") from None
    except Exception as error:  # on damaged files Pillow raises nearly every type there is
        raise AmsaError(f"{name} is cut short or damaged ({_reason(error)}); copy or export it again") from error


def _photo(pixels: Samples, icc: bytes | None = None, exif: bytes | None = None) -> Photo:
    floats = np.atleast_3d(pixels).astype(np.float32)
    floats /= np.float32(np.iinfo(pixels.dtype).max)
    channels = floats.shape[2]
    rgb = np.repeat(floats[..., :1], 3, axis=2) if channels < 3 else np.ascontiguousarray(floats[..., :3])
    alpha = np.ascontiguousarray(floats[..., -1]) if channels in (2, 4) else None
    return Photo(rgb, alpha, gray=channels < 3, bits=8 * pixels.dtype.itemsize, icc=icc, exif=exif)


def _from_image(image: Image.Image, name: str, file: BinaryIO | None = None) -> Photo:
    """Decode a Pillow image. ``file`` is what it was opened from; without it 8-bit colours are all there is."""
    wide, gray = _sample_layout(image, name, file) if file else (False, False)
    if image.mode not in _MODES and not image.mode.startswith("I;16"):
        raise AmsaError(f"{name} {_REFUSED.get(image.mode, f'has mode {image.mode}; convert it to RGB or gray first')}")
    image.load()
    if image.mode.startswith("I;16"):
        pixels = _gray_16(image)
    elif wide and file:
        pixels = _colour_16(image, name, file, gray)
    else:
        pixels = np.asarray(image.convert(_MODES[image.mode] + "A" * _adds_alpha(image)))
    try:
        # Of a TIFF both decoders turn the pixels themselves, and Pillow then drops the tag.
        transpose, rows, columns = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1), (0, 0, 0))
        exif = _exif_bytes(image)
    except Exception:  # the same range of types as for pixels
        transpose, rows, columns, exif = 0, 0, 0, None
        warnings.warn(f"the EXIF data of {name} is damaged and left out", stacklevel=3)
    pixels = (pixels.swapaxes(0, 1) if transpose else pixels)[:: -1 if rows else 1, :: -1 if columns else 1]
    return _photo(pixels, image.info.get("icc_profile") or None, exif)


def _sample_layout(image: Image.Image, name: str, file: BinaryIO) -> tuple[bool, bool]:
    """Tell whether the file's samples have 16 bits, and whether a PNG is gray; Pillow's mode may say neither."""
    wide = gray = False
    file.seek(0)
    if image.format == "PNG":
        header = file.read(26)
        if struct.unpack_from(">II", header, 16) != image.size:  # Pillow also takes a header further on
            raise AmsaError(f"{name} is damaged (it does not start with its header); copy or export it again")
        wide, gray = header[24] == 16, header[25] in (0, 4)
    elif image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        bits, sample_format = set(tags.get(258, (1,))), set(tags.get(339, (1,)))
        if not bits <= {1, 2, 4, 8, 16} or sample_format != {1}:
            raise AmsaError(f"{name} has float, signed or odd-sized samples; save it with 8 or 16 bits, unsigned")
        if bits == {16} and tags.get(262) == 0:  # Pillow does not invert these
            raise AmsaError(f"{name} has 16-bit gray with white as 0; save it with black as 0")
        wide = bits == {16}
    elif image.format == "AVIF":
        data = file.read()
        configuration = data.find(b"av1C")
        if configuration >= 0 and data[configuration + 6] & 0x40:  # high_bitdepth
            warnings.warn(f"{name} has 10 or 12 bits; they are read as 8: convert it to a 16-bit PNG", stacklevel=4)
    return wide, gray


def _adds_alpha(image: Image.Image) -> bool:
    return image.has_transparency_data and not _MODES[image.mode].endswith("A")


def _gray_16(image: Image.Image) -> Samples:
    gray = np.asarray(image).astype(np.uint16)
    key = image.info.get("transparency")  # in a PNG: the one value that is transparent
    return gray if key is None else np.dstack([gray, np.where(gray == key, 0, 65535).astype(np.uint16)])


def _colour_16(image: Image.Image, name: str, file: BinaryIO, gray: bool) -> Samples:
    """Decode with OpenCV, and compare with Pillow's 8 bits of the same file.

    OpenCV alone gives pixels for many a damaged file, and leaves premultiplied alpha as it is.
    """
    import cv2

    file.seek(0)
    data = _plain_png(file.read()) if image.format == "PNG" else file.read()
    bgra: Any = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)  # without EXIF orientation
    high = np.asarray(image)
    channels = high.shape[2] + _adds_alpha(image)
    if bgra is not None and bgra.dtype == np.uint16 and bgra.ndim == 3 and bgra.shape[2] >= channels:
        pixels: Samples = bgra[..., [2, 1, 0, 3][:channels]]
        mine = (pixels[..., : high.shape[2]] >> 8).astype(np.uint8)
        if mine.shape == high.shape and (np.maximum(mine, high) - np.minimum(mine, high)).max() <= 1:
            return pixels[..., [0, 3][: channels - 2]] if gray else pixels
    raise AmsaError(f"{name} stores 16-bit colour in an unusual way; save it as a 16-bit PNG")


def _plain_png(data: bytes) -> bytes:
    """Keep the chunks of the first picture: OpenCV decodes animations, and allocates whatever length a chunk claims."""
    kept, at, kind = bytearray(data[:33]), 33, b""  # signature and IHDR
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, at)  # past the end: struct.error
        if kind in (b"tRNS", b"IDAT"):
            kept += data[at : at + 12 + length]
        at += 12 + length
    return bytes(kept) + b"\0\0\0\0IEND\xae\x42\x60\x82"


def _exif_bytes(image: Image.Image) -> bytes | None:
    exif: bytes | None = image.info.get("exif")
    if exif is None:  # TIFF tags, or text in PNGs of older tools
        tags = _without_layout(image.getexif())
        return tags.tobytes() if len(tags) else None
    while exif.startswith(_EXIF_PREFIX):
        exif = exif.removeprefix(_EXIF_PREFIX)
    return _EXIF_PREFIX + _reset_orientation(exif) if exif else None


def _reset_orientation(exif: bytes) -> bytes:
    """Set the orientation to 1 in place: maker notes hold offsets, which writing the tags anew would break."""
    order = {b"II": "<", b"MM": ">"}[exif[:2]]
    data = bytearray(exif)
    (directory,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, directory)
    for entry in range(directory + 2, directory + 2 + 12 * count, 12):
        if struct.unpack_from(order + "H", data, entry) == (_ORIENTATION,):
            struct.pack_into(order + "HHIHH", data, entry, _ORIENTATION, 3, 1, 1, 0)
    return bytes(data)


def _without_layout(exif: Image.Exif) -> Image.Exif:
    tags = Image.Exif()
    tags.endian = "<"
    for tag in set(exif) - _LAYOUT_TAGS:
        tags[tag] = exif.get_ifd(tag) if tag in _SUB_IFDS else exif[tag]
    return tags


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
    for first in range(0, height, _BAND):
        # A row is a filter number and bytes; filter 1 (Sub) keeps their differences to the pixel on the left.
        samples = np.atleast_3d(pixels[first : first + _BAND]).astype(">u2")
        rows, step = samples.reshape(len(samples), -1).view(np.uint8), 2 * channels
        filtered = np.hstack([np.ones((len(samples), 1), np.uint8), rows[:, :step], rows[:, step:] - rows[:, :-step]])
        packed += compressor.compress(filtered.data)
    packed += compressor.flush()
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    chunks = [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header)]
    if photo.icc:
        chunks.append(chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(photo.icc)))
    if photo.exif:
        chunks.append(chunk(b"eXIf", photo.exif.removeprefix(_EXIF_PREFIX)))
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
        return tags.tobytes().removeprefix(_EXIF_PREFIX)

    exif = Image.Exif()
    try:
        exif.load(photo.exif or b"")
        return head(_without_layout(exif)) + data
    except Exception:  # Pillow cannot write again every tag it reads; a result without EXIF is better than none
        warnings.warn(f"{name}: the EXIF data does not fit into a TIFF and is left out", stacklevel=5)
        return head(_without_layout(Image.Exif())) + data
