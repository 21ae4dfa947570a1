"""All five stages composed into one graph for a fixed number of references: for trtexec, Netron and other people's runtimes."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import AmsaError
from ..model.matching import fusion_weights
from ..model.network import AMSA
from ..stages import SCALE, TensorIO
from .graphs import export_graph


class _Composed(nn.Module):
    """The network on one LR picture and references at one scale each; every pixel of a reference may be matched."""

    def __init__(self, model: AMSA) -> None:
        super().__init__()
        self.model = model

    def forward(self, lr: Tensor, *refs: Tensor) -> Tensor:
        model = self.model
        queries, content = model.encode_lr(lr)
        seed = torch.zeros(1, dtype=torch.int32)
        found, relevances = [], []
        first = None
        for ref in refs:
            keys, values, masks = model.encode_ref(ref)
            if model.config.published_protocol:
                values, masks = first = first or (values, masks)
            valid = torch.cat([torch.full((1, 1), side, dtype=torch.int32) for side in keys[0].shape[2:]], 1)
            match, relevance = model.match(queries, keys, valid, seed)
            found.append((match, values, masks))
            relevances.append(relevance)
        accumulator = content.new_zeros(1, 1, 1, 1).expand(1, model.config.channels[-1], SCALE * lr.shape[2], SCALE * lr.shape[3])
        for (match, values, masks), weight in zip(found, fusion_weights(relevances, model.config.sharpness), strict=True):
            accumulator = model.restore(content, match, weight, values, masks, accumulator)
        sr: Tensor = model.finish(accumulator, lr)
        return sr


def single_file_inputs(model: AMSA, references: int) -> tuple[TensorIO, ...]:
    """The composed graph's inputs: `lr` (sides multiples of 8) and `ref_0` .. (multiples of 32), in [0, 1].

    Published models need all of one size; then the graph says so by sharing the dimensions' names.
    """
    lr = TensorIO("lr", (1, 3, "h", "w"))
    if model.config.published_protocol:
        return (lr, *(TensorIO(f"ref_{i}", (1, 3, "4*h", "4*w")) for i in range(references)))
    return (lr, *(TensorIO(f"ref_{i}", (1, 3, f"H{i}", f"W{i}")) for i in range(references)))


def export_single_file(model: AMSA, path: str | Path, references: int, *, function_bodies: bool = True) -> None:
    """Write one `.onnx` file: `lr`, `ref_0` .. -> `sr` [1, 3, 4h, 4w], not clamped.

    Args:
        model: the network.
        path: ends in .onnx; written beside, then renamed.
        references: how many, counting each scale of a photo.
        function_bodies: as in `export_folder`.
    """
    path = Path(path)
    if path.suffix != ".onnx":
        raise AmsaError(f"{path}: a single file's name must end in .onnx")
    if references < 1:
        raise AmsaError(f"--single-file {references}: at least one reference is needed")
    if not path.parent.is_dir():
        raise AmsaError(f"{path.parent}: no such folder; create it first")
    if path.is_dir():
        raise AmsaError(f"{path} is a folder; choose another name")
    outputs = (TensorIO("sr", (1, 3, "4*h", "4*w")),)
    inputs = single_file_inputs(model, references)
    content = export_graph(_Composed(model), "amsa", inputs, outputs, function_bodies).SerializeToString()
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False) as f:
            temporary = Path(f.name)
            f.write(content)
        temporary.chmod(0o644)
        os.replace(temporary, path)  # noqa: PTH105
    except OSError as e:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise AmsaError(f"cannot write {path}: {e.strerror or e}; free some space or choose another folder") from e
