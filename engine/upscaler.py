"""The pipeline: encode, match over the whole picture, restore tile by tile and reference by reference, finish."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import AmsaError
from ..stages import LR_MIN, REF_MIN, SCALE
from .backends import Backend, Execution, HostExecution, open_backend
from .colour import fill_transparent, match_low_frequencies
from .details import Details
from .features import Encoder, LRFeatures, Reference, scale_sizes, sizes_to_encode
from .fusion import SKIP, Map, fusion_weights, skip_lightest
from .gpu.cuda import OutOfDeviceMemory
from .images import PackedPhoto, Photo, from_array, require_size, resize_bicubic, to_array
from .memory import Memory, OutOfMemory, parse_bytes, telling
from .planning import SMALLEST_TILE, Plan, Planner, sizes_of
from .ranking import Ranked, rank
from .references import EncodedReference, common_canvas, pad_edges, prepare_lr
from .restoration import Canvas, Matched, Order, SampleCanvas, TensorCanvas, colours, restore
from .tiling import Window, cut

Picture: TypeAlias = "NDArray[Any] | Image.Image"
Progress: TypeAlias = "Callable[[int, int, str], None]"
"""Called with (steps done, steps in all, what comes next)."""

MATCHINGS = ("patchmatch", "exact", "auto")
EXACT_UP_TO = 1600
"""Reference positions (rows * columns at 1/4 of the photo) up to which exact search is as fast as PatchMatch: 1677 with 256
channels in float, more with fewer or in int8 (`python benchmarks/matching.py exact`)."""


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


class History(Protocol):
    """What a clip's frames take over from those before them, see `video/history.py`."""

    def recall(
        self, lr: NDArray[np.float32], matches: Sequence[NDArray[np.int32]], relevances: Sequence[Map]
    ) -> tuple[Sequence[NDArray[np.int32]], Sequence[Map]]:
        """Matches and relevances to use for the padded LR, from those just found, by reference and scale."""

    def choose(self, weights: Sequence[Map], size: tuple[int, int], skip: float) -> list[Map | None]:
        """Weights to restore with, as `fusion.skip_lightest` gives them."""


