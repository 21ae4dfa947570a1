"""The paper's recipe, stage by stage, on tiny networks: every stage learns, resumes exactly, and trains what it should."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset

from amsa import AmsaError
from amsa.model import AMSA, AMSAConfig, load_checkpoint
from amsa.training.adversarial import Critic, Perceptual, critic_loss, mixing
from amsa.training.correspondence import distillation_loss, margin_loss
from amsa.training.data import ReferencePairs
from amsa.training.imagenet import begin_with_imagenet, imagenet_features
from amsa.training.loop import Trainer
from amsa.training.recipe import Recipe, read_recipe

Pairs = Callable[..., ReferencePairs]

SYNTHETIC = {"irrelevant": 0.0, "lr": 0.0}


def tiny(recipe: Recipe, steps: int) -> Recipe:
    """A stage of a shipped recipe, as small as it gets."""
    accumulate = recipe.accumulate
    return replace(
        recipe,
        imagenet=False,
        steps=steps,
        batch=max(2, accumulate),
        crop=64,
        ref=64,
        scales=min(recipe.scales, 2),
        save_every=5,
        warmup=1,
        lr=1e-3,
    )


def stages(name: str) -> dict[str, Recipe]:
    return {recipe.folder: recipe for recipe in read_recipe(name)}


def train(
    recipe: Recipe, data: ReferencePairs, folder: Path, stops: list[int], init: Path | None = None
) -> dict[str, torch.Tensor]:
    folder.mkdir()
    for stop in stops:
        Trainer(recipe, data, folder, init=init).run(stop)
    return load_checkpoint(folder / "last.safetensors")[0].state_dict()


class Repeated(Dataset[dict[str, torch.Tensor]]):
    """The first two samples again and again: 20 steps of a deep network learn little else."""

    def __init__(self, data: ReferencePairs) -> None:
        self._data = data

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self._data[index % 2]

    def __len__(self) -> int:
        return len(self._data)


@pytest.mark.slow
@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize(("stage", "lr"), [("teacher", 1e-4), ("student", 1e-4), ("rec", 5e-3), ("gan", 5e-3)])
def test_every_stage_learns_and_resumes_exactly(tmp_path: Path, pairs: Pairs, stage: str, lr: float) -> None:
    recipe = replace(tiny(stages("paper")[stage], 20), lr=lr)
    data = Repeated(pairs(**SYNTHETIC))
    whole = train(recipe, data, tmp_path / "whole", [20])
    parts = train(recipe, data, tmp_path / "parts", [10, 20])
    assert all(torch.equal(whole[k], parts[k]) for k in whole)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert len(losses) == 4
    assert losses[-1] < losses[0]  # the same two samples in every step


@pytest.mark.usefixtures("narrow")
def test_one_stage_begins_where_the_one_before_ended(tmp_path: Path, pairs: Pairs) -> None:
    recipes, data = stages("paper"), pairs(**SYNTHETIC)
    keys = ("encode_ref.keys.vgg.conv3_1.weight", "encode_lr.keys.vgg.conv3_1.weight", "restore.scales.0.head.weight")
    before = AMSA(AMSAConfig.paper(16, 1, 4))
    before.reset_parameters(0)
    start = before.state_dict()
    teacher = train(tiny(recipes["teacher"], 2), data, tmp_path / "t", [2])
    assert [torch.equal(teacher[k], start[k]) for k in keys] == [False, True, True]
    student = train(tiny(recipes["student"], 2), data, tmp_path / "s", [2], tmp_path / "t" / "last.safetensors")
    assert [torch.equal(student[k], teacher[k]) for k in keys] == [True, False, True]
    # the student began as the teacher, not where it was
    assert (student[keys[1]] - teacher[keys[0]]).abs().max() < 0.01
    restored = train(tiny(recipes["rec"], 1), data, tmp_path / "r", [1], tmp_path / "s" / "last.safetensors")
    assert not torch.equal(restored[keys[2]], student[keys[2]])
    assert torch.equal(restored["encode_ref.values.vgg.conv1_1.weight"], student["encode_ref.values.vgg.conv1_1.weight"])


@pytest.mark.usefixtures("narrow")
def test_the_published_restoration_freezes_its_keys_and_accumulates(tmp_path: Path, pairs: Pairs) -> None:
    recipe = tiny(stages("published")["rec"], 2)  # masks begin at zero: what lies before them moves from the second step on
    assert recipe.accumulate == 3
    trainer = Trainer(recipe, pairs(**SYNTHETIC), tmp_path)
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    trainer.run()
    after = trainer.model.state_dict()
    frozen = {k for k in before if torch.equal(before[k], after[k])}
    vgg = {k for k in before if ".keys." in k or k.startswith("encode_ref.values")}
    assert vgg <= frozen
    assert "encode_ref.warp_masks.0.weight" not in frozen
    assert "restore.scales.2.head.weight" not in frozen


@pytest.mark.usefixtures("narrow")
def test_patch_match_trains_end_to_end(tmp_path: Path, pairs: Pairs) -> None:
    recipe = replace(tiny(stages("paper")["rec"], 1), freeze=())
    trainer = Trainer(recipe, pairs(**SYNTHETIC), tmp_path)
    before = trainer.model.encode_lr.keys.state_dict()["vgg.conv1_1.weight"].clone()
    trainer.run()
    # through the relevances of two scales, which weigh the sum
    assert not torch.equal(before, trainer.model.encode_lr.keys.state_dict()["vgg.conv1_1.weight"])


# ------------------------------------------------------------------------------------------------ matching losses


def unit_features(n: int, c: int, h: int, w: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(n, c, h, w, generator=generator), dim=1)


def test_margin_loss_by_hand() -> None:
    # one query, whose true place is (2, 3) of 12x12; the nearest wrong place beyond the radius of 4 is (8, 8)
    key = torch.zeros(1, 2, 12, 12)
    key[:, 0] = -1
    key[0, :, 2, 3] = torch.tensor([1.0, 0.0])
    key[0, :, 2, 5] = torch.tensor([1.0, 0.0])  # near the truth: no negative
    key[0, :, 8, 8] = torch.tensor([0.8, 0.6])
    query = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)
    position = torch.tensor([2.0, 3.0]).view(1, 2, 1, 1) * 4 + 1.5
    known = torch.ones(1, 1, 1, dtype=torch.bool)
    expected = max(0, 1 + 0 - (2 - 2 * 0.8))
    assert margin_loss(query, key, position, known).item() == pytest.approx(expected, abs=1e-6)
    assert margin_loss(query, key, position, ~known).item() == 0


def test_distillation_is_zero_for_a_perfect_student_only() -> None:
    sharp, key, other = unit_features(2, 8, 5, 6, 0), unit_features(2, 8, 7, 4, 1), unit_features(2, 8, 5, 6, 2)
    assert distillation_loss(sharp, sharp, key).item() == pytest.approx(0, abs=1e-6)
    teacher, student = (torch.einsum("nchw,ncuv->nhwuv", f, key).flatten(3).div(0.15).softmax(3) for f in (sharp, other))
    expected = (teacher * (teacher / student).log()).sum(3).mean()
    assert distillation_loss(other, sharp, key).item() == pytest.approx(expected.item(), rel=1e-4)


# ------------------------------------------------------------------------------------------------ adversarial losses


def test_the_penalty_pulls_the_slope_to_one() -> None:
    class Linear(Critic):
        def forward(self, picture: torch.Tensor) -> torch.Tensor:
            return 3 * picture.flatten(1)[:, 0]

    real, fake = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    loss = critic_loss(Linear(4), real, fake, mixing((0, 1), 2))
    expected = 3 * (fake[:, 0, 0, 0] - real[:, 0, 0, 0]).mean() + 10 * (3 - 1) ** 2
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_mixing_is_random_but_fixed() -> None:
    assert torch.equal(mixing((0, 1), 4), mixing((0, 1), 4))
    assert not torch.equal(mixing((0, 1), 4), mixing((0, 2), 4))
    assert mixing((0, 1), 4).shape == (4, 1, 1, 1)


def test_perceptual_is_relu5_1_of_vgg19() -> None:
    perceptual = Perceptual(imagenet=False, seed=0)
    assert [type(m).__name__ for m in perceptual.layers].count("Conv2d") == 13  # conv1_1 to conv5_1
    assert isinstance(perceptual.layers[-1], torch.nn.ReLU)
    x = torch.rand(1, 3, 32, 32)
    assert perceptual(x, x).item() == 0
    assert perceptual(x, 1 - x).item() > 0
    assert perceptual.layers(x).shape == (1, 512, 2, 2)


def test_imagenet_weights_go_where_they_belong(monkeypatch: pytest.MonkeyPatch) -> None:
    def local(name: str, pretrained: bool, seed: int) -> torch.nn.Sequential:
        assert pretrained
        return imagenet_features(name, False, {"vgg16": 16, "vgg19": 19}[name])

    monkeypatch.setattr("amsa.training.imagenet.imagenet_features", local)
    model = AMSA(AMSAConfig.paper(16, 1, 4))
    begin_with_imagenet(model)
    for part, source in ((model.encode_ref.keys, 16), (model.encode_lr.keys, 16), (model.encode_ref.values, 19)):
        first = local(f"vgg{source}", True, 0)[0]
        assert torch.equal(part.vgg.conv1_1.weight, first.weight)  # type: ignore[union-attr]
    np.testing.assert_allclose(model.encode_ref.values.vgg.mean.flatten(), [0.485, 0.456, 0.406], rtol=1e-6)


def test_weights_that_cannot_be_fetched_are_one_clear_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", lambda *_, **__: (_ for _ in ()).throw(OSError("no network")))
    monkeypatch.setattr(
        "torchvision.models._api.load_state_dict_from_url", lambda *_, **__: (_ for _ in ()).throw(OSError("no network"))
    )
    with pytest.raises(AmsaError, match=r"vgg16 weights cannot be fetched \(no network\); put them into .*imagenet = false"):
        imagenet_features("vgg16", True, 0)
