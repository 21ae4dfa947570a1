"""What distinguishes the three variants of the network. Every field is written into checkpoints and manifests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import Any

from .errors import AmsaError
from .plugins.patch_match.spec import ARITHMETICS, PROPAGATIONS
from .stages import LR_MULTIPLE, REF_MIN, SCALE, VALUE_SCALES, Stage, stages


@dataclass(frozen=True)
class AMSAConfig:
    """Sizes and choices of an AMSA network.

    Attributes:
        variant: "published" (the research code's network), "paper" (the paper's text) or "small" (ours, compact).
        encoder: "vgg" (VGG16 keys to conv3_1, VGG19 values at relu1_1, relu2_1, relu3_1) or "compact" (learned, shared keys).
        key_channels: channels of match keys and queries.
        value_channels: channels of the reference values at 1, 2 and 4 times the LR grid.
        channels: width of the restoration trunk (ngf) at 1, 2 and 4 times the LR grid.
        blocks: residual blocks of the content trunk, and of the restoration trunks at 1, 2 and 4 times.
        groups: offset groups of the dynamic aggregation.
        refine: channels of the keys at twice the matching grid by which positions are refined: the aggregation compares
            keys of LR and reference around each match, and hands the flow it finds up to the next scale. 0: it does not.
        schedule: order and reach of the propagation steps, see plugins/patch_match.
        iterations: M at 1/8, 1/4, 1/2 and full matching resolution.
        cosine: relevance is the cosine of Eq. 1; otherwise the published <K, Q/|Q|>, about [-3, 3].
        base: upsampling of the LR picture that the network's output is added to, "bilinear" or "bicubic".
        sharpness: factor on the relevance in the softmax over references (Eq. 9; the published code's 10).
        ref_scales: each reference is used at scales ref_factor^0 .. ref_factor^(ref_scales - 1).
        ref_factor: k of the paper.
        arithmetic: of the matching, "float" or "int8", see plugins/patch_match.
    """

    variant: str
    encoder: str
    key_channels: int
    value_channels: tuple[int, int, int]
    channels: tuple[int, int, int]
    blocks: tuple[int, int, int, int]
    groups: int
    refine: int
    schedule: str
    iterations: tuple[int, int, int, int]
    cosine: bool
    base: str
    sharpness: float = 10.0
    ref_scales: int = 5
    ref_factor: float = 0.8
    arithmetic: str = "float"

    def __post_init__(self) -> None:
        choices = {
            "variant": tuple(VARIANTS),
            "encoder": ("vgg", "compact"),
            "schedule": PROPAGATIONS,
            "arithmetic": ARITHMETICS,
            "base": ("bilinear", "bicubic"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise AmsaError(f"config: {name} is {getattr(self, name)!r}; it must be one of {', '.join(allowed)}")
        if self.encoder == "vgg" and (self.key_channels, self.value_channels) != (256, (256, 128, 64)):
            raise AmsaError("config: the vgg encoder has 256 key channels and (256, 128, 64) value channels")
        for name in ("value_channels", "channels", "blocks", "iterations"):
            if any(v < 1 for v in getattr(self, name)):
                raise AmsaError(f"config: {name} is {getattr(self, name)}; every entry must be at least 1")
        for name in ("key_channels", "groups", "ref_scales"):
            if getattr(self, name) < 1:
                raise AmsaError(f"config: {name} is {getattr(self, name)}; it must be at least 1")
        if self.channels[-1] < 2:
            raise AmsaError(f"config: channels is {self.channels}; the last must be at least 2")
        if not 0 <= self.sharpness < float("inf"):
            raise AmsaError(f"config: sharpness is {self.sharpness}; it must be a number from 0")
        if not 0 < self.ref_factor <= 1:
            raise AmsaError(f"config: ref_factor is {self.ref_factor}; it must be above 0 and at most 1")
        if self.refine < 0 or (self.refine and self.encoder != "compact"):
            raise AmsaError(f"config: refine is {self.refine}; it must be 0, or with the compact encoder a number of channels")
        if self.refine and any(c <= k for c, k in zip(self.value_channels, self.compared_channels, strict=True)):
            raise AmsaError(
                f"config: value_channels {self.value_channels} must be more than the {self.compared_channels} that are compared"
            )
        smallest = int(REF_MIN * self.ref_factor ** (self.ref_scales - 1)) // SCALE
        if smallest < 3:  # a patch
            raise AmsaError(
                f"config: ref_scales is {self.ref_scales}; at ref_factor {self.ref_factor} the last scale of a reference of "
                f"{REF_MIN}x{REF_MIN} has {smallest} positions a side, and a patch needs 3"
            )
        if any(c % self.groups for c in self.value_channels):
            raise AmsaError(f"config: value_channels {self.value_channels} must divide into {self.groups} groups")

    @property
    def warp_mask_from_ref(self) -> bool:
        """The published warp reads its masks from the unwarped reference; otherwise they come from the LR features."""
        return self.variant == "published"

    @property
    def published_protocol(self) -> bool:
        """Published weights want zero padding to one common size, and the values of scale 0 for every scale."""
        return self.variant == "published"

    @property
    def compared_channels(self) -> tuple[int, int, int]:
        """The last channels of the values at x1, x2 and x4 that `refine` compares with the LR side's: keys and finer keys."""
        return (self.key_channels, self.refine, 0) if self.refine else (0, 0, 0)

    @property
    def content_channels(self) -> int:
        """F, and with `refine` what the values are compared with: keys, and finer keys (2x2 positions in one)."""
        k1, k2, _ = self.compared_channels
        return self.channels[0] + k1 + 4 * k2

    @property
    def halo(self) -> int:
        """How far a restored pixel sees, in LR pixels: a tile with this halo equals that part of the whole picture.

        At each scale the trunk's two convolutions per block and eight more (masks, offsets, flow, head, up); then the last two.
        """
        return sum(-(-(2 * blocks + 8) // scale) for blocks, scale in zip(self.blocks[1:], VALUE_SCALES, strict=True)) + 2

    @property
    def lr_halo(self) -> int:
        """How far `encode_lr` sees, in LR pixels, as a multiple of LR_MULTIPLE: the content trunk, or the vgg keys of LR / 8."""
        seen = max(2 * self.blocks[0] + 1, 56 if self.encoder == "vgg" else 8)
        return -(-seen // LR_MULTIPLE) * LR_MULTIPLE

    @property
    def ref_halo(self) -> int:
        """How far `encode_ref` sees, in pixels, as a multiple of REF_MULTIPLE: its blur, or the coarsest vgg keys."""
        return 128 if self.encoder == "vgg" else 32

    def stages(self, precision: str = "fp32") -> tuple[Stage, ...]:
        """The graphs of this network, with features of that precision (`stages.PRECISIONS`)."""
        channels = self.key_channels, self.value_channels, self.content_channels, self.channels[-1]
        return stages(*channels, self.warp_mask_from_ref, precision, self.encoder == "compact")

    @classmethod
    def published(cls, channels: int = 64, blocks: int = 16, groups: int = 8) -> AMSAConfig:
        """The research code's network, which loads the published checkpoints."""
        return cls(
            variant="published",
            encoder="vgg",
            key_channels=256,
            value_channels=(256, 128, 64),
            channels=(channels, channels, channels),
            blocks=(blocks, blocks, blocks, blocks),
            groups=groups,
            refine=0,
            schedule="published",
            iterations=(1, 1, 1, 4),
            cosine=False,
            base="bilinear",
        )

    @classmethod
    def paper(cls, channels: int = 64, blocks: int = 16, groups: int = 8) -> AMSAConfig:
        """The paper's text: its schedule, cosine relevance, values of each scale, any sizes."""
        published = cls.published(channels, blocks, groups)
        return replace(published, variant="paper", schedule="paper", iterations=(1, 1, 2, 6), cosine=True)

    @classmethod
    def small(cls) -> AMSAConfig:
        """Ours: learned encoders of a few layers, for CPUs and small downloads."""
        return cls(
            variant="small",
            encoder="compact",
            key_channels=16,
            value_channels=(40, 32, 16),
            channels=(48, 32, 16),
            blocks=(8, 4, 3, 1),
            groups=1,
            refine=8,
            schedule="fast",
            # Many where they cost nothing, few at the finer levels: smooth fields restore better. Six castle crops, dB over
            # bicubic: at step 6,000, with rising dilations, (1, 1, 1, 2) 2.96, (8, 1, 1, 1) 3.16; at the end 3.15, with
            # falling ones 3.23, and (8, 2, 2, 2) 3.20.
            iterations=(8, 1, 1, 1),
            cosine=True,
            base="bicubic",
            arithmetic="int8",
            sharpness=40.0,  # at 10 the five scales of a good reference blur each other: 0.08 dB on six castle crops
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> AMSAConfig:
        """The reverse of `to_dict`. AmsaError names unknown and missing fields."""
        if not isinstance(values, Mapping):
            raise AmsaError(f"config: {values!r} is not a table of fields")
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise AmsaError(f"config: unknown field {', '.join(unknown)}; known are {', '.join(sorted(known))}")
        if missing := sorted({f.name for f in fields(cls) if f.default is MISSING} - set(values)):
            raise AmsaError(f"config: missing field {', '.join(missing)}")
        for f in fields(cls):
            if f.name not in values:
                continue
            example = getattr(cls.small(), f.name)
            value = tuple(values[f.name]) if isinstance(values[f.name], list) else values[f.name]
            shape_agrees = type(value) is type(example) or (isinstance(example, float) and type(value) is int)
            if not shape_agrees or (isinstance(example, tuple) and [type(v) for v in value] != [int] * len(example)):
                raise AmsaError(f"config: {f.name} is {value!r}; it must be like {example!r}")
        loaded: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**loaded)


VARIANTS = {"published": AMSAConfig.published, "paper": AMSAConfig.paper, "small": AMSAConfig.small}
"""Constructors by name, as the command line knows them."""
