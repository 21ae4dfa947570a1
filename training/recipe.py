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


@dataclass(frozen=True)
class Weights:
    """Weights of the loss terms.

    Attributes:
        pixel: L1 between picture and truth (Eq. 11, lambda_rec).
        contrastive: cross-entropy of known correspondences over the matching's scores.
        flow: L1 between refined and known positions (variants that refine).
    """

    pixel: float = 1.0
    contrastive: float = 0.0
    flow: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        variant: "small", "paper" or "published".
        steps: optimiser steps.
        batch: samples per step, over all processes.
        crop: side of the HR crop, a multiple of 32.
        ref: side of the reference, a multiple of 32.
        lr, lr_end: learning rate of Adam, from the first to the last step by a cosine, after `warmup` steps.
        warmup: steps in which the rate rises linearly.
        betas: Adam's.
        clip: largest norm of the gradient.
        ema: decay of the averaged weights, which are the ones kept.
        two_scales: share of the steps that use the reference at two scales, so that fusion is learned.
        seed: of the weights, the samples and their order.
        validate_every, save_every: steps.
        weights, mix, warp: loss weights, kinds of references, and how synthetic ones are made.
    """

    variant: str
    steps: int
    batch: int = 4
    crop: int = 128
    ref: int = 160
    lr: float = 5e-4
    lr_end: float = 1e-5
    warmup: int = 100
    betas: tuple[float, float] = (0.9, 0.99)
    clip: float = 0.5
    ema: float = 0.999
    two_scales: float = 0.2
    seed: int = 0
    validate_every: int = 500
    save_every: int = 100
    weights: Weights = field(default_factory=Weights)
    mix: Mix = field(default_factory=Mix)
    warp: Warp = field(default_factory=Warp)

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise AmsaError(f"recipe: variant is {self.variant!r}; it must be one of {', '.join(VARIANTS)}")
        for name in ("crop", "ref"):
            if getattr(self, name) < 32 or getattr(self, name) % 32:
                raise AmsaError(f"recipe: {name} is {getattr(self, name)}; it must be a multiple of 32")
        if self.ref < self.crop:
            raise AmsaError(f"recipe: ref is {self.ref}, smaller than crop {self.crop}")


def read_recipe(path: str | Path) -> Recipe:
    """Read a TOML recipe. AmsaError names an unknown field, a missing one, or one of the wrong type."""
    try:
        values = tomllib.loads(Path(path).read_text())
    except OSError as e:
        raise AmsaError(f"{path}: cannot be read ({e.strerror})") from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise AmsaError(f"{path}: not TOML ({e})") from e
    recipe: Recipe = _build(Recipe, values, str(path))
    return recipe


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
        if isinstance(value, list):
            value = tuple(value)
        example = default if default is not MISSING else {"variant": "", "steps": 0}[name]
        if type(value) is not type(example) and not (isinstance(example, float) and type(value) is int):
            raise AmsaError(f"{source}: {name} is {value!r}; it must be like {example!r}")
        built[name] = value
    if missing := [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING and n not in built]:
        raise AmsaError(f"{source}: missing field {', '.join(missing)}")
    return cls(**built)
