"""From files that a client sent to photos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..engine.images import Photo, read_photo, require_size
from ..errors import AmsaError
from ..stages import LR_MIN, REF_MIN, SCALE
from .limits import REFERENCES


@dataclass(frozen=True)
class Upload:
    """A file that came with a request. Its name is shown to people and is never a path here."""

    name: str
    content: bytes


def check_count(refs: Sequence[object]) -> None:
    """Raise AmsaError where a request has no reference, or too many."""
    if not refs:
        raise AmsaError("no reference photo; give at least one")
    if len(refs) > REFERENCES:
        raise AmsaError(f"{len(refs)} reference photos; this server takes at most {REFERENCES}")


def decode(lr: Upload, refs: Sequence[Upload], most: int) -> tuple[Photo, list[Photo]]:
    """The photos of a request.

    Args:
        lr: the LR file.
        refs: the reference files.
        most: pixels of the result, and of all references together.

    Raises:
        AmsaError: one of them is no picture, too small, or too large.
    """
    limit = f"{most / 1e6:g} megapixels"
    lr_photo = read_photo(lr.name, content=lr.content, max_pixels=most)
    require_size(lr_photo, lr.name, LR_MIN)
    if SCALE**2 * lr_photo.width * lr_photo.height > most:
        size, result = (f"{scale * lr_photo.width}x{scale * lr_photo.height}" for scale in (1, SCALE))
        raise AmsaError(
            f"{lr.name} is {size} pixels, the result would be {result}; at most {limit} are made: scale it down or crop it"
        )
    photos: list[Photo] = []
    for ref in refs:
        photos.append(read_photo(ref.name, content=ref.content, max_pixels=most))
        require_size(photos[-1], ref.name, REF_MIN)
        if sum(photo.width * photo.height for photo in photos) > most:
            raise AmsaError(
                f"the references have over {limit} together, this server's limit; scale them down, crop them or leave some out"
            )
    return lr_photo, photos
