"""One worker: references are encoded once, and every fault is an outcome."""

from __future__ import annotations

import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from amsa import Upscaler
from amsa.engine.batch.worker import EncodedReferences, PictureWorker, Task, _heard
from amsa.engine.images import read_photo, to_array


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the references that were encoded."""
    names: list[str] = []
    encode = Upscaler.encode_reference

    def counted(self: Upscaler, *arguments: Any, **options: Any) -> Any:
        names.append(Path(options["name"]).name)
        return encode(self, *arguments, **options)

    monkeypatch.setattr(Upscaler, "encode_reference", counted)
    return names


def worker(**arguments: Any) -> PictureWorker:
    made = PictureWorker({"threads": 1, **arguments}, 0)
    assert made.open().refused == ""
    return made


def task(photos: Path, i: int, *refs: str) -> Task:
    return Task(str(photos / "in" / f"{i}.png"), [str(photos / ref) for ref in refs], str(photos / f"{i}.png"), f"out/{i}.png")


def test_a_reference_for_many_is_encoded_once(photos: Path, encoded: list[str]) -> None:
    works = worker()
    for i in range(3):
        outcome = works.make(task(photos, i, "ref.png"))
        assert (outcome.reason, outcome.warnings) == ("", [])
        assert outcome.seconds > 0
    assert encoded == ["ref.png"]
    sr = Upscaler(threads=1).upscale_photo(read_photo(photos / "in" / "2.png"), [read_photo(photos / "ref.png")])
    assert (to_array(sr) == to_array(read_photo(photos / "2.png"))).all()
    shutil.copy(photos / "in" / "0.png", photos / "small.png")
    (photos / "small.png").replace(photos / "ref.png")  # too small, and no longer the file that was encoded
    assert "16x16 pixels; at least 64" in works.make(task(photos, 3, "ref.png")).reason


def test_references_are_kept_within_a_limit(photos: Path, encoded: list[str]) -> None:
    for name in "abc":
        shutil.copy(photos / "ref.png", photos / f"{name}.png")
    upscaler = Upscaler(threads=1)
    kept = EncodedReferences(10**9)
    a, b, c = (str(photos / f"{name}.png") for name in "abc")
    kept.get([a], upscaler)
    one = kept.bytes
    assert one == sum(t.nbytes for scale in kept.get([a], upscaler)[0].scales for t in scale.tensors.values())

    kept.limit = 2 * one
    kept.get([b, a], upscaler)
    kept.get([c], upscaler)  # b was used last before a
    assert kept.bytes == 2 * one
    kept.get([a, a], upscaler)
    assert encoded == ["a.png", "b.png", "c.png"]
    kept.get([a, b, c], upscaler)  # one picture's references stay, whatever the limit
    kept.get([a, b, c], upscaler)
    assert encoded == ["a.png", "b.png", "c.png", "b.png"]
    assert kept.bytes == 3 * one


def test_faults_are_outcomes(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    works = worker()
    assert "absent.png does not exist" in works.make(task(photos, 0, "absent.png")).reason
    faults = (MemoryError(), "not enough memory"), (RuntimeError("a bug"), "RuntimeError: a bug; this is a fault of amsa")
    for error, word in faults:

        def fail(*_: Any, error: Exception = error, **__: Any) -> None:
            raise error

        monkeypatch.setattr(Upscaler, "upscale_photo", fail)
        outcome = works.make(task(photos, 0, "ref.png"))
        assert word in outcome.reason
        assert ("Traceback" in outcome.trace) == isinstance(error, RuntimeError)


def test_formats_are_checked_first_and_results_have_their_own_names(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    works = worker()
    with Image.open(photos / "in" / "0.png") as image:
        image.save(photos / "in" / "0.png", icc_profile=b"profile")
    given = task(photos, 0, "ref.png")
    outcome = works.make(replace(given, result=str(photos / "part.bmp"), target="out/0.bmp"))
    assert (outcome.reason, outcome.warnings) == ("", ["out/0.bmp: BMP holds no ICC profile or EXIF; they are left out"])
    outcome = works.make(replace(given, result=str(photos / "absent" / "0.png")))
    assert outcome.reason.startswith("out/0.png cannot be written (No such file")
    monkeypatch.delattr(Upscaler, "upscale_photo")
    assert "names no format that is written" in works.make(replace(given, target="out/0.gif")).reason


def test_what_is_meant_for_developers_is_not_told() -> None:
    with _heard() as said:
        warnings.warn("old", DeprecationWarning, stacklevel=1)
        warnings.warn("unclosed", ResourceWarning, stacklevel=1)
        warnings.warn("several frames", stacklevel=1)
    assert said == ["several frames"]


def test_a_model_that_is_refused() -> None:
    assert "no such model" in PictureWorker({"path": "absent"}, 0).open().refused
