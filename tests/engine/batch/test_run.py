"""A folder through worker processes: what is made, what is skipped, and workers that die."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import amsa
from amsa import AmsaError, Upscaler
from amsa.engine.batch import FolderReport, Interrupted, processes, upscale_folder
from amsa.engine.batch.journal import FILE_NAME
from amsa.engine.batch.pool import WorkerDied
from amsa.engine.batch.processes import ProcessPool, memory_each
from amsa.engine.explain.writing import FILES
from amsa.engine.images import read_photo, to_array

Upscale = Callable[..., FolderReport]


@pytest.fixture
def upscale(photos: Path) -> Upscale:
    """Upscale the folder with one thread for each worker."""

    def call(workers: int = 1, **options: Any) -> FolderReport:
        return upscale_folder(
            photos / "in", [photos / "ref.png"], photos / "out", workers=workers, **{"threads": workers, **options}
        )

    return call


@pytest.fixture
def in_workers(photos: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Have workers run a line of Python (it knows `path`) whenever they read a photo."""

    def add(line: str) -> None:
        (photos / "sitecustomize.py").write_text(
            "import os, time\nfrom amsa.engine import images\nread = images.read_photo\n"
            f"def read_photo(path):\n    {line}\n    return read(path)\nimages.read_photo = read_photo\n"
        )
        monkeypatch.syspath_prepend(str(photos))

    return add


def journal(photos: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (photos / "out" / FILE_NAME).read_text().splitlines()[1:]]


def workers_of(photos: Path) -> list[int]:
    """The processes that made the results so far, in order."""
    return [int(entry["worker"].split(":")[1]) for entry in journal(photos)]


def hidden(photos: Path) -> list[str]:
    return [path.name for path in (photos / "out").rglob(".*")]


def test_results_are_those_of_single_pictures(upscale: Upscale, photos: Path) -> None:
    steps: list[tuple[int, int, str]] = []
    report = upscale(2, progress=lambda *step: steps.append(step), seed=5)
    assert (report.done, report.skipped, report.left, report.failed) == (6, 0, 0, [])
    assert report.opened is not None
    assert (report.opened.backend, report.opened.device) == ("onnxruntime", "CPU")
    ref = read_photo(photos / "ref.png")
    upscaler = Upscaler(threads=1)
    for i in range(6):
        sr = upscaler.upscale_photo(read_photo(photos / "in" / f"{i}.png"), [ref], seed=5)
        assert (to_array(read_photo(photos / "out" / f"{i}.png")) == to_array(sr)).all()
    assert hidden(photos) == [FILE_NAME]
    assert [step[:2] for step in steps] == [(i, 6) for i in range(7)]
    assert steps[-1][2] == "6 of 6 pictures, 0:00:00 left"
    assert set(workers_of(photos)).isdisjoint({os.getpid()})


def test_again_only_what_has_changed(upscale: Upscale, photos: Path) -> None:
    upscale()
    said: list[str] = []
    assert upscale(say=said.append, threads=2, tile=64).as_dict()["skipped"] == 6  # neither changes a picture
    assert said == ["6 of 6 pictures are done already"]
    (photos / "in" / "1.png").write_bytes((photos / "in" / "5.png").read_bytes())
    (photos / "out" / "2.png").unlink()
    (photos / "out" / "3.png").write_bytes(b"retouched")
    said.clear()
    report = upscale(say=said.append)
    assert (report.done, report.skipped) == (2, 4)
    assert said[1:] == [
        "made again: 1.png: the picture has changed",
        "3.png: changed since by someone else, and left so",
    ]
    said.clear()
    report = upscale(say=said.append, matching="exact")
    assert (report.done, report.skipped, len(report.failed)) == (5, 0, 1)
    again = "made again: 0.png, 1.png, 2.png and 2 more: settings have changed (matching was patchmatch, is exact)"
    assert said[1:] == [again]
    assert said[0].startswith(f"failed: {photos / 'in' / '3.png'}: {photos / 'out' / '3.png'} was changed since it was written")


