"""EXIF as raw bytes, kept but for the orientation."""

import struct

from PIL import Image

EXIF_PREFIX = b"Exif\0\0"
ORIENTATION = 0x0112
_SUB_IFDS = (0x8769, 0x8825)  # EXIF, GPS
# A TIFF keeps EXIF among the tags that lay out its own pixels; these are the latter, and XMP, IPTC, Photoshop and ICC.
_LAYOUT_TAGS = {*range(254, 267), 273, 274, *range(277, 282), 284, *range(288, 294), 301, 317, *range(320, 348)}
_LAYOUT_TAGS |= {*range(512, 533), 700, 33723, 34377, 34675, 37724}


def exif_bytes(image: Image.Image) -> bytes | None:
    """The EXIF of an opened picture, with its prefix; its orientation, if any, says upright. None where there is none."""
    exif: bytes | None = image.info.get("exif")
    if exif is None:  # TIFF tags, or text in PNGs of older tools
        tags = without_layout(image.getexif())
        return tags.tobytes() if len(tags) else None
    while exif.startswith(EXIF_PREFIX):
        exif = exif.removeprefix(EXIF_PREFIX)
    return EXIF_PREFIX + _reset_orientation(exif) if exif else None


def _reset_orientation(exif: bytes) -> bytes:
    """Set the orientation to 1 in place: maker notes hold offsets, which writing the tags anew would break."""
    order = {b"II": "<", b"MM": ">"}[exif[:2]]
    data = bytearray(exif)
    (directory,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, directory)
    for entry in range(directory + 2, directory + 2 + 12 * count, 12):
        if struct.unpack_from(order + "H", data, entry) == (ORIENTATION,):
            struct.pack_into(order + "HHIHH", data, entry, ORIENTATION, 3, 1, 1, 0)
    return bytes(data)


def without_layout(exif: Image.Exif) -> Image.Exif:
    """The tags that say nothing of how a TIFF's pixels are laid out."""
    tags = Image.Exif()
    tags.endian = "<"
    for tag in set(exif) - _LAYOUT_TAGS:
        tags[tag] = exif.get_ifd(tag) if tag in _SUB_IFDS else exif[tag]
    return tags
