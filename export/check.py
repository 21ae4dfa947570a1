"""After an export: does ONNX Runtime compute what PyTorch does? Stage by stage, each fed with PyTorch's tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from torch import Tensor

from ..manifest import ModelFolder
from ..model.network import AMSA
from ..model.stage_modules import stage_modules
from ..plugins.onnx_ops import attach_function_bodies
from ..stages import SCALE


@dataclass(frozen=True)
class StageParity:
    """How far ONNX Runtime's outputs of a stage are from PyTorch's.

    Attributes:
        difference: the largest absolute difference over the stage's float outputs; NaN where either has a NaN.
        scale: the largest absolute value in PyTorch's.
        other_matches: share of matches that differ (near-ties), for the match stage; otherwise 0.
        psnr: dB, the worst of the stage's float outputs, each with its largest absolute value as the peak; inf where equal.
    """

    stage: str
    difference: float
    scale: float
    other_matches: float
    psnr: float = math.inf


def sample_inputs(lr_size: tuple[int, int], ref_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """A smooth random LR picture and reference, [1, 3, h, w] and [1, 3, H, W] in [0, 1]: seeded, with structure to match."""
    generator = torch.Generator().manual_seed(0)

    def picture(height: int, width: int) -> Tensor:
        octaves = [torch.rand(1, 3, max(2, height // n), max(2, width // n), generator=generator) for n in (2, 4, 8, 16)]
        size = (height, width)
        return torch.stack([torch.nn.functional.interpolate(o, size=size, mode="bilinear") for o in octaves]).mean(0)

    return picture(*lr_size), picture(*ref_size)


def check_parity(model: AMSA, folder: ModelFolder, lr_size: tuple[int, int], ref_size: tuple[int, int]) -> list[StageParity]:
    """Run every stage in PyTorch and in ONNX Runtime on one sample; graphs without function bodies are given them for this.

    Args:
        model: the network that was exported; of an int8 or float16 export also the one in float32.
        folder: the export.
        lr_size: (h, w), multiples of 8. ref_size: (H, W), multiples of 32; published models need 4 times lr_size.
    """
    import onnxruntime

    lr, ref = sample_inputs(lr_size, ref_size)
    known: dict[str, Tensor] = {
        "lr": lr,
        "ref": ref,
        "valid": torch.tensor([[ref_size[0] // SCALE, ref_size[1] // SCALE]], dtype=torch.int32),
        "seed": torch.zeros(1, dtype=torch.int32),
        "weight": torch.ones(1, 1, *lr_size),
        "accumulator": torch.zeros(
            1, model.config.channels[-1], SCALE * lr_size[0], SCALE * lr_size[1], dtype=model.finish.conv1.weight.dtype
        ),
    }
    types = {t.name: t.dtype for s in model.config.stages(folder.manifest.precision) for t in s.inputs}
    results = []
    for stage, module in stage_modules(model):
        inputs = [known[t.name] for t in stage.inputs]
        with torch.inference_mode():
            outputs = module(*inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        graph = folder.graphs[stage.name]
        if not folder.manifest.function_bodies:
            proto = onnx.load_from_string(graph)
            attach_function_bodies(proto)
            graph = proto.SerializeToString()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors: of a quantized float16 graph it warns for every scale that it cannot fold
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        found = session.run(
            [t.name for t in stage.outputs],
            {t.name: v.numpy().astype(types[t.name]) for t, v in zip(stage.inputs, inputs, strict=True)},
        )
        expected = {t.name: v for t, v in zip(stage.outputs, outputs, strict=True)}
        results.append(_compare(stage.name, expected, dict(zip(expected, found, strict=True))))
        known.update(expected)
        known["accumulator"] = known.get("accumulator_out", known["accumulator"])
    return results


def _compare(stage: str, expected: Mapping[str, Tensor], found: Mapping[str, np.ndarray]) -> StageParity:
    difference = scale = other = 0.0
    psnr = math.inf
    for name, tensor in expected.items():
        reference = tensor.numpy()
        if reference.dtype == np.int32:
            other = float((reference != found[name]).any(1).mean())
            continue
        reference = reference.astype(np.float32)
        # np.maximum, not max: NaN must come through, max(0, nan) is 0.
        difference = float(np.maximum(difference, np.abs(reference - found[name]).max()))
        scale = float(np.maximum(scale, np.abs(reference).max()))
        error = float(np.square(reference - found[name].astype(np.float64)).mean())
        peak = float(np.abs(reference).max()) or 1.0
        psnr = float(np.minimum(psnr, 10 * np.log10(peak**2 / error) if error > 0 else (math.inf if error == 0 else math.nan)))
    return StageParity(stage, difference, scale, other, psnr)
