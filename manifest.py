"""`manifest.json`: what an exported model folder contains and needs. Written by the export, checked by the runtime."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ._version import __version__
from .config import AMSAConfig
from .errors import AmsaError
from .stages import LR_MIN, LR_MULTIPLE, PRECISIONS, REF_MIN, REF_MULTIPLE, SCALE

FORMAT = 1
FILE_NAME = "manifest.json"
_SIZES = {
    "scale": SCALE,
    "lr_min": LR_MIN,
    "lr_multiple": LR_MULTIPLE,
    "ref_min": REF_MIN,
    "ref_multiple": REF_MULTIPLE,
}


@dataclass(frozen=True)
class GraphFile:
    """A graph's file in the folder, with what it must be."""

    file: str
    size: int
    sha256: str

    @classmethod
    def of(cls, file: str, content: bytes) -> GraphFile:
        return cls(file, len(content), hashlib.sha256(content).hexdigest())


@dataclass(frozen=True)
class Manifest:
    """An exported model: its config, its graphs, whether its weights are trained, its arithmetic, whether the graphs hold the
    ops' function bodies, and which layers are int8 or kept in float32 (names as in `export/layer_precision.py`)."""

    config: AMSAConfig
    graphs: Mapping[str, GraphFile]
    trained: bool
    precision: str
    opset: int
    function_bodies: bool = True
    int8_layers: tuple[str, ...] = ()
    float32_layers: tuple[str, ...] = ()

    def to_json(self) -> str:
        return json.dumps(
            {
                "format": FORMAT,
                "producer": f"amsa {__version__}",
                "trained": self.trained,
                "precision": self.precision,
                "opset": self.opset,
                "function_bodies": self.function_bodies,
                **({"int8_layers": self.int8_layers} if self.int8_layers else {}),
                **({"float32_layers": self.float32_layers} if self.float32_layers else {}),
                "sizes": _SIZES,
                "config": self.config.to_dict(),
                "graphs": {name: asdict(graph) for name, graph in self.graphs.items()},
            },
            indent=2,
        )

    @classmethod
    def from_json(cls, text: bytes, source: str) -> Manifest:
        """Parse a manifest; AmsaError says what is wrong with it and names `source`."""
        try:
            values: dict[str, Any] = json.loads(text)
            if values["format"] != FORMAT:
                raise AmsaError(
                    f"{source}: manifest format {values['format']}, this version of amsa reads {FORMAT}; export the model again"
                )
            if values["sizes"] != _SIZES:
                raise AmsaError(f"{source}: manifest sizes {values['sizes']} are not this version's; export the model again")
            try:
                config = AMSAConfig.from_dict(values["config"])
            except AmsaError as e:
                raise AmsaError(f"{source}: {FILE_NAME}: {e}; export the model again") from e
            graphs = {name: GraphFile(**graph) for name, graph in values["graphs"].items()}
            outside = any(Path(g.file).name != g.file for g in graphs.values())
            bodies = bool(values.get("function_bodies", True))  # absent: exported when there was no choice
            special = (tuple(map(str, values.get(kind, ()))) for kind in ("int8_layers", "float32_layers"))
            arithmetic = str(values["precision"]), int(values["opset"]), bodies
            manifest = cls(config, graphs, bool(values["trained"]), *arithmetic, *special)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as e:
            raise AmsaError(f"{source}: {FILE_NAME} cannot be read ({type(e).__name__}: {e}); export the model again") from e
        if manifest.precision not in PRECISIONS:
            known = ", ".join(PRECISIONS)
            raise AmsaError(f"{source}: precision {manifest.precision!r}; this version knows {known}: export the model again")
        expected = [s.name for s in config.stages()]
        if sorted(graphs) != sorted(expected):
            raise AmsaError(f"{source}: {FILE_NAME} names graphs {', '.join(sorted(graphs))}; it must name {', '.join(expected)}")
        if outside:
            raise AmsaError(f"{source}: {FILE_NAME} names a file outside of the folder")
        return manifest


@dataclass(frozen=True)
class ModelFolder:
    """An opened model folder (or `.amsa` zip), every byte of it checked against its manifest."""

    path: Path
    manifest: Manifest
    graphs: Mapping[str, bytes]

    @classmethod
    def open(cls, path: str | Path) -> ModelFolder:
        """Read and check a folder or `.amsa` file.

        Raises:
            AmsaError: nothing there, no manifest, a file missing, foreign, or altered since the export.
        """
        path = Path(path)
        read = _reader(path)
        text = read(FILE_NAME)
        if text is None:
            raise AmsaError(f"{path}: no {FILE_NAME} in it, so it is not an exported model; make one with `amsa export`")
        manifest = Manifest.from_json(text, str(path))
        graphs: dict[str, bytes] = {}
        for name, graph in manifest.graphs.items():
            content = read(graph.file)
            if content is None:
                raise AmsaError(f"{path}: {graph.file} is missing; export the model again")
            if GraphFile.of(graph.file, content) != graph:
                raise AmsaError(
                    f"{path}: {graph.file} is not the file that was exported (its hash differs); export the model again"
                )
            graphs[name] = content
        if foreign := sorted(_names(path) - {FILE_NAME, *(g.file for g in manifest.graphs.values())}):
            raise AmsaError(f"{path}: holds {', '.join(foreign[:3])}, which its manifest does not name; remove it")
        return cls(path, manifest, graphs)


def is_export(path: Path) -> bool:
    """Whether a folder or `.amsa` file holds a manifest of ours and nothing that it does not name: safe to replace."""
    try:
        text = _reader(path)(FILE_NAME)
        manifest = Manifest.from_json(text or b"", str(path))
        return _names(path) <= {FILE_NAME, *(g.file for g in manifest.graphs.values())}
    except (AmsaError, OSError):
        return False


def _reader(path: Path) -> Callable[[str], bytes | None]:
    if path.is_dir():

        def read(name: str) -> bytes | None:
            file = path / name
            try:
                return file.read_bytes() if file.is_file() else None
            except OSError as e:
                raise AmsaError(f"{file}: cannot be read ({e.strerror})") from e

        return read
    if not path.is_file():
        raise AmsaError(f"{path}: no such model folder")
    if not zipfile.is_zipfile(path):
        raise AmsaError(f"{path}: neither a model folder nor an .amsa file")

    def read_zip(name: str) -> bytes | None:
        try:
            with zipfile.ZipFile(path) as z:
                return z.read(name) if name in z.namelist() else None
        except Exception as e:  # zipfile's own errors, and those of each decompressor
            raise AmsaError(f"{path}: a damaged .amsa file ({type(e).__name__}: {e})") from e

    return read_zip


def _names(path: Path) -> set[str]:
    if path.is_dir():
        return {p.name for p in path.iterdir()}
    with zipfile.ZipFile(path) as z:
        return set(z.namelist())
