"""The AMSA network: five stages, which are the five exported graphs, and their composition for training."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import AMSAConfig
from ..errors import AmsaError
from ..stages import LR_MULTIPLE, REF_MULTIPLE, SCALE
from .features import CompactKeys, CompactValues, VGGKeys, VGGValues
from .layers import as_features, conv3
from .matching import Matcher, fusion_weights
from .resample import lr_blur, upscale_bicubic
from .restoration import ContentExtractor, Finish, Restoration


class ReferenceEncoder(nn.Module):
    """Q and V of a reference at one scale: match keys, values, and for the published variant the warp's masks."""

    def __init__(self, config: AMSAConfig) -> None:
        super().__init__()
        self.keys: VGGKeys | CompactKeys
        self.values: VGGValues | CompactValues
        if config.encoder == "vgg":
            self.keys, self.values = VGGKeys(4 if config.cosine else 1), VGGValues()
        else:
            self.keys = CompactKeys(config.key_channels, config.refine)
            self.values = CompactValues(config.value_channels, config.compared_channels)
        masks = config.value_channels if config.warp_mask_from_ref else ()
        self.warp_masks = nn.ModuleList(conv3(c, 9) for c in masks)

    def forward(self, ref: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]:
        """[N, 3, H, W] in [0, 1] -> keys at 1/1..1/8, values at x1, x2, x4 of the H/4 x W/4 grid, warp masks or ()."""
        if isinstance(self.keys, VGGKeys):
            keys = self.keys(VGGKeys.pyramid_of_ref(ref))
            values = self.values(ref)
        else:
            blurred = lr_blur(ref)
            keys, fine = self.keys(blurred)
            values = self.values(ref, blurred, keys[0], fine)
        return keys, values, tuple(conv(v) for conv, v in zip(self.warp_masks, values, strict=False))


class LREncoder(nn.Module):
    """K and F of the LR picture: match queries and content features."""

    def __init__(self, config: AMSAConfig, shared_keys: CompactKeys | None) -> None:
        super().__init__()
        self.keys = shared_keys if shared_keys is not None else VGGKeys(4 if config.cosine else 1)
        self.content = ContentExtractor(config.channels[0], config.blocks[0])
        self.round_to_8_bits = config.published_protocol

    def forward(self, lr: Tensor, upscaled: Tensor | None = None) -> tuple[tuple[Tensor, ...], Tensor]:
        """[N, 3, h, w] in [0, 1] -> queries at 1/1..1/8 of h x w, content features [N, content_channels, h, w].

        `upscaled`: the x4 picture to take the finest VGG queries from instead of our own upsampling of `lr`.
        """
        if isinstance(self.keys, VGGKeys):
            pictures = VGGKeys.pyramid_of_lr(lr, self.round_to_8_bits)
            queries = self.keys(pictures if upscaled is None else [upscaled, *pictures[1:]])
            return queries, self.content(lr)
        queries, fine = self.keys(upscale_bicubic(lr, 2))
        content = self.content(lr)
        if fine is not None:
            compared = (queries[0], F.pixel_unshuffle(fine, 2))
            content = torch.cat((content, *(as_features(x, self.content.conv_first) for x in compared)), 1)
        return queries, content