@pytest.fixture
def scenes(photos: Path) -> Path:
    """Beside in/0.png .. in/5.png a folder refs/, in which 0.png .. 5.png show the same, larger, and broken.png nothing."""
    (photos / "refs").mkdir()
    for i in range(6):
        coarse = np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8)
        large = Image.fromarray(coarse).resize((96, 96), Image.Resampling.BICUBIC)
        large.save(photos / "refs" / f"{i}.png")
        large.resize((24, 24), Image.Resampling.BICUBIC).save(photos / "in" / f"{i}.png")
    (photos / "refs" / "broken.png").write_bytes((photos / "refs" / "0.png").read_bytes()[:100])
    return photos


@pytest.fixture
def choosing(scenes: Path) -> Upscale:
    def call(**options: Any) -> FolderReport:
        options = {"ref_folder": scenes / "refs", "max_refs": 1, "threads": 1, **options}
        return upscale_folder(scenes / "in", [], scenes / "out", **options)

    return call


def test_each_picture_has_the_most_relevant_of_many(choosing: Upscale, scenes: Path) -> None:
    with pytest.warns(UserWarning, match=r"broken\.png is cut short") as told:
        report = choosing()
    assert len(told) == 1  # of all six pictures
    assert report.done == 6
    for i in range(6):
        assert report.references[f"{i}.png"] == [
            {"file": str(scenes / "refs" / f"{i}.png"), "weight": pytest.approx(1, abs=1e-4)}
        ]
        sr = Upscaler(threads=1).upscale_photo(read_photo(scenes / "in" / f"{i}.png"), [read_photo(scenes / "refs" / f"{i}.png")])
        assert (to_array(read_photo(scenes / "out" / f"{i}.png")) == to_array(sr)).all()
    assert journal(scenes)[0]["served"] == [[str(scenes / "refs" / "0.png"), pytest.approx(1, abs=1e-4)]]
    assert choosing().skipped == 6

    (scenes / "refs" / "6.png").write_bytes((scenes / "refs" / "5.png").read_bytes())
    (scenes / "refs" / "broken.png").unlink()
    said: list[str] = []
    report = choosing(say=said.append, max_refs=None)
    assert said == ["made again: 0.png, 1.png, 2.png and 3 more: its references have changed"]
    assert [len(served) for served in report.references.values()] == [4] * 6
    said.clear()
    assert choosing(say=said.append, max_refs=3).done == 6
    assert said == ["made again: 0.png, 1.png, 2.png and 3 more: settings have changed (max_refs was 4, is 3)"]


def test_of_a_pictures_own_references_too(choosing: Upscale, scenes: Path) -> None:
    (scenes / "pairs.csv").write_text("lr,ref,ref2,ref3\nin/0.png,refs/3.png,refs/0.png,refs/5.png\n")
    report = choosing(ref_folder=None, pairs=scenes / "pairs.csv")
    assert {name: served[0]["file"] for name, served in report.references.items()} == {"0.png": str(scenes / "refs" / "0.png")}
    with pytest.raises(AmsaError, match="give references in one way"):
        choosing(pairs=scenes / "pairs.csv")


def test_results_are_no_references(scenes: Path) -> None:
    (scenes / "refs" / "broken.png").unlink()

    def call(explain: Path) -> FolderReport:
        refs = scenes / "refs"
        return upscale_folder(scenes / "in", [], refs / "out", ref_folder=refs, max_refs=2, explain=explain, threads=1)

    assert (call(scenes / "refs" / "out" / "why").done, call(scenes / "why").skipped) == (6, 6)
    with pytest.raises(AmsaError, match="refs, whose pictures are read; choose another folder for --explain"):
        call(scenes / "refs" / "why")


