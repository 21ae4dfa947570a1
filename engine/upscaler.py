"""The pipeline: encode, match over the whole picture, restore tile by tile and reference by reference, finish."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import AmsaError
from ..stages import LR_MIN, REF_MIN, SCALE, VALUES
from .backends import Backend, Execution, open_backend
from .details import Details
from .fusion import SKIP, fusion_weights, skip_lightest
from .gpu.cuda import OutOfDeviceMemory
from .images import Photo, from_array, require_size, resize_bicubic, to_array
from .references import EncodedReference, EncodedScale, common_canvas, pad_edges, prepare_lr, prepare_scales

Picture: TypeAlias = "NDArray[Any] | Image.Image"
Progress: TypeAlias = "Callable[[int, int, str], None]"
"""Called with (steps done, steps in all, what comes next)."""

MATCHINGS = ("patchmatch", "exact", "auto")
EXACT_UP_TO = 1600
"""Reference positions (rows * columns at 1/4 of the photo) up to which exact search is as fast as PatchMatch: 1677 with 256
channels in float, more with fewer or in int8 (`python benchmarks/matching.py exact`)."""
TILE = 128
"""LR pixels on a side that are restored at a time; matching always sees the whole picture."""
_SMALLEST_TILE = 16


@dataclass
class Stats:
    """What one or more calls did: seconds spent in each stage, and how often; references at a scale that were matched, and
    restored from. Beside the graphs' stages: "prepare" (scaling and padding) and "fusion" (weights), both on the host."""

    seconds: dict[str, float] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    matched: int = 0
    restored: int = 0

    def add(self, stage: str, seconds: float) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
        self.calls[stage] = self.calls.get(stage, 0) + 1