class AMSA(nn.Module):
    """Accelerated Multi-Scale Aggregation network.

    The stages `encode_ref`, `encode_lr`, `match`, `restore`, `finish` are the exported graphs (`stages.py`).
    """

    def __init__(self, config: AMSAConfig) -> None:
        super().__init__()
        self.config = config
        self.encode_ref = ReferenceEncoder(config)
        shared = self.encode_ref.keys
        self.encode_lr = LREncoder(config, shared if isinstance(shared, CompactKeys) else None)
        self.match = Matcher(config)
        self.restore = Restoration(config)
        self.finish = Finish(config)

    @property
    def precision(self) -> str:
        """Of features and convolutions: "fp32", or "fp16" after `to_fp16`."""
        return "fp16" if self.finish.conv1.weight.dtype == torch.float16 else "fp32"

    def to_fp16(self) -> AMSA:
        """Convolutions and features in float16, for inference; pictures, scores, positions, norms and softmax stay float32,
        and so does all of `CompactKeys`.

        The model itself is changed and returned. AmsaError where a weight is too large for float16.
        """
        # A rounded key may round to another int8, and PatchMatch, which takes the best of nearly equal places, then to another
        # place: 1 to 4 % of the matches of castle crops, 0.03 % so (`python -m amsa.training.evaluation.precision`). The key net
        # is 0.7 % of the multiplications.
        exact = {m for part in self.modules() if isinstance(part, CompactKeys) for m in part.modules()}
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d) and module not in exact:
                module.half()
                if not all(p.isfinite().all() for p in module.parameters()):
                    raise AmsaError(f"{name}: a weight is too large for float16; export this model as fp32")
        return self

    def reset_parameters(self, seed: int) -> None:
        """Untrained weights from a seed.

        The VGG variants' restoration begins as the published code's (normal, 0.02), everything else as He's, a tenth of it
        where a residual branch ends. Offsets and masks begin at zero, and the picture close to the base.
        """
        generator = torch.Generator().manual_seed(seed)
        begins_like_published = {self.restore, self.finish, self.encode_lr.content} if self.config.encoder == "vgg" else set()
        published = {m for part in begins_like_published for m in part.modules()}
        for name, m in self.named_modules():
            if not isinstance(m, nn.Conv2d):
                continue
            he = (2 / m.weight[0].numel()) ** 0.5
            std = 0.02 if m in published else 0.1 * he if re.search(r"body\.\d+\.conv2$", name) else he
            if m is self.finish.conv2:
                std *= 0.01
            elif "mask" in name or name.endswith(("flow", "flow_vote")):
                std = 0.0
            with torch.no_grad():
                m.weight.copy_(torch.randn(m.weight.shape, generator=generator) * std)
                if m.bias is not None:
                    m.bias.zero_()

    def forward(
        self,
        lr: Tensor,
        refs: Sequence[Sequence[Tensor]],
        valids: Sequence[Sequence[Tensor]] | None = None,
        seed: int = 0,
    ) -> Tensor:
        """A batch of pictures, for training and as the reference that the exported graphs are compared with.

        Args:
            lr: [N, 3, h, w] in [0, 1]; sides multiples of 8.
            refs: for each reference photo its scales, largest first: [N, 3, H, W] in [0, 1], sides multiples of 32.
            valids: for each of those int32 [1|N, 2]: rows and columns that are picture, divided by 4; None: all.
            seed: of the initial matches.

        Returns:
            [N, 3, 4h, 4w], not clamped.
        """
        check_multiple("lr", lr, LR_MULTIPLE)
        queries, content = self.encode_lr(lr)
        seed_tensor = torch.tensor([seed], dtype=torch.int32, device=lr.device)
        found, relevances = [], []
        for i, photo in enumerate(refs):
            first = None
            for j, ref in enumerate(photo):
                check_multiple("ref", ref, REF_MULTIPLE)
                keys, values, masks = self.encode_ref(ref)
                if self.config.published_protocol:  # values of scale 0 for every scale
                    first = first or (values, masks)
                    values, masks = first
                size = [[ref.shape[2] // SCALE, ref.shape[3] // SCALE]]
                valid = valids[i][j] if valids is not None else torch.tensor(size, dtype=torch.int32, device=lr.device)
                match, relevance = self.match(queries, keys, valid, seed_tensor)
                found.append((match, values, masks))
                relevances.append(relevance)
        accumulator = content.new_zeros(1, 1, 1, 1).expand(
            content.shape[0], self.config.channels[-1], SCALE * content.shape[2], SCALE * content.shape[3]
        )
        weights = fusion_weights(relevances, self.config.sharpness)
        for (match, values, masks), weight in zip(found, weights, strict=True):
            accumulator = self.restore(content, match, weight, values, masks, accumulator)
        sr: Tensor = self.finish(accumulator, lr)
        return sr


def check_multiple(name: str, x: Tensor, multiple: int) -> None:
    """Raise ValueError unless both sides of a picture are multiples."""
    if x.shape[2] % multiple or x.shape[3] % multiple:
        raise ValueError(f"{name} is {x.shape[2]}x{x.shape[3]}; both sides must be multiples of {multiple}")