def test_results_are_explained(upscale: Upscale, photos: Path) -> None:
    upscale()
    (photos / "out" / "1.png").unlink()
    said: list[str] = []
    upscale(say=said.append, explain=photos / "why")
    assert said == [
        "5 of 6 pictures are done already",
        "not explained: 5 of these; delete those results to have them made again, and explained",
    ]
    assert [path.name for path in (photos / "why").iterdir()] == ["1.png"]
    why = photos / "why" / "1.png"
    assert sorted(path.name for path in why.iterdir()) == sorted(FILES)
    report = json.loads((why / "explain.json").read_text())
    assert (report["lr"], report["references"][0]["file"]) == (str(photos / "in" / "1.png"), str(photos / "ref.png"))
    assert upscale().skipped == 6
    for name, words in (("out", "is also the folder of the results"), ("in/why", "lies in .*in, whose pictures are read")):
        with pytest.raises(AmsaError, match=f"{words}.*; choose another folder for --explain"):
            upscale(explain=photos / name)


def test_failures_are_listed_until_there_are_none(upscale: Upscale, photos: Path) -> None:
    odd = photos / "in" / os.fsdecode(b"\xff\n.png")
    odd.write_bytes(b"no picture")
    report = upscale()
    assert (report.done, len(report.failed)) == (6, 1)
    listed = json.loads((photos / "out" / "failures.json").read_text())
    assert listed == [{"path": str(odd), "reason": report.failed[0].reason}]
    assert str(report.failed[0]).isprintable()
    odd.unlink()
    assert upscale().failed == []
    assert not (photos / "out" / "failures.json").exists()


