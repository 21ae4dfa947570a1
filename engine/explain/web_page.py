"""One HTML file that shows all of it, with nothing loaded from anywhere: pictures and numbers are inside."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...stages import SCALE
from ..images import Photo, resize_bicubic
from .maps import Bytes, Maps
from .pictures import VIEW, colours, eight_bits, layers, relevance_range, shrink, tint, viridis

REFERENCE_SIDE = 1000
CELLS_SIDE = 256
"""Places of the result that can be pointed at, along the longer side: 256 x 192 are 1.2 MB of the page."""

_PAGE = Path(__file__).parent / "page"


def make_page(maps: Maps, names: Sequence[str], lr: Photo, sr: Photo, matched: Bytes, title: str, facts: str) -> str:
    """The page as text.

    Args:
        maps: of this result.
        names: of the references, as they are shown.
        lr, sr: the LR photo and the result.
        matched: `maps.matched_picture`.
        title: of the page.
        facts: the line below it.
    """
    shares = maps.details.served()
    references = []
    for r, (name, ref, colour) in enumerate(zip(names, maps.refs, colours(len(names)), strict=True)):
        shown = shrink(eight_bits(ref), REFERENCE_SIDE)
        references.append(
            {
                "name": name,
                "width": ref.width,
                "height": ref.height,
                "shown": [shown.shape[1], shown.shape[0]],
                "picture": _jpeg(shown, ref),
                "share": shares[r],
                "relevance": maps.mean_relevance(maps.entries(r)),
                "scales": ", ".join(f"{factor:.2f}" for factor in restored_factors(maps, r)) or "none",
                "colour": _css(colour),
            }
        )
    result = shrink(eight_bits(sr), VIEW)
    height, width = result.shape[:2]
    bicubic = eight_bits(Photo(resize_bicubic(lr.rgb, height, width)))
    low, high = relevance_range(maps)
    data = {
        "title": title,
        "facts": facts,
        "notes": _notes(maps, result, sr),
        "result": {
            "full": [sr.width, sr.height],
            "shown": [width, height],
            "sr": _jpeg(result, sr),
            "bicubic": _jpeg(bicubic, sr),
        },
        "overlays": {
            "origin": _png(shrink(tint(maps, names), VIEW)),
            "relevance": _png(shrink(viridis(maps.relevance, low, high), VIEW)),
            "matched": _jpeg(shrink(matched, VIEW), sr),
        },
        "legend": [{"label": layer.label, "colour": _css(layer.colour), "share": layer.mean} for layer in layers(maps, names)],
        "relevance": {
            "low": low,
            "high": high,
            "colours": [_css(c) for c in viridis(np.linspace(0, 1, 13, dtype=np.float32), 0, 1).tolist()],
        },
        "factors": maps.factors,
        "references": references,
        "cells": _cells(maps),
    }
    # Inside <script> only "<" could end it; escaped, no name or text can.
    text = json.dumps(data, allow_nan=False).replace("<", "\\u003c")
    page = (_PAGE / "page.html").read_text("utf-8")
    for mark, file in (("/*style*/", "page.css"), ("/*script*/", "page.js")):
        page = page.replace(mark, (_PAGE / file).read_text("utf-8"))
    return page.replace("/*data*/", text)


def restored_factors(maps: Maps, reference: int) -> list[float]:
    """The scales of a reference that the picture was restored from."""
    weights = maps.details.weights[maps.entries(reference)]
    return [factor for factor, weight in zip(maps.factors, weights, strict=True) if weight is not None]


def _cells(maps: Maps) -> dict[str, Any]:
    """What the page tells of a place, on a grid of LR pixels that is thinned out where there are too many."""
    step = _step(maps)
    every = np.s_[step // 2 :: step, step // 2 :: step]
    reference, scale = maps.reference[every], maps.scale[every]
    share = np.take_along_axis(maps.shares, maps.reference[None], 0)[0][every]
    y, x = np.moveaxis(maps.position[every], -1, 0)
    tables: dict[str, NDArray[Any]] = {
        "reference": reference.astype("<u2"),
        "scale": scale.astype("u1"),
        "share": (100 * share + 0.5).astype("u1"),
        "relevance": maps.relevance[every].astype("<f4"),
        "x": x.astype("<f4"),
        "y": y.astype("<f4"),
    }
    sizes = {"rows": reference.shape[0], "cols": reference.shape[1]}
    return sizes | {name: base64.b64encode(table.tobytes()).decode() for name, table in tables.items()}


def _step(maps: Maps) -> int:
    return -(-max(map(int, maps.entry.shape)) // CELLS_SIDE)


def _notes(maps: Maps, result: Bytes, sr: Photo) -> str:
    """What the page does not show in full."""
    notes = []
    if result.shape[1] < sr.width:
        notes.append(f"The result is {sr.width}x{sr.height} and shown at {result.shape[1]}x{result.shape[0]}.")
    if any(max(ref.width, ref.height) > REFERENCE_SIDE for ref in maps.refs):
        notes.append(f"References are shown at {REFERENCE_SIDE} pixels at most.")
    if _step(maps) > 1:
        size = _step(maps) * SCALE
        notes.append(f"One place in {size}x{size} pixels of the result can be pointed at.")
    return " ".join(notes)


def _css(colour: Sequence[int]) -> str:
    return f"rgb({colour[0]} {colour[1]} {colour[2]})"


def _png(picture: Bytes) -> str:
    return _data_uri(picture, "png", {"optimize": True})


def _jpeg(picture: Bytes, colours_of: Photo) -> str:
    """With the photo's ICC profile, which is one of RGB only where the photo is not gray."""
    profile = None if colours_of.gray else colours_of.icc
    return _data_uri(picture, "jpeg", {"quality": 90, "subsampling": 0, "icc_profile": profile})


def _data_uri(picture: Bytes, kind: str, options: dict[str, Any]) -> str:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
