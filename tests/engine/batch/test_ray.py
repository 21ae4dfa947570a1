"""The same on a Ray cluster of this machine, with two workers, one of which is killed."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from amsa import AmsaError
from amsa.engine.batch import upscale_folder
from amsa.engine.batch.journal import FILE_NAME
from amsa.engine.batch.on_ray import RayWorker, threads_each
from amsa.engine.batch.worker import Task


@pytest.mark.slow
def test_a_folder_on_a_cluster(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.chdir(photos)  # relative paths are ours, not the actors'
    killed: list[int] = []
    said: list[str] = []

    def results() -> list[dict[str, str]]:
        return [json.loads(line) for line in Path("out", FILE_NAME).read_text().splitlines()[1:]]

    def kill(done: int, total: int, what: str) -> None:
        if done == 2:
            killed.append(int(results()[-1]["worker"].split(":")[1]))
            os.kill(killed[0], signal.SIGKILL)

    Path("in", "broken.png").write_text("no picture")
    arguments = (Path("in"), ["ref.png"], Path("out"))
    report = upscale_folder(*arguments, workers=2, ray="local", threads=2, progress=kill, say=said.append)
    assert (report.done, [Path(failure.path).name for failure in report.failed]) == (6, ["broken.png"])
    assert Counter(result["file"] for result in results()) == {f"{i}.png": 1 for i in range(6)}
    assert len({result["worker"] for result in results()} - {str(killed[0])}) > 1
    assert sum("its worker died" in text for text in said) == 1, said
    assert sorted(path.name for path in Path("out").iterdir()) == [FILE_NAME, *(f"{i}.png" for i in range(6)), "failures.json"]
    os.unlink("in/broken.png")  # noqa: PTH108
    assert upscale_folder(*arguments, workers=2, threads=2).skipped == 6  # here or on a cluster, it is the same run


def test_actors_get_absolute_paths(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They have another working directory; on this machine it happens to be ours."""
    monkeypatch.chdir(photos)
    sent: list[Task] = []

    class Method:
        def __init__(self, *_: object) -> None:
            self.remote = lambda *task: sent.extend(task)

    actor = type("Actor", (), {"open": Method(), "make": Method()})
    for explanation in ("", "why/0.png"):
        RayWorker(None, actor).send(Task("in/0.png", ["ref.png", "/a/ref.png"], "out/x/0.png", "out/0.png", 1, explanation))
    there = [str(photos / name) for name in ("in/0.png", "ref.png", "out/x/0.png", "out/0.png", "why/0.png")]
    first = Task(there[0], [there[1], "/a/ref.png"], there[2], there[3], 1)
    assert sent == [first, replace(first, explanation=there[4])]


def test_no_cluster_and_no_ray(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = (photos / "in", [photos / "ref.png"], photos / "out")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(AmsaError, match=r"pip install 'amsa\[ray\]'"):
        upscale_folder(*arguments, ray="local")
    monkeypatch.undo()
    pytest.importorskip("ray")
    with pytest.raises(AmsaError, match="no cluster there"):
        upscale_folder(*arguments, ray="auto")


@pytest.mark.parametrize(
    ("cores", "workers", "threads"),
    [([8], 1, 8), ([8], 3, 2), ([16, 16], 3, 8), ([16, 16], 1, 16), ([4, 2], 3, 2)],
)
def test_threads_on_machines(cores: list[int], workers: int, threads: int) -> None:
    assert threads_each(cores, workers) == threads


def test_too_few_machines() -> None:
    with pytest.raises(AmsaError, match="has 3 CPUs, too few for 4 workers"):
        threads_each([2, 1], 4)