def test_a_run_that_ends_as_a_result_appears(upscale: Upscale, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal knows of a result before it is there: it is neither made twice nor taken for someone else's."""
    rename = Path.replace

    def interrupted(self: Path, target: Path) -> Path:
        rename(self, target)
        if target.name == "2.png":
            raise KeyboardInterrupt
        return target

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(Interrupted) as stopped:
        upscale()
    assert (stopped.value.report.done, stopped.value.report.left) == (2, 4)
    assert hidden(photos) == [FILE_NAME]
    monkeypatch.undo()
    report = upscale()
    assert (report.done, report.skipped, report.failed) == (3, 3, [])


def test_a_killed_worker_costs_nothing(upscale: Upscale, photos: Path) -> None:
    said: list[str] = []

    def kill(done: int, total: int, what: str) -> None:
        if done == 2:
            os.kill(workers_of(photos)[-1], signal.SIGKILL)

    report = upscale(2, progress=kill, say=said.append)
    assert (report.done, report.failed) == (6, [])
    assert Counter(entry["file"] for entry in journal(photos)) == {f"{i}.png": 1 for i in range(6)}
    assert len(said) == 1
    assert "its worker was killed (SIGKILL" in said[0]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_picture_that_kills_workers_fails_alone(
    upscale: Upscale, photos: Path, in_workers: Callable[[str], None], workers: int
) -> None:
    in_workers("if path.endswith('3.png'): os.abort()")
    said: list[str] = []
    report = upscale(workers, say=said.append)
    assert report.done == 5
    assert [Path(failure.path).name for failure in report.failed] == ["3.png"]
    assert "two workers died on it: the last one ended by signal 6 (Aborted)" in report.failed[0].reason
    assert len(said) == 2
    assert "it is tried once more, at the end" in said[0]


def test_a_fault_of_ours_costs_one_picture(upscale: Upscale, photos: Path, in_workers: Callable[[str], None]) -> None:
    in_workers("if path.endswith('0.png'): raise RuntimeError('a bug')")
    report = upscale()
    assert report.done == 5
    listed = json.loads((photos / "out" / "failures.json").read_text())
    assert "RuntimeError: a bug; this is a fault of amsa" in listed[0]["reason"]
    assert "sitecustomize.py" in listed[0]["trace"]


def test_what_libraries_print_is_no_answer(upscale: Upscale, in_workers: Callable[[str], None]) -> None:
    in_workers("print('hello'); os.write(1, b'hello'); os.write(2, b'hello')")
    assert upscale().done == 6


def test_workers_that_never_get_ready(upscale: Upscale, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (photos / "sitecustomize.py").write_text("import os; os.write(2, b'no such thing'); os._exit(3)")
    monkeypatch.syspath_prepend(str(photos))
    with pytest.raises(AmsaError, match=r"3 workers in a row died .* ended with exit code 3: no such thing"):
        upscale()
    assert hidden(photos) == [FILE_NAME]


def test_warnings_name_the_picture_and_come_once(upscale: Upscale, photos: Path, recwarn: pytest.WarningsRecorder) -> None:
    from PIL import Image

    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    frames[0].save(photos / "in" / "two.tif", save_all=True, append_images=frames[1:])
    frames = [frame.resize((64, 64)) for frame in frames]
    frames[0].save(photos / "ref.png", "TIFF", save_all=True, append_images=frames[1:])
    assert upscale(2).failed == []
    told = Counter(str(warning.message) for warning in recwarn if "frames" in str(warning.message))
    told_of = "has several frames; only the first is read"
    assert told == {f"{photos / 'in' / 'two.tif'} {told_of}": 1, f"{photos / 'ref.png'} {told_of}": 1}


def test_results_that_have_no_place(upscale: Upscale, photos: Path) -> None:
    (photos / "in" / "sub").mkdir()
    (photos / "in" / "0.png").rename(photos / "in" / "sub" / "0.png")
    (photos / "out").mkdir()
    (photos / "out" / "sub").write_text("a file in the way")
    (photos / "out" / "1.png").write_text("not ours")
    report = upscale()
    assert report.done == 4
    assert [Path(failure.path).name for failure in report.failed] == ["1.png", "0.png"]
    assert "no run that is in .amsa-run.jsonl wrote it" in report.failed[0].reason
    assert "cannot be written (" in report.failed[1].reason
    assert (photos / "out" / "1.png").read_text() == "not ours"


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"workers": 0}, "give at least 1"),
        ({"seed": -1}, "seed is -1"),
        ({"path": "absent"}, "absent: no such model"),
        ({"matching": "guess"}, "unknown matching"),
        ({"backend": "cuda"}, "unknown backend"),
    ],
)
def test_settings_that_do_not_fit(upscale: Upscale, options: dict[str, Any], word: str) -> None:
    with pytest.raises(AmsaError, match=word):
        upscale(**options)


def test_a_bad_reference_for_all_is_an_error(photos: Path) -> None:
    with pytest.raises(AmsaError, match=r"0\.png is 16x16 pixels; at least 64"):
        upscale_folder(photos / "in", [photos / "in" / "0.png"], photos / "out")
    assert not (photos / "out").exists()


def test_threads_and_memory_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    for size, threads, each in ((1, None, 8), (3, None, 2), (16, None, 1), (2, 6, 3)):
        given = {"threads": threads, "max_memory": "8GB"}
        assert ProcessPool(size, given, 0)._settings["upscaler"] == {"threads": each, "max_memory": 8 * 10**9 // size}
    monkeypatch.setattr(processes, "available", lambda: 20 * 10**9)
    assert memory_each({}, 2) == {"max_memory": 9 * 10**9}
    assert memory_each({}, 1) == memory_each({"backend": "tensorrt"}, 2) == {}


def test_a_worker_ends_with_us(photos: Path) -> None:
    """Its standard input ends when the parent does, however that was; it then stops even in the middle of its work."""
    worker = ProcessPool(1, {"threads": 1}, 0).start()
    worker.receive()
    assert worker._child.stdin is not None
    worker._child.stdin.close()
    assert worker._child.wait(5) == 0
    with pytest.raises(WorkerDied, match="ended with exit code 0"):
        worker.receive()
    worker.close()


def test_the_public_name() -> None:
    assert amsa.upscale_folder is upscale_folder
