"""Writes a model repository: the model's folder with all that it needs, a client, and a record of what was written."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..._version import __version__
from ...engine.backends import SHIPPED_ENGINE_MODEL, SHIPPED_MODEL
from ...engine.engine_cache import SUFFIX, load_engine, plugins_hash, read_sidecar, sidecar_path
from ...engine.tensorrt_build import engines_folder
from ...engine.tensorrt_module import RUNTIMES
from ...errors import AmsaError
from ...manifest import FILE_NAME, ModelFolder
from . import client
from .interface import BACKENDS, MODEL, Settings, config_text
from .model import MODEL_FOLDER

FORMAT = 1
RECORD = "deployment.json"
"""What `amsa deploy` wrote: the names of the files and their hashes. Triton looks at folders only."""
VERSION = "1"
_CACHE = "__pycache__"  # Triton's Python leaves it beside model.py
_WITHOUT_ENGINE = ("match_exact",)  # has no CUDA kernel, so `amsa build` makes none of it

_MODEL_PY = '''"""amsa's model for Triton's Python backend; the class is in the package, which this Python must have."""

try:
    from amsa.serving.triton.model import TritonPythonModel  # noqa: F401
except ModuleNotFoundError as e:
    raise ImportError(f"{e.name} is missing in the Python that Triton uses; install amsa there (see README.md)") from e
'''

_README = """# A Triton model repository

Written by amsa {version}: model `{model}` with the {backend} backend{engines}.

    pip install 'numpy<2' {requirements}       # into the Python that Triton uses, from a checkout of amsa
    tritonserver --model-repository=.

    pip install 'tritonclient[http]'            # anywhere
    python client.py small.jpg sharp.jpg -o big.png --url localhost:8000

