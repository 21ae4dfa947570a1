"""Tasks given out to workers, wherever these are, so that one that dies costs nothing but its time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Generic, Protocol, TypeVar

from ...errors import AmsaError
from .worker import Opened, Outcome, Task

DEATHS_AT_START = 3
"""So many workers in a row that die before they are ready end a run: the next would, too."""


class WorkerDied(Exception):
    """A worker will not answer any more; says why, as far as is known."""


class Worker(Protocol):
    """A `PictureWorker` elsewhere. Its first answer is `Opened`, then one `Outcome` for each task."""

    def send(self, task: Task) -> None:
        """Give it a task. Does not wait, and raises nothing where the worker is dead: `receive` will."""

    def receive(self) -> Opened | Outcome:
        """Its answer; raises WorkerDied where there will be none."""

    def close(self) -> None:
        """End it at once."""


W = TypeVar("W", bound=Worker)


class Pool(Protocol[W]):
    """Where workers come from."""

    size: int
    """How many there are to be at a time."""

    def start(self) -> W:
        """Start a worker. Does not wait until it is ready."""

    def wait(self, workers: Sequence[W]) -> Sequence[W]:
        """Wait until one or more of these have answered or died, and return them."""

    def close(self) -> None:
        """Give everything back."""


class Work(Generic[W]):
    """Tasks, done in about their order by the workers of a pool.

    A task whose worker dies is put to the end, since it need not be what killed it, and fails when a second one dies on it.

    Args:
        pool: of workers.
        tasks: all there is to do.
        opened: called when the first worker is ready.
        say: told of each worker that died.
    """

    def __init__(
        self, pool: Pool[W], tasks: Sequence[Task], opened: Callable[[Opened], None], say: Callable[[str], None]
    ) -> None:
        self._pool, self._tasks, self._opened, self._say = pool, tasks, opened, say
        self._waiting = deque(range(len(tasks)))
        self._left = len(tasks)
        self._busy: dict[W, int | None] = {}  # the task each does; None: it is starting
        self._died_on: set[int] = set()
        self._deaths_at_start = 0

    def outcomes(self) -> Generator[tuple[int, Outcome], None, None]:
        """Do the work; yields the number and outcome of each task as it ends.

        Raises:
            AmsaError: the model is refused, or no worker gets ready.
        """
        try:
            while self._left:
                while len(self._busy) < min(self._pool.size, self._left) and self._waiting:
                    self._busy[self._pool.start()] = None
                for worker in self._pool.wait(list(self._busy)):
                    task = self._busy[worker]
                    outcome = self._answer(worker, task)
                    if task is not None and outcome is not None:
                        self._left -= 1
                        yield task, outcome
        finally:
            for worker in self._busy:
                worker.close()
            self._busy.clear()

    def _answer(self, worker: W, task: int | None) -> Outcome | None:
        """Take a worker's answer and give it the next task; the outcome, if the answer is one."""
        try:
            answer = worker.receive()
        except WorkerDied as e:
            self._dismiss(worker)
            return self._buried(task, str(e))
        if isinstance(answer, Opened):
            if answer.refused:
                raise AmsaError(answer.refused)
            self._deaths_at_start = 0
            self._opened(answer)
        if self._waiting:
            self._busy[worker] = following = self._waiting.popleft()
            worker.send(self._tasks[following])
        else:
            self._dismiss(worker)
        return answer if isinstance(answer, Outcome) else None

    def _dismiss(self, worker: W) -> None:
        del self._busy[worker]
        worker.close()

    def _buried(self, task: int | None, reason: str) -> Outcome | None:
        if task is None:
            self._deaths_at_start += 1
            if self._deaths_at_start == DEATHS_AT_START:
                raise AmsaError(f"{DEATHS_AT_START} workers in a row died before they were ready: the last one {reason}")
            self._say(f"a worker {reason} before it was ready; another one is started")
            return None
        if task in self._died_on:
            return Outcome(f"two workers died on it: the last one {reason}; give it smaller photos, or take fewer workers")
        self._died_on.add(task)
        self._waiting.append(task)
        self._say(f"{self._tasks[task].lr}: its worker {reason}; it is tried once more, at the end")
        return None
