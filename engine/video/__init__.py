"""Clips: every frame upscaled, everything else kept."""

from ...errors import AmsaError

try:
    import av  # noqa: F401  (imported where it is used)
except ModuleNotFoundError as e:
    raise AmsaError("video needs PyAV; install it with: pip install 'amsa[video]'") from e

from .run import VideoReport, upscale_video

__all__ = ["VideoReport", "upscale_video"]
