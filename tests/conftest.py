"""Settings that all tests share."""

from __future__ import annotations

from hypothesis import settings

# Graphs are compiled inside examples, so single examples may be slow.
settings.register_profile("amsa", deadline=None, max_examples=25)
settings.load_profile("amsa")
