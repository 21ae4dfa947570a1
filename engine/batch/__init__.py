"""A folder of pictures upscaled by several workers, on one machine or on a Ray cluster."""

from .run import FolderReport, Interrupted, upscale_folder

__all__ = ["FolderReport", "Interrupted", "upscale_folder"]
