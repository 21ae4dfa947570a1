"""The pipeline: encode, match over the whole picture, restore tile by tile and reference by reference, finish."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import AmsaError
from ..stages import LR_MIN, REF_MIN, SCALE
from .backends import Arrays, open_backend
from .images import Photo, from_array, require_size, resize_bicubic, to_array
from .references import EncodedReference, EncodedScale, common_canvas, prepare_lr, prepare_scales

Picture: TypeAlias = "NDArray[Any] | Image.Image"
Progress: TypeAlias = "Callable[[int, int, str], None]"
"""Called with (steps done, steps in all, what comes next)."""

MATCHINGS = ("patchmatch", "exact", "auto")
EXACT_UP_TO = 1600
"""Reference positions (rows * columns at 1/4 of the photo) up to which exact search is as fast as PatchMatch: 1677 with 256
channels in float, more with fewer or in int8 (`python benchmarks/matching.py exact`)."""
TILE = 128
"""LR pixels on a side that are restored at a time; matching always sees the whole picture."""


@dataclass
class Stats:
    """Seconds spent in each stage of one or more calls."""

    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, stage: str, seconds: float) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds


class Upscaler:
    """Upscales photos x4 with the texture of reference photos.

    Args:
        path: exported model folder, `.amsa` file or `.safetensors` checkpoint; None: the model that ships with amsa.
        backend: "auto", "onnxruntime" or "torch".
        threads: threads to compute with; None: one per core.
        tile: LR pixels restored at a time. Smaller needs less memory and more time; the picture stays the same.
        matching: "patchmatch"; "exact": every LR position is compared with all of the reference, whose time grows with LR
            area times reference area; "auto": exact for references up to `EXACT_UP_TO` positions, where that is as fast.

    Raises:
        AmsaError: no such model, altered files, or a backend that cannot run it.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        backend: str = "auto",
        threads: int | None = None,
        tile: int = TILE,
        matching: str = "patchmatch",
    ) -> None:
        if tile < 1:
            raise AmsaError(f"tile is {tile}; it must be at least 1 LR pixel")
        self._backend = open_backend(path, backend, threads)
        self.config = self._backend.config
        if matching not in MATCHINGS:
            raise AmsaError(f"unknown matching {matching!r}; choose one of {', '.join(MATCHINGS)}")
        self.tile = tile
        self.matching = matching

    @property
    def backend(self) -> str:
        """The name of the backend in use."""
        return self._backend.name

    @property
    def kernels(self) -> str:
        """What runs the custom ops, in words."""
        return self._backend.kernels

    @property
    def trained(self) -> bool:
        """Whether the weights are trained; if not, pictures show little more than the upsampled LR."""
        return self._backend.trained

    def upscale(self, lr: Picture, refs: Sequence[Picture | EncodedReference], *, seed: int = 0) -> Picture:
        """Upscale a picture x4.

        Args:
            lr: uint8 or uint16 array, [h, w], [h, w, 1..4] (gray, gray+alpha, RGB, RGBA), or a PIL image; sides >= 16.
            refs: one or more reference pictures likewise, sides >= 64, or what `encode_reference` returned.
            seed: of the initial matches; equal seeds give equal pictures on a backend.

        Returns:
            The same kind as `lr`, four times as large.
        """
        photos = [r if isinstance(r, EncodedReference) else from_array(r, f"reference {i + 1}") for i, r in enumerate(refs)]
        sr = to_array(self.upscale_photo(from_array(lr, "LR"), photos, seed=seed))
        return Image.fromarray(sr) if isinstance(lr, Image.Image) else sr

    def encode_reference(
        self, ref: Picture | Photo, lr_size: tuple[int, int] | None = None, name: str = "reference"
    ) -> EncodedReference:
        """Encode a reference once, to be used for many LR pictures.

        Args:
            ref: picture or photo, sides >= 64.
            lr_size: published variant only, which pads LR and reference to one common size: LR (height, width).
            name: what to call it in an error.
        """
        photo = ref if isinstance(ref, Photo) else from_array(ref, name)
        require_size(photo, name, REF_MIN)
        canvas = None
        if self.config.published_protocol:
            if lr_size is None:
                raise AmsaError("published models encode a reference for one LR size; give lr_size=(height, width)")
            canvas = common_canvas(lr_size, [(photo.height, photo.width)])
        return self._encode(photo, canvas, Stats(), _Steps(None, 0))

    def upscale_photo(
        self,
        lr: Photo,
        refs: Sequence[Photo | EncodedReference],
        *,
        seed: int = 0,
        names: Sequence[str] | None = None,
        progress: Progress | None = None,
        stats: Stats | None = None,
    ) -> Photo:
        """Upscale a photo x4; alpha, bit depth, grayness, ICC profile and EXIF follow the LR photo.

        Args:
            lr: the photo, sides >= 16.
            refs: reference photos, sides >= 64, or encoded references.
            seed: of the initial matches, 0 .. 2^31 - 1.
            names: what to call LR and each reference in an error.
            progress: called before every step.
            stats: seconds per stage are added to it.
        """
        names = names or ["LR", *(f"reference {i + 1}" for i in range(len(refs)))]
        stats = stats if stats is not None else Stats()
        if not refs:
            raise AmsaError("no reference photo; give at least one")
        if not 0 <= seed < 2**31:
            raise AmsaError(f"seed is {seed}; it must be from 0 to {2**31 - 1}")
        require_size(lr, names[0], LR_MIN)
        for ref, name in zip(refs, names[1:], strict=True):
            if isinstance(ref, Photo):
                require_size(ref, name, REF_MIN)
        canvas = self._canvas(lr, refs)
        tiles = list(_tiles(lr.height, lr.width, self.tile))
        count = self.config.ref_scales * len(refs)
        to_encode = self.config.ref_scales * sum(isinstance(ref, Photo) for ref in refs)
        steps = _Steps(progress, 1 + to_encode + count + len(tiles) * count)

        steps.next("reading the LR picture")
        padded = prepare_lr(lr.rgb, canvas)
        lr_features = self._run("encode_lr", {"lr": padded}, stats)
        content = lr_features.pop("content")
        scales: list[EncodedScale] = []
        for ref in refs:
            scales += (self._encode(ref, canvas, stats, steps) if isinstance(ref, Photo) else ref).scales
        matches, relevances = [], []
        for i, scale in enumerate(scales):
            steps.next(f"matching {i + 1} of {count}")
            keys = {k: v for k, v in scale.tensors.items() if k.startswith("key_")}
            inputs = {**lr_features, **keys, "valid": scale.valid, "seed": np.array([seed], np.int32)}
            found = self._run(self._matching_stage(scale), inputs, stats)
            matches.append(found["match"])
            relevances.append(found["relevance"])
        weights = fusion_weights(relevances, self.config.sharpness)

        sr = np.empty((SCALE * lr.height, SCALE * lr.width, 3), np.float32)
        for tile in tiles:
            self._restore_tile(tile, sr, padded, content, matches, weights, scales, stats, steps)
        return _result(lr, sr)

    def _matching_stage(self, scale: EncodedScale) -> str:
        exact = self.matching == "exact" or (self.matching == "auto" and int(scale.valid.prod()) <= EXACT_UP_TO)
        return "match_exact" if exact else "match"

    def _canvas(self, lr: Photo, refs: Sequence[Photo | EncodedReference]) -> tuple[int, int] | None:
        encoded = [ref for ref in refs if isinstance(ref, EncodedReference)]
        if any((ref.config, ref.precision) != (self.config, self._backend.precision) for ref in encoded):
            raise AmsaError("a reference was encoded by a model of another config or precision; encode it again with this one")
        if not self.config.published_protocol:
            return None
        sizes = [(ref.height, ref.width) for ref in refs if isinstance(ref, Photo)]
        canvas = common_canvas((lr.height, lr.width), [*sizes, *(ref.canvas for ref in encoded if ref.canvas)])
        for ref in encoded:
            if ref.canvas != canvas:
                raise AmsaError(f"a reference was encoded for {ref.canvas}; this picture needs {canvas}: encode it again")
        return canvas

    def _encode(self, photo: Photo, canvas: tuple[int, int] | None, stats: Stats, steps: _Steps) -> EncodedReference:
        scales: list[EncodedScale] = []
        for i, (picture, valid) in enumerate(prepare_scales(photo.rgb, self.config, canvas)):
            steps.next(f"reading a reference at scale {self.config.ref_factor**i:.2f}")
            tensors = self._run("encode_ref", {"ref": picture}, stats)
            if canvas is not None and scales:  # the published protocol takes the values of scale 0 for every scale
                tensors = {k: v if k.startswith("key_") else scales[0].tensors[k] for k, v in tensors.items()}
            scales.append(EncodedScale(tensors, valid))
        return EncodedReference(scales, canvas, self.config, self._backend.precision)

    def _restore_tile(
        self,
        tile: tuple[slice, slice],
        sr: NDArray[np.float32],
        lr: NDArray[np.float32],
        content: NDArray[Any],
        matches: Sequence[NDArray[np.int32]],
        weights: Sequence[NDArray[np.float32]],
        scales: Sequence[EncodedScale],
        stats: Stats,
        steps: _Steps,
    ) -> None:
        """Restore and finish one tile, with its halo, from every reference; write the tile itself into `sr`."""
        rows, cols = (
            slice(max(0, part.start - self.config.halo), min(whole, part.stop + self.config.halo))
            for part, whole in zip(tile, sr.shape[:2] // np.array(SCALE), strict=True)
        )
        part_of_content = content[:, :, rows, cols]
        accumulator = np.zeros(
            (1, self.config.channels[-1], SCALE * part_of_content.shape[2], SCALE * part_of_content.shape[3]), content.dtype
        )
        for i, (match, weight, scale) in enumerate(zip(matches, weights, scales, strict=True)):
            steps.next(f"restoring from {i + 1} of {len(scales)}")
            inputs: Arrays = {
                "content": part_of_content,
                "match": match[:, :, rows.start : rows.stop + 2, cols.start : cols.stop + 2],
                "weight": weight[:, :, rows, cols],
                "accumulator": accumulator,
            }
            for name, tensor in scale.tensors.items():
                if name.startswith("value_"):
                    inputs[name] = tensor
                elif name.startswith("warp_mask_"):
                    s = int(name.removeprefix("warp_mask_"))
                    inputs[name] = tensor[:, :, s * rows.start : s * rows.stop, s * cols.start : s * cols.stop]
            accumulator = self._run("restore", inputs, stats)["accumulator_out"]
        finished = self._run("finish", {"accumulator": accumulator, "lr": lr[:, :, rows, cols]}, stats)["sr"][0]
        top, left = SCALE * (tile[0].start - rows.start), SCALE * (tile[1].start - cols.start)
        target = sr[_times(tile[0]), _times(tile[1])]
        target[:] = finished[:, top : top + target.shape[0], left : left + target.shape[1]].transpose(1, 2, 0)

    def _run(self, stage: str, inputs: Mapping[str, NDArray[Any]], stats: Stats) -> Arrays:
        begin = time.perf_counter()
        outputs = self._backend.run(stage, inputs)
        stats.add(stage, time.perf_counter() - begin)
        return outputs


class _Steps:
    """Counts steps for a progress callback."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def next(self, what: str) -> None:
        if self._progress is not None:
            self._progress(self._done, self._total, what)
        self._done += 1


def fusion_weights(relevances: Sequence[NDArray[np.float32]], sharpness: float) -> list[NDArray[np.float32]]:
    """S' of Eq. 9: softmax of sharpness * relevance over all references and scales; float32 [1, 1, h, w] each."""
    logits = sharpness * np.stack(relevances)
    exponentials = np.exp(logits - logits.max(0))
    return list(exponentials / exponentials.sum(0))


def _tiles(height: int, width: int, size: int) -> Iterator[tuple[slice, slice]]:
    for top in range(0, height, size):
        for left in range(0, width, size):
            yield slice(top, min(top + size, height)), slice(left, min(left + size, width))


def _times(part: slice) -> slice:
    return slice(SCALE * part.start, SCALE * part.stop)


def _result(lr: Photo, sr: NDArray[np.float32]) -> Photo:
    rgb = np.clip(sr, 0, 1)
    if lr.gray:
        rgb = np.repeat(rgb.mean(2, keepdims=True), 3, 2)
    alpha = None
    if lr.alpha is not None:
        alpha = np.clip(resize_bicubic(lr.alpha, SCALE * lr.height, SCALE * lr.width), 0, 1)
    return Photo(rgb=rgb, alpha=alpha, gray=lr.gray, bits=lr.bits, icc=lr.icc, exif=lr.exif)
