"""What the kernels have to do for a whole picture: their launches, with the bytes and operations that each needs at least."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from .deformable_sample.plan import SampleParams, deformable_sample_plan
from .launch import Launch
from .patch_match.plan import Addresses, MatchParams, patch_match_plan

Work = tuple[str, float, float]
"""One launch: kernel, bytes moved to and from global memory, floating-point operations (int8: integer ones)."""

_CANDIDATES = 9


def launch_work(launch: Launch, item: int) -> Work:
    """The work of a launch. Bytes: every input read and every output written once, as if caches caught all that repeats.
    Operations: multiply-adds count two; of a step's candidates all nine count, though equal ones are skipped.

    Args:
        launch: of one of the ops' plans, with a batch of 1.
        item: bytes of a feature.
    """
    p, kernel = launch.params, launch.kernel
    if isinstance(p, SampleParams):
        outputs = 9 * p.c * p.height * p.width
        learned = (27 if p.with_offsets else 9) * p.groups * p.height * p.width
        field = 8 * (p.height // p.scale + 2) * (p.width // p.scale + 2)
        # A tile, or a picture smaller than the reference, reads a part of it: samples of neighbours are neighbours, mostly.
        value = p.c * min(p.rows * p.cols, p.height * p.width)
        return kernel, item * (value + learned + outputs) + field, 8 * outputs  # four corners
    assert isinstance(p, MatchParams)
    positions, ref, query = p.height * p.width, p.ref_rows * p.ref_cols, p.query_rows * p.query_cols
    size, c = (1, p.c_int8) if "int8" in kernel else (item, p.c)
    if "_step_" in kernel:
        # Features, one over each norm, and of each position match and score before and after, and what has settled.
        return kernel, size * c * (query + ref) + 4 * ref + (2 * 12 + 8) * positions, 2 * _CANDIDATES * 9 * c * positions
    if "_energy_" in kernel:
        return kernel, size * c * ref + 4 * ref, 2 * c * ref
    if "_norm" in kernel:
        return kernel, 8 * ref, 11 * ref
    if "_largest_" in kernel:
        return kernel, item * p.c * (query + ref), p.c * (query + ref)
    if "_quantize_" in kernel:
        return kernel, (item * p.c + p.c_int8) * (query + ref), p.c * (query + ref)
    return kernel, 8, 0  # clear


def small_model_work(height: int, width: int, arithmetic: str) -> Iterator[Work]:
    """The ops of the small model, float16, for an LR picture of height x width and one reference of four times that size."""
    iterations = (8, 1, 1, 1)
    for level in (3, 2, 1, 0):
        size = (height >> level, width >> level)
        scale = 1 if level == 3 else 2
        init = size if level == 3 else (size[0] // 2, size[1] // 2)
        features = (1, 16, *size)
        launches = patch_match_plan(
            features,
            features,
            (1, 2),
            (1, 2, *init),
            Addresses(*[0] * 7),
            dtype="float16",
            iterations=iterations[3 - level],
            schedule="fast",
            level=level,
            pad=int(level > 0),
            init_scale=scale,
            arithmetic=arithmetic,
        )
        yield from (launch_work(launch, 2) for launch in launches)
    for scale, channels in ((1, 40), (2, 32), (4, 16)):
        value, learned = ((1, c, scale * height, scale * width) for c in (channels, 27))
        match = (1, 2, height + 2, width + 2)
        for launch in deformable_sample_plan(value, match, learned, (0, 0, 0, 0), dtype="float16", scale=scale, groups=1):
            yield launch_work(launch, 2)


def workloads() -> list[tuple[str, Callable[[], Iterator[Work]]]]:
    """Names and work of what the static report estimates."""
    return [
        (
            f"small model's ops, LR {width}x{height}, one reference, {arithmetic}",
            partial(small_model_work, height, width, arithmetic),
        )
        for width, height in ((480, 320), (1280, 720))
        for arithmetic in ("float", "int8")
    ]