class Upscaler:
    """Upscales photos x4 with the texture of reference photos.

    Args:
        path: exported model folder, `.amsa` file or `.safetensors` checkpoint; None: the model that ships with amsa.
        backend: "auto" (ONNX Runtime or torch, as the file asks for), "onnxruntime", "torch" or "tensorrt".
        threads: threads to compute with on the CPU; None: one per core.
        tile: LR pixels restored at a time. Smaller needs less memory and more time; the picture stays the same.
        matching: "patchmatch"; "exact": every LR position is compared with all of the reference, whose time grows with LR
            area times reference area; "auto": exact for references up to `EXACT_UP_TO` positions, where that is as fast.
        skip: how much the references that are not restored may weigh together (see `fusion.skip_lightest`); 0: all are restored.
            None: what is proven harmless for the variant, `fusion.SKIP`; `Stats` tells how many were restored.
        engines: TensorRT: folder that `amsa build -o` wrote to; None: beside the model.
        max_device_memory: TensorRT: bytes that features, pictures and scratch memory may take on the GPU. Where tiles do not fit
            they are made smaller, and that is told.

    Several threads may use one. Its methods return when their work is done.

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
        skip: float | None = None,
        engines: str | Path | None = None,
        max_device_memory: int | None = None,
    ) -> None:
        _check_settings(tile, matching, skip)
        if matching != "patchmatch" and backend == "tensorrt":
            raise AmsaError(f"matching {matching!r} has no CUDA kernel; with the tensorrt backend take 'patchmatch'")
        self._use(open_backend(path, backend, threads, engines, max_device_memory), tile, matching, skip)

    @classmethod
    def on(cls, backend: Backend, tile: int = TILE, matching: str = "patchmatch", skip: float | None = None) -> Upscaler:
        """An upscaler on a backend that is open already."""
        _check_settings(tile, matching, skip)
        upscaler = cls.__new__(cls)
        upscaler._use(backend, tile, matching, skip)
        return upscaler

    def _use(self, backend: Backend, tile: int, matching: str, skip: float | None) -> None:
        self.backend_in_use = backend
        self.config = backend.config
        self.tile = tile
        self.matching = matching
        self.skip = SKIP.get(self.config.variant, 0.0) if skip is None else skip

    @property
    def backend(self) -> str:
        """The name of the backend in use."""
        return self.backend_in_use.name

    @property
    def device(self) -> str:
        """What computes: "CPU", or the GPU's name."""
        return self.backend_in_use.device

    @property
    def kernels(self) -> str:
        """What runs the custom ops, in words."""
        return self.backend_in_use.kernels

    @property
    def trained(self) -> bool:
        """Whether the weights are trained; if not, pictures show little more than the upsampled LR."""
        return self.backend_in_use.trained

    def close(self) -> None:
        """Give back the GPU memory that is kept between calls; references keep theirs. The upscaler can be used again."""
        self.backend_in_use.close()

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
        with self.backend_in_use.call() as on:
            return self._encode(on, photo, canvas, None, _Steps(None, 0))

    def upscale_tensor(self, lr: Any, refs: Sequence[EncodedReference], *, seed: int = 0) -> Any:
        """Upscale a picture that is a tensor already, as in a pipeline of your own; on the GPU it never leaves device memory.

        Args:
            lr: float32 [1, 3, h, w], RGB from 0 to 1, sides >= 16. Numpy's for backends on the CPU. For TensorRT numpy's, or an
                array on the GPU with `__dlpack__` (torch, CuPy, JAX) or `__cuda_array_interface__` (pycuda, Numba): it is read
                where it is, after what its library has put on its stream so far.
            refs: what `encode_reference` returned.
            seed: of the initial matches.

        Returns:
            float32 [1, 3, 4*h, 4*w], not clipped: numpy's, or for TensorRT a `DeviceArray`, which cupy.asarray(..) and
            torch.as_tensor(.., device="cuda") take without a copy.
        """
        if self.config.published_protocol:
            raise AmsaError("published models pad LR and references to one common size; give photos to upscale() instead")
        if not refs or not all(isinstance(ref, EncodedReference) for ref in refs):
            raise AmsaError("give at least one reference that encode_reference returned")
        _check_seed(seed)
        self._canvas((0, 0), refs)
        with self.backend_in_use.call() as on:
            tensor = on.to_device(lr)
            shape = tuple(tensor.shape)
            if len(shape) != 4 or shape[:2] != (1, 3) or min(shape[2:]) < LR_MIN or tensor.dtype != np.float32:
                raise AmsaError(f"LR is {tensor.dtype} {shape}; it must be float32 (1, 3, h, w), sides from {LR_MIN}")
            scales = [scale for ref in refs for scale in ref.scales]
            steps = _Steps(None, 0)
            return self._upscale(on, pad_edges(on, tensor), (shape[2], shape[3]), scales, seed, None, steps)

    def upscale_photo(
        self,
        lr: Photo,
        refs: Sequence[Photo | EncodedReference],
        *,
        seed: int = 0,
        names: Sequence[str] | None = None,
        progress: Progress | None = None,
        stats: Stats | None = None,
        details: Details | None = None,
    ) -> Photo:
        """Upscale a photo x4; alpha, bit depth, grayness, ICC profile and EXIF follow the LR photo.

        Args:
            lr: the photo, sides >= 16.
            refs: reference photos, sides >= 64, or encoded references.
            seed: of the initial matches, 0 .. 2^31 - 1.
            names: what to call LR and each reference in an error.
            progress: called before every step.
            stats: seconds per stage are added to it. On a GPU that means to wait after every stage.
            details: matches, relevances and weights are added to it.
        """
        names = names or ["LR", *(f"reference {i + 1}" for i in range(len(refs)))]
        if not refs:
            raise AmsaError("no reference photo; give at least one")
        _check_seed(seed)
        require_size(lr, names[0], LR_MIN)
        for ref, name in zip(refs, names[1:], strict=True):
            if isinstance(ref, Photo):
                require_size(ref, name, REF_MIN)
        canvas = self._canvas((lr.height, lr.width), refs)
        count = self.config.ref_scales * len(refs)
        to_encode = self.config.ref_scales * sum(isinstance(ref, Photo) for ref in refs)
        tiles = len(list(_tiles(lr.height, lr.width, self.tile)))
        steps = _Steps(progress, 1 + to_encode + count + tiles * count)

        with self.backend_in_use.call() as on:
            scales: list[EncodedScale] = []
            for ref in refs:
                scales += (self._encode(on, ref, canvas, stats, steps) if isinstance(ref, Photo) else ref).scales
            with _timed(stats, "prepare"):
                prepared = prepare_lr(lr.rgb, canvas)
            padded = on.to_device(prepared)
            if details is not None:
                details.ref_scales, details.canvas = self.config.ref_scales, canvas
            sr = on.to_host(self._upscale(on, padded, (lr.height, lr.width), scales, seed, stats, steps, details))
        return _result(lr, sr[0].transpose(1, 2, 0))

    def _upscale(
        self,
        on: Execution,
        lr: Any,
        size: tuple[int, int],
        scales: Sequence[EncodedScale],
        seed: int,
        stats: Stats | None,
        steps: _Steps,
        details: Details | None = None,
    ) -> Any:
        """From the padded LR, of which `size` is picture, to SR [1, 3, 4*h, 4*w]; all on the backend's device."""
        steps.next("reading the LR picture")
        lr_features = self._run(on, "encode_lr", {"lr": lr}, stats)
        content = lr_features.pop("content")
        matches, relevances = [], []
        for i, scale in enumerate(scales):
            steps.next(f"matching {i + 1} of {len(scales)}")
            keys = {k: v for k, v in scale.tensors.items() if k.startswith("key_")}
            sizes = {"valid": on.to_device(scale.valid), "seed": on.to_device(np.array([seed], np.int32))}
            found = self._run(on, self._matching_stage(scale), {**lr_features, **keys, **sizes}, stats)
            matches.append(found["match"])
            relevances.append(found["relevance"])
        on_host = [on.to_host(relevance) for relevance in relevances]
        with _timed(stats, "fusion"):
            weights = fusion_weights(on_host, self.config.sharpness)
            shares = skip_lightest(weights, size, self.skip)
        if details is not None:
            for match, relevance, share in zip(matches, on_host, shares, strict=True):
                details.add(size, on.to_host(match), relevance, share)
        needed = [i for i, share in enumerate(shares) if share is not None]
        if stats is not None:
            stats.matched, stats.restored = stats.matched + len(scales), stats.restored + len(needed)
        steps.leave_out(len(list(_tiles(*size, self.tile))) * (len(scales) - len(needed)))
        maps = [on.to_device(np.ascontiguousarray(shares[i])) for i in needed]
        matches, scales = [matches[i] for i in needed], [scales[i] for i in needed]

        tile = self.tile
        sr = on.empty((1, 3, SCALE * size[0], SCALE * size[1]), np.float32)
        while True:
            try:
                for part in _tiles(*size, tile):
                    self._restore_tile(on, part, sr, lr, content, matches, maps, scales, stats, steps)
                return sr
            except OutOfDeviceMemory as e:
                if tile <= _SMALLEST_TILE:
                    raise
                reason = str(e)
            # The picture stays the same, whatever the tiles.
            tile = max(_SMALLEST_TILE, min(tile, max(size)) // 2)
            warnings.warn(f"restoring again in tiles of {tile} LR pixels: {reason}", stacklevel=3)

    def _matching_stage(self, scale: EncodedScale) -> str:
        exact = self.matching == "exact" or (self.matching == "auto" and int(scale.valid.prod()) <= EXACT_UP_TO)
        return "match_exact" if exact else "match"

    def _canvas(self, lr_size: tuple[int, int], refs: Sequence[Photo | EncodedReference]) -> tuple[int, int] | None:
        encoded = [ref for ref in refs if isinstance(ref, EncodedReference)]
        mine = self.config, self.backend_in_use.precision, self.backend_in_use.name
        if any((ref.config, ref.precision, ref.backend) != mine for ref in encoded):
            raise AmsaError(
                "a reference was encoded by a model of another config or precision, or on another backend; "
                "encode it again with this one"
            )
        if not self.config.published_protocol:
            return None
        sizes = [(ref.height, ref.width) for ref in refs if isinstance(ref, Photo)]
        canvas = common_canvas(lr_size, [*sizes, *(ref.canvas for ref in encoded if ref.canvas)])
        for ref in encoded:
            if ref.canvas != canvas:
                raise AmsaError(f"a reference was encoded for {ref.canvas}; this picture needs {canvas}: encode it again")
        return canvas

    def _encode(
        self, on: Execution, photo: Photo, canvas: tuple[int, int] | None, stats: Stats | None, steps: _Steps
    ) -> EncodedReference:
        scales: list[EncodedScale] = []
        with _timed(stats, "prepare"):
            prepared = prepare_scales(photo.rgb, self.config, canvas)
        for i, (picture, valid) in enumerate(prepared):
            steps.next(f"reading a reference at scale {self.config.ref_factor**i:.2f}")
            tensors: Mapping[str, Any] = self._run(on, "encode_ref", {"ref": on.to_device(picture)}, stats)
            if canvas is not None and scales:  # the published protocol takes the values of scale 0 for every scale
                tensors = {k: v if k.startswith("key_") else scales[0].tensors[k] for k, v in tensors.items()}
            scales.append(EncodedScale(tensors, valid))
        return EncodedReference(scales, canvas, self.config, self.backend_in_use.precision, self.backend_in_use.name)

    def _restore_tile(
        self,
        on: Execution,
        tile: tuple[slice, slice],
        sr: Any,
        lr: Any,
        content: Any,
        matches: Sequence[Any],
        weights: Sequence[Any],
        scales: Sequence[EncodedScale],
        stats: Stats | None,
        steps: _Steps,
    ) -> None:
        """Restore and finish one tile, with its halo, from every reference; write the tile itself into `sr`."""
        rows, cols = (
            slice(max(0, part.start - self.config.halo), min(whole // SCALE, part.stop + self.config.halo))
            for part, whole in zip(tile, sr.shape[2:], strict=True)
        )
        every = slice(None)
        part_of_content = content[every, every, rows, cols]
        sides = tuple(SCALE * side for side in part_of_content.shape[2:])
        accumulator = on.zeros((1, self.config.channels[-1], *sides), part_of_content.dtype)
        for i, (match, weight, scale) in enumerate(zip(matches, weights, scales, strict=True)):
            steps.next(f"restoring from {i + 1} of {len(scales)}")
            inputs: dict[str, Any] = {
                "content": part_of_content,
                "match": match[every, every, rows.start : rows.stop + 2, cols.start : cols.stop + 2],
                "weight": weight[every, every, rows, cols],
                "accumulator": accumulator,
            }
            for name, tensor in scale.tensors.items():
                if name in VALUES:
                    inputs[name] = tensor
                elif name.startswith("warp_mask_"):
                    s = int(name.removeprefix("warp_mask_"))
                    inputs[name] = tensor[every, every, s * rows.start : s * rows.stop, s * cols.start : s * cols.stop]
            accumulator = self._run(on, "restore", inputs, stats)["accumulator_out"]
        finished = self._run(on, "finish", {"accumulator": accumulator, "lr": lr[every, every, rows, cols]}, stats)["sr"]
        target = sr[every, every, _times(tile[0]), _times(tile[1])]
        top, left = SCALE * (tile[0].start - rows.start), SCALE * (tile[1].start - cols.start)
        on.copy(target, finished[every, every, top : top + target.shape[2], left : left + target.shape[3]])

    def _run(self, on: Execution, stage: str, inputs: Mapping[str, Any], stats: Stats | None) -> dict[str, Any]:
        if stats is None:
            return on.run(stage, inputs)
        begin = time.perf_counter()
        outputs = on.run(stage, inputs)
        on.synchronize()
        stats.add(stage, time.perf_counter() - begin)
        return outputs


class _Steps:
    """Counts steps for a progress callback."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def leave_out(self, count: int) -> None:
        """So many steps turn out not to be needed."""
        self._total -= count

    def next(self, what: str) -> None:
        if self._progress is not None:
            self._progress(min(self._done, self._total), self._total, what)  # smaller tiles than planned are more steps
        self._done += 1


@contextmanager
def _timed(stats: Stats | None, stage: str) -> Iterator[None]:
    """Adds what is done on the host meanwhile to a stage."""
    begin = time.perf_counter()
    yield
    if stats is not None:
        stats.add(stage, time.perf_counter() - begin)


def _check_settings(tile: int, matching: str, skip: float | None) -> None:
    if skip is not None and not 0 <= skip < 1:
        raise AmsaError(f"skip is {skip}; it must be from 0 (restore all references) to less than 1")
    if tile < 1:
        raise AmsaError(f"tile is {tile}; it must be at least 1 LR pixel")
    if matching not in MATCHINGS:
        raise AmsaError(f"unknown matching {matching!r}; choose one of {', '.join(MATCHINGS)}")


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**31:
        raise AmsaError(f"seed is {seed}; it must be from 0 to {2**31 - 1}")


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
