"""What the network did with a picture: maps, numbers, and one page to look at them (`amsa upscale --explain`)."""

from .writing import check_folder, write_explanation

__all__ = ["check_folder", "write_explanation"]
