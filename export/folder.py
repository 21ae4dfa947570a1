"""A network to a model folder, or to one `.amsa` zip of it."""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto

from ..config import VARIANTS
from ..errors import AmsaError
from ..manifest import FILE_NAME, GraphFile, Manifest, is_export
from ..model.checkpoints import load_checkpoint
from ..model.network import AMSA
from ..model.stage_modules import stage_modules
from ..plugins import OPSET
from ..stages import PRECISIONS
from .graphs import export_graph
from .layer_precision import LayerPrecision, check_precision, set_precision

Say = Callable[[str], None]


def load_network(source: str, seed: int = 0, precision: str = "fp32", float32: Collection[str] = ()) -> tuple[AMSA, bool]:
    """A checkpoint, or for "small", "paper" or "published" an untrained network. Returns it and whether it is trained.

    `float32`: layers that the export will keep in float32, whose weights need not fit into float16.
    """
    if precision not in PRECISIONS:
        raise AmsaError(f"unknown precision {precision!r}; choose one of {', '.join(PRECISIONS)}")
    if source in VARIANTS and not Path(source).is_file():
        model, trained = AMSA(VARIANTS[source]()), False
        model.reset_parameters(seed)
    else:
        model, metadata = load_checkpoint(source)
        trained = bool(metadata.get("trained", False))
    if precision == "fp16":
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if name.rpartition(".")[0] in float32:
                largest = torch.finfo(torch.float16).max
                parameter.data.clamp_(-largest, largest)
        model.to_fp16()
    return model.eval(), trained


def export_folder(
    model: AMSA,
    trained: bool,
    path: str | Path,
    say: Say = lambda _: None,
    *,
    function_bodies: bool = True,
    quantization: LayerPrecision | None = None,
    full: AMSA | None = None,
) -> Manifest:
    """Export the graphs and the manifest into a new or empty folder, or into a `.amsa` zip.

    Everything is written beside and then renamed: a failed export leaves nothing, a finished one is whole.

    Args:
        model: the network.
        trained: whether its weights are trained; written into the manifest.
        path: the folder or `.amsa` file. An earlier export there is replaced; anything else is an error.
        say: is told which graph is being exported.
        function_bodies: whether the graphs hold the ops' function bodies. Without them ONNX Runtime needs our kernels; for
            TensorRT's own tools, whose parser stumbles over them.
        quantization: which layers are int8, and which stay float32 in a float16 model.
        full: the network in float32, whose weights the layers kept in float32 take; None: they take the rounded ones.

    Raises:
        AmsaError: the folder cannot be written, or the quantization is of another model.
    """
    path = Path(path)
    check_target(path)
    files: dict[str, bytes] = {}
    graphs: dict[str, GraphFile] = {}
    models: dict[str, ModelProto] = {}
    for stage, module in stage_modules(model):
        say(f"exporting {stage.name}: {stage.doc}")
        models[stage.name] = export_graph(module, stage.name, stage.inputs, stage.outputs, function_bodies)
    int8: tuple[str, ...] = ()
    float32: tuple[str, ...] = ()
    if quantization is not None:
        models = _quantized(models, quantization, full)
        int8 = tuple(quantization.int8)
        float32 = quantization.float32 if model.precision == "fp16" else ()
    for name, proto in models.items():
        content = proto.SerializeToString()
        graphs[name] = GraphFile.of(f"{name}.onnx", content)
        files[graphs[name].file] = content
    manifest = Manifest(model.config, graphs, trained, model.precision, OPSET, function_bodies, int8, float32)
    files[FILE_NAME] = manifest.to_json().encode() + b"\n"
    _write(path, files)
    return manifest


def _quantized(models: Mapping[str, ModelProto], quantization: LayerPrecision, full: AMSA | None) -> dict[str, ModelProto]:
    check_precision(models, quantization, "the quantization")
    weights: dict[str, NDArray[np.float32]] = {}
    if full is not None:
        for name, parameter in full.named_parameters(remove_duplicate=False):
            if name.rpartition(".")[0] in quantization.float32:
                weights[name] = parameter.detach().numpy()
    return {stage: set_precision(model, quantization, weights) for stage, model in models.items()}


def check_target(path: Path) -> None:
    """AmsaError unless `path` can become an export: absent, an empty folder, or an earlier export."""
    if path.suffix == ".onnx":
        raise AmsaError(f"{path}: several graphs go into a folder; for one .onnx file add --single-file N")
    if not path.parent.is_dir():
        raise AmsaError(f"{path.parent}: no such folder; create it first")
    if not os.access(path.parent, os.W_OK):
        raise AmsaError(f"{path.parent}: not writable; choose another folder")
    if path.is_dir() and any(path.iterdir()) and not is_export(path):
        raise AmsaError(f"{path} holds files that are not an exported model of this version; choose a new or empty folder")
    if path.suffix == ".amsa" and path.is_dir():
        raise AmsaError(f"{path} is a folder; an .amsa export is one file")
    if path.is_file() and path.suffix != ".amsa":
        raise AmsaError(f"{path} is a file; choose a folder, or a name that ends in .amsa")
    if path.is_file() and not is_export(path):
        raise AmsaError(f"{path} is not an exported model of this version, so it is not replaced; choose another name")


def _write(path: Path, files: Mapping[str, bytes]) -> None:
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
    try:
        if path.suffix == ".amsa":
            archive = temporary / path.name
            with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as z:
                for name, content in files.items():
                    # A fixed time: the same model is the same file.
                    z.writestr(zipfile.ZipInfo(name), content)
            archive.replace(path)
        else:
            folder = temporary / "new"
            folder.mkdir()
            for name, content in files.items():
                (folder / name).write_bytes(content)
            if path.exists():
                path.replace(temporary / "old")
            folder.replace(path)
    except BaseException as e:
        if (temporary / "old").exists() and not path.exists():
            (temporary / "old").replace(path)
        if not isinstance(e, OSError):
            raise
        raise AmsaError(f"cannot write {path}: {e.strerror or e}; free some space or choose another place") from e
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