`{model}/config.pbtxt` says what goes in and out. It may be edited: how many pictures are made at a time, how many may wait, and
how large they may be. In a container give Triton shared memory for its tensors: `--shm-size=1g`. More: docs/triton.md of amsa.
"""


@dataclass(frozen=True)
class Deployment:
    """What `deploy` wrote: the repository, how many bytes, and the folders of engines in it."""

    path: Path
    size: int
    engines: tuple[str, ...]


def deploy(
    output: str | Path, model: str | Path | None = None, settings: Settings | None = None, engines: str | Path | None = None
) -> Deployment:
    """Write a Triton model repository.

    Args:
        output: a folder that is new, empty, or an earlier deployment that nobody changed, which is replaced.
        model: exported model folder or `.amsa` file; None: the shipped one.
        settings: of the server; None: their defaults.
        engines: TensorRT only: folder that `amsa build -o` wrote to; None: beside the model.

    Raises:
        AmsaError: no such model, no engines of it, or a folder that is not ours or cannot be written.
    """
    output, settings = Path(output), settings or Settings()
    if output.name in ("", ".."):  # the folder one is in, or that above it
        output = output.resolve()
    if settings.backend not in BACKENDS:
        raise AmsaError(f"unknown backend {settings.backend!r}; a Triton server runs {' or '.join(BACKENDS)}")
    tensorrt = settings.backend == "tensorrt"
    if engines is not None and not tensorrt:
        raise AmsaError("a folder of engines is for the tensorrt backend; add --backend tensorrt")
    path = Path(model or (SHIPPED_ENGINE_MODEL if tensorrt else SHIPPED_MODEL))
    if path.suffix == ".safetensors":
        raise AmsaError(f"{path} is a checkpoint; export it first: amsa export {path} -o MODEL")
    folder = ModelFolder.open(path)
    if not folder.manifest.trained:
        warnings.warn(f"the weights of {path} are untrained", stacklevel=2)
    if not tensorrt and not folder.manifest.function_bodies:
        warnings.warn(
            f"{path} was exported with --no-bodies: the server needs amsa's CPU kernels, so install amsa where a C++ compiler is",
            stacklevel=2,
        )
    found = _find_engines(folder, Path(engines or engines_folder(path))) if tensorrt else {}
    _check_target(output)

    version = f"{MODEL}/{VERSION}"
    runtimes = sorted({name.split("-")[0] for name in found})
    # An engine runs only in the very version that built it, "tensorrt_rtx 1.7.1.116".
    pins = [f"'{built_by.replace('_', '-').replace(' ', '==')}'" for built_by in sorted(set(found.values()))]
    texts = {
        "README.md": _README.format(
            version=__version__,
            model=MODEL,
            backend=settings.backend,
            engines=f" and its engines {', '.join(found)}" if found else "",
            requirements=" ".join([f"'.[{','.join(runtimes)}]'", *pins] if found else ["."]),
        ),
        "client.py": Path(client.__file__).read_text(),
        f"{MODEL}/config.pbtxt": config_text(settings),
        f"{version}/model.py": _MODEL_PY,
        f"{version}/{MODEL_FOLDER}/{FILE_NAME}": folder.manifest.to_json() + "\n",
    }

    def files() -> Iterator[tuple[str, bytes]]:
        for name, text in texts.items():
            yield name, text.encode()
        for stage, graph in folder.manifest.graphs.items():
            yield f"{version}/{MODEL_FOLDER}/{graph.file}", folder.graphs[stage]
        root = Path(engines or engines_folder(path))
        beside = engines_folder(Path(MODEL_FOLDER)).name
        for name in found:
            for engine in sorted((root / name).glob(f"*{SUFFIX}")):
                yield f"{version}/{beside}/{name}/{engine.name}", load_engine(engine)
                yield f"{version}/{beside}/{name}/{sidecar_path(engine).name}", sidecar_path(engine).read_bytes()

    return Deployment(output, _write(output, files), tuple(found))


def _find_engines(model: ModelFolder, root: Path) -> dict[str, str]:
    """Folders of engines of a model, and the TensorRT that built each. AmsaError where there are none, or one is not of it."""
    again = f"amsa build {model.path} --target sm75 (or what the server's GPU is)"
    found: dict[str, str] = {}
    for folder in sorted(root.iterdir()) if root.is_dir() else []:
        runtime, _, rest = folder.name.partition("-")
        if runtime not in RUNTIMES or rest.rpartition("-")[2] != model.manifest.precision:
            continue
        for stage, graph in model.manifest.graphs.items():
            if stage in _WITHOUT_ENGINE:
                continue
            engine = folder / f"{stage}{SUFFIX}"
            load_engine(engine)
            key = read_sidecar(engine).key
            if key.onnx != graph.sha256:
                raise AmsaError(f"{engine}: built from another {graph.file} than that of {model.path}; build it again: {again}")
            if key.plugins != plugins_hash():
                raise AmsaError(f"{engine}: its plugins are of another version of amsa; build it again: {again}")
            found[folder.name] = key.runtime
    if not found:
        raise AmsaError(f"{root}: no {model.manifest.precision} engines of {model.path}; build them with: {again}")
    return found


def _check_target(output: Path) -> None:
    """AmsaError unless `output` can become a repository: absent, an empty folder, or as an earlier deployment left it."""
    if not output.parent.is_dir():
        raise AmsaError(f"{output.parent}: no such folder; create it first")
    if not output.exists():
        return
    if not output.is_dir():
        raise AmsaError(f"{output} is a file; choose a folder")
    there = {p.relative_to(output).as_posix(): p for p in output.rglob("*") if p.is_file() and p.parent.name != _CACHE}
    if not there:
        return
    try:
        record = json.loads((output / RECORD).read_bytes())
        written: dict[str, str] = {**record["files"]}
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise AmsaError(f"{output} holds files that `amsa deploy` did not write; choose a new or empty folder") from e
    if foreign := sorted(there.keys() - written.keys() - {RECORD}):
        raise AmsaError(f"{output} holds {foreign[0]}, which `amsa deploy` did not write; move it away or choose another folder")
    for name, digest in written.items():
        if name in there and hashlib.sha256(there[name].read_bytes()).hexdigest() != digest:
            raise AmsaError(f"{output}: {name} was changed since it was deployed; move it away or choose another folder")


def _write(output: Path, files: Callable[[], Iterator[tuple[str, bytes]]]) -> int:
    """Write a folder beside `output`, then put it in its place. Returns its bytes."""
    size, written = 0, {}
    try:
        temporary = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}-"))
    except OSError as e:
        raise AmsaError(f"{output.parent}: cannot be written ({e.strerror}); choose another folder") from e
    new, old = temporary / "new", temporary / "old"
    try:
        for name, content in files():
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            (new / name).write_bytes(content)
            written[name] = hashlib.sha256(content).hexdigest()
            size += len(content)
        record = {"format": FORMAT, "producer": f"amsa {__version__}", "files": written}
        (new / RECORD).write_text(json.dumps(record, indent=2) + "\n")
        if output.exists():
            output.replace(old)
        new.replace(output)
    except BaseException as e:
        if old.exists() and not output.exists():
            old.replace(output)
        if not isinstance(e, OSError):
            raise
        raise AmsaError(f"cannot write {output}: {e.strerror or e}; free some space or choose another place") from e
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return size
