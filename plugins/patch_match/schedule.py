"""Which propagation steps a level runs: pure integer arithmetic, shared by the reference and, later, the launch plans."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """One propagation. `lr` true: candidates are the neighbours' matches; false: the neighbours of one's own match.

    `jitter` moves each Ref candidate by jitter * (JITTER_Y, JITTER_X) of its tap (published code only). `shifted`: a
    neighbour's match is moved back by how far the neighbour is away, as in classical PatchMatch: neighbours show neighbours.
    """

    lr: bool
    dilation: int
    jitter: int = 0
    shifted: bool = False


# The nine taps of every propagation in row-major order; the fifth is the position itself.
TAPS = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1))
# The published code's jitter directions per tap.
JITTER_Y = (1, 0, 0, 1, 0, -1, 0, 0, -1)
JITTER_X = (0, -1, -1, 0, 0, 0, 1, 1, 0)


def level_valid(valid: int, level: int) -> int:
    """Rows (or columns) of a level's reference features that hold picture, from level 0's."""
    return -(-valid // (1 << level))


def confined_valid(valid: int, rows: int, level: int) -> int:
    """Level 0's rows (or columns) that hold picture, where a level's features have so many: from 1 to all of them."""
    return min(max(valid, 1), rows << level)


def published_reach(height: int, width: int) -> int:
    """Number of dilations 1, 2, 4, .. for a level-0 feature map of this size: floor(log2((min side - 3) // 8)) + 1.

    The published code fails below 11 (log2 of 0); here one dilation remains.
    """
    return max(1, ((min(height, width) - 3) // 8).bit_length())


def paper_reach(height: int, width: int) -> int:
    """Number of dilations for a grid of N = height * width positions: the least t >= 1 with 8 * 2^t >= sqrt(N).

    The paper repeats for t < log2(sqrt(N) / 8), which is empty below 8x8; one dilation remains there.
    """
    reach = 1
    while 64 * 4**reach < height * width:
        reach += 1
    return reach


def steps(schedule: str, iterations: int, level: int, query: tuple[int, int], valid: tuple[int, int]) -> list[Step]:
    """All propagation steps of a level.

    Args:
        schedule: "published", "paper" or "fast"; "exact" has no steps.
        iterations: M of the paper.
        level: the level's number; 0 is the finest.
        query: (rows, columns) of the query features at this level.
        valid: (rows, columns) of the reference features at level 0 that hold picture.
    """
    if schedule == "published":
        lr_reach = published_reach(query[0] * 2**level, query[1] * 2**level)
        ref_reach = published_reach(*valid)
        return [
            step
            for i in range(iterations)
            for step in (
                *(Step(True, 2**t) for t in range(lr_reach)),
                *(Step(False, 2**t, jitter=i % 2**t) for t in range(ref_reach)),
            )
        ]
    reach = range(paper_reach(*query))
    if schedule == "fast":  # far neighbours first, then the surroundings of what they gave
        once = [step for t in reversed(reach) for step in (Step(True, 2**t, shifted=True), Step(False, 1))]
    else:
        once = [Step(lr, 2**t) for t in reach for lr in (True, False)]
    return once * iterations
