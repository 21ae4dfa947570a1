"""The runtime: photos in, photos out, on any backend. Needs neither torch nor onnx."""

from .images import Photo, read_photo, write_photo
from .references import EncodedReference
from .upscaler import Stats, Upscaler

__all__ = ["EncodedReference", "Photo", "Stats", "Upscaler", "read_photo", "write_photo"]
