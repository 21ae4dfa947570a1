"""A training recipe: a small TOML file, every field documented here, unknown ones refused."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from ..config import VARIANTS
from ..errors import AmsaError
from .data import Mix
from .synthetic import Warp

SHIPPED = Path(__file__).parent / "recipes"
_CHOICES = {
    "variant": tuple(VARIANTS),
    "stage": ("teacher", "student", "restoration"),
    "matching": ("exhaustive", "patch_match"),
    "precision": ("float32", "bfloat16", "float16"),
}


@dataclass(frozen=True)
class Weights:
    """Weights of the loss terms.

    Attributes:
        pixel: L1 between picture and truth (Eq. 11, lambda_rec).
        perceptual: squared distance of VGG19's relu5_1 (lambda_per).
        adversarial: WGAN-GP (lambda_adv).
        contrastive: known correspondences against all other places of the reference. Teacher and student: hardest
            negative by a margin; restoration: cross-entropy over the matching's scores.
        distillation: student only: divergence of its correspondences from the teacher's.
        flow: L1 between refined and known positions (variants that refine).
    """

    pixel: float = 1.0
    perceptual: float = 0.0
    adversarial: float = 0.0
    contrastive: float = 0.0
    distillation: float = 0.0
    flow: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """How one stage of a network's training goes.

    Attributes:
        variant: "small", "paper" or "published".
        steps: optimiser steps.
        stage: what is trained. "teacher": the reference's match keys, on sharp pairs. "student": the LR picture's, to
            agree with the teacher's. "restoration": everything else, and what `freeze` does not name.
        name: of the stage's folder; empty: as `stage`.
        imagenet: begin with torchvision's ImageNet weights of VGG16 (keys) and VGG19 (values, perceptual loss); without
            it these begin at random.
        freeze: names of parts that are not trained, as "encode_ref.values".
        batch: samples per step, over all processes and accumulated parts.
        accumulate: parts that a step's batch is computed in, one after the other: less memory, equal result but for
            terms that average over known correspondences.
        crop: side of the HR crop, a multiple of 32.
        ref: side of the reference, a multiple of 32.
        scales: how many scales of the reference every step uses, largest first.
        extra_scale: share of the steps that use one further scale, so that fusion is learned.
        matching: "patch_match" trains with the network's own matching, "exhaustive" with the best of all patches.
        precision: "float32", or "bfloat16" or "float16" for convolutions under autocast; matching and sampling stay float32.
        lr, lr_end: learning rate of Adam, from the first to the last step by a cosine, after `warmup` steps.
        offset_rates: factors on the learning rate of the offset and mask convolutions at x1, x2 and x4.
        warmup: steps in which the rate rises linearly.
        betas: Adam's.
        clip: largest norm of the gradient; 0: any.
        ema: decay of the averaged weights, which are the ones kept; 0: keep the last.
        seed: of the weights, the samples and their order.
        validate_every, save_every: steps.
        weights, mix, warp: loss weights, kinds of references, and how synthetic ones are made.
    """

    variant: str
    steps: int
    stage: str = "restoration"
    name: str = ""
    imagenet: bool = False
    freeze: tuple[str, ...] = ()
    batch: int = 4
    accumulate: int = 1
    crop: int = 128
    ref: int = 160
    scales: int = 1
    extra_scale: float = 0.0
    matching: str = "patch_match"
    precision: str = "float32"
    lr: float = 5e-4
    lr_end: float = 1e-5
    offset_rates: tuple[float, float, float] = (1.0, 1.0, 1.0)
    warmup: int = 100
    betas: tuple[float, float] = (0.9, 0.99)
    clip: float = 0.5
    ema: float = 0.999
    seed: int = 0
    validate_every: int = 500
    save_every: int = 100
    weights: Weights = field(default_factory=Weights)
    mix: Mix = field(default_factory=Mix)
    warp: Warp = field(default_factory=Warp)

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise AmsaError(f"recipe: {name} is {getattr(self, name)!r}; it must be one of {', '.join(allowed)}")
        for name in ("crop", "ref"):
            if getattr(self, name) < 32 or getattr(self, name) % 32:
                raise AmsaError(f"recipe: {name} is {getattr(self, name)}; it must be a multiple of 32")
        if self.ref < self.crop:
            raise AmsaError(f"recipe: ref is {self.ref}, smaller than crop {self.crop}")
        for name in ("steps", "batch", "accumulate", "scales", "validate_every", "save_every"):
            if getattr(self, name) < 1:
                raise AmsaError(f"recipe: {name} is {getattr(self, name)}; it must be at least 1")
        if self.batch % self.accumulate:
            raise AmsaError(f"recipe: batch {self.batch} does not divide into {self.accumulate} accumulated parts")
        config = VARIANTS[self.variant]()
        if self.scales > config.ref_scales:
            raise AmsaError(f"recipe: scales is {self.scales}; {self.variant} has {config.ref_scales}")
        if self.stage != "restoration" and config.encoder != "vgg":
            raise AmsaError(f"recipe: {self.variant} shares its match keys; it has no stage {self.stage!r}, only restoration")

    @property
    def folder(self) -> str:
        """The stage's folder in the run's."""
        return self.name or self.stage


def read_recipe(path: str | Path) -> tuple[Recipe, ...]:
    """Read a TOML recipe: the name of a shipped one (`small`, `paper`, `published`) or a file.

    A file with `[[stages]]` trains them one after the other, each beginning with the weights before it; what stands above
    them holds for all. AmsaError names an unknown field, a missing one, or one of the wrong type.
    """
    shipped = SHIPPED / f"{path}.toml"
    source = shipped if shipped.exists() else Path(path)
    try:
        values = tomllib.loads(source.read_text())
    except OSError as e:
        names = ", ".join(sorted(p.stem for p in SHIPPED.glob("*.toml")))
        raise AmsaError(f"{path}: cannot be read ({e.strerror}); give a TOML file or one of {names}") from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise AmsaError(f"{path}: not TOML ({e})") from e
    stages = values.pop("stages", [{}])
    if not isinstance(stages, list) or not stages or not all(isinstance(stage, dict) for stage in stages):
        raise AmsaError(f"{path}: stages must be tables: write [[stages]]")
    recipes = tuple(_build(Recipe, {**values, **stage}, str(path)) for stage in stages)
    folders = [recipe.folder for recipe in recipes]
    if len(set(folders)) < len(folders):
        raise AmsaError(f"{path}: two stages are called {max(folders, key=folders.count)}; give each a name of its own")
    if len({recipe.variant for recipe in recipes}) > 1:
        raise AmsaError(f"{path}: all stages must train one variant")
    return recipes


def _build(cls: type[Any], values: Mapping[str, Any], source: str) -> Any:
    known = {f.name: f for f in fields(cls)}
    if unknown := sorted(set(values) - set(known)):
        raise AmsaError(f"{source}: unknown field {', '.join(unknown)}; known are {', '.join(known)}")
    built: dict[str, Any] = {}
    for name, value in values.items():
        factory = known[name].default_factory
        default = known[name].default if factory is MISSING else factory()
        if is_dataclass(default):
            if not isinstance(value, dict):
                raise AmsaError(f"{source}: {name} must be a table")
            built[name] = _build(type(default), value, f"{source} [{name}]")
            continue
        plain = tuple(value) if isinstance(value, list) else value
        example = default if default is not MISSING else {"variant": "", "steps": 0}[name]
        if not _alike(plain, example):
            raise AmsaError(f"{source}: {name} is {value!r}; it must be like {example!r}")
        built[name] = plain
    if missing := [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING and n not in built]:
        raise AmsaError(f"{source}: missing field {', '.join(missing)}")
    return cls(**built)


def _alike(value: Any, example: Any) -> bool:
    if isinstance(example, float):
        return type(value) in (int, float)
    if isinstance(example, tuple) and isinstance(value, tuple):
        if not example:  # any number of names
            return all(isinstance(v, str) for v in value)
        return len(value) == len(example) and all(map(_alike, value, example))
    return type(value) is type(example)
