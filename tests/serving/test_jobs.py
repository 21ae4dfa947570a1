"""The queue by itself: order, room, what is kept and for how long, and its end."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace

import pytest

from amsa.engine.memory import OutOfMemory
from amsa.engine.upscaler import Progress
from amsa.errors import AmsaError
from amsa.serving.jobs import File, Job, Jobs, State
from amsa.serving.limits import Limits, Refusal
from amsa.serving.notes import gathered, routed

LIMITS = Limits(queue=3, seconds=10, keep=10, kept=100)


class Queue:
    """A queue, the jobs that ended in their order, and a job that stands still until it is let go."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self.ended: list[Job] = []
        self.jobs = Jobs(limits, self.ended.append)
        self.standing, self.go = threading.Event(), threading.Event()

    def hold(self) -> Job:
        def work(progress: Progress) -> dict[str, File]:
            self.standing.set()
            assert self.go.wait(10)
            progress(1, 2, "after the pause")
            return make(1)(progress)

        job = self.jobs.add(work, [])
        assert self.standing.wait(10)
        return job

    def wait(self, count: int) -> None:
        deadline = time.monotonic() + 10
        while len(self.ended) < count and time.monotonic() < deadline:
            time.sleep(0.005)
        assert len(self.ended) == count


def make(size: int):
    """Work that makes a file of so many bytes."""
    return lambda _: {"result": File(bytes(size), "image/png", "a.png")}


@pytest.fixture
def queue() -> Iterator[Queue]:
    made = Queue()
    yield made
    made.go.set()
    made.jobs.stop()
    made.jobs.join()


def refused(call, *arguments: object) -> tuple[int, str]:
    with pytest.raises(Refusal) as caught:
        call(*arguments)
    return caught.value.status, str(caught.value)


def test_first_come_first_served(queue: Queue) -> None:
    jobs = [queue.hold(), *(queue.jobs.add(make(1), []) for _ in range(3))]
    assert [queue.jobs.ahead(job) for job in jobs] == [0, 1, 2, 3]
    assert refused(queue.jobs.add, make(1), [])[0] == 503
    assert queue.jobs.waiting == 3
    queue.go.set()
    queue.wait(4)
    assert queue.ended == jobs
    assert {job.state for job in jobs} == {State.DONE}
    assert [job.work for job in jobs] == [None] * 4  # and with it its uploads
    assert len({job.id for job in jobs}) == 4
    assert min(len(job.id) for job in jobs) >= 20


def test_one_result_is_handed_out_once(queue: Queue) -> None:
    job = queue.jobs.add(lambda _: {"a": File(b"a", "x/y", "a"), "b": File(b"b", "x/y", "b")}, [])
    queue.wait(1)
    assert queue.jobs.take(job.id, "a").content == b"a"
    assert refused(queue.jobs.take, job.id, "a") == (404, "the job has no such file; it has: b")
    assert queue.jobs.get(job.id) is job
    assert queue.jobs.take(job.id, "b").content == b"b"
    assert refused(queue.jobs.get, job.id)[0] == 404


def test_the_oldest_results_make_room(queue: Queue) -> None:
    ids = []
    for i, size in enumerate((60, 30, 40, 500)):  # 100 bytes are kept
        ids.append(queue.jobs.add(make(size), []).id)
        queue.wait(i + 1)
        kept = {0: 60, 1: 90, 2: 70, 3: 500}[i]  # the newest is kept in any case
        deadline = time.monotonic() + 5
        while queue.jobs.kept != kept and time.monotonic() < deadline:
            time.sleep(0.005)
        assert queue.jobs.kept == kept
    assert [refused(queue.jobs.get, id)[0] for id in ids[:3]] == [404] * 3
    assert len(queue.jobs.take(ids[3], "result").content) == 500


def test_results_go_while_another_job_runs() -> None:
    queue = Queue(replace(LIMITS, keep=0.1))
    queue.jobs.add(make(1), [])
    queue.wait(1)
    running = queue.hold()
    time.sleep(0.2)
    assert queue.jobs.kept == 1
    queue.go.set()  # on to the next step
    queue.wait(2)
    assert [job.id for job in queue.jobs._jobs.values()] == [running.id]
    queue.jobs.stop()
    queue.jobs.join()


@pytest.mark.parametrize(
    ("error", "status", "words", "outcome"),
    [
        (AmsaError("a.png is\ndamaged"), 400, "a.png is damaged", "failed"),
        (MemoryError(), 413, "not enough memory", "failed"),
        (OutOfMemory("the cap is 1GB; raise it"), 413, "the cap is 1GB; raise it", "failed"),
        (RuntimeError("secret"), 500, "its log says why", "failed"),
        (Refusal(504, "too long"), 504, "too long", "timeout"),
    ],
)
def test_failures(queue: Queue, error: Exception, status: int, words: str, outcome: str) -> None:
    def work(_: Progress) -> dict[str, File]:
        raise error

    job = queue.jobs.add(work, [])
    queue.wait(1)
    assert (job.state, job.outcome) == (State.FAILED, outcome)
    got, message = refused(queue.jobs.take, job.id, "result")
    assert got == status
    assert words in message
    assert "secret" not in message
    queue.jobs.add(make(1), [])
    queue.wait(2)
    assert queue.ended[1].outcome == "done"


def test_the_time_left() -> None:
    job = Job(None, [])
    assert (job.seconds(), job.seconds_left()) == (0, None)
    job.state, job.begun, job.step = State.RUNNING, time.monotonic() - 3, (0, 10, "first")
    assert job.seconds_left() is None
    job.step = (3, 9, "fourth")
    assert job.seconds_left() == pytest.approx(6, abs=0.5)
    job.state, job.ended = State.DONE, time.monotonic()
    assert job.seconds_left() is None


def test_stopping(queue: Queue) -> None:
    running, waiting = queue.hold(), queue.jobs.add(make(1), [])
    queue.jobs.stop()
    assert (running.over, waiting.over) == (True, True)
    assert refused(queue.jobs.add, make(1), []) == (503, "the server is stopping; try again when it is back")
    queue.go.set()
    queue.jobs.join()
    assert [(job, job.outcome) for job in queue.ended] == [(running, "cancelled")]


def test_a_worker_that_died_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)

    def fail(_: Job) -> None:
        raise SystemError

    jobs = Jobs(LIMITS, fail)
    jobs.add(make(1), [])
    jobs.join()
    assert refused(jobs.check_room) == (503, "the server's worker has died; restart the server")


# ------------------------------------------------------------------------------------------------ notes


def warn() -> None:
    warnings.warn("two\nlines", stacklevel=1)


def test_notes_go_to_their_thread() -> None:
    first: list[str] = []
    second: list[str] = []
    shown: list[str] = []

    def elsewhere() -> None:
        with gathered(second):
            warn()

    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = lambda message, *_: shown.append(str(message))
        before = warnings.showwarning
        with routed():
            with gathered(first):
                thread = threading.Thread(target=elsewhere)
                thread.start()
                thread.join()
                warn()
                warn()
            warn()
        assert warnings.showwarning is before
    assert (first, second, shown) == (["two lines"], ["two lines"], ["two\nlines"])
