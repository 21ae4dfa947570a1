"""A network to a model folder, or to one `.amsa` zip of it."""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

from ..config import VARIANTS
from ..errors import AmsaError
from ..manifest import FILE_NAME, GraphFile, Manifest, is_export
from ..model.checkpoints import load_checkpoint
from ..model.network import AMSA
from ..model.stage_modules import stage_modules
from ..plugins import OPSET
from ..stages import PRECISIONS
from .graphs import export_graph

Say = Callable[[str], None]


def load_network(source: str, seed: int = 0, precision: str = "fp32") -> tuple[AMSA, bool]:
    """A checkpoint, or for "small", "paper" or "published" an untrained network. Returns it and whether it is trained."""
    if precision not in PRECISIONS:
        raise AmsaError(f"unknown precision {precision!r}; choose one of {', '.join(PRECISIONS)}")
    if source in VARIANTS and not Path(source).is_file():
        model, trained = AMSA(VARIANTS[source]()), False
        model.reset_parameters(seed)
    else:
        model, metadata = load_checkpoint(source)
        trained = bool(metadata.get("trained", False))
    return (model.to_fp16() if precision == "fp16" else model).eval(), trained


def export_folder(
    model: AMSA, trained: bool, path: str | Path, say: Say = lambda _: None, *, function_bodies: bool = True
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
    """
    path = Path(path)
    check_target(path)
    files: dict[str, bytes] = {}
    graphs: dict[str, GraphFile] = {}
    for stage, module in stage_modules(model):
        say(f"exporting {stage.name}: {stage.doc}")
        content = export_graph(module, stage.name, stage.inputs, stage.outputs, function_bodies).SerializeToString()
        graphs[stage.name] = GraphFile.of(f"{stage.name}.onnx", content)
        files[graphs[stage.name].file] = content
    manifest = Manifest(model.config, graphs, trained, model.precision, OPSET, function_bodies)
    files[FILE_NAME] = manifest.to_json().encode() + b"\n"
    _write(path, files)
    return manifest


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
