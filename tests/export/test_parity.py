"""ONNX Runtime against PyTorch on the same photos: every stage fed with the same tensors, and end to end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from amsa import Upscaler
from amsa.engine.backends import Arrays, Backend, HostExecution
from amsa.engine.metrics import psnr
from amsa.model import AMSA

Exported = Callable[[str], tuple[AMSA, Path, Path]]
Picture = Callable[..., NDArray[np.uint8]]

SIZES = [((40, 40), [(160, 160)]), ((37, 61), [(210, 133)]), ((64, 48), [(96, 128), (200, 150)])]
CASES = [
    *(pytest.param("small", *size) for size in SIZES),
    *(pytest.param("reduced", *size, marks=pytest.mark.slow) for size in SIZES),
    pytest.param("paper", *SIZES[1], marks=pytest.mark.slow),
    *(pytest.param("published", *size, marks=pytest.mark.slow) for size in SIZES),
]


class Both(HostExecution):
    """A backend that runs a stage on two others with the same inputs, keeps how far they differ, and returns one's."""

    name = "both"

    def __init__(self, reference: Backend, other: Backend) -> None:
        self.config, self.precision, self.trained = reference.config, reference.precision, reference.trained
        self._reference, self._other = reference, other
        self.differences: dict[str, float] = {}
        self.positions = self.other_matches = 0
        self.worst_tie = 0.0

    def run(self, stage: str, inputs: Arrays) -> Arrays:
        expected, found = self._reference.run(stage, inputs), self._other.run(stage, inputs)
        assert {k: v.shape for k, v in expected.items()} == {k: v.shape for k, v in found.items()}
        assert all(np.isfinite(v).all() for v in (*expected.values(), *found.values())), stage
        if stage == "match":
            differs = (expected["match"] != found["match"]).any(1)[0, 2:-2, 2:-2]
            gap = np.abs(expected["relevance"] - found["relevance"])[0, 0, 1:-1, 1:-1]
            self.positions += differs.size
            self.other_matches += int(differs.sum())
            self.worst_tie = max(self.worst_tie, float(gap.max()))
        else:
            worst = max(float(np.abs(expected[k] - found[k]).max() / max(1, np.abs(expected[k]).max())) for k in expected)
            self.differences[stage] = max(self.differences.get(stage, 0), worst)
        return expected


def check(folder: Path, checkpoint: Path, lr: NDArray[np.uint8], refs: list[NDArray[np.uint8]]) -> None:
    onnx, torch_ = Upscaler(folder), Upscaler(checkpoint)
    assert (onnx.backend, torch_.backend) == ("onnxruntime", "torch")
    end_to_end = [np.asarray(u.upscale(lr, refs), np.float64) for u in (onnx, torch_)]
    assert psnr(*end_to_end, 4) >= 50
    both = Both(torch_._backend, onnx._backend)
    torch_._backend = both
    torch_.upscale(lr, refs)
    assert both.other_matches <= 0.001 * both.positions
    assert both.worst_tie < 1e-4
    # given the same matches: features to rounding, the picture within 1e-3
    assert both.differences["finish"] < 1e-3
    assert max(both.differences.values()) < 1e-3, both.differences


@pytest.mark.parametrize(("name", "lr", "refs"), CASES)
def test_onnx_runtime_computes_what_pytorch_does(
    exported: Exported, picture: Picture, name: str, lr: tuple[int, int], refs: list[tuple[int, int]]
) -> None:
    _, folder, checkpoint = exported(name)
    check(folder, checkpoint, picture(*lr), [picture(*size, seed) for seed, size in enumerate(refs, 1)])


@settings(max_examples=6, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lr=st.tuples(st.integers(16, 40), st.integers(16, 40)), ref=st.tuples(st.integers(64, 120), st.integers(64, 120)))
def test_at_any_size(exported: Exported, picture: Picture, lr: tuple[int, int], ref: tuple[int, int]) -> None:
    _, folder, checkpoint = exported("small")
    check(folder, checkpoint, picture(*lr), [picture(*ref, 1)])


@pytest.mark.parametrize("which", [0, 1])
def test_a_seed_decides_the_picture(exported: Exported, picture: Picture, which: int) -> None:
    upscaler = Upscaler(exported("small")[1 + which])
    lr, refs = picture(48, 48), [picture(160, 160, 1)]
    first, again, other = (np.asarray(upscaler.upscale(lr, refs, seed=s), np.float64) for s in (0, 0, 1))
    assert np.array_equal(first, again)
    # random features on unrelated pictures are the hardest case; trained weights on photos are far nearer
    assert not np.array_equal(first, other)
    assert psnr(first, other, 4) > 15
