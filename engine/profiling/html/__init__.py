"""A profile as one HTML file that needs nothing else: no network, no other file."""

from .report import FILE, make_page

__all__ = ["FILE", "make_page"]
