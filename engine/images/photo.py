"""A picture in memory, to and from arrays of samples."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...errors import AmsaError

StrPath = str | os.PathLike[str]
Samples = NDArray[np.unsignedinteger[Any]]  # uint8 or uint16

BAND = 256  # rows that are converted at a time


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
        return from_samples(self.samples).rgb

    @property
    def height(self) -> int:
        return int(self.samples.shape[0])

    @property
    def width(self) -> int:
        return int(self.samples.shape[1])


def from_samples(pixels: Samples, icc: bytes | None = None, exif: bytes | None = None) -> Photo:
    """The photo of uint8 or uint16 samples: HW (gray), or HWC with 1 (gray), 2 (gray, alpha), 3 or 4 channels."""
    floats = np.atleast_3d(pixels).astype(np.float32)
    floats /= np.float32(np.iinfo(pixels.dtype).max)
    channels = floats.shape[2]
    rgb = np.repeat(floats[..., :1], 3, axis=2) if channels < 3 else np.ascontiguousarray(floats[..., :3])
    alpha = np.ascontiguousarray(floats[..., -1]) if channels in (2, 4) else None
    return Photo(rgb, alpha, gray=channels < 3, bits=8 * pixels.dtype.itemsize, icc=icc, exif=exif)


def to_array(photo: Photo) -> Samples:
    """Return the photo's samples, uint8 or uint16 by its ``bits``: HW (gray), HW2 (gray, alpha), HW3 or HW4.

    Values outside [0, 1] are clipped, the rest rounded half up. The inverse of `from_array`.
    """
    if isinstance(photo, PackedPhoto) and photo.alpha is None:
        return photo.samples
    colours, dtype = (photo.rgb[..., :1] if photo.gray else photo.rgb), np.uint16 if photo.bits == 16 else np.uint8
    samples: Samples = np.empty((*colours.shape[:2], colours.shape[2] + (photo.alpha is not None)), dtype)
    for first in range(0, photo.height, BAND):  # what floats need besides is a band's
        rows = slice(first, first + BAND)
        floats = colours[rows] if photo.alpha is None else np.dstack([colours[rows], photo.alpha[rows]])
        samples[rows] = np.clip(floats, 0, 1) * np.float32(np.iinfo(dtype).max) + np.float32(0.5)
    return samples[..., 0] if samples.shape[2] == 1 else samples


def require_size(photo: Photo, name: StrPath, min_side: int) -> None:
    """Raise AmsaError, with ``name`` in it, unless both sides of the photo have at least ``min_side`` pixels."""
    if min(photo.height, photo.width) < min_side:
        raise too_small(shown(name), photo.width, photo.height, min_side)


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


def shown(path: StrPath) -> str:
    """A path as messages name it, which stay one line that every terminal can print."""
    text = str(path)
    return text if text.isprintable() else repr(text)


def too_small(name: str, width: int, height: int, min_side: int) -> AmsaError:
    """What is raised of a picture with too few pixels."""
    limit = f"at least {min_side} on each side are needed"
    return AmsaError(f"{name} is {width}x{height} pixels; {limit}: give a larger picture")


def reason(error: Exception) -> str:
    """What went wrong, in one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


def kind_of_path(path: Path) -> str:
    """What a path is that is no regular file."""
    return "a folder" if path.is_dir() else "not a regular file"
