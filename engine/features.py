"""What is encoded: the references' features, made when they are needed and kept while memory lasts; and LR's, in parts."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import AMSAConfig
from ..stages import KEY_LEVELS, LR_MIN, LR_MULTIPLE, REF_MULTIPLE, SCALE, VALUE_SCALES
from .images import Photo
from .memory import OutOfMemory, telling
from .references import EncodedReference, EncodedScale, lr_and_scales, prepare_scale
from .tiling import Window, cut, in_windows

Tensors = Mapping[str, Any]
Size = tuple[int, int]

_KEYS, _VALUES = "key_", ("value_", "warp_mask_")
_SMALLEST_PART = 512**2
"""Pixels of a reference, with its halo, below which smaller parts save little."""


class ScaleFeatures:
    """A reference at one scale.

    Args:
        valid: rows and columns of the finest keys that are picture.
        encode: makes keys, values and masks, or those of them whose names begin with one of the words given.
        values_of: published protocol: the scale whose values are taken, if not its own.
        encoded: features that someone else holds: nothing is made, nothing is dropped.
    """

    def __init__(
        self,
        valid: Any,
        encode: Callable[[tuple[str, ...]], Tensors] | None = None,
        values_of: ScaleFeatures | None = None,
        encoded: EncodedScale | None = None,
    ) -> None:
        self.valid = valid
        self._encode = encode
        self._values_of = values_of
        self._fixed = encoded is not None
        self._keys: Tensors = {}
        self._values: Tensors = {}
        if encoded is not None:
            self._take(encoded.tensors)

    def keys(self, with_values: bool = True) -> Tensors:
        """Match keys at 1/1 .. 1/8. `with_values`: hold the values too, which come with them."""
        if not self._keys:
            self._make((_KEYS, *_VALUES) if with_values and self._values_of is None else (_KEYS,))
        return self._keys

    def values(self) -> Tensors:
        """Values at x1, x2, x4, and the published variant's warp masks."""
        if not self.held:
            self.store._make(_VALUES)
        return self.store._values

    @property
    def store(self) -> ScaleFeatures:
        """What holds the values: itself, or in the published protocol the first scale, for all."""
        return self._values_of or self

    @property
    def lent(self) -> bool:
        """Whether someone else holds the features: then they are always there."""
        return self._fixed

    @property
    def held(self) -> bool:
        """Whether `values` need not be made."""
        return bool(self.store._values)

    def drop_keys(self) -> None:
        if not self._fixed:
            self._keys = {}

    def drop_values(self) -> None:
        """What is someone else's stays."""
        if not self.store._fixed:
            self.store._values = {}

    def encoded(self) -> EncodedScale:
        """All of it, to be kept by someone else."""
        return EncodedScale({**self.keys(), **self.values()}, self.valid)

    def _make(self, words: tuple[str, ...]) -> None:
        assert self._encode is not None
        self._take(self._encode(words))

    def _take(self, tensors: Tensors) -> None:
        self._keys = {k: v for k, v in tensors.items() if k.startswith(_KEYS)} or self._keys
        self._values = {k: v for k, v in tensors.items() if k.startswith(_VALUES)} or self._values


