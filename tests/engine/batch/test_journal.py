"""What counts as done, what is made again and why, and what a run that was killed may leave."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from amsa import AmsaError
from amsa.engine.batch.journal import DONE, DONE_AND_EDITED, FILE_NAME, Journal
from amsa.engine.batch.plan import Job
from amsa.engine.batch.worker import Outcome

SETTINGS = {"model": "m", "seed": 0}


@pytest.fixture
def job(tmp_path: Path) -> Job:
    (tmp_path / "a.png").write_bytes(b"lr")
    (tmp_path / "ref.png").write_bytes(b"reference")
    (tmp_path / "out").mkdir()
    return Job("a.png", tmp_path / "a.png", (tmp_path / "ref.png",), tmp_path / "out" / "a.png")


@contextmanager
def journal(job: Job, **settings: Any) -> Iterator[Journal]:
    with closing(Journal(job.target.parent, SETTINGS | settings)) as opened:
        yield opened


def make(job: Job, content: bytes = b"result", **settings: Any) -> None:
    """Make a result as a run does."""
    part = job.target.with_name("part")
    part.write_bytes(content)
    with journal(job, **settings) as opened:
        opened.add(job, part, Outcome(seconds=1.0, served=[(0, 1.0)], worker="host:1"))
        part.replace(job.target)


def state(job: Job, **settings: Any) -> str:
    with journal(job, **settings) as opened:
        return opened.state(job)


def test_a_result_is_made_once(job: Job) -> None:
    assert state(job) == ""
    make(job)
    assert state(job) == DONE
    job.target.unlink()
    assert state(job) == ""


def test_what_has_changed_is_made_again(job: Job) -> None:
    make(job)
    assert state(job, seed=7) == "settings have changed (seed was 0, is 7)"
    assert state(job, skip=0.5) == "settings have changed (skip was None, is 0.5)"
    job.refs[0].write_bytes(b"another")
    assert state(job) == "its references have changed"
    job.lr.write_bytes(b"another")
    assert state(job) == "the picture has changed"
    make(job)
    assert state(job) == DONE


def test_a_result_that_someone_edited_is_left(job: Job) -> None:
    make(job)
    job.target.write_bytes(b"retouched")
    assert state(job) == DONE_AND_EDITED
    with pytest.raises(AmsaError, match=r"changed since it was written, and settings have changed .* delete it"):
        state(job, seed=7)


def test_a_file_of_someone_else_is_left(job: Job) -> None:
    job.target.write_bytes(b"mine")
    with pytest.raises(AmsaError, match="exists, and no run"):
        state(job)


def test_a_run_killed_between_journal_and_rename(job: Job) -> None:
    make(job)
    part = job.target.with_name("part")
    part.write_bytes(b"another result")
    with journal(job, seed=7) as opened:
        opened.add(job, part, Outcome(seconds=1.0, served=[(0, 1.0)], worker="host:1"))
    assert state(job, seed=7) == "ended before its new result was in place"
    part.replace(job.target)
    assert state(job, seed=7) == DONE


@pytest.mark.parametrize("torn", [b"{", b'{"file": "b.png", "lr": [2, 1', b"\xff\0"])
def test_half_a_line_is_forgotten(job: Job, torn: bytes, recwarn: pytest.WarningsRecorder) -> None:
    make(job)
    path = job.target.parent / FILE_NAME
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    assert state(job) == DONE
    assert path.read_bytes() == whole
    make(job)
    assert state(job) == DONE
    assert not recwarn


def test_damaged_lines_are_told(job: Job) -> None:
    make(job)
    path = job.target.parent / FILE_NAME
    path.write_bytes(b'\0\0\n"text"\n{"file": 1}\n' + path.read_bytes() + b'{"file": "b.png", "settings": "unknown"}\n')
    with pytest.warns(UserWarning, match="4 lines of .* are damaged"):
        assert state(job) == DONE


def test_one_run_at_a_time(job: Job) -> None:
    with journal(job), pytest.raises(AmsaError, match="another run writes to"), journal(job):
        pass


def test_another_version(job: Job) -> None:
    header = b'{"format": 9, "producer": "amsa 9.0", "key": "", "settings": {}}\n'
    (job.target.parent / FILE_NAME).write_bytes(header)
    with pytest.raises(AmsaError, match=r"is of amsa 9\.0"):
        state(job)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes into every folder")
def test_a_folder_that_takes_no_files(job: Job) -> None:
    job.target.parent.chmod(0o500)
    with pytest.raises(AmsaError, match="cannot be written"):
        state(job)


def test_inputs_that_are_gone(job: Job) -> None:
    """The run finds out when it reads them."""
    make(job)
    job.lr.unlink()
    assert state(job) == "the picture has changed"
