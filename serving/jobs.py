"""A bounded queue of jobs, the one thread that works on them, and the results that wait to be fetched.

One thread, because one picture keeps all cores, or the GPU, busy.
"""

from __future__ import annotations

import logging
import math
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, TypeAlias

from ..engine.gpu.cuda import OutOfDeviceMemory
from ..engine.memory import OutOfMemory
from ..errors import AmsaError
from .limits import Limits, Refusal
from .notes import gathered

if TYPE_CHECKING:
    from ..engine.upscaler import Progress

_log = logging.getLogger(__name__)


class State(StrEnum):
    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True)
class File:
    """What a job made: a file's content, its media type, and the name to save it under."""

    content: bytes
    media_type: str
    name: str


Work: TypeAlias = "Callable[[Progress], Mapping[str, File]]"
"""Makes files; calls its argument before every step, which raises where the work is to end."""


@dataclass
class Job:
    """A piece of work, and how far it is. Only `Jobs` changes it.

    Attributes:
        work: what to do; None from the moment when it is done, and its uploads with it.
        notes: remarks for whoever ordered it.
        id: unguessable: who knows it may fetch the result.
        step: steps done, steps in all, what is done now.
        begun, ended: on the clock of `time.monotonic`.
        files: what was made and not fetched yet.
        failure: why there is no result.
        outcome: for the books: done, failed, timeout or cancelled.
    """

    work: Work | None
    notes: list[str]
    id: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    state: State = State.WAITING
    step: tuple[int, int, str] = (0, 0, "")
    begun: float | None = None
    ended: float | None = None
    files: dict[str, File] = field(default_factory=dict)
    failure: Refusal | None = None
    outcome: str = ""
    unwanted: bool = False

    @property
    def over(self) -> bool:
        """Whether nothing more will come of it."""
        return self.ended is not None or self.unwanted

    def seconds(self) -> float:
        """That it has been worked on."""
        if self.begun is None:
            return 0.0
        return (time.monotonic() if self.ended is None else self.ended) - self.begun

    def seconds_left(self) -> float | None:
        """As if all steps took equally long; None: unknown."""
        done, steps, _ = self.step
        return self.seconds() * (steps - done) / done if self.state is State.RUNNING and done else None


class _Unwanted(Exception):
    """Raised inside the work of a job that nobody waits for any more."""


