"""AMSA: reference-based x4 super-resolution, from a photo and sharp photos of something similar.

>>> import amsa
>>> sr = amsa.Upscaler().upscale(lr, [ref])  # doctest: +SKIP
"""

from typing import TYPE_CHECKING, Any

from ._version import __version__
from .config import AMSAConfig
from .errors import AmsaError

if TYPE_CHECKING:
    from .engine.upscaler import Upscaler

__all__ = ["AMSAConfig", "AmsaError", "Upscaler", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "Upscaler":  # imports Pillow and numpy's friends only when asked for
        from .engine.upscaler import Upscaler

        return Upscaler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
