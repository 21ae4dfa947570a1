"""Pictures of the maps, uint8 [rows, columns, 3]: references as colours, relevance with a colour bar, legends."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ...stages import SCALE
from ..images import Photo, to_array
from .maps import Bytes, Maps

Colour = tuple[int, int, int]

# Okabe and Ito's, which the colour-blind tell apart; then hues a golden angle apart.
_COLOURS: tuple[Colour, ...] = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (204, 121, 167), (213, 94, 0), (0, 114, 178))
_GOLDEN = 0.381966
# Viridis at 0, 1/6, .. 1.
_VIRIDIS = ((68, 1, 84), (68, 57, 131), (49, 104, 142), (33, 145, 140), (53, 183, 121), (144, 215, 67), (253, 231, 37))
VIEW = 1600
"""Pixels of the longer side up to which the result is shown; larger ones are shown shrunk."""
_PALE = 200  # the gray of what no reference gave for the most part
_FONT = 14
_LINE = 22


def colours(count: int) -> list[Colour]:
    """So many colours that differ."""
    more = (colorsys.hsv_to_rgb(i * _GOLDEN % 1, 0.65, 0.9) for i in range(max(0, count - len(_COLOURS))))
    return [*_COLOURS, *((round(255 * r), round(255 * g), round(255 * b)) for r, g, b in more)][:count]


@dataclass(frozen=True)
class Layer:
    """One of the things that the map of origins distinguishes: `shares` [h, w], and their mean over the picture."""

    label: str
    colour: Colour
    shares: NDArray[np.float32]
    mean: float


def layers(maps: Maps, names: Sequence[str]) -> list[Layer]:
    """A layer for each reference; where there is one alone, for each of its scales."""
    if len(names) > 1:
        return list(map(Layer, names, colours(len(names)), maps.shares, maps.details.served()))
    labels = [f"scale {factor:.2f}" for factor in maps.factors]
    means = [0.0 if weight is None else float(weight.mean()) for weight in maps.details.weights]
    return list(map(Layer, labels, colours(len(labels)), maps.weights, means))


def tint(maps: Maps, names: Sequence[str]) -> Bytes:
    """The colours alone, [h, w, 3]: that of the layer which weighs most, paler where others weigh too."""
    found = layers(maps, names)
    shares = np.stack([layer.shares for layer in found])
    own = np.array([layer.colour for layer in found], np.float32)[shares.argmax(0)]
    strength = shares.max(0)[..., None]
    mixed: Bytes = (own * strength + _PALE * (1 - strength) + 0.5).astype(np.uint8)
    return mixed


def viridis(values: NDArray[np.float32], low: float, high: float) -> Bytes:
    """Values as colours, from dark blue (low) to yellow (high)."""
    places = np.clip((values - low) / max(high - low, 1e-6), 0, 1) * (len(_VIRIDIS) - 1)
    channels = [np.interp(places, np.arange(len(_VIRIDIS)), [colour[c] for colour in _VIRIDIS]) for c in range(3)]
    return (np.stack(channels, -1) + 0.5).astype(np.uint8)


def relevance_range(maps: Maps) -> tuple[float, float]:
    """Lowest and highest relevance shown: of 98 of 100 pixels, so that a few do not take all the colours."""
    low, high = np.percentile(maps.relevance, (1, 99))
    return float(low), float(high)


def eight_bits(photo: Photo) -> Bytes:
    """A photo's colours, [h, w, 3]."""
    return to_array(Photo(photo.rgb)).astype(np.uint8)


def shrink(picture: Bytes, side: int) -> Bytes:
    """Shrink to at most so many pixels on the longer side."""
    image = Image.fromarray(picture)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return np.asarray(image)


def origin_map(maps: Maps, names: Sequence[str], sr: Photo) -> Bytes:
    """The result in gray, tinted by the references that each place's texture came from, with a legend below."""
    view = Image.fromarray(shrink(eight_bits(sr), VIEW))
    gray = np.asarray(view.convert("L"), np.float32)[..., None] / 255
    colour = _enlarge(tint(maps, names), view.size)
    # A quarter of the colour stays where the result is black.
    picture = (colour * (0.25 + 0.75 * gray) + 0.5).astype(np.uint8)
    entries = [(f"{layer.label}: {layer.mean:.0%}", layer.colour) for layer in layers(maps, names)]
    return _below(picture, _legend(picture.shape[1], entries))


def relevance_map(maps: Maps) -> Bytes:
    """The relevance of the matches that served, with a colour bar below."""
    low, high = relevance_range(maps)
    height, width = maps.relevance.shape
    factor = min(SCALE, VIEW / max(height, width))
    picture = _enlarge(viridis(maps.relevance, low, high), (round(factor * width), round(factor * height)))
    return _below(picture, _colour_bar(picture.shape[1], low, high))


def _enlarge(picture: Bytes, size: tuple[int, int]) -> Bytes:
    """To (width, height) without smoothing: what is seen is one colour for each LR pixel."""
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.NEAREST))


def _below(picture: Bytes, strip: Bytes) -> Bytes:
    width = max(picture.shape[1], strip.shape[1])
    return np.concatenate([np.pad(p, ((0, 0), (0, width - p.shape[1]), (0, 0)), constant_values=255) for p in (picture, strip)])


def _legend(width: int, entries: Sequence[tuple[str, Colour]]) -> Bytes:
    """A line for each entry: a square of the colour, and the label; as wide as it must be."""
    font = ImageFont.load_default(size=_FONT)
    width = max(width, _LINE + 16 + int(max(font.getlength(label) for label, _ in entries)))
    strip = Image.new("RGB", (width, 8 + _LINE * len(entries)), "white")
    draw = ImageDraw.Draw(strip)
    for i, (label, colour) in enumerate(entries):
        top = 4 + _LINE * i
        draw.rectangle((8, top + 4, 8 + _FONT, top + 4 + _FONT), fill=colour)
        draw.text((8 + _LINE, top + _LINE / 2), label, fill="black", font=font, anchor="lm")
    return np.asarray(strip)


def _colour_bar(width: int, low: float, high: float) -> Bytes:
    """The colours from low to high, with numbers at the ends and "relevance" between them where it fits."""
    font = ImageFont.load_default(size=_FONT)
    ends = f"{low:.2f}", f"{high:.2f}"
    width = max(width, int(sum(map(font.getlength, ends))) + 32)
    strip = Image.new("RGB", (width, 20 + _LINE), "white")
    bar = viridis(np.linspace(0, 1, width - 16, dtype=np.float32)[None].repeat(12, 0), 0, 1)
    strip.paste(Image.fromarray(bar), (8, 6))
    draw = ImageDraw.Draw(strip)
    draw.text((8, 20 + _LINE / 2), ends[0], fill="black", font=font, anchor="lm")
    draw.text((width - 8, 20 + _LINE / 2), ends[1], fill="black", font=font, anchor="rm")
    if width > sum(map(font.getlength, (*ends, "relevance"))) + 48:
        draw.text((width / 2, 20 + _LINE / 2), "relevance", fill="black", font=font, anchor="mm")
    return np.asarray(strip)
