"""Engine files and their sidecars: nothing half-written, nothing altered unnoticed, nothing outdated taken for current."""

from __future__ import annotations

import errno
import json
import re
import subprocess
import sys
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from amsa import AmsaError
from amsa.engine import engine_cache
from amsa.engine.engine_cache import EngineKey, Sidecar, load_engine, plugins_hash, read_sidecar, store_engine, why_build

KEY = EngineKey("match", "a" * 64, "b" * 64, "tensorrt_rtx 1.7.1.116", "sm75", "fp32", {"h": (16, 128, 512), "w": (16, 128, 512)})
CONTENT = b"an engine" * 100


def sidecar(content: bytes = CONTENT, key: EngineKey = KEY) -> Sidecar:
    return Sidecar(key, len(content), sha256(content).hexdigest(), layers=15, plugins=4, scratch=1000, seconds=0.5)


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    path = tmp_path / "engines" / "match.engine"
    store_engine(path, CONTENT, sidecar())
    return path


def files(engine: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in engine.parent.iterdir()}


def test_what_is_stored_is_what_is_loaded(engine: Path) -> None:
    assert load_engine(engine) == CONTENT
    assert read_sidecar(engine) == sidecar()
    assert why_build(engine, KEY) is None
    assert set(files(engine)) == {"match.engine", "match.json"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"onnx": "c" * 64}, "built for another ONNX graph"),
        ({"plugins": "c" * 64}, "built for other plugin sources"),
        ({"runtime": "tensorrt_rtx 1.8"}, "built for runtime tensorrt_rtx 1.7.1.116, now tensorrt_rtx 1.8"),
        ({"target": "sm86"}, "built for target sm75, now sm86"),
        ({"precision": "fp16"}, "built for precision fp32, now fp16"),
        ({"machine": "a GPU"}, "built for machine none, now a GPU"),
        (
            {"profile": {"h": (16, 64, 512)}},
            "built for profile h 16/128/512, w 16/128/512, now h 16/64/512",
        ),
    ],
)
def test_an_engine_of_another_key_is_named_and_built_again(engine: Path, change: dict[str, Any], reason: str) -> None:
    assert why_build(engine, replace(KEY, **change)) == reason


def test_every_field_of_the_key_counts(engine: Path) -> None:
    assert set(asdict(KEY)) == {"stage", "onnx", "plugins", "runtime", "target", "precision", "profile", "machine"}
    assert why_build(engine, replace(KEY, stage="restore")) == "built for stage match, now restore"


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT[:-1] + b"?", b""])
def test_altered_engine_is_not_loaded(engine: Path, content: bytes) -> None:
    engine.write_bytes(content)
    with pytest.raises(AmsaError, match="not the engine that was built") as caught:
        load_engine(engine)
    assert (f"{len(content):,} of 900 bytes" in str(caught.value)) == (len(content) != len(CONTENT))
    assert why_build(engine, KEY) == str(caught.value)


def test_missing_files(engine: Path) -> None:
    assert why_build(engine.with_name("restore.engine"), KEY) == "not built yet"
    engine.with_suffix(".json").unlink()
    with pytest.raises(AmsaError, match=re.escape("match.json is missing beside")):
        load_engine(engine)
    assert "missing" in str(why_build(engine, KEY))


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"format": 1}', '{"format": 1, "producer": "", "key": 3}'])
def test_sidecar_that_is_none(engine: Path, text: str) -> None:
    engine.with_suffix(".json").write_text(text)
    with pytest.raises(AmsaError, match=r"match.json: cannot be read .*; build the engine again"):
        read_sidecar(engine)


def test_sidecar_of_another_version(engine: Path) -> None:
    path = engine.with_suffix(".json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2, "producer": "amsa 9"}))
    with pytest.raises(AmsaError, match="written by another version of amsa \\(amsa 9\\)"):
        read_sidecar(engine)


@pytest.mark.parametrize("failing", ["write_bytes", "write_text", "replace"])
def test_full_disk_leaves_what_was_there(engine: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    before = files(engine)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, failing, full)
    with pytest.raises(AmsaError, match=r"cannot be written .No space left on device.; free some space"):
        store_engine(engine, b"another", sidecar(b"another"))
    monkeypatch.undo()
    assert files(engine) == before


_STORE = """
import sys
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from amsa.engine.engine_cache import read_sidecar, store_engine
engine, content = Path(sys.argv[1]), sys.argv[2].encode() * 100_000
sidecar = replace(read_sidecar(engine), size=len(content), sha256=sha256(content).hexdigest())
for _ in range(200):
    store_engine(engine, content, sidecar)
"""


def test_builds_of_one_engine_at_once(engine: Path) -> None:
    """Of two that finish together one wins whole, and who loads meanwhile gets an engine with its own sidecar."""
    processes = [subprocess.Popen([sys.executable, "-c", _STORE, engine, word]) for word in ("a", "b")]
    while any(process.poll() is None for process in processes):
        load_engine(engine)
    assert [process.returncode for process in processes] == [0, 0]
    assert load_engine(engine)[:1] in (b"a", b"b")
    assert set(files(engine)) == {"match.engine", "match.json"}


def test_a_full_disk_in_the_middle_of_a_file(engine: Path) -> None:
    """The real thing: a limit on the size of files fails a write half-way."""
    before = files(engine)
    program = f"""
import resource, signal, sys
from pathlib import Path
from amsa import AmsaError
from amsa.engine.engine_cache import read_sidecar, store_engine
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
engine = Path({str(engine)!r})
try:
    store_engine(engine, bytes(10_000), read_sidecar(engine))
except AmsaError as e:
    print(e)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    message = f"{engine} cannot be written (File too large); free some space or choose another place with -o\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, message, "")
    assert files(engine) == before


def test_killed_between_the_two_files_is_noticed(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_file = Path.replace

    def killed(source: Path, target: Path) -> Path:
        if source.name == "json":
            raise KeyboardInterrupt
        return replace_file(source, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        store_engine(engine, b"another", sidecar(b"another"))
    assert "checksum differs" in str(why_build(engine, KEY))
    assert set(files(engine)) == {"match.engine", "match.json"}


def test_hash_of_the_plugins_follows_what_is_in_an_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "op").mkdir()
    for name in ("__init__.py", "tensorrt.py", "op/plan.py", "op/kernels.cu"):
        (tmp_path / name).write_text(name)
    monkeypatch.setattr(engine_cache.plugins, "__file__", str(tmp_path / "__init__.py"))

    def changed(name: str) -> bool:
        plugins_hash.cache_clear()
        before = plugins_hash()
        (tmp_path / name).write_text("other")
        plugins_hash.cache_clear()
        return plugins_hash() != before

    try:
        assert changed("tensorrt.py")
        assert changed("op/plan.py")
        assert not changed("op/kernels.cu")  # compiled where the engine runs
    finally:
        plugins_hash.cache_clear()
