"""Photos from files and arrays: Pillow reads, except where it would drop the low byte of 16-bit colour, which OpenCV decodes."""

import contextlib
import io
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ...errors import AmsaError
from .exif import ORIENTATION, exif_bytes
from .photo import Photo, Samples, StrPath, from_samples, kind_of_path, reason, resize_bicubic, shown, too_small
from .writing import FORMATS

MAX_PIXELS = 64_000_000
PICTURES = (*FORMATS, ".gif", ".heic", ".heif")
"""Suffixes, in lower case, of the files that are read; the last ones are not written."""
_READABLE = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "AVIF")  # the rest is rare or, as EPS, runs programs

_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
_AVIF_BRANDS = {b"avif", b"avis"}  # which has mif1 as well

# Pillow mode -> the mode whose samples are taken, and why others are refused
_MODES = {"1": "L", "L": "L", "LA": "LA", "La": "LA", "RGB": "RGB", "RGBX": "RGB", "RGBA": "RGBA", "RGBa": "RGBA"}
_MODES |= {"P": "RGB", "PA": "RGBA", "YCbCr": "RGB"}
_REFUSED = dict.fromkeys(("I", "F"), "has 32-bit samples; save it with 8 or 16 bits, unsigned")
_REFUSED |= {mode: f"is {mode}; convert it to RGB first" for mode in ("CMYK", "LAB", "HSV")}
# EXIF orientation -> transpose, then reverse rows, then reverse columns
_UPRIGHT = {2: (0, 0, 1), 3: (0, 1, 1), 4: (0, 1, 0), 5: (1, 0, 0), 6: (1, 0, 1), 7: (1, 1, 1), 8: (1, 1, 0)}


def read_photo(path: StrPath, *, max_pixels: int = MAX_PIXELS, content: bytes | None = None) -> Photo:
    """Read a PNG, JPEG, WebP, TIFF, BMP, GIF, AVIF or, with the extra `heic`, HEIC file, upright and at its full 8 or 16 bits.

    ``content`` is what the file holds, where that is in memory: then nothing is opened, and ``path`` only names it in errors.

    Warns where a part of the file is left out: further frames, damaged EXIF, the low bits of a 10- or 12-bit AVIF or HEIC.
    Raises AmsaError if the file cannot be opened, is not such a picture, is damaged, has over ``max_pixels`` pixels
    (judged by its header, before anything is decoded), or has samples with no exact RGB or gray reading.
    """
    with _opened(path, max_pixels, content) as (image, name, file):
        # The second picture in a phone's MPO file is a preview or gain map of the first, not a frame.
        if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
            which = "main one" if image.format == "HEIF" else "first"
            warnings.warn(f"{name} has several frames; only the {which} is read", stacklevel=2)
        return _from_image(image, name, file)


def read_thumbnail(path: StrPath, side: int, min_side: int = 1) -> NDArray[np.float32]:
    """Read a picture shrunk to at most ``side`` pixels on its longer side, upright: float32 HWC RGB in [0, 1].

    For looking at many files: of a JPEG little more is decoded than is asked for, and depth, alpha and profile are left
    behind. Raises AmsaError as `read_photo` does, and where the file's picture has under ``min_side`` pixels on a side.
    """
    with _opened(path, MAX_PIXELS) as (image, name, file):
        if min(image.size) < min_side:
            raise too_small(name, image.width, image.height, min_side)
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
    return from_samples(array)


@contextlib.contextmanager
def _opened(path: StrPath, max_pixels: int, content: bytes | None = None) -> Iterator[tuple[Image.Image, str, BinaryIO]]:
    """Open a picture file (or its content) for decoding: the image, what to call it, and the file itself."""
    name, file_path = shown(path), Path(path)
    with _decoding(name):
        size = file_path.stat().st_size if content is None else len(content)
        if content is None and not file_path.is_file():  # reading a pipe or a device may never end
            raise AmsaError(f"{name} is {kind_of_path(file_path)}; give a picture file")
        if size == 0:
            raise AmsaError(f"{name} is empty; copy or export it again")
        source = file_path.open("rb") if content is None else io.BytesIO(content)
        with source as file, Image.open(file, formats=_formats(name, file)) as image:
            if image.width * image.height > max_pixels:
                limit = f"at most {max_pixels / 1e6:g} megapixels are read"
                raise AmsaError(f"{name} is {image.width}x{image.height} pixels; {limit}: scale it down or crop it")
            yield image, name, file


def _formats(name: str, file: BinaryIO) -> tuple[str, ...]:
    """Pillow's names of what a file may be; AmsaError for a HEIC where nothing is installed that reads it."""
    head = file.read(64)
    file.seek(0)
    size, kind = struct.unpack_from(">I4s", head.ljust(8, b"\0"))
    brands = {head[at : at + 4] for at in range(8, min(size, len(head)), 4)}
    if kind != b"ftyp" or not brands & _HEIC_BRANDS or brands & _AVIF_BRANDS:
        return _READABLE
    try:
        import pi_heif
    except ModuleNotFoundError:
        raise AmsaError(f"{name} is HEIC; to read it: pip install 'amsa[heic]', or save it as PNG or JPEG") from None
    pi_heif.register_heif_opener()
    return (*_READABLE, "HEIF")


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
        raise AmsaError(f"{name} is too large ({reason(error)}); scale it down or crop it") from None
    except Exception as error:  # on damaged files Pillow raises nearly every type there is
        raise AmsaError(f"{name} is cut short or damaged ({reason(error)}); copy or export it again") from error


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
        transpose, rows, columns = _UPRIGHT.get(image.getexif().get(ORIENTATION, 1), (0, 0, 0))
        exif = exif_bytes(image)
    except Exception:  # the same range of types as for pixels
        transpose, rows, columns, exif = 0, 0, 0, None
        warnings.warn(f"the EXIF data of {name} is damaged and left out", stacklevel=3)
    pixels = (pixels.swapaxes(0, 1) if transpose else pixels)[:: -1 if rows else 1, :: -1 if columns else 1]
    return from_samples(pixels, image.info.get("icc_profile") or None, exif)


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
            _warn_of_depth(name)
    elif image.format == "HEIF" and image.info["bit_depth"] > 8:
        _warn_of_depth(name)
    return wide, gray


def _warn_of_depth(name: str) -> None:
    warnings.warn(f"{name} has 10 or 12 bits; they are read as 8: convert it to a 16-bit PNG", stacklevel=5)


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
