"""What all tests share: settings, and the golden files."""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import settings

from .browser import browser, open_page  # noqa: F401  (fixtures)

if TYPE_CHECKING:
    from torch import Tensor

# Before torch is imported: on tensors as small as the tests' its threads cost more than they save (43 s against 10 s).
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Graphs are compiled inside examples, so single examples may be slow.
settings.register_profile("amsa", deadline=None, max_examples=25)
settings.load_profile("amsa")

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `amsa` with arguments, in this process: exit code, stdout and stderr, with what C++ wrote there."""
    from amsa import cli

    def call(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["amsa", *map(str, arguments)])
        with warnings.catch_warnings():  # main() takes over how warnings are shown
            warnings.simplefilter("default")
            try:
                cli.main()
                code: Any = 0
            except SystemExit as e:
                code = e.code or 0
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return call


COMMITTED = Path(__file__).parent / "golden"
GOLDEN = Path(os.environ.get("AMSA_GOLDEN_DIR") or COMMITTED)


class Golden:
    """One golden file, or the keys of it that begin with a prefix."""

    def __init__(self, path: Path, prefix: str = "") -> None:
        with np.load(path) as file:
            self.arrays = {k.removeprefix(prefix): file[k] for k in file.files if k.startswith(prefix)}

    def __contains__(self, key: str) -> bool:
        return key in self.arrays

    def __getitem__(self, key: str) -> Tensor:
        """Floating-point arrays as float32, whole numbers as int64."""
        import torch

        array = self.arrays[key]
        return torch.from_numpy(array.astype(np.float32 if array.dtype.kind == "f" else np.int64))

    def yx(self, key: str) -> tuple[Tensor, Tensor]:
        return self[f"{key}y"], self[f"{key}x"]

    def picture(self, key: str) -> Tensor:
        """A uint8 RGB picture as the networks take it."""
        return self[key].float().permute(2, 0, 1)[None] / 255

    def match(self, key: str) -> Tensor:
        """A published index (its width is the field's own) as our match: anchors from -2 on, int32 [1, 2, h+2, w+2]."""
        import torch

        index = self[key]
        rows, cols = index.shape
        match = torch.stack(torch.meshgrid(torch.arange(-2, rows + 2), torch.arange(-2, cols + 2), indexing="ij"))
        match[:, 2:-2, 2:-2] = torch.stack((index // cols, index % cols))
        return match[None].int()

    def find(self, pattern: str) -> list[re.Match[str]]:
        """The keys that match a pattern as a whole."""
        found = [m for k in self.arrays if (m := re.fullmatch(pattern, k))]
        assert found, f"no key like {pattern}"
        return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`@pytest.mark.golden("dcn*.npz", "_y")`: the argument `golden` is every file that matches the pattern and in it every
    prefix that stands before a key ending in "_y"; without the second argument, every file as a whole."""
    marker = metafunc.definition.get_closest_marker("golden")
    if marker is None or not marker.args:
        return
    pattern, ending = (*marker.args, "")[:2]
    found: list[Any] = []
    for path in sorted(GOLDEN.glob(pattern)):
        with np.load(path) as file:
            prefixes = [k[: -len(ending) + 1] for k in file.files if k.endswith(ending)] if ending else [""]
        found += [pytest.param((path, p), id=f"{path.stem}-{p.rstrip('_')}".rstrip("-")) for p in prefixes]
    none = pytest.param(None, marks=pytest.mark.skip(f"no {pattern} in the golden folder (AMSA_GOLDEN_DIR sets another)"))
    metafunc.parametrize("golden", found or [none], indirect=True)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(*request.param)


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Where the golden files are: AMSA_GOLDEN_DIR, else the subset in tests/golden, which has no network weights."""
    if not GOLDEN.is_dir():
        pytest.fail(f"AMSA_GOLDEN_DIR is {GOLDEN}, which is not a folder")
    return GOLDEN
