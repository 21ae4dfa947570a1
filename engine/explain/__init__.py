"""What the network did with a picture: maps, numbers, and one page to look at them (`amsa upscale --explain`)."""

from .writing import PAGE, check_folder, write_explanation

__all__ = ["PAGE", "check_folder", "write_explanation"]
