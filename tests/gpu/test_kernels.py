"""The CUDA kernels on a GPU: what `tests/cuda` proves of them on the CPU, with the same tests. Skipped where there is no GPU."""

from __future__ import annotations

from typing import Any

import pytest

from ..cuda import ops
from ..cuda.test_deformable_sample_kernels import test_batches, test_equals_the_reference  # noqa: F401
from ..cuda.test_patch_match_kernels import (  # noqa: F401
    inputs,
    test_any_number_of_channels,
    test_int8_is_bit_equal,
    test_ties_go_to_the_first_candidate,
    test_whole_numbers_give_equal_matches,
)
from .device import Gpu, missing

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(missing() is not None, reason=missing() or "")]


@pytest.fixture(autouse=True)
def on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def device(op: str, *_: Any) -> Any:
        return Gpu(op)

    monkeypatch.setattr(ops, "device", device)
