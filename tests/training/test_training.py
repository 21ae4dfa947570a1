"""Pairs with known correspondence, recipes, and the loop: loss falls, resuming is exact, failures lose nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from amsa import AmsaError
from amsa.model import AMSA, AMSAConfig, load_checkpoint
from amsa.plugins.patch_match.reference import Patches
from amsa.training import recipe as recipes
from amsa.training.data import Mix, ReferencePairs, read_photos
from amsa.training.loop import Trainer, learning_rate
from amsa.training.matching import exhaustive_match
from amsa.training.recipe import Recipe, Weights, read_recipe
from amsa.training.restoration import restore_batch
from amsa.training.synthetic import Warp, synthetic_reference

TINY = Recipe("small", steps=4, batch=2, crop=64, ref=64, save_every=2, two_scales=0.5, warmup=1, weights=Weights(1, 0.03, 0.03))


def photo(size: int = 160, seed: int = 0) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    octaves = [cv2.resize(rng.random((n, n, 3)), (size, size), interpolation=cv2.INTER_CUBIC) for n in (5, 10, 20, 40)]
    return (np.clip(np.mean(octaves, 0), 0, 1) * 255).astype(np.uint8)


def pairs(length: int = 100, **mix: float) -> ReferencePairs:
    photos = [photo(seed=s) for s in range(3)]
    chosen = Mix(**{"views": 0.0, "irrelevant": 0.1, "lr": 0.1, "blurred": 0.0, **mix})
    return ReferencePairs(photos, [], crop=64, ref=64, length=length, seed=0, mix=chosen, warp=Warp())


# ------------------------------------------------------------------------------------------------ data


@pytest.mark.parametrize("scale", [(0.5, 0.5), (1.0, 1.0), (1.8, 1.8)])
def test_the_known_positions_show_the_same_place(scale: tuple[float, float]) -> None:
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


def test_a_sample_depends_on_nothing_but_seed_and_index() -> None:
    data = pairs()
    later, again = data[7], pairs()[7]
    data[3]
    for key, value in data[7].items():
        assert torch.equal(value, later[key])
        assert torch.equal(value, again[key])
    assert not torch.equal(data[8]["hr"], later["hr"])


@pytest.mark.parametrize("kind", ["irrelevant", "lr", "blurred"])
def test_every_kind_of_reference_has_its_shape(kind: str) -> None:
    sample = pairs(**{"irrelevant": 0.0, "lr": 0.0, kind: 1.0})[0]
    assert {k: tuple(v.shape) for k, v in sample.items()} == {
        "lr": (3, 16, 16),
        "hr": (3, 64, 64),
        "ref": (3, 64, 64),
        "position": (2, 16, 16),
        "known": (16, 16),
    }
    assert sample["known"].any() == (kind == "blurred")


def test_broken_photos_are_listed_and_skipped(tmp_path: Path) -> None:
    Image.fromarray(photo()).save(tmp_path / "good.png")
    Image.fromarray(photo(40)).save(tmp_path / "small.png")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no more")
    (tmp_path / "notes.txt").write_text("not a photo")
    photos, skipped = read_photos([tmp_path], 100)
    assert len(photos) == 1
    assert [line.split(":")[0] for line in skipped] == [str(tmp_path / "broken.jpg"), str(tmp_path / "small.png")]
    with pytest.raises(AmsaError, match="no usable photo"):
        read_photos([tmp_path], 1000)
    with pytest.raises(AmsaError, match="no such folder"):
        read_photos([tmp_path / "absent"], 1)


# ------------------------------------------------------------------------------------------------ matching


def test_exhaustive_matching_is_the_best_of_all_scores() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = (F.normalize(torch.randn(2, 8, 8, s, generator=generator), dim=1) for s in (16, 24))
    valid = torch.tensor([[7, 20]], dtype=torch.int32)
    match, relevance, scores = exhaustive_match(query, key, valid, cosine=True)
    patches = Patches(query, key, valid.expand(2, -1), pad=0)
    best = torch.full((2, 6, 14), -torch.inf)
    for y in range(5):
        for x in range(18):
            best = best.maximum(patches.score(torch.full((2, 6, 14), y), torch.full((2, 6, 14), x)) / 3)
    torch.testing.assert_close(relevance[:, 0, 1:-1, 1:-1], best)
    found = match[:, :, 2:-2, 2:-2].long()
    torch.testing.assert_close(patches.score(found[:, 0], found[:, 1]) / 3, best)
    assert found[:, 0].max() <= 4
    assert found[:, 1].max() <= 17
    assert scores.shape == (2, 6 * 14, 6 * 22)
    assert match[0, :, 0, 0].tolist() == [-2, -2]


def test_the_losses_are_small_where_the_truth_is_found() -> None:
    # a reference equal to the picture: the known position of every LR pixel is its own
    model = AMSA(AMSAConfig.small())
    model.reset_parameters(0)
    hr = torch.from_numpy(photo(64)).permute(2, 0, 1)[None].float() / 255
    grid = torch.stack(torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij"))[None]
    batch = {
        "hr": hr,
        "ref": hr,
        "lr": F.avg_pool2d(hr, 4),
        "position": 4 * grid + 1.5,
        "known": torch.ones(1, 16, 16, dtype=torch.bool),
    }
    _, right = restore_batch(model, batch, [0])
    _, wrong = restore_batch(model, {**batch, "position": 4 * grid.flip(2) + 1.5}, [0])
    assert right.contrastive < wrong.contrastive / 2
    assert right.flow < 0.35  # matches are the truth but for border patches; the untrained flow is zero
    for loss in (right.pixel, right.contrastive, right.flow):
        assert torch.isfinite(loss)


# ------------------------------------------------------------------------------------------------ the loop


def test_resuming_is_exact(tmp_path: Path) -> None:
    weights = {}
    for name, stops in (("whole", [4]), ("parts", [2, 4])):
        (tmp_path / name).mkdir()
        for stop in stops:
            Trainer(TINY, pairs(), tmp_path / name, None).run(stop)
        model, metadata = load_checkpoint(tmp_path / name / "last.safetensors")
        assert metadata["step"] == 4
        weights[name] = model.state_dict()
    assert all(torch.equal(weights["whole"][k], weights["parts"][k]) for k in weights["whole"])


@pytest.mark.slow
def test_the_loss_falls(tmp_path: Path) -> None:
    recipe = replace(TINY, steps=40, batch=4, save_every=10, two_scales=0.0, lr=2e-3, warmup=5)
    Trainer(recipe, pairs(200), tmp_path, lambda model: 1.0).run()
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in log if "loss" in line]
    assert len(losses) == 4
    assert losses[-1] < 0.9 * losses[0]
    assert (tmp_path / "best.safetensors").exists()


def test_a_loss_that_is_not_a_number_stops_and_keeps_the_state(tmp_path: Path) -> None:
    Trainer(TINY, pairs(), tmp_path, None).run(2)
    before = (tmp_path / "state.safetensors").read_bytes()
    trainer = Trainer(TINY, pairs(), tmp_path, None)
    with torch.no_grad():
        trainer.model.finish.conv1.weight[0] = torch.nan
    with pytest.raises(AmsaError, match=r"the loss is nan at step 2; the last good state is .*state\.safetensors"):
        trainer.run()
    assert (tmp_path / "state.safetensors").read_bytes() == before


def test_a_full_disk_keeps_the_state_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Trainer(TINY, pairs(), tmp_path, None).run(2)
    before = (tmp_path / "state.safetensors").read_bytes()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("amsa.training.state.save_file", full)
    with pytest.raises(AmsaError, match=r"No space left on device.*the state before is kept"):
        Trainer(TINY, pairs(), tmp_path, None).run(4)
    assert (tmp_path / "state.safetensors").read_bytes() == before
    assert not list(tmp_path.glob("*.tmp"))


def test_a_state_of_another_network_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state.safetensors").write_bytes(b"damaged")
    with pytest.raises(AmsaError, match="not a training state"):
        Trainer(TINY, pairs(), tmp_path, None)


# ------------------------------------------------------------------------------------------------ recipes


def test_the_committed_recipes_are_read() -> None:
    folder = Path(recipes.__file__).parent / "recipes"
    assert read_recipe(folder / "small.toml").variant == "small"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("variant = 'small'", "missing field steps"),
        ("variant = 'small'\nsteps = 1\nstepz = 2", "unknown field stepz; known are variant, steps"),
        ("variant = 'small'\nsteps = '1'", "steps is '1'; it must be like 0"),
        ("variant = 'huge'\nsteps = 1", "variant is 'huge'"),
        ("variant = 'small'\nsteps = 1\ncrop = 100", "crop is 100; it must be a multiple of 32"),
        ("variant = 'small'\nsteps = 1\ncrop = 128\nref = 96", "ref is 96, smaller than crop 128"),
        ("variant = 'small'\nsteps = 1\nmix = 3", "mix must be a table"),
        ("variant = 'small'\nsteps = 1\n[mix]\nlrr = 0.1", r"\[mix\]: unknown field lrr"),
        ("variant = ", "not TOML"),
    ],
)
def test_wrong_recipes_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(AmsaError, match=message):
        read_recipe(tmp_path / "r.toml")


def test_the_learning_rate() -> None:
    recipe = replace(TINY, steps=1100, warmup=100, lr=1.0, lr_end=0.1)
    assert learning_rate(recipe, 0) == pytest.approx(0.01)
    assert learning_rate(recipe, 99) == pytest.approx(1.0)
    assert learning_rate(recipe, 600) == pytest.approx(0.55)
    assert learning_rate(recipe, 1100) == pytest.approx(0.1)
