"""Settings that all tests share."""

from __future__ import annotations

import os

from hypothesis import settings

# Before torch is imported: on tensors as small as the tests' its threads cost more than they save (43 s against 10 s).
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Graphs are compiled inside examples, so single examples may be slow.
settings.register_profile("amsa", deadline=None, max_examples=25)
settings.load_profile("amsa")
