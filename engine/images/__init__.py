"""Photos in and out: files and arrays on one side, float32 pixels in [0, 1] on the other, 8 or 16 bits deep."""

from .photo import PackedPhoto, Photo, Samples, require_size, resize_bicubic, to_array
from .reading import MAX_PIXELS, PICTURES, from_array, read_photo, read_thumbnail
from .writing import FORMATS, check_format, check_writable, encode_photo, write_photo

__all__ = [
    "FORMATS",
    "MAX_PIXELS",
    "PICTURES",
    "PackedPhoto",
    "Photo",
    "Samples",
    "check_format",
    "check_writable",
    "encode_photo",
    "from_array",
    "read_photo",
    "read_thumbnail",
    "require_size",
    "resize_bicubic",
    "to_array",
    "write_photo",
]
