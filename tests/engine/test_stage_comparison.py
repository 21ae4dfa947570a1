"""Stage by stage between two backends or precisions: what is equal, what differs, and where it begins."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amsa import AmsaError, Upscaler
from amsa.engine.backends import SHIPPED_ENGINE_MODEL, SHIPPED_MODEL, Arrays, HostExecution
from amsa.engine.demo import load_pair, shrink
from amsa.engine.images import Photo
from amsa.engine.stage_comparison import EQUAL_MATCHES, TensorDifference, compare_stages
from amsa.manifest import FILE_NAME


@pytest.fixture(scope="module")
def photos() -> tuple[Photo, Photo]:
    truth, ref = load_pair()
    return Photo(shrink(truth)[0].rgb[20:52, 30:65]), Photo(ref.rgb[70:171, 120:220])


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The shipped models in both precisions, used at two scales of a reference instead of five."""
    folders = []
    for model in (SHIPPED_MODEL, SHIPPED_ENGINE_MODEL):
        folder = Path(shutil.copytree(model, tmp_path_factory.mktemp("models") / model.name))
        values = json.loads((folder / FILE_NAME).read_text())
        values["config"]["ref_scales"] = 2
        (folder / FILE_NAME).write_text(json.dumps(values))
        folders.append(folder)
    return folders[0], folders[1]


class Changed(HostExecution):
    """A backend whose outputs are changed."""

    name = "changed"
    kernels = "another's"

    def __init__(self, upscaler: Upscaler, stage: str, change: Any) -> None:
        self.inner, self.stage, self.change = upscaler.backend_in_use, stage, change
        self.config, self.precision, self.trained = self.inner.config, self.inner.precision, self.inner.trained

    def run(self, stage: str, inputs: Mapping[str, Any]) -> Arrays:
        with self.inner.call() as on:
            outputs = on.run(stage, inputs)
        return self.change(dict(outputs)) if stage == self.stage else outputs


def by_name(differences: list[TensorDifference]) -> dict[str, TensorDifference]:
    return {f"{d.stage} {d.tensor}": d for d in differences}


def test_the_same_twice(models: tuple[Path, Path], photos: tuple[Photo, Photo]) -> None:
    upscaler = Upscaler(models[0])
    differences = compare_stages(upscaler, upscaler, photos[0], [photos[1]])
    stages = [d.stage for d in differences]
    assert list(dict.fromkeys(stages)) == ["encode_ref", "encode_lr", "match", "restore", "finish"]
    for d in differences:
        assert (d.largest, d.mean, d.holds) == (0, 0, True)
        assert d.equal == 1 if d.tensor == "match" else d.psnr == np.inf


def test_precisions(models: tuple[Path, Path], photos: tuple[Photo, Photo]) -> None:
    found = by_name(compare_stages(Upscaler(models[0]), Upscaler(models[1]), photos[0], [photos[1]]))
    assert all(d.holds for d in found.values()), found
    assert {d.bound for d in found.values()} == {2e-2, 1 - EQUAL_MATCHES}
    assert 0 < found["restore accumulator_out"].largest < 1e-2
    assert found["finish sr"].psnr > 60


def test_where_it_begins(models: tuple[Path, Path], photos: tuple[Photo, Photo]) -> None:
    def brighter(outputs: Arrays) -> Arrays:
        return {**outputs, "accumulator_out": outputs["accumulator_out"] * np.float32(1.01)}

    upscaler = Upscaler(models[0])
    changed = Upscaler.on(Changed(upscaler, "restore", brighter))
    differences = compare_stages(upscaler, changed, photos[0], [photos[1]])
    assert [(d.stage, d.tensor) for d in differences if not d.holds] == [("restore", "accumulator_out")]
    assert by_name(differences)["restore accumulator_out"].largest == pytest.approx(0.01, rel=1e-3)
    assert by_name(differences)["finish sr"].largest == 0  # it was given the first one's accumulator


def test_other_matches(models: tuple[Path, Path], photos: tuple[Photo, Photo]) -> None:
    def worse(outputs: Arrays) -> Arrays:
        match, relevance = outputs["match"].copy(), outputs["relevance"].copy()
        match[:, :, 2:7, 2:-2], relevance[:, :, 1:6, 1:-1] = 9999, -1  # 5 rows of 30
        return {"match": match, "relevance": relevance}

    upscaler = Upscaler(models[0])
    found = by_name(compare_stages(upscaler, Upscaler.on(Changed(upscaler, "match", worse)), photos[0], [photos[1]]))
    assert not found["match match"].holds
    assert found["match match"].equal == pytest.approx(25 / 30, abs=0.01)
    assert found["match match"].mean > 0.1
    assert found["match relevance"].holds  # of the others


def test_what_is_not_a_number_is_over_the_bound(models: tuple[Path, Path], photos: tuple[Photo, Photo]) -> None:
    def spoiled(outputs: Arrays) -> Arrays:
        outputs["content"] = outputs["content"].copy()
        outputs["content"][0, 3, 4, 5] = np.nan
        return outputs

    upscaler = Upscaler(models[0])
    found = by_name(compare_stages(upscaler, Upscaler.on(Changed(upscaler, "encode_lr", spoiled)), photos[0], [photos[1]]))
    assert not found["encode_lr content"].holds
    assert np.isnan(found["encode_lr content"].largest)


def test_two_networks(models: tuple[Path, Path], photos: tuple[Photo, Photo]) -> None:
    with pytest.raises(AmsaError, match="two different networks; stages can be compared between backends and precisions of one"):
        compare_stages(Upscaler(models[0]), Upscaler(SHIPPED_MODEL), photos[0], [photos[1]])
