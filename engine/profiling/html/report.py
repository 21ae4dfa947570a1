"""Puts a profile into the page: style, scripts and numbers become one text; what is drawn of them is the scripts' matter."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ..estimate import find_gpu, stage_times
from ..files import to_json
from ..results import Estimate, Profile
from ..roofline import L2_FACTOR
from ..tables import speed_up

FILE = "profile.html"

_PAGE = Path(__file__).parent / "page"
_SCRIPTS = ("elements.js", "plots.js", "rooflines.js", "tables.js", "measured.js", "estimates.js", "report.js")
"""In the order in which they run: each uses what those before it declare."""


def make_page(profile: Profile) -> str:
    """The page as text, to be written as UTF-8. It shows the same numbers as `files.to_json`, which it holds as they are.

    Raises:
        AmsaError: an estimate is for a card that is not known.
    """
    parts = {
        "style": (_PAGE / "style.css").read_text("utf-8"),
        "script": "\n".join((_PAGE / name).read_text("utf-8") for name in _SCRIPTS),
        "profile": _embedded(to_json(profile)),
        "derived": _embedded(json.dumps(_derived(profile), allow_nan=False)),
    }
    # In one pass: what looks like a mark in a model's name stays as it is.
    return re.sub(
        r"/\*(style|script|profile|derived)\*/", lambda mark: parts[mark[1]], (_PAGE / "template.html").read_text("utf-8")
    )


def _embedded(strict: str) -> str:
    """JSON that cannot end the script element that it stands in, nor begin a comment there: both need "<". `json.dumps` has
    escaped U+2028 and all else that is not ASCII."""
    return strict.replace("<", "\\u003c")


def _derived(profile: Profile) -> dict[str, Any]:
    """What the page needs beside the profile: how many times as long as the first each takes, and each estimate's card."""
    ratios = [speed_up(profile.measured[0], run) for run in profile.measured]
    return {"ratios": ratios, "cards": [_card(estimate) for estimate in profile.estimates]}


def _card(estimate: Estimate) -> dict[str, Any]:
    """An estimate's stages, and its card's roofs in 10^9 per second: operations, and bytes."""
    card = find_gpu(estimate.gpu)
    arithmetic = [
        ("FP16 tensor cores, summed in FP16", 1e3 * card.fp16_tensor_tflops),
        ("FP16 tensor cores, summed in FP32", 1e3 * card.fp16_tensor_fp32_tflops),
        ("FP32", card.fp32 / 1e9),
    ]
    if card.fp16_tensor_tflops == card.fp16_tensor_fp32_tflops:
        arithmetic[:2] = [("FP16 tensor cores", 1e3 * card.fp16_tensor_tflops)]
    if card.sm != "sm75" and any(layer.op.endswith(" int8") for layer in estimate.layers):
        arithmetic.insert(0, ("INT8 tensor cores", 1e3 * card.int8_tensor_tops))
    memory = [("memory", card.bandwidth / 1e9), ("L2 cache, assumed", L2_FACTOR * card.bandwidth / 1e9)]
    return {"stages": stage_times(estimate), "arithmetic": arithmetic, "memory": memory}
