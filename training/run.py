"""From folders and a recipe to a training run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..errors import AmsaError
from . import distributed
from .data import Mix, PhotoFiles, ReferencePairs, find_photos, usable
from .layouts import Case, read_layout
from .loop import Progress, Trainer, Validate
from .recipe import Recipe
from .synthetic import Image8
from .validation import given_pairs, scene_pairs, validator
from .views import Views

Say = Callable[[str], None]

# Pairs that are validated on; their crops. 12 of a scene take 6 s on 2 cores, once in `validate_every` steps.
_PAIRS, _CROP, _REF = 12, 192, 256


@dataclass(frozen=True)
class Sources:
    """Where the pictures are; at least one of `photos` and `pairs`.

    Attributes:
        photos: folders of any photos, from which references are made.
        views: folders that each hold photos of one scene.
        pairs: pictures with references of their own, as `layouts.py` reads them.
        validation: folders of views or of pairs that are not trained on.
    """

    photos: Sequence[Path] = ()
    views: Sequence[Path] = ()
    pairs: Sequence[Path] = ()
    validation: Sequence[Path] = ()


def train(
    recipes: Sequence[Recipe],
    sources: Sources,
    folder: Path,
    *,
    init: Path | None = None,
    until: int | None = None,
    workers: int = 0,
    device: torch.device | str = "cpu",
    tensorboard: bool = False,
    say: Say = print,
    report: Callable[[Recipe, Progress], None] | None = None,
) -> Path:
    """Train the stages of a recipe one after the other, or go on where the folder's state stopped.

    Args:
        recipes: the stages, of `read_recipe`.
        sources: where the pictures are.
        folder: each stage has a folder in it, with state, checkpoints and log.
        init: checkpoint that the first stage begins with.
        until: stop at this step of the stage that is in progress.
        workers: processes that make samples; 0: this one (4 ms a sample).
        device: to compute on.
        tensorboard: also write TensorBoard events.
        say: is told what was read and skipped, once.
        report: is called after every step.

    Returns:
        The last stage's checkpoint: the best by validation where there was one, otherwise the last.
    """
    say = say if distributed.rank() == 0 else _say_nothing
    if not sources.photos and not sources.pairs:
        raise AmsaError("nothing to train on: give --photos or --pairs")
    recipe = recipes[0]
    for stage in recipes:
        if stage.stage != "restoration" and not sources.photos:
            raise AmsaError(f"stage {stage.stage} learns from known correspondences, which --photos give; add some")
    material = _read(recipes, sources, say)
    kept = init
    for recipe in recipes:
        place = folder / recipe.folder
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise AmsaError(f"{place}: cannot be made a folder ({e.strerror}); choose another with --output") from e
        trainer = Trainer(
            recipe,
            material.dataset(recipe),
            place,
            material.validate if recipe.stage == "restoration" else None,
            init=kept,
            device=device,
            report=None if report is None else lambda p, r=recipe: report(r, p),  # type: ignore[misc]
            tensorboard=tensorboard,
        )
        say(f"{recipe.folder}: from step {trainer.step} of {recipe.steps}, on {trainer.device}")
        trainer.run(until, workers)
        best, last = place / "best.safetensors", place / "last.safetensors"
        kept = best if best.exists() else last
        if not trainer.done:
            break
    assert kept is not None
    return kept


@dataclass(frozen=True)
class _Material:
    photos: Sequence[Image8]
    views: Sequence[Views]
    pairs: Sequence[Case]
    validate: Validate | None

    def dataset(self, recipe: Recipe) -> ReferencePairs:
        # The matching stages need known correspondences, which synthetic references alone have.
        mix = recipe.mix if recipe.stage == "restoration" else Mix(0, 0, 0, 0, 0)
        return ReferencePairs(
            self.photos,
            self.views,
            self.pairs if recipe.stage == "restoration" else (),
            crop=recipe.crop,
            ref=recipe.ref,
            length=recipe.steps * recipe.batch,
            seed=recipe.seed,
            mix=mix,
            warp=recipe.warp,
        )


def _read(recipes: Sequence[Recipe], sources: Sources, say: Say) -> _Material:
    crop, ref = max(r.crop for r in recipes), max(r.ref for r in recipes)
    skipped: list[str] = []
    photos: Sequence[Image8] = ()
    if sources.photos:
        found, skipped = find_photos(sources.photos, crop + 16)
        photos = PhotoFiles(found)
    scenes = [_scene(path, ref, skipped) for path in sources.views]
    pairs: list[Case] = []
    for path in sources.pairs:
        pairs += _cases(path, crop, skipped)
    held_out = []
    for path in sources.validation:
        held_out += _held_out(path, skipped)
    for line in skipped:
        say(f"skipped {line}")
    overlaps = sum(map(len, scenes))
    say(
        f"{len(photos)} photos, {overlaps} overlapping pairs of {len(scenes)} scenes, {len(pairs)} given pairs, "
        f"{len(held_out)} pairs to validate on, {len(skipped)} skipped"
    )
    return _Material(photos, scenes, pairs, validator(held_out) if held_out else None)


def _scene(path: Path, smallest: int, skipped: list[str]) -> Views:
    found, broken = find_photos([path], smallest)
    skipped += broken
    scene = Views([PhotoFiles(found)[i] for i in range(len(found))])
    if len(scene) == 0:
        raise AmsaError(f"{path}: no two photos in it show the same place; give it as plain photos instead")
    return scene


def _cases(path: Path, crop: int, skipped: list[str]) -> list[Case]:
    """The cases whose picture holds a crop and that have a usable reference."""
    layout = read_layout(path)
    skipped += [f"{path}: {problem}" for problem in layout.problems]
    hrs, broken = usable([case.hr for case in layout.cases], crop)
    refs, also_broken = usable(list({ref for case in layout.cases for ref in case.refs}), 1)
    skipped += broken + also_broken
    good, fine = set(hrs), set(refs)
    cases = [replace(case, refs=tuple(r for r in case.refs if r in fine)) for case in layout.cases if case.hr in good]
    cases = [case for case in cases if case.refs]
    if not cases:
        raise AmsaError(f"{path}: no usable pair of picture and reference; {layout.kind} pictures must be at least {crop} a side")
    return cases


def _held_out(path: Path, skipped: list[str]) -> list[tuple[Image8, Image8]]:
    layout = read_layout(path)
    if not any(case.refs for case in layout.cases):
        return scene_pairs([_scene(path, _REF, skipped)], _CROP, _REF, _PAIRS)
    cases = _cases(path, 32, skipped)
    side = min(_CROP, *(min(PhotoFiles([case.hr])[0].shape[:2]) // 32 * 32 for case in cases[:50]))
    data = ReferencePairs(
        (), (), cases, crop=side, ref=_REF, length=_PAIRS, seed=0, mix=Mix(1.0, 0, 0, 0, 0), warp=Recipe("small", 1).warp
    )
    return given_pairs(data, _PAIRS)


def _say_nothing(_: str) -> None:
    """Processes but the first."""
