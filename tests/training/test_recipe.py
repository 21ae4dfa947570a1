"""Recipes: the shipped ones are read, wrong ones are refused with a reason."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from amsa import AmsaError
from amsa.training.loop import learning_rate
from amsa.training.recipe import Recipe, Weights, read_recipe


def test_the_shipped_recipes() -> None:
    (small,) = read_recipe("small")
    assert (small.variant, small.stage, small.imagenet) == ("small", "restoration", False)
    for name in ("paper", "published"):
        stages = read_recipe(name)
        assert [s.folder for s in stages] == ["teacher", "student", "rec", "gan"]
        assert {(s.variant, s.batch, s.crop, s.ref, s.lr) for s in stages} == {(name, 9, 160, 160, 1e-4)}
        assert stages[-1].weights == Weights(1.0, 1e-4, 1e-6)
        assert stages[-2].weights == Weights(1.0)


def test_a_stage_overrides_what_stands_above(tmp_path: Path) -> None:
    text = "variant = 'paper'\nsteps = 5\nlr = 1\n[[stages]]\nstage = 'teacher'\n[[stages]]\nsteps = 7\nlr = 0.5\n"
    (tmp_path / "r.toml").write_text(text)
    teacher, restoration = read_recipe(tmp_path / "r.toml")
    assert teacher == Recipe("paper", 5, "teacher", lr=1)
    assert restoration == Recipe("paper", 7, lr=0.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("variant = 'small'", "missing field steps"),
        ("variant = 'small'\nsteps = 1\nstepz = 2", "unknown field stepz; known are variant, steps"),
        ("variant = 'small'\nsteps = '1'", "steps is '1'; it must be like 0"),
        ("variant = 'small'\nsteps = 0", "steps is 0; it must be at least 1"),
        ("variant = 'huge'\nsteps = 1", "variant is 'huge'"),
        ("variant = 'small'\nsteps = 1\nstage = 'rest'", "stage is 'rest'; it must be one of teacher, student, restoration"),
        ("variant = 'small'\nsteps = 1\nstage = 'teacher'", "small shares its match keys"),
        ("variant = 'small'\nsteps = 1\nprecision = 'int8'", "precision is 'int8'"),
        ("variant = 'small'\nsteps = 1\nbatch = 4\naccumulate = 3", "batch 4 does not divide into 3"),
        ("variant = 'small'\nsteps = 1\nscales = 6", "scales is 6; small has 5"),
        ("variant = 'small'\nsteps = 1\nbetas = [0.9]", "betas is"),
        ("variant = 'small'\nsteps = 1\nfreeze = [1]", "freeze is"),
        ("variant = 'small'\nsteps = 1\ncrop = 100", "crop is 100; it must be a multiple of 32"),
        ("variant = 'small'\nsteps = 1\ncrop = 128\nref = 96", "ref is 96, smaller than crop 128"),
        ("variant = 'small'\nsteps = 1\nmix = 3", "mix must be a table"),
        ("variant = 'small'\nsteps = 1\n[mix]\nlrr = 0.1", r"\[mix\]: unknown field lrr"),
        ("variant = 'small'\nsteps = 1\nstages = 3", r"write \[\[stages\]\]"),
        ("variant = 'small'\nsteps = 1\n[[stages]]\n[[stages]]", "two stages are called restoration"),
        ("steps = 1\n[[stages]]\nvariant='small'\n[[stages]]\nname='b'\nvariant='paper'", "all stages must train one variant"),
        ("variant = ", "not TOML"),
    ],
)
def test_wrong_recipes_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(AmsaError, match=message):
        read_recipe(tmp_path / "r.toml")


def test_an_absent_recipe_names_the_shipped_ones(tmp_path: Path) -> None:
    with pytest.raises(AmsaError, match=r"absent\.toml: cannot be read .*one of paper, published, small"):
        read_recipe(tmp_path / "absent.toml")


def test_the_learning_rate() -> None:
    recipe = Recipe("small", steps=1100, warmup=100, lr=1.0, lr_end=0.1)
    assert learning_rate(recipe, 0) == pytest.approx(0.01)
    assert learning_rate(recipe, 99) == pytest.approx(1.0)
    assert learning_rate(recipe, 600) == pytest.approx(0.55)
    assert learning_rate(recipe, 1100) == pytest.approx(0.1)
    assert learning_rate(replace(recipe, warmup=0), 0) == pytest.approx(1.0)
