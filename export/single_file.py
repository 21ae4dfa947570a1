"""All five stages composed into one graph for a fixed number of references: for trtexec, Netron and other people's runtimes."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from ..engine.images import Photo, to_array
from ..errors import AmsaError
from ..model.matching import fusion_weights
from ..model.network import AMSA
from ..plugins.onnx_ops import attach_function_bodies
from ..stages import SCALE, TensorIO
from .check import sample_inputs
from .graphs import export_graph


class _Composed(nn.Module):
    """The network on one LR picture and references at one scale each; every pixel of a reference may be matched.

    `uint8`: pictures in and out are 8-bit samples, read and rounded as `engine/images.py` does.
    """

    def __init__(self, model: AMSA, uint8: bool) -> None:
        super().__init__()
        self.model, self.uint8 = model, uint8

    def forward(self, lr: Tensor, *refs: Tensor) -> Tensor:
        if not self.uint8:
            return self._upscale(lr, *refs)
        sr = self._upscale(*(picture.float() / 255 for picture in (lr, *refs)))
        # Half up. `floor`, so that no runtime's own way to turn a fraction into an integer matters.
        return (sr.clamp(0, 1) * 255 + 0.5).floor().to(torch.uint8)

    def _upscale(self, lr: Tensor, *refs: Tensor) -> Tensor:
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


def single_file_inputs(model: AMSA, references: int, uint8: bool = False) -> tuple[TensorIO, ...]:
    """The composed graph's inputs: `lr` (sides multiples of 8) and `ref_0` .. (multiples of 32), float32 in [0, 1] or uint8.

    Published models need all of one size; then the graph says so by sharing the dimensions' names.
    """
    dtype = "uint8" if uint8 else "float32"
    sizes = [("4*h", "4*w") if model.config.published_protocol else (f"H{i}", f"W{i}") for i in range(references)]
    refs = (TensorIO(f"ref_{i}", (1, 3, *size), dtype) for i, size in enumerate(sizes))
    return (TensorIO("lr", (1, 3, "h", "w"), dtype), *refs)


def export_single_file(
    model: AMSA, path: str | Path, references: int, *, function_bodies: bool = True, uint8: bool = False
) -> None:
    """Write one `.onnx` file: `lr`, `ref_0` .. -> `sr` [1, 3, 4h, 4w], float32 and not clamped, or uint8.

    Args:
        model: the network.
        path: ends in .onnx; written beside, then renamed.
        references: how many, counting each scale of a photo.
        function_bodies: as in `export_folder`.
        uint8: pictures in and out are uint8, RGB 0..255, instead of float32 in [0, 1]; the result is clipped and rounded half up.
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
    inputs = single_file_inputs(model, references, uint8)
    outputs = (TensorIO("sr", (1, 3, "4*h", "4*w"), inputs[0].dtype),)
    content = export_graph(_Composed(model, uint8), "amsa", inputs, outputs, function_bodies).SerializeToString()
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


@dataclass(frozen=True)
class FileParity:
    """How far a single file's picture, computed by ONNX Runtime, is from the PyTorch network's; uint8 counts as 0..1 too.

    Attributes:
        difference: the largest absolute difference; NaN where either has a NaN.
        psnr: dB, with a peak of 1; inf where both are equal. A few other matches (near-ties) change the largest difference
            much and this little.
    """

    difference: float
    psnr: float


def check_single_file(model: AMSA, path: str | Path, lr_size: tuple[int, int], ref_size: tuple[int, int]) -> FileParity:
    """Run a single file in ONNX Runtime and the network in PyTorch on one sample; a file without function bodies is given them.

    Args:
        model: the network that was exported.
        path: the file; its inputs say how many references there are and of which type.
        lr_size: (h, w), multiples of 8. ref_size: (H, W), multiples of 32; published models need 4 times lr_size.
    """
    import onnxruntime

    graph = onnx.load(path)
    if not graph.functions:
        attach_function_bodies(graph)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    lr, ref = sample_inputs(lr_size, ref_size)
    names = [tensor.name for tensor in session.get_inputs()]
    pictures = [lr, *(ref.roll(16 * i, 3) for i in range(len(names) - 1))]  # references that differ
    uint8 = session.get_inputs()[0].type == "tensor(uint8)"
    if uint8:
        samples = [(picture * 255).round().to(torch.uint8) for picture in pictures]
        pictures = [sample.float() / 255 for sample in samples]
        given = [sample.numpy() for sample in samples]
    else:
        given = [picture.numpy() for picture in pictures]
    (found,) = session.run(None, dict(zip(names, given, strict=True)))
    lr, *refs = pictures
    with torch.inference_mode():
        sr = model(lr, [refs] if model.config.published_protocol else [[ref] for ref in refs])
    expected = sr[0].permute(1, 2, 0).numpy()
    found = found[0].transpose(1, 2, 0)
    if uint8:
        expected, found = (samples.astype(np.float32) / 255 for samples in (to_array(Photo(expected)), found))
    error = np.abs(expected.astype(np.float64) - found)
    mean = float(np.square(error).mean())
    psnr = float("inf") if mean == 0 else float(-10 * np.log10(mean))
    return FileParity(float(error.max()), psnr)
