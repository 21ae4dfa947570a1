"""Engine files: what each was built from, in a JSON beside it, and whether it still is what was built.

An engine is `<stage>.engine`, its sidecar `<stage>.json`. Both are written beside and renamed, the engine first: whatever ends a
build, no file is ever half an engine, and an engine never has the sidecar of another without its checksum telling. Readers and
writers lock the folder, so that of two builds at once one wins whole.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from .. import plugins
from .._version import __version__
from ..errors import AmsaError

FORMAT = 1
SUFFIX = ".engine"
Profile = dict[str, tuple[int, int, int]]
"""Smallest, usual and largest value of every size word of a stage (see stages.py)."""


@dataclass(frozen=True)
class EngineKey:
    """All that an engine depends on: equal keys, equal engines.

    Attributes:
        stage: the graph's name.
        onnx: SHA-256 of its file.
        plugins: `plugins_hash()`.
        runtime: module and version, as "tensorrt_rtx 1.7.1.116".
        target: compute capability, as "sm75"; several, as "sm86+sm89", ascending; or "native".
        precision: "fp32" or "fp16".
        profile: the sizes it takes.
        machine: for "native": GPU, driver and CUDA; else empty.
    """

    stage: str
    onnx: str
    plugins: str
    runtime: str
    target: str
    precision: str
    profile: Profile
    machine: str = ""


@dataclass(frozen=True)
class Sidecar:
    """An engine's key, its file's size and SHA-256, and figures of its build: layers, plugin layers, scratch bytes, seconds."""

    key: EngineKey
    size: int
    sha256: str
    layers: int
    plugins: int
    scratch: int
    seconds: float

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, "producer": f"amsa {__version__}", **asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, source: Path) -> Sidecar:
        """Parse a sidecar; AmsaError names `source` and what is wrong with it."""
        try:
            values = json.loads(text)
            if values.pop("format") != FORMAT:
                raise AmsaError(
                    f"{source}: written by another version of amsa ({values.get('producer')}); build the engine again"
                )
            values.pop("producer")
            key = values.pop("key")
            profile = {str(word): (int(a), int(b), int(c)) for word, (a, b, c) in key.pop("profile").items()}
            return cls(EngineKey(profile=profile, **key), **values)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
            raise AmsaError(f"{source}: cannot be read ({type(e).__name__}: {e}); build the engine again") from e


@cache
def plugins_hash() -> str:
    """SHA-256 of the sources that decide what a plugin is inside of an engine: attributes, shapes, formats, scratch memory.
    The kernels are not in an engine: they are compiled where it runs."""
    folder = Path(plugins.__file__).parent
    names = ("tensorrt.py", "spec.py", "*/spec.py", "*/plan.py")
    digest = hashlib.sha256()
    for path in sorted(path for name in names for path in folder.glob(name)):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def sidecar_path(engine: Path) -> Path:
    return engine.with_suffix(".json")


def why_build(engine: Path, key: EngineKey) -> str | None:
    """Why this engine has to be built, in words that name what differs; None where it is up to date."""
    if not engine.exists():
        return "not built yet"
    try:
        found = read_sidecar(engine)
        load_engine(engine)
    except AmsaError as e:
        return str(e)
    old, new = asdict(found.key), asdict(key)
    words = {"onnx": "another ONNX graph", "plugins": "other plugin sources"}
    differing = [
        words.get(name, f"{name} {_words(old[name])}, now {_words(new[name])}") for name in new if old[name] != new[name]
    ]
    return f"built for {'; '.join(differing)}" if differing else None


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{word} {'/'.join(map(str, sizes))}" for word, sizes in value.items())
    return str(value) or "none"


def read_sidecar(engine: Path) -> Sidecar:
    """An engine's sidecar. AmsaError where it is missing or cannot be read."""
    path = sidecar_path(engine)
    try:
        return Sidecar.from_json(path.read_bytes(), path)
    except FileNotFoundError as e:
        raise AmsaError(f"{path.name} is missing beside {engine}; build the engine again with `amsa build`") from e
    except OSError as e:
        raise AmsaError(f"{path}: cannot be read ({e.strerror})") from e


def load_engine(engine: Path) -> bytes:
    """An engine's bytes, ready to be deserialized.

    Raises:
        AmsaError: no such file, no sidecar, or not the bytes that were built. TensorRT itself does not notice.
    """
    try:
        with _locked(engine.parent, fcntl.LOCK_SH):
            sidecar = read_sidecar(engine)
            content = engine.read_bytes()
    except OSError as e:
        raise AmsaError(f"{engine}: cannot be read ({e.strerror})") from e
    if hashlib.sha256(content).hexdigest() != sidecar.sha256:
        size = "" if len(content) == sidecar.size else f", {len(content):,} of {sidecar.size:,} bytes"
        raise AmsaError(f"{engine}: not the engine that was built (its checksum differs{size}); build it again with `amsa build`")
    return content


def store_engine(engine: Path, content: bytes, sidecar: Sidecar) -> None:
    """Write an engine and its sidecar. AmsaError where that fails, as on a full disk; then what was there still is."""
    try:
        engine.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=engine.parent, prefix=".building-") as scratch:
            beside = Path(scratch)
            (beside / "engine").write_bytes(content)
            (beside / "json").write_text(sidecar.to_json())
            with _locked(engine.parent, fcntl.LOCK_EX):
                (beside / "engine").replace(engine)
                (beside / "json").replace(sidecar_path(engine))
    except OSError as e:
        raise AmsaError(f"{engine} cannot be written ({e.strerror}); free some space or choose another place with -o") from e


@contextmanager
def _locked(folder: Path, how: int) -> Iterator[None]:
    """Hold a folder's lock, shared (LOCK_SH) or alone (LOCK_EX). It leaves no file, and ends with the process.

    Where a file system has no locks, as some on a network, there is none: then the checksum tells of a mixture.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)
