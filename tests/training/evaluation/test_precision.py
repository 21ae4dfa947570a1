"""What a precision costs: matches of two models, and the command."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from amsa import AmsaError, Upscaler
from amsa.engine.backends import SHIPPED_ENGINE_MODEL, SHIPPED_MODEL
from amsa.engine.images import from_array
from amsa.training.evaluation import model_card, precision
from amsa.training.evaluation.precision import Watched, compare_matches, cosines

from .test_model_card import photo


@pytest.fixture(scope="module")
def watched() -> Watched:
    """The shipped model on a picture and another part of it; what its matching did."""
    model = Watched(Upscaler(SHIPPED_MODEL).backend_in_use)
    picture = photo(128, 0)
    Upscaler.on(model).upscale_photo(from_array(picture[:20, :24].copy()), [from_array(picture[10:90, 20:110].copy())])
    return model


def test_cosines_are_what_the_matching_found(watched: Watched) -> None:
    assert len(watched.calls) == watched.config.ref_scales
    for inputs, outputs in watched.calls:
        found = cosines(inputs["query_1"], inputs["key_1"], outputs["match"])
        assert found.std() > 1e-3
        np.testing.assert_allclose(found, outputs["relevance"][0, 0, 1:-1, 1:-1], atol=0.01)  # of int8 arithmetic


def test_matches_that_differ(watched: Watched) -> None:
    calls = watched.calls[:1]
    same = compare_matches(calls, calls)
    (inputs, outputs), size = calls[0], 22 * 22
    assert (same.positions, same.equal, same.near, same.worse, same.lost) == (size, size, size, 0, 0)
    match = outputs["match"].copy()
    match[:, :, 2:-2, 2] = 0  # 22 positions elsewhere; relevances that say they are as good do not count
    scores = [cosines(inputs["query_1"], inputs["key_1"], m)[:, 0] for m in (outputs["match"], match)]
    other = compare_matches(calls, [({}, {**outputs, "match": match})])
    assert (other.positions, other.equal) == (size, size - 22)
    assert other.worse == (scores[0] - scores[1] > 1e-3).sum() > 0
    assert other.near == size - (np.abs(scores[0] - scores[1]) > 1e-3).sum()
    assert other.lost == pytest.approx((scores[0] - scores[1]).sum())


def command(monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["", *map(str, arguments)])
    precision.main()


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in (("_CROP", 64), ("_STEP", 64), ("_WINDOW", 64), ("_SYNTHETIC_CROP", 64), ("_SYNTHETIC_REF", 64)):
        monkeypatch.setattr(model_card, name, value)
    for folder, seeds in (("castle", (0, 1)), ("set14", (2, 3))):
        (tmp_path / folder).mkdir()
        for seed in seeds:
            Image.fromarray(photo(64 if folder == "set14" else 128, seed)).save(tmp_path / folder / f"{seed}.png")
    command(monkeypatch, tmp_path, SHIPPED_MODEL, SHIPPED_ENGINE_MODEL)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0].split(" ")[0] for line in lines if line] == ["castle"] * 2 + ["set14"] * 2 + ["castle,", "set14,"]
    for line in lines[-2:]:
        found = re.fullmatch(
            r"\w+, 2 pictures, \w+ reference: ([\d.]+) dB, ([\d.]+) dB, drop (\S+), largest \S+ \(\S+\); "
            r"matches equal ([\d.]+)%, equal or near ([\d.]+)%, worse [\d.]+%, lost \S+, least equal or near [\d.]+%",
            line,
        )
        assert found, line
        first, second, drop, equal, near = map(float, found.groups())
        assert drop == pytest.approx(first - second, abs=1e-3)
        assert 80 < equal <= near <= 100


def test_two_networks_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from amsa.config import AMSAConfig
    from amsa.model import AMSA, save_checkpoint

    save_checkpoint(tmp_path / "m.safetensors", AMSA(AMSAConfig.paper(8, 1, 4)), {})
    with pytest.raises(AmsaError, match="two different networks"):
        command(monkeypatch, tmp_path, SHIPPED_MODEL, tmp_path / "m.safetensors")
