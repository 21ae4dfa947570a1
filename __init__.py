"""AMSA: reference-based x4 super-resolution, from a photo and sharp photos of something similar.

>>> import amsa
>>> sr = amsa.Upscaler().upscale(lr, [ref])  # doctest: +SKIP
"""

import os
from typing import TYPE_CHECKING, Any

from ._version import __version__
from .config import AMSAConfig
from .errors import AmsaError

if TYPE_CHECKING:
    from .engine.batch import upscale_folder
    from .engine.upscaler import Upscaler

# ONNX Runtime's Linux builds report to Microsoft from 1.29 on, unless this is set before they are imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = ["AMSAConfig", "AmsaError", "Upscaler", "__version__", "upscale_folder"]


def __getattr__(name: str) -> Any:
    if name == "Upscaler":  # imports Pillow and numpy's friends only when asked for
        from .engine.upscaler import Upscaler

        return Upscaler
    if name == "upscale_folder":
        from .engine.batch import upscale_folder

        return upscale_folder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
