"""From folders and a recipe to a training run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import AmsaError
from .data import ReferencePairs, read_photos
from .loop import Trainer
from .recipe import Recipe
from .validation import validator
from .views import Views

Say = Callable[[str], None]


def train(
    recipe: Recipe,
    photos: Sequence[Path],
    views: Sequence[Path],
    validation: Sequence[Path],
    folder: Path,
    *,
    until: int | None = None,
    workers: int = 0,
    say: Say = print,
) -> None:
    """Train by a recipe, or go on where the folder's state stopped.

    Args:
        recipe: what to do.
        photos: folders of any photos. views: folders that each show one scene. validation: likewise, not trained on.
        folder: where state, checkpoints and log go.
        until: stop at this step.
        workers: processes that make samples; 0: this one (on a CPU 23 ms of a 1.5 s step).
        say: is told what was read and skipped.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures, skipped = read_photos(photos, recipe.crop + 16)
    scenes = []
    for path in views:
        scene, broken = read_photos([path], recipe.ref)
        skipped += broken
        scenes.append(Views(scene))
        if len(scenes[-1]) == 0:
            raise AmsaError(f"{path}: no two photos in it show the same place; give it as plain photos instead")
    for line in skipped:
        say(f"skipped {line}")
    say(
        f"{len(pictures)} photos, {sum(map(len, scenes))} overlapping pairs of {len(scenes)} scenes, {len(skipped)} files skipped"
    )
    dataset = ReferencePairs(
        pictures,
        scenes,
        crop=recipe.crop,
        ref=recipe.ref,
        length=recipe.steps * recipe.batch,
        seed=recipe.seed,
        mix=recipe.mix,
        warp=recipe.warp,
    )
    held_out = [Views(read_photos([path], 256)[0]) for path in validation]
    trainer = Trainer(recipe, dataset, folder, validator(held_out, 192, 256, 12) if held_out else None)
    say(f"from step {trainer.step} of {recipe.steps}")
    trainer.run(until, workers)
