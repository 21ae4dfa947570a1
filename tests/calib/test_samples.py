"""Crops to calibrate with: the same every time, from folders and pairs; and what is wrong with a folder."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from amsa import AmsaError
from amsa.calib.samples import CROP, WINDOW, read_samples, samples_hash
from amsa.engine.demo import shrink

from .conftest import save


def test_crops_of_pairs(pairs: Path) -> None:
    samples = read_samples([pairs], 8)
    assert len(samples) == 8
    for sample in samples:
        assert sample.truth.rgb.shape == (CROP, CROP, 3)
        assert sample.ref.rgb.shape == (WINDOW, WINDOW, 3)
        assert (sample.lr.rgb == shrink(sample.truth)[0].rgb).all()
    assert len({sample.name for sample in samples}) == 8
    assert {sample.name.partition("@")[0] for sample in samples} == {"left", "right"}


def test_equal_arguments_give_equal_crops(pairs: Path) -> None:
    first = samples_hash(read_samples([pairs], 8))
    assert samples_hash(read_samples([pairs], 8)) == first
    assert samples_hash(read_samples([pairs], 8, seed=1)) != first
    assert samples_hash(read_samples([pairs], 9)) != first


def test_a_folder_of_photos_is_reference_to_itself(tmp_path: Path) -> None:
    """The window is found in another photo: one of two is the same scene, moved."""
    save(tmp_path / "a.png", 240, 240, 1)
    save(tmp_path / "b.png", 240, 240, 2)
    scene = save(tmp_path / "c.png", 400, 400, 3)
    from PIL import Image

    Image.open(scene).crop((100, 100, 340, 340)).save(tmp_path / "d.png")
    samples = {s.name.partition("@")[0]: s for s in read_samples([tmp_path], 8)}
    assert set(samples) == {"a", "b", "c", "d"}
    whole = np.asarray(Image.open(scene), np.float32) / 255
    ref = samples["d"].ref.rgb
    places = [(y, x) for y in range(209) for x in range(209) if np.allclose(whole[y, x], ref[0, 0], atol=1e-3)]
    assert any(np.allclose(whole[y : y + WINDOW, x : x + WINDOW], ref, atol=1e-3) for y, x in places)


def test_several_folders_share_the_crops(tmp_path: Path, pairs: Path) -> None:
    save(tmp_path / "a.png", 200, 200)
    samples = read_samples([tmp_path, pairs], 9)
    names = [sample.name.partition("@")[0] for sample in samples]
    assert names.count("a") == 4
    assert len(names) == 9


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(AmsaError, match="no usable picture"):
        read_samples([tmp_path], 8)
    with pytest.raises(AmsaError, match="no such file or folder"):
        read_samples([tmp_path / "nothing"], 8)
    with pytest.raises(AmsaError, match="no photos to calibrate with; give a folder or CSV file with --data"):
        read_samples([], 8)


def test_photos_of_the_wrong_size(tmp_path: Path) -> None:
    save(tmp_path / "small.png", 159, 300)
    with pytest.raises(AmsaError, match="no picture has 160 pixels on each side, which a crop needs; give larger photos"):
        read_samples([tmp_path], 8)
    save(tmp_path / "a.png", 160, 160, 1)
    save(tmp_path / "b.png", 300, 160, 2)
    with pytest.warns(UserWarning, match="1 pictures are smaller than 160 pixels and were left out"):
        assert len(read_samples([tmp_path], 8)) == 8


def test_a_reference_that_is_too_small(tmp_path: Path) -> None:
    save(tmp_path / "hr.png", 200, 200)
    save(tmp_path / "ref.png", 100, 60)
    (tmp_path / "p.csv").write_text("hr,ref\nhr.png,ref.png\n")
    with pytest.raises(AmsaError, match="hr: its reference is smaller than 64 pixels; give larger photos"):
        read_samples([tmp_path / "p.csv"], 8)
    save(tmp_path / "ref.png", 100, 70)  # smaller than a window: as it is
    with pytest.warns(UserWarning, match="all 8 crops are of one picture"):
        assert read_samples([tmp_path / "p.csv"], 8)[0].ref.rgb.shape == (100, 70, 3)


def test_all_of_one_picture_is_told(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 300, 300)
    with pytest.warns(UserWarning, match="all 8 crops are of one picture, so what is found holds for this picture"):
        read_samples([tmp_path], 8)
    save(tmp_path / "b.png", 300, 300, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_samples([tmp_path], 8)


def test_a_file_that_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(AmsaError, match=r"a\.png"):
        read_samples([tmp_path], 8)