class Upscaler:
    """Upscales photos x4 with the texture of reference photos.

    Args:
        path: exported model folder, `.amsa` file or `.safetensors` checkpoint; None: the model that ships with amsa.
        backend: "auto" (ONNX Runtime or torch, as the file asks for), "onnxruntime", "torch" or "tensorrt".
        threads: threads to compute with on the CPU; None: one per core.
        tile: LR pixels on a side that are restored at a time. Smaller needs less memory and more time; the picture stays the
            same, but for rounding by 1e-6. None: on the CPU 256 where memory allows, else 128; on a GPU 128.
        matching: "patchmatch"; "exact": every LR position is compared with all of the reference, whose time grows with LR
            area times reference area; "auto": exact for references up to `EXACT_UP_TO` positions, where that is as fast.
        skip: how much the references that are not restored may weigh together (see `fusion.skip_lightest`); 0: all are restored.
            None: what is proven harmless for the variant, `fusion.SKIP`; `Stats` tells how many were restored.
        engines: TensorRT: folder that `amsa build -o` wrote to; None: beside the model.
        max_memory: bytes, or text such as "2GB", that the process may hold at most, and with TensorRT that features, pictures and
            scratch may take on the GPU. None: what is free. Where it is short, the same picture is made in smaller tiles and
            parts, and that is told. On the CPU it is planned for, not enforced; Linux only.
        consistent: correct results so that, shrunk again, they are the LR photos (see `colour.match_low_frequencies`).

    Several threads may use one. Its methods return when their work is done.

    Raises:
        AmsaError: no such model, altered files, or a backend that cannot run it.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        backend: str = "auto",
        threads: int | None = None,
        tile: int | None = None,
        matching: str = "patchmatch",
        skip: float | None = None,
        engines: str | Path | None = None,
        max_memory: int | str | None = None,
        consistent: bool = False,
    ) -> None:
        cap = None if max_memory is None else parse_bytes(max_memory)
        _check_settings(tile, matching, skip)
        if matching != "patchmatch" and backend == "tensorrt":
            raise AmsaError(f"matching {matching!r} has no CUDA kernel; with the tensorrt backend take 'patchmatch'")
        self._use(open_backend(path, backend, threads, engines, cap), tile, matching, skip, cap, consistent)

    @classmethod
    def on(cls, backend: Backend, tile: int | None = None, matching: str = "patchmatch", skip: float | None = None) -> Upscaler:
        """An upscaler on a backend that is open already."""
        _check_settings(tile, matching, skip)
        upscaler = cls.__new__(cls)
        upscaler._use(backend, tile, matching, skip, None, consistent=False)
        return upscaler

    def _use(
        self, backend: Backend, tile: int | None, matching: str, skip: float | None, max_memory: int | None, consistent: bool
    ) -> None:
        self.backend_in_use = backend
        self.config = backend.config
        self.tile = tile
        self.matching = matching
        self.consistent = consistent
        self._planner = Planner(backend, tile, Memory(max_memory) if isinstance(backend, HostExecution) else None)
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
    def description(self) -> str:
        """What makes the pictures, in words: "small model, onnxruntime (CPU)"."""
        return f"{self.config.variant} model, {self.backend} ({self.device})"

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
        photo = fill_transparent(photo)
        canvas = None
        if self.config.published_protocol:
            if lr_size is None:
                raise AmsaError("published models encode a reference for one LR size; give lr_size=(height, width)")
            canvas = common_canvas(lr_size, [(photo.height, photo.width)])
        sizes = [size for size, _ in scale_sizes(self.config, (photo.height, photo.width), canvas)]
        mine = canvas, self.config, self.backend_in_use.precision, self.backend_in_use.name
        if not self._planner.keeps(sizes):
            warnings.warn(f"{name}: its features do not fit into memory; they are made again for every picture", stacklevel=2)
            return EncodedReference([], *mine, photo.rgb)
        with self.backend_in_use.call() as on, telling("encode the reference"):
            plan = self._planner.plan(on, (LR_MIN, LR_MIN), sizes, 0)
            encoder = self._encoder(on, canvas, plan, None, _Steps(None, 0))
            scales = [reference.features.encoded() for reference in encoder.references(photo.rgb)]
            self._planner.end(plan)
        return EncodedReference(scales, *mine)

    def rank_references(self, lr: Picture, refs: Sequence[Picture | str | Path]) -> list[Ranked]:
        """Say which of many photos would serve a picture best, from thumbnails of them: far cheaper than to use them all.

        Args:
            lr: as for `upscale`.
            refs: pictures likewise, or paths of picture files, of which only thumbnails are kept in memory. Those that cannot be
                read, or are under 64 pixels a side, are left out with a warning.

        Returns:
            (index into `refs`, mean relevance of the thumbnail) of each, the best first.
        """
        candidates = [r if isinstance(r, str | Path) else from_array(r, f"reference {i + 1}") for i, r in enumerate(refs)]
        return rank(self.backend_in_use, from_array(lr, "LR"), candidates)

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
        with self.backend_in_use.call() as on, telling("upscale the picture"):
            tensor = on.to_device(lr)
            shape = tuple(tensor.shape)
            if len(shape) != 4 or shape[:2] != (1, 3) or min(shape[2:]) < LR_MIN or tensor.dtype != np.float32:
                raise AmsaError(f"LR is {tensor.dtype} {shape}; it must be float32 (1, 3, h, w), sides from {LR_MIN}")
            size, padded = (shape[2], shape[3]), pad_edges(on, tensor)
            steps = _Steps(None, 0)
            plan = self._planner.plan(on, sizes_of(padded.shape), sizes_to_encode(self.config, refs, None), 0)
            references = self._encoder(on, None, plan, None, steps).all_references(refs)
            canvas = TensorCanvas(on, size)
            self._upscale(on, padded, size, references, canvas, seed, plan, None, steps)
            self._planner.end(plan)
            return canvas.sr

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
        history: History | None = None,
    ) -> Photo:
        """Upscale a photo x4; alpha, bit depth, grayness, ICC profile and EXIF follow the LR photo.

        Colours of wholly transparent pixels, which nobody sees, give way to those around them (`colour.fill_transparent`).

        Args:
            lr: the photo, sides >= 16.
            refs: reference photos, sides >= 64, or encoded references.
            seed: of the initial matches, 0 .. 2^31 - 1.
            names: what to call LR and each reference in an error.
            progress: called before every step.
            stats: seconds per stage are added to it. On a GPU that means to wait after every stage.
            details: matches, relevances and weights are added to it.
            history: of the frames before this one, in a clip.
        """
        names = names or ["LR", *(f"reference {i + 1}" for i in range(len(refs)))]
        if not refs:
            raise AmsaError("no reference photo; give at least one")
        _check_seed(seed)
        require_size(lr, names[0], LR_MIN)
        for ref, name in zip(refs, names[1:], strict=True):
            if isinstance(ref, Photo):
                require_size(ref, name, REF_MIN)
        lr, refs = fill_transparent(lr), [fill_transparent(ref) if isinstance(ref, Photo) else ref for ref in refs]
        canvas = self._canvas((lr.height, lr.width), refs)
        count = self.config.ref_scales * len(refs)
        to_encode = sizes_to_encode(self.config, refs, canvas)

        with self.backend_in_use.call() as on, telling("upscale the picture"):
            with _timed(stats, "prepare"):
                prepared = prepare_lr(lr.rgb, canvas)
            padded = on.to_device(prepared)
            if details is not None:
                details.ref_scales, details.canvas = self.config.ref_scales, canvas
            plan = self._planner.plan(on, sizes_of(padded.shape), to_encode, lr.bits // 8)
            steps = _Steps(progress, 1 + len(to_encode) + count + len(self._tiles(lr.height, lr.width, plan.tile)) * count)
            references = self._encoder(on, canvas, plan, stats, steps).all_references(refs)
            sr = SampleCanvas(on, lr) if plan.tight else TensorCanvas(on, (lr.height, lr.width))
            self._upscale(on, padded, (lr.height, lr.width), references, sr, seed, plan, stats, steps, details, history)
            self._planner.end(plan)
            if isinstance(sr, TensorCanvas):
                tensor = on.to_host(sr.sr)
        alpha = None
        if lr.alpha is not None:
            alpha = np.clip(resize_bicubic(lr.alpha, SCALE * lr.height, SCALE * lr.width), 0, 1)
        if isinstance(sr, SampleCanvas):
            result: Photo = PackedPhoto(sr.samples, alpha, lr.icc, lr.exif)
        else:
            result = Photo(colours(tensor[0].transpose(1, 2, 0), lr.gray), alpha, lr.gray, lr.bits, lr.icc, lr.exif)
        return match_low_frequencies(result, lr) if self.consistent else result

    def _upscale(
        self,
        on: Execution,
        lr: Any,
        size: tuple[int, int],
        references: Sequence[Reference],
        canvas: Canvas,
        seed: int,
        plan: Plan,
        stats: Stats | None,
        steps: _Steps,
        details: Details | None = None,
        history: History | None = None,
    ) -> None:
        """From the padded LR, of which `size` is picture, to SR on the canvas; all on the backend's device."""

        def run(stage: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
            return self._run(on, stage, inputs, stats)

        if not plan.tight:
            for reference in references:
                reference.features.keys()
        steps.next("reading the LR picture")
        lr_size, plan.references = sizes_of(lr.shape), references
        lr_features = LRFeatures(lr, self.config, lambda part: run("encode_lr", {"lr": part}), *plan.lr_parts(lr_size))
        matches, relevances = [], []
        for i, reference in enumerate(references):
            keys = reference.features.keys(plan.keeps_values(lr_size, reference))
            plan.check_match(lr_size, reference.size)
            steps.next(f"matching {i + 1} of {len(references)}")
            sizes = {"valid": on.to_device(reference.features.valid), "seed": on.to_device(np.array([seed], np.int32))}
            found = run(self._matching_stage(reference), {**lr_features.queries, **keys, **sizes})
            matches.append(found["match"])
            relevances.append(found["relevance"])
            del keys
            reference.features.drop_keys()
        lr_features.queries.clear()
        on_host: Sequence[Map] = [on.to_host(relevance) for relevance in relevances]
        choose = skip_lightest
        if history is not None:
            choose = history.choose
            recalled, on_host = history.recall(on.to_host(lr), [on.to_host(match) for match in matches], on_host)
            matches = [on.to_device(match) for match in recalled]
        with _timed(stats, "fusion"):
            weights = fusion_weights(on_host, self.config.sharpness)
            shares = choose(weights, size, self.skip)
        if details is not None:
            for match, relevance, share in zip(matches, on_host, shares, strict=True):
                details.add(size, on.to_host(match), relevance, share)
        needed = [i for i, share in enumerate(shares) if share is not None]
        kept = {references[i].features.store for i in needed}
        for reference in references:
            if reference.features.store not in kept:
                reference.features.drop_values()
        if stats is not None:
            stats.matched, stats.restored = stats.matched + len(references), stats.restored + len(needed)
        maps = (on.to_device(np.ascontiguousarray(shares[i])) for i in needed)
        restored = [Matched(references[i].features, matches[i], weight) for i, weight in zip(needed, maps, strict=True)]
        del matches, relevances, on_host, weights, shares

        tile = plan.tile
        planned = len(self._tiles(*size, tile))
        order = plan.order(size, lr_features, [references[i] for i in needed])
        steps.leave_out(planned * len(references) - len(order.windows) * len(needed))
        while True:
            try:
                with telling("restore the picture"):
                    restore(on, self.config, run, lr, lr_features, restored, order, canvas, steps.next)
                return
            except (OutOfDeviceMemory, OutOfMemory) as e:
                tile = min(tile, max(size))
                if tile <= SMALLEST_TILE:
                    raise
                reason = str(e).split(";")[0]
            if plan.memory is not None:
                plan.free()
            # The picture stays the same, whatever the tiles.
            tile = max(SMALLEST_TILE, tile // 2)
            warnings.warn(f"restoring again in tiles of {tile} LR pixels: {reason}", stacklevel=3)
            order = Order(self._tiles(*size, tile), 1, order.keep)

    def _tiles(self, height: int, width: int, tile: int) -> Sequence[Window]:
        return cut(height, width, self.config.halo, side=tile + 2 * self.config.halo)

    def _matching_stage(self, reference: Reference) -> str:
        positions = int(reference.features.valid.prod())
        exact = self.matching == "exact" or (self.matching == "auto" and positions <= EXACT_UP_TO)
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

    def _encoder(self, on: Execution, canvas: tuple[int, int] | None, plan: Plan, stats: Stats | None, steps: _Steps) -> Encoder:
        def encode(picture: Any) -> Mapping[str, Any]:
            return self._run(on, "encode_ref", {"ref": on.to_device(picture)}, stats)

        return Encoder(self.config, canvas, plan.ref_part, encode, lambda: _timed(stats, "prepare"), steps.next)

    def _run(self, on: Execution, stage: str, inputs: Mapping[str, Any], stats: Stats | None) -> dict[str, Any]:
        begin = time.perf_counter()
        with telling(f"run {stage}"):
            outputs = on.run(stage, inputs)
        if stats is not None:
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


def _check_settings(tile: int | None, matching: str, skip: float | None) -> None:
    if skip is not None and not 0 <= skip < 1:
        raise AmsaError(f"skip is {skip}; it must be from 0 (restore all references) to less than 1")
    if tile is not None and tile < 1:
        raise AmsaError(f"tile is {tile}; it must be at least 1 LR pixel")
    if matching not in MATCHINGS:
        raise AmsaError(f"unknown matching {matching!r}; choose one of {', '.join(MATCHINGS)}")


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**31:
        raise AmsaError(f"seed is {seed}; it must be from 0 to {2**31 - 1}")
