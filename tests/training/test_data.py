"""Samples: known correspondence, determinism, given pairs, broken files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from amsa import AmsaError
from amsa.training.data import Mix, PhotoFiles, ReferencePairs, find_photos
from amsa.training.layouts import Case
from amsa.training.synthetic import Warp, synthetic_reference

Make = Callable[..., NDArray[np.uint8]]
Pairs = Callable[..., ReferencePairs]


@pytest.mark.parametrize("scale", [(0.5, 0.5), (1.0, 1.0), (1.8, 1.8)])
def test_the_known_positions_show_the_same_place(photo: Make, scale: tuple[float, float]) -> None:
    # without recolouring, reading the reference at the positions gives the crop's colours
    warp = Warp(scale=scale, gain=0, bias=0, gamma=0)
    errors, baseline = [], []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        picture = photo(320, seed)
        ref, position, known = synthetic_reference(rng, picture, (96, 100), 128, 160, warp)
        assert known.any()
        lr = cv2.resize(picture[96:224, 100:228], (32, 32), interpolation=cv2.INTER_AREA).astype(float)
        smooth = cv2.blur(ref, (4, 4)).astype(np.float32)
        read = cv2.remap(smooth, position[1] + 0.5, position[0] + 0.5, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        errors.append(np.abs(read - lr)[known].mean())
        baseline.append(np.abs(read.mean((0, 1)) - lr)[known].mean())
    assert np.mean(errors) < 0.25 * np.mean(baseline)


def test_a_sample_depends_on_nothing_but_seed_and_index(pairs: Pairs) -> None:
    data = pairs()
    later, again = data[7], pairs()[7]
    data[3]
    for key, value in data[7].items():
        assert torch.equal(value, later[key])
        assert torch.equal(value, again[key])
    assert not torch.equal(data[8]["hr"], later["hr"])


@pytest.mark.parametrize("kind", ["irrelevant", "lr", "blurred"])
def test_every_kind_of_reference_has_its_shape(pairs: Pairs, kind: str) -> None:
    sample = pairs(**{"irrelevant": 0.0, "lr": 0.0, kind: 1.0})[0]
    assert {k: tuple(v.shape) for k, v in sample.items()} == {
        "lr": (3, 16, 16),
        "hr": (3, 64, 64),
        "ref": (3, 64, 64),
        "position": (2, 16, 16),
        "known": (16, 16),
    }
    assert sample["known"].any() == (kind == "blurred")


def test_given_pairs_are_cropped_at_one_place_and_turned_alike(photo: Make, tmp_path: Path) -> None:
    # the reference is the picture itself, so a crop and a reference of one size must be equal
    picture = photo(100)
    Image.fromarray(picture).save(tmp_path / "a.png")
    data = ReferencePairs(
        (),
        pairs=[Case("a", tmp_path / "a.png", (tmp_path / "a.png",))],
        crop=64,
        ref=64,
        length=8,
        seed=0,
        mix=Mix(),
        warp=Warp(),
    )
    samples = [data[i] for i in range(8)]
    for sample in samples:
        assert torch.equal(sample["hr"], sample["ref"])
        assert not sample["known"].any()
    assert len({sample["hr"].numpy().tobytes() for sample in samples}) == 8  # not one crop eight times


def test_a_small_given_reference_is_reflected(photo: Make, tmp_path: Path) -> None:
    for name, size in (("hr", 100), ("ref", 40)):
        Image.fromarray(photo(size)).save(tmp_path / f"{name}.png")
    case = Case("a", tmp_path / "hr.png", (tmp_path / "ref.png",))
    data = ReferencePairs((), pairs=[case], crop=64, ref=64, length=1, seed=0, mix=Mix(), warp=Warp())
    ref = data[0]["ref"]
    assert ref.shape == (3, 64, 64)
    flipped = [ref, ref.transpose(1, 2)]
    assert any(torch.equal(r[:, 40:, :40], r[:, 16:40, :40].flip(1)) for r in flipped)


def test_broken_photos_are_listed_and_skipped(photo: Make, tmp_path: Path) -> None:
    Image.fromarray(photo()).save(tmp_path / "good.png")
    Image.fromarray(photo(40)).save(tmp_path / "small.png")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no more")
    (tmp_path / "notes.txt").write_text("not a photo")
    paths, skipped = find_photos([tmp_path], 100)
    assert [p.name for p in paths] == ["good.png"]
    assert [line.split(":")[0] for line in skipped] == [str(tmp_path / "broken.jpg"), str(tmp_path / "small.png")]
    with pytest.raises(AmsaError, match="no usable photo"):
        find_photos([tmp_path], 1000)
    with pytest.raises(AmsaError, match="no such folder"):
        find_photos([tmp_path / "absent"], 1)


def test_photos_beyond_the_memory_are_decoded_anew(photo: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(2):
        Image.fromarray(photo(64, seed)).save(tmp_path / f"{seed}.png")
    monkeypatch.setattr("amsa.training.data._KEEP_BYTES", 64 * 64 * 3)
    photos = PhotoFiles(sorted(tmp_path.glob("*.png")))
    assert len(photos) == 2
    for seed in (0, 1, 0, 1):
        np.testing.assert_array_equal(photos[seed], photo(64, seed))
    assert photos[0] is photos[0]
    assert photos[1] is not photos[1]
