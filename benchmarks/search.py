"""Matching problems and the searches that are compared on them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from amsa.model import load_checkpoint
from amsa.model.features import unit
from amsa.model.matching import initial_matches
from amsa.plugins.patch_match.cpu import patch_match
from amsa.stages import KEY_LEVELS, SCALE
from amsa.training.evaluation.scenes import find_window
from amsa.training.layouts import read_layout

LEVELS = len(KEY_LEVELS)
Iterations = tuple[int, int, int, int]
"""At 1/8, 1/4, 1/2 and full matching resolution."""


@dataclass(frozen=True)
class Problem:
    """Features of LR and reference, finest first: [1, C, H / 2^level, W / 2^level]. All of the reference is picture."""

    queries: tuple[Tensor, ...]
    keys: tuple[Tensor, ...]

    @property
    def valid(self) -> Tensor:
        return torch.tensor([self.keys[0].shape[2:]], dtype=torch.int32)

    @property
    def positions(self) -> int:
        """Matching positions of the finest level, where only whole patches count."""
        return (self.queries[0].shape[2] - 2) * (self.queries[0].shape[3] - 2)


# ------------------------------------------------------------------------------------------------------------- problems


def _pyramid(x: Tensor) -> tuple[Tensor, ...]:
    levels = [x]
    for _ in KEY_LEVELS[1:]:
        levels.append(F.avg_pool2d(levels[-1], 2))
    return tuple(map(unit, levels))


def random_problem(channels: int, side: int, seed: int = 0) -> Problem:
    """Unit vectors without any structure: nothing repeats, no two neighbours agree. The worst case of a search."""
    generator = torch.Generator().manual_seed(seed)
    sides = [side // n for n in KEY_LEVELS]
    query, key = (tuple(unit(torch.randn(1, channels, s, s, generator=generator)) for s in sides) for _ in range(2))
    return Problem(query, key)


def smooth_problem(channels: int, side: int, ref_side: int | None = None, seed: int = 0) -> Problem:
    """A smooth random texture and, with noise, the same shifted by a few positions, cut or continued to `ref_side`."""
    generator = torch.Generator().manual_seed(seed)
    ref_side = ref_side or side
    world = torch.randn(1, channels, *[max(side, ref_side) + 12] * 2, generator=generator)
    world = F.avg_pool2d(world, 5, 1)  # 8 more than needed remain
    query, key = world[:, :, :side, :side], world[:, :, 3 : 3 + ref_side, 5 : 5 + ref_side]
    return Problem(_pyramid(query), _pyramid(key + 0.5 * world.std() * torch.randn(key.shape, generator=generator)))


def photo_problems(data: Path, weights: Path, side: int) -> Iterator[Problem]:
    """Neighbouring photos of one scene, as the shipped model sees them: the LR picture of the middle of each, and in the
    next one the window of the same size that looks most like it.

    The photos are halved where the crop still fits: at full size they are soft.
    """
    model, _ = load_checkpoint(weights)
    photos = [Image.open(case.hr).convert("RGB") for case in read_layout(data, "photos").cases]
    crop = SCALE * side
    if min(min(p.size) for p in photos) >= 2 * crop:
        photos = [p.reduce(2) for p in photos]
    pictures = [np.asarray(p) for p in photos]
    for picture, other in itertools.pairwise(pictures):
        top, left = ((n - crop) // 2 for n in picture.shape[:2])
        hr = Image.fromarray(picture[top : top + crop, left : left + crop])
        lr = np.asarray(hr.resize((side, side), Image.Resampling.BICUBIC))
        w = find_window(lr, [other], crop)
        ref = other[w.top : w.top + crop, w.left : w.left + crop]
        with torch.inference_mode():
            queries, _ = model.encode_lr(_to_tensor(lr))
            keys, _, _ = model.encode_ref(_to_tensor(ref))
        yield Problem(tuple(q.clone() for q in queries), tuple(k.clone() for k in keys))


def _to_tensor(picture: np.ndarray) -> Tensor:
    return torch.from_numpy(picture.astype(np.float32) / 255).permute(2, 0, 1)[None]


# ------------------------------------------------------------------------------------------------------------- searches


@dataclass(frozen=True)
class Found:
    """Matches of the finest level [1, 2, H-2, W-2], and how many scores were computed for them on all levels."""

    match: Tensor
    evaluations: int


def coarsest_matches(p: Problem, seed: int) -> Tensor:
    """Random matches to begin with."""
    start = torch.tensor([seed], dtype=torch.int32)
    _, _, rows, cols = p.queries[-1].shape
    return initial_matches(start, rows, cols, torch.tensor([p.keys[-1].shape[2:]]))


def coarse_to_fine(
    p: Problem, schedule: str, iterations: Sequence[int], arithmetic: str = "float", seed: int = 0, until: int = 0
) -> Found:
    """The network's search (`Matcher`) with the C++ kernel, down to level `until`."""
    match, evaluations = coarsest_matches(p, seed), [0]
    for level in reversed(range(until, LEVELS)):
        match, _ = patch_match(
            p.queries[level],
            p.keys[level],
            p.valid,
            match,
            iterations=iterations[LEVELS - 1 - level],
            schedule=schedule,
            level=level,
            pad=int(level > 0),
            init_scale=1 if level == LEVELS - 1 else 2,
            arithmetic=arithmetic,
            evaluations=evaluations,
        )
    return Found(match, sum(evaluations))


def exact(p: Problem, arithmetic: str = "float") -> Found:
    """The C++ kernel's exact search on the finest level."""
    init = torch.zeros((1, 2, p.queries[0].shape[2] - 2, p.queries[0].shape[3] - 2), dtype=torch.int32)
    evaluations: list[int] = []
    match, _ = patch_match(
        p.queries[0],
        p.keys[0],
        p.valid,
        init,
        iterations=1,
        schedule="exact",
        level=0,
        pad=0,
        init_scale=1,
        arithmetic=arithmetic,
        evaluations=evaluations,
    )
    return Found(match, evaluations[0])


def reference_patches(key: Tensor) -> Tensor:
    """All patches, normalised: [1, C, H, W] -> [9*C, (H-2)*(W-2)]."""
    return F.normalize(F.unfold(key, 3)[0], dim=0)


def unfolded_exact(query: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
    """Exhaustive search by unfold, matmul and max: query [1, C, H, W] -> scores and indices [(H-2)*(W-2)].

    1024 query positions at a time: faster than all at once, and a large reference fits in memory.
    """
    parts = F.unfold(query, 3)[0].T.split(1024)
    scores, indices = zip(*((part @ patches).max(1) for part in parts), strict=True)
    return torch.cat(scores), torch.cat(indices)
