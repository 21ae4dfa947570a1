"""How a picture is made within the memory that there is: what is kept, what is made again, and in parts of which size.

Where a generous estimate fits, nothing is planned: everything is kept, in the usual tiles. Where it does not, what the stages
need is measured once, on small zeros, and every step is planned when it comes, by what the process holds then.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..config import AMSAConfig
from ..errors import AmsaError
from ..stages import LR_MULTIPLE, SCALE, VALUE_SCALES
from .backends import Backend, Execution
from .engine_shapes import dimensions
from .features import LRFeatures, Reference, Size, Tensors, features_bytes
from .memory import Memory, measure, release, show_bytes
from .restoration import Order
from .tiling import TILE, cut

LARGE_TILE = 256
"""LR pixels on a side that are restored at a time on the CPU where a generous estimate fits: with a halo of 28 around 128 pixels
twice as many are computed as are kept, around 256 half as many more."""
SMALLEST_TILE = 16
_COMFORTABLE = 64
"""Tiles below which halos cost more than making features again: at 64 LR pixels with 28 around, 3.5 positions are computed for
one that is kept."""
_GENEROUS = 4.0
"""Times the samples of all scales, what restoring may need: 1.1 to 1.4 are needed in ONNX Runtime with our kernels, 2.2 in
torch, and with function bodies more than this (`python benchmarks/memory.py stages`)."""
_MARGIN = 1.1
"""What is measured on small zeros, times this, was enough at all sizes: per position larger ones need less."""
_MEASURED_AT = {"encode_ref": 256, "encode_lr": 64, "restore": 64, "finish": 64}


@dataclass
class Plan:
    """What is decided for one picture. The methods say what fits now; where nothing does, AmsaError says what would.

    Attributes:
        memory: what may be held; None: no limit that is known of, nothing is planned.
        config, precision: of the network.
        tile: LR pixels on a side that are restored at a time, at most.
        free: gives back what stages keep that have run.
        scratch: bytes per position that the stages need, where memory is short; empty where it is not.
        result: bytes of the result.
        references: what may be dropped and made again.
    """

    memory: Memory | None
    config: AMSAConfig
    precision: str
    tile: int
    free: Callable[[], None]
    scratch: dict[str, float] = field(default_factory=dict)
    result: int = 0
    references: Sequence[Reference] = ()

    @property
    def tight(self) -> bool:
        return bool(self.scratch)

    def _room(self) -> int:
        assert self.memory is not None
        return self.memory.room() - self.result

    def lr_parts(self, size: Size) -> tuple[int | None, bool]:
        """Positions of LR to encode at a time; whether its content is kept whole."""
        if not self.tight:
            return None, True
        content, queries = _lr_bytes(self.config, self.precision, size)
        room = self._room() - queries
        keep = content <= room / 4
        return int(max(0, (room - keep * content) / 4 / self.scratch["encode_lr"])), keep

    def keeps_values(self, lr: Size, reference: Reference) -> bool:
        """Whether a scale's values, which are made with its keys, may stay until it is restored from."""
        if not self.tight:
            return True
        most = max(reference.scaling + self._part(reference.size), _match_bytes(self.config, lr, reference.size))
        return self._make_room(sum(features_bytes(self.config, self.precision, reference.size)) + most, drop=False)

    def ref_part(self, size: Size, words: tuple[str, ...], what: str) -> int | None:
        """Pixels of a reference to encode at a time.

        Args:
            size: at its scale, padded.
            words: that the names of the features begin with which are to stay.
            what: to call it in an error.
        """
        if self.memory is None:
            return None
        usual = max(2**20, (16 * self.config.ref_halo) ** 2)  # of which halos are an eighth
        if not self.tight:
            return usual
        self.free()  # in hours of use pieces would be left over in what stages keep
        kept = zip(features_bytes(self.config, self.precision, size), ("key_", "value_"), strict=True)
        features = sum(need for need, word in kept if word in words)
        if not self._make_room(features + self._part(size)):
            self._refuse(f"{what} needs {show_bytes(features + self._part(size))} for its features")
        return int(min(usual, (self._room() - features) / 2 / self.scratch["encode_ref"]))

    def check_match(self, lr: Size, ref: Size) -> None:
        """Raise AmsaError where matching would need more than there is."""
        need = _match_bytes(self.config, lr, ref)
        if self.tight and not self._make_room(need):
            self._refuse(f"matching {lr[1]}x{lr[0]} with {ref[1]}x{ref[0]} pixels needs {show_bytes(need)}")

    def order(self, size: Size, features: LRFeatures, references: Sequence[Reference]) -> Order:
        """In which order to restore an LR picture of `size` from these references."""
        halo = self.config.halo
        usual = cut(*size, halo, side=self.tile + 2 * halo)
        if not self.tight:
            return Order(usual)
        self.free()
        bytes_of = {r.features.store: features_bytes(self.config, self.precision, r.size)[1] for r in references}
        each = self.scratch["restore"] + self.scratch["finish"] + (0 if features.whole else 3 * self.scratch["encode_lr"])
        summed = SCALE**2 * self.config.channels[-1] * 4

        def area(tile: int) -> int:
            return min(size[0], tile + 2 * halo) * min(size[1], tile + 2 * halo)

        smallest, enough = area(SMALLEST_TILE), area(min(self.tile, _COMFORTABLE))
        missing = sum(need for store, need in bytes_of.items() if not store.held)
        left = self._room() - missing
        # Or one at a time, with the sums of a group of windows: 0.6 for a window, the rest for the group.
        held = sum(need for store, need in bytes_of.items() if store.held and not store.lent)
        largest = max((need for store, need in bytes_of.items() if not store.lent), default=0)
        left_in_turn = left + missing + held - largest
        keep = left / each >= min(enough, 0.6 * left_in_turn / (each + summed))
        if not keep:
            for store in bytes_of:
                store.drop_values()
            self.free()
            left = left_in_turn
        least = max((r.scaling + self._part(r.size) for r in references if not r.features.held), default=0)
        least = max(least, int(smallest * (each + summed)))
        if left < least:
            fitting = (left_in_turn + largest - least) / (features_bytes(self.config, self.precision, (1000, 1000))[1])
            more = f", which is enough for references of {fitting:.2g} megapixels" if fitting >= 0.1 else ""
            self._refuse(f"restoring from the largest reference needs {show_bytes(largest + least)}", more)
        windows = cut(*size, halo, side=self.tile + 2 * halo, area=max(smallest, int(left / each if keep else 0.6 * left / each)))
        group = 1 if keep else max(1, int(0.4 * left / (windows[0].area * summed)))
        groups = -(-len(windows) // group)
        said = [f"restoring in {len(windows)} tiles instead of {len(usual)}"] if len(windows) > len(usual) else []
        if not keep:
            said.append("encoding references again" + (f" for each of {groups} groups of tiles" if groups > 1 else ""))
        if said:
            warnings.warn(f"{', '.join(said)}, to stay within {self.memory}", stacklevel=4)
        return Order(windows, group, keep)

    def _part(self, size: Size) -> int:
        """Bytes that encoding the smallest part of a reference needs."""
        return int(min(size[0] * size[1], 512**2) * self.scratch["encode_ref"])

    def _make_room(self, need: int, drop: bool = True) -> bool:
        """Whether so many bytes can be had: if need be, without what stages keep, and without values that can be made again."""
        if self._room() < need:
            self.free()
        if drop and self._room() < need:
            self._drop_values()
        return self._room() >= need

    def _drop_values(self) -> None:
        for reference in self.references:
            reference.features.drop_values()
        self.free()

    def _refuse(self, what: str, fits: str = "") -> None:
        room = max(0, self._room())
        raise AmsaError(
            f"not enough memory: {what}, and within {self.memory} there is room for {show_bytes(room)}{fits}; "
            "scale the pictures down, or allow more memory"
        )


class Planner:
    """Makes plans for one upscaler.

    Args:
        backend: that it runs on.
        tile: LR pixels on a side that it restores at a time, where memory allows; None: `LARGE_TILE`, or else `TILE`.
        memory: what may be held; None: nothing is planned, as on a GPU, whose memory is the backend's.
    """

    def __init__(self, backend: Backend, tile: int | None, memory: Memory | None) -> None:
        self._backend = backend
        self._memory = memory if memory is not None and memory.known else None
        largest_first = (TILE,) if self._memory is None else (LARGE_TILE, TILE)
        self._tiles = largest_first if tile is None else (tile,)
        self._measured: dict[str, float] = {}

    def plan(self, on: Execution, lr: Size, refs: Sequence[Size], samples: int) -> Plan:
        """Decide whether memory is short, and which tiles it allows where it is not.

        Args:
            on: the backend.
            lr: height and width, padded.
            refs: those of every scale of every reference that is to be encoded, padded.
            samples: bytes of a sample of the result, where it may be kept as samples.
        """
        config, precision = self._backend.config, self._backend.precision
        plan = Plan(self._memory, config, precision, self._tiles[-1], self._free)
        if self._memory is None:
            return plan
        room = self._memory.room()
        fitting = [tile for tile in self._tiles if generous(config, precision, tile, lr, refs) <= room]
        if fitting and self._backend.kernels != "function bodies":
            plan.tile = fitting[0]
        else:
            self._free()
            plan.scratch = {stage: _MARGIN * self._measure(on, stage) for stage in _MEASURED_AT}
            self._free()
            plan.result = SCALE**2 * lr[0] * lr[1] * 3 * samples
        return plan

    def keeps(self, refs: Sequence[Size]) -> bool:
        """Whether references may be encoded for good: all their scales take at most half of what there is room for."""
        config, precision = self._backend.config, self._backend.precision
        need = sum(sum(features_bytes(config, precision, ref)) for ref in refs)
        return self._memory is None or 2 * need <= self._memory.room()

    def end(self, plan: Plan) -> None:
        """Where memory is short: give back what the stages needed."""
        if plan.tight:
            self._free()

    def _free(self) -> None:
        self._backend.close()
        release()

    def _measure(self, on: Execution, stage: str) -> float:
        """Bytes per position that a stage needs, outputs included."""
        if stage not in self._measured:
            side = _MEASURED_AT[stage]
            on.run(stage, self.zeros(stage, side // 4))  # what is needed once
            self._measured[stage] = measure(lambda: on.run(stage, self.zeros(stage, side))) / side**2
        return self._measured[stage]

    def zeros(self, stage: str, side: int) -> Tensors:
        """Inputs of a stage: LR of side x side, or for `encode_ref` a reference; what else it takes is small."""
        declared = next(s for s in self._backend.config.stages(self._backend.precision) if s.name == stage)
        grid = side // SCALE if stage == "encode_ref" else LR_MULTIPLE
        profile = {word: (n, n, n) for word, n in (("h", side), ("w", side), ("Hk", grid), ("Wk", grid))}
        if self._backend.config.warp_mask_from_ref and stage != "encode_ref":  # LR and reference have one size
            profile |= {"Hk": (side,) * 3, "Wk": (side,) * 3}
        return {t.name: np.zeros(dimensions(t, profile)[0], t.dtype) for t in declared.inputs}


def generous(config: AMSAConfig, precision: str, tile: int, lr: Size, refs: Sequence[Size]) -> float:
    """Bytes that are enough for a picture, where our kernels or torch run: everything kept, usual tiles, nothing in parts."""
    window = min(lr[0], tile + 2 * config.halo) * min(lr[1], tile + 2 * config.halo)
    samples = 4 * sum(9 * c * s * s for s, c in zip(VALUE_SCALES, config.value_channels, strict=True))
    need = _GENEROUS * samples * window + 4 * sum(_lr_bytes(config, precision, lr))
    need += lr[0] * lr[1] * (SCALE**2 * 3 * 4 * 2 + 32 * len(refs))  # the result, and the matches and weights of each scale
    for ref in refs:
        need += sum(features_bytes(config, precision, ref))
    if refs:
        largest = max(refs, key=lambda ref: ref[0] * ref[1])
        need += 3 * sum(features_bytes(config, precision, largest)) + 24 * largest[0] * largest[1]
        need += _match_bytes(config, lr, largest)
    return need


def _lr_bytes(config: AMSAConfig, precision: str, size: Size) -> Size:
    """Of LR's content and of its queries."""
    positions = size[0] * size[1]
    content = config.content_channels * positions * (2 if precision == "fp16" else 4)
    queries, _ = features_bytes(config, precision, (SCALE * size[0], SCALE * size[1]))
    return content, queries


def _match_bytes(config: AMSAConfig, lr: Size, ref: Size) -> int:
    """Of the matcher's tables: channels-last copies of keys and queries, norms, positions and scores."""
    return (5 * config.key_channels + 160) * (lr[0] * lr[1] + ref[0] * ref[1] // SCALE**2)


def sizes_of(shape: Any) -> Size:
    """Height and width of [1, C, H, W]."""
    return int(shape[2]), int(shape[3])
