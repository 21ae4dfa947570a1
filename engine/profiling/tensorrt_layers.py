"""Layer by layer under TensorRT: the times of every layer of the engines, from its profiler."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from statistics import median
from typing import TYPE_CHECKING

from .results import LayerTime

if TYPE_CHECKING:
    from ..gpu.backend import TensorRTBackend

_KINDS = {
    "deformable_sample": "DeformableSample",
    "patch_match": "PatchMatch",
    "conv": "Conv",
    "reformat": "Reformat",
    "transpose": "Transpose",
    "softmax": "Softmax",
    "upsample": "Resize",
    "resize": "Resize",
    "cat": "Concat",
}
"""What a layer is, by the first of these words in its name: an engine keeps names only, of all nodes that it fused into one."""


def time_layers(backend: TensorRTBackend, run: Callable[[TensorRTBackend], None], pictures: int) -> list[LayerTime]:
    """Time the layers of a model's engines.

    Args:
        backend: from now on it tells its layers, and is slower for it.
        run: makes one picture.
        pictures: that count; one more is made before them.

    Returns:
        A layer per stage and name; their times are medians over the pictures. What they compute and move an engine does not say.
    """
    times: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0] * pictures)
    calls: dict[tuple[str, str], int] = defaultdict(int)
    picture = -1

    def report(stage: str, name: str, milliseconds: float) -> None:
        if picture >= 0:
            times[stage, name][picture] += milliseconds
            calls[stage, name] += 1

    backend.tell_layers(report)
    for picture in range(-1, pictures):  # noqa: B007  (read by `report`)
        run(backend)
    return [
        LayerTime(stage, name, kind(name), calls[stage, name] / pictures, median(taken)) for (stage, name), taken in times.items()
    ]


def kind(name: str) -> str:
    """A layer's kind by its name."""
    lower = name.lower()
    found = {lower.find(word): op for word, op in _KINDS.items() if word in lower}
    return found[min(found)] if found else "other"