def features_bytes(config: AMSAConfig, precision: str, size: Size) -> tuple[int, int]:
    """Bytes of a reference's keys, and of its values and masks, at one scale of height x width pixels, padded."""
    positions, wide = size[0] * size[1] // SCALE**2, 2 if precision == "fp16" else 4
    keys = sum(config.key_channels * positions // n**2 for n in KEY_LEVELS) * (4 if config.encoder == "compact" else wide)
    mask = 9 if config.warp_mask_from_ref else 0
    return keys, sum((c + mask) * s * s * positions for s, c in zip(VALUE_SCALES, config.value_channels, strict=True)) * wide


@dataclass(frozen=True)
class Reference:
    """A reference at one scale: its features, its padded height and width in pixels, and the bytes that scaling it takes."""

    features: ScaleFeatures
    size: Size
    scaling: int = 0


def scale_sizes(config: AMSAConfig, size: Size, canvas: Size | None) -> list[tuple[Size, Size]]:
    """Of a reference of this size at every scale: its padded size, and rows and columns of its keys that are picture."""
    if canvas is not None:
        return [(canvas, (canvas[0] // SCALE, canvas[1] // SCALE))] * config.ref_scales
    return [(scale.picture, scale.valid) for scale in lr_and_scales(config, (LR_MIN, LR_MIN), size)[1]]


def sizes_to_encode(config: AMSAConfig, refs: Sequence[Photo | EncodedReference], canvas: Size | None) -> list[Size]:
    """Padded sizes at every scale of the references that are not encoded yet."""
    photos = (_photo(ref) for ref in refs)
    return [size for rgb in photos if rgb is not None for size, _ in scale_sizes(config, (rgb.shape[0], rgb.shape[1]), canvas)]


def _photo(ref: Photo | EncodedReference) -> NDArray[np.float32] | None:
    return ref.rgb if isinstance(ref, Photo) else ref.photo


class Encoder:
    """Makes the features of references, when they are asked for.

    Args:
        config: of the network.
        canvas: published protocol: the common size of LR and references.
        area: tells how many pixels of a reference to encode at a time, None: all; from its size, the words that the names of what
            is kept begin with, and what to call it in an error.
        run: `encode_ref` of a picture [1, 3, H, W].
        timed: what preparing pictures is done in.
        step: called before a reference is read at a scale.
    """

    def __init__(
        self,
        config: AMSAConfig,
        canvas: Size | None,
        area: Callable[[Size, tuple[str, ...], str], int | None],
        run: Callable[[Any], Tensors],
        timed: Callable[[], AbstractContextManager[None]],
        step: Callable[[str], None],
    ) -> None:
        self._config, self._canvas = config, canvas
        self._area, self._run, self._timed, self._step = area, run, timed, step

    def all_references(self, refs: Sequence[Photo | EncodedReference]) -> list[Reference]:
        """Every reference at every scale; of encoded ones with the features that they have."""
        found: list[Reference] = []
        for ref in refs:
            rgb = _photo(ref)
            if rgb is not None:
                found += self.references(rgb)
            elif isinstance(ref, EncodedReference):
                for scale in ref.scales:
                    height, width = scale.tensors["key_1"].shape[2:]
                    found.append(Reference(ScaleFeatures(scale.valid, encoded=scale), (SCALE * height, SCALE * width)))
        return found

    def references(self, rgb: NDArray[np.float32]) -> list[Reference]:
        """A photo [rows, columns, 3] in [0, 1] at every scale. Nothing is made yet."""
        found: list[Reference] = []
        for i, (size, valid) in enumerate(scale_sizes(self._config, (rgb.shape[0], rgb.shape[1]), self._canvas)):
            first = found[0].features if self._canvas is not None and found else None
            encode = partial(self._encode, rgb, i, size)
            # A colour of the photo twice, the scaled picture, and a colour of it twice.
            scaling = 0 if i == 0 else 8 * rgb.shape[0] * rgb.shape[1] + 20 * size[0] * size[1]
            found.append(Reference(ScaleFeatures(np.array([valid], np.int32), encode, first), size, scaling))
        return found

    def _encode(self, rgb: NDArray[np.float32], i: int, size: Size, words: tuple[str, ...]) -> Tensors:
        scale = self._config.ref_factor**i
        self._step(f"reading a reference at scale {scale:.2f}")
        area = self._area(size, words, f"a reference of {rgb.shape[1]}x{rgb.shape[0]} at scale {scale:.2f}")
        with self._timed():
            picture = prepare_scale(rgb, self._config, self._canvas, i)

        def run(rows: slice, cols: slice) -> Tensors:
            return {k: v for k, v in self._run(picture.part(rows, cols)).items() if k.startswith(words)}

        return encode_in_parts(size, self._config.ref_halo, area, run)


def encode_in_parts(size: Size, halo: int, area: int | None, run: Callable[[slice, slice], Tensors]) -> Tensors:
    """A reference's features at one scale: at once, or part by part, which gives the same bits.

    Args:
        size: height and width, padded.
        halo: of `config.ref_halo`.
        area: pixels of a part, with its halo; None: all of the picture.
        run: `encode_ref` of these rows and columns.

    Raises:
        OutOfMemory: even for the smallest parts.
    """
    while True:
        windows = cut(*size, halo, area=_at_least(area, size, halo), multiple=REF_MULTIPLE)
        try:
            with telling("read a reference"):
                return in_windows(windows, lambda window: run(window.rows, window.cols))
        except OutOfMemory as e:
            if windows[0].area <= _SMALLEST_PART:
                raise
            area, reason = windows[0].area // 2, str(e).split(";")[0]
        warnings.warn(f"reading a reference again in parts of {area / 1e6:.2g} megapixels: {reason}", stacklevel=2)


def _at_least(area: int | None, size: Size, halo: int) -> int | None:
    return None if area is None else min(size[0] * size[1], max(area, (2 * halo + REF_MULTIPLE) ** 2, _SMALLEST_PART))


class LRFeatures:
    """Queries of the LR picture, and its content, which takes several times as much, as a whole or made for each tile.

    Args:
        lr: float32 [1, 3, h, w], padded.
        config: of the network.
        run: `encode_lr` of a picture.
        area: positions to encode at a time, with their halo; None: all.
        keep_content: whether it is made once, for the whole picture.
    """

    def __init__(
        self, lr: Any, config: AMSAConfig, run: Callable[[Any], Tensors], area: int | None = None, keep_content: bool = True
    ) -> None:
        self._lr, self._run, self._halo = lr, run, config.lr_halo
        self._content: Any = None
        most = None if area is None else max(area, (2 * self._halo + 8 * LR_MULTIPLE) ** 2)

        def encode(window: Window) -> Tensors:
            made = self._part(window.rows, window.cols)
            return made if keep_content else {k: v for k, v in made.items() if k != "content"}

        height, width = lr.shape[2:]
        windows = cut(height, width, self._halo, area=most, multiple=LR_MULTIPLE)
        self.queries = in_windows(windows, encode)
        self._content = self.queries.pop("content", None)

    def _part(self, rows: slice, cols: slice) -> Tensors:
        every = slice(None)
        return self._run(self._lr[every, every, rows, cols])

    @property
    def whole(self) -> bool:
        """Whether the content is there for the whole picture."""
        return self._content is not None

    def content(self, rows: slice, cols: slice) -> Any:
        """[1, C, rows, cols] of the content."""
        every = slice(None)
        if self._content is not None:
            return self._content[every, every, rows, cols]
        # as `encode_lr` takes it: with what it sees around, cut at multiples
        around = [
            slice(
                max(0, part.start // LR_MULTIPLE * LR_MULTIPLE - self._halo),
                min(whole, -(-part.stop // LR_MULTIPLE) * LR_MULTIPLE + self._halo),
            )
            for part, whole in zip((rows, cols), self._lr.shape[2:], strict=True)
        ]
        made = self._part(*around)["content"]
        top, left = rows.start - around[0].start, cols.start - around[1].start
        return np.ascontiguousarray(made[every, every, top : top + rows.stop - rows.start, left : left + cols.stop - cols.start])
