"""The files of an explanation."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...config import AMSAConfig
from ...errors import AmsaError
from ..details import Details, short_names
from ..images import Photo, from_array, write_photo
from .maps import Maps, make_maps, matched_picture, regions
from .pictures import origin_map, relevance_map
from .web_page import make_page

PAGE = "explain.html"
FILES = (PAGE, "explain.json", "origin.png", "relevance.png", "matched.png")


def check_folder(folder: Path, others: Iterable[Path] = ()) -> None:
    """Make the folder that an explanation goes to.

    Raises:
        AmsaError: it cannot be one, or a file would replace one of the others. Told before the work, not after.
    """
    mine = {os.path.realpath(folder / name) for name in FILES}
    for other in others:
        if os.path.realpath(other) in mine:
            raise AmsaError(f"{other} would be replaced by a file of the explanation; choose another folder for --explain")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".amsa-{secrets.token_hex(8)}"
        probe.touch()
        probe.unlink()
    except OSError as e:
        raise AmsaError(f"{folder}: cannot hold the explanation ({e.strerror}); choose another folder") from e


def write_explanation(
    folder: Path,
    lr: Photo,
    refs: Sequence[Photo],
    sr: Photo,
    details: Details,
    config: AMSAConfig,
    *,
    names: Sequence[str | Path],
    model: str = "",
) -> None:
    """Write what the network did with a picture: `FILES`, which README.md in this folder describes.

    Args:
        folder: that `check_folder` made; files of the same names are replaced.
        lr, refs, sr: the LR photo, the reference photos, and the result.
        details: which `Upscaler.upscale_photo` filled when it made the result.
        config: the upscaler's.
        names: files of LR and of every reference.
        model: what made it, in words.
    """
    maps = make_maps(details, refs, config)
    shown = short_names(names[1:])
    matched = matched_picture(maps)
    write_photo(folder / "origin.png", from_array(origin_map(maps, shown, sr)))
    write_photo(folder / "relevance.png", from_array(relevance_map(maps)))
    write_photo(folder / "matched.png", from_array(matched))
    report = _report(maps, sr, names, model)
    _write_text(folder / "explain.json", json.dumps(report, indent=1, allow_nan=False) + "\n")
    title = f"{short_names(names[:1])[0]}, enlarged {lr.width}x{lr.height} to {sr.width}x{sr.height}"
    _write_text(folder / PAGE, make_page(maps, shown, lr, sr, matched, title, model))


def _report(maps: Maps, sr: Photo, names: Sequence[str | Path], model: str) -> dict[str, Any]:
    shares = maps.details.served()
    references = []
    for r, (file, ref) in enumerate(zip(names[1:], maps.refs, strict=True)):
        entries = maps.entries(r)
        scales = []
        for i, factor in enumerate(maps.factors, entries.start):
            weight = maps.details.weights[i]
            scale = {"factor": round(factor, 4), "restored": weight is not None}
            scale["weight"] = 0.0 if weight is None else round(float(weight.mean()), 4)
            scale["relevance"] = round(maps.mean_relevance(i), 4)
            scales.append(scale)
        size = {"width": ref.width, "height": ref.height}
        numbers = {"weight": round(shares[r], 4), "relevance": round(maps.mean_relevance(entries), 4)}
        references.append({"file": str(file), **size, **numbers, "scales": scales})
    table = []
    for region in regions(maps):
        row = asdict(region)
        table.append(row | {k: round(row[k], 4) for k in ("share", "relevance", "scale")})
    return {
        "lr": str(names[0]),
        "width": sr.width,
        "height": sr.height,
        "model": model,
        "references": references,
        "regions": table,
    }


def _write_text(path: Path, text: str) -> None:
    part = path.with_name(f".amsa-{secrets.token_hex(8)}{path.suffix}")
    try:
        try:
            part.write_text(text, encoding="utf-8", errors="backslashreplace")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as e:
        raise AmsaError(f"{path} cannot be written ({e.strerror}); check the folder and the free space") from e