class Jobs:
    """Runs jobs one after the other, in the order in which they came.

    Args:
        limits: of the queue, of time, and of what is kept.
        ended: called in the worker's thread with every job that ended, also with cancelled ones.

    Any thread may call its methods.
    """

    def __init__(self, limits: Limits, ended: Callable[[Job], None]) -> None:
        self._limits, self._ended = limits, ended
        self._jobs: dict[str, Job] = {}
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._last_seconds = 10.0  # until a first job has told
        self._stopping = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="amsa-worker", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return int(self._running is not None)

    @property
    def kept(self) -> int:
        """Bytes of results that were not fetched yet."""
        with self._changed:
            return self._kept()

    def check_room(self) -> None:
        """Raise Refusal 503 if a job would not be taken now."""
        if self._stopping:
            raise Refusal(503, "the server is stopping; try again when it is back", 10)
        if not self._thread.is_alive():
            raise Refusal(503, "the server's worker has died; restart the server")
        if len(self._waiting) >= self._limits.queue:
            seconds, count = max(1, math.ceil(self._last_seconds)), len(self._waiting)
            waiting = "1 picture waits" if count == 1 else f"{count} pictures wait"
            raise Refusal(503, f"the queue is full: {waiting}; try again in {seconds} s", seconds)

    def add(self, work: Work, notes: list[str]) -> Job:
        """Queue a job; Refusal 503 where there is no room."""
        job = Job(work, notes)
        with self._changed:
            self._forget_old()
            self.check_room()
            self._jobs[job.id] = job
            self._waiting.append(job)
            self._changed.notify_all()
        return job

    def get(self, id: str) -> Job:
        """The job; Refusal 404 where there is none."""
        with self._changed:
            self._forget_old()
            return self._get(id)

    def ahead(self, job: Job) -> int:
        """How many jobs come before it."""
        with self._changed:
            return self._waiting.index(job) + self.running if job in self._waiting else 0

    def take(self, id: str, name: str) -> File:
        """Hand out a file, once: it is forgotten here, and the job with the last of its files.

        Raises:
            Refusal: 404 no such job or file, 409 not done yet, or why it failed.
        """
        with self._changed:
            job = self._get(id)
            if job.failure is not None:
                raise Refusal(job.failure.status, str(job.failure))
            if job.state is not State.DONE:
                raise Refusal(409, f"the job is {job.state.value}; fetch its files when its state is done")
            if name not in job.files:
                raise Refusal(404, "the job has no such file; it has: " + ", ".join(job.files))
            file = job.files.pop(name)
            if not job.files:
                del self._jobs[id]
            return file

    def remove(self, id: str) -> None:
        """Forget a job and its files. One that waits is not begun; one that runs ends before its next step."""
        with self._changed:
            job = self._get(id)
            del self._jobs[id]
            job.unwanted = True
            waited = job in self._waiting
            if waited:
                self._waiting.remove(job)
        if waited:
            self._close(job, "cancelled")

    def stop(self) -> None:
        """Take no more jobs, and end those there are: waiting ones now, the running one before its next step."""
        with self._changed:
            self._stopping = True
            for job in self._jobs.values():
                job.unwanted = job.unwanted or job.ended is None
            self._waiting.clear()
            self._changed.notify_all()

    def join(self) -> None:
        """Wait until the worker has ended after `stop`."""
        self._thread.join()

    def _get(self, id: str) -> Job:
        if id not in self._jobs:
            reasons = "fetched or cancelled before, is too old, or the server was restarted"
            raise Refusal(404, f"no such job: it was {reasons}; order the picture again")
        return self._jobs[id]

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._stopping:
                    self._changed.wait(timeout=self._forget_old())
                if self._stopping:
                    return
                job = self._running = self._waiting.popleft()
                job.begun, job.state = time.monotonic(), State.RUNNING
            try:
                self._run(job)
            finally:
                with self._changed:
                    self._running = None
                    self._forget_old()

    def _run(self, job: Job) -> None:
        assert job.work is not None
        failure: Refusal | None = None
        files: Mapping[str, File] = {}
        outcome = "failed"
        try:
            with gathered(job.notes):
                files = job.work(lambda *step: self._next_step(job, step))
            outcome = "done"
        except _Unwanted:
            outcome = "cancelled"
        except Refusal as e:
            failure = e
            outcome = "timeout" if e.status == 504 else "failed"
        except (MemoryError, OutOfMemory, OutOfDeviceMemory) as e:
            failure = Refusal(413, " ".join(str(e).split()) or "not enough memory for pictures of this size; use smaller photos")
        except AmsaError as e:
            failure = Refusal(400, " ".join(str(e).split()))
        except Exception:
            _log.exception("a job failed")
            failure = Refusal(500, "the server failed at this picture; its log says why")
        with self._changed:
            job.files, job.failure = dict(files), failure
        self._close(job, outcome)

    def _next_step(self, job: Job, step: tuple[int, int, str]) -> None:
        job.step = step
        if job.unwanted:
            raise _Unwanted
        if job.seconds() > self._limits.seconds:
            limit = f"{self._limits.seconds:g} s"
            raise Refusal(
                504, f"the picture took longer than {limit}, this server's limit; use smaller photos or fewer references"
            )
        with self._changed:
            self._forget_old()

    def _close(self, job: Job, outcome: str) -> None:
        job.work, job.outcome = None, outcome
        with self._changed:
            job.ended = time.monotonic()
            job.state = State.DONE if outcome == "done" else State.FAILED
            if outcome == "done":
                self._last_seconds = job.seconds()
        self._ended(job)

    def _kept(self) -> int:
        return sum(len(file.content) for job in self._jobs.values() for file in job.files.values())

    def _forget_old(self) -> float | None:
        """Forget what nobody fetched in time and, oldest first, what is too much; seconds until that is due again."""
        ended = sorted((job for job in self._jobs.values() if job.ended is not None), key=lambda job: job.ended or 0)
        now, kept = time.monotonic(), self._kept()
        for i, job in enumerate(ended):
            due = (job.ended or 0) + self._limits.keep - now
            newest = i == len(ended) - 1
            if due > 0 and (kept <= self._limits.kept or newest):
                return due
            kept -= sum(len(file.content) for file in job.files.values())
            del self._jobs[job.id]
        return None
