"""Workers on a Ray cluster: an actor each, with one `Upscaler`. They read the photos and write the results where we do.

Plain actors and not Ray Data: that repeats whole blocks when an actor dies, without end where one picture kills every actor.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from ...errors import AmsaError
from ..memory import parse_bytes
from .pool import WorkerDied
from .worker import Opened, Outcome, PictureWorker, Task

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class RayPool:
    """Actors on a cluster.

    Args:
        address: "auto", host:port or ray://host:port of a running cluster; "local": one that is started here and ends with us.
        size: actors at a time.
        upscaler: arguments of `Upscaler`; `threads` and `max_memory` are for all of them together, None: all that the
            cluster's machines have.
        seed: of the initial matches.

    Raises:
        AmsaError: no ray, no such cluster, or one with too few cores.
    """

    def __init__(self, address: str, size: int, upscaler: Mapping[str, Any], seed: int) -> None:
        try:
            import ray
        except ModuleNotFoundError as e:
            raise AmsaError("a Ray cluster needs ray; install it with: pip install 'amsa[ray]'") from e
        self._ray = ray
        self.size = size
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster that is started here tells nobody
        local = {"num_cpus": max(size, len(os.sched_getaffinity(0))), "include_dashboard": False} if address == "local" else {}
        self._ours = not ray.is_initialized()  # a script on a cluster may have begun already
        try:
            if self._ours:
                ray.init(address, log_to_driver=False, logging_level="error", **local)
        except Exception as e:  # ray's share no base class but Exception
            reason = " ".join(str(e).split())[:200]
            raise AmsaError(f"ray {address}: no cluster there ({reason}); start one with `ray start --head`") from e
        try:
            cores = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
            share = threads_each(cores, size)
        except BaseException:
            self.close()
            raise
        threads = share if upscaler.get("threads") is None else max(1, upscaler["threads"] // size)
        paths = {k: _absolute(upscaler[k]) for k in ("path", "engines") if upscaler.get(k) is not None}
        cap = upscaler.get("max_memory")
        memory = {} if cap is None else {"max_memory": parse_bytes(cap) // size}
        self._arguments = {**upscaler, **paths, **memory, "threads": threads}, seed
        gpus = 1 if upscaler.get("backend") == "tensorrt" else 0
        self._actor = ray.remote(PictureWorker).options(num_cpus=min(threads, share), num_gpus=gpus)

    def start(self) -> RayWorker:
        return RayWorker(self._ray, self._actor.remote(*self._arguments))

    def wait(self, workers: Sequence[RayWorker]) -> Sequence[RayWorker]:
        ready, _ = self._ray.wait([worker.answer for worker in workers])
        return [worker for worker in workers if worker.answer in ready]

    def close(self) -> None:
        if self._ours:
            self._ray.shutdown()


class RayWorker:
    """An actor, and the answer that it owes us."""

    def __init__(self, ray: Any, actor: Any) -> None:
        self._ray, self._actor = ray, actor
        self.answer = actor.open.remote()

    def send(self, task: Task) -> None:
        # Actors have another working directory.
        lr, result, target = map(_absolute, (task.lr, task.result, task.target))
        explanation = task.explanation and _absolute(task.explanation)
        refs = [_absolute(path) for path in task.refs]
        moved = replace(task, lr=lr, refs=refs, result=result, target=target, explanation=explanation)
        self.answer = self._actor.make.remote(moved)

    def receive(self) -> Opened | Outcome:
        errors = self._ray.exceptions
        try:
            answer: Opened | Outcome = self._ray.get(self.answer)
        except errors.RayTaskError:
            raise  # not the actor's end, but a fault of ours
        except errors.RayError as e:
            said = [line.strip() for line in _COLOURS.sub("", str(e)).splitlines() if line.strip()]
            raise WorkerDied(f"died ({' '.join(dict.fromkeys((said[0], said[-1])))[:300]})") from e
        return answer

    def close(self) -> None:
        with suppress(Exception):  # one that is dead already
            self._ray.kill(self._actor)


def threads_each(cores: Sequence[int], workers: int) -> int:
    """The most threads that so many workers can have each, where every one of them fits on a machine.

    Args:
        cores: of each machine.
        workers: in all.

    Raises:
        AmsaError: fewer cores than workers.
    """
    fitting = [t for t in range(1, max(cores, default=0) + 1) if sum(n // t for n in cores) >= workers]
    if not fitting:
        raise AmsaError(f"the cluster has {sum(cores)} CPUs, too few for {workers} workers; take fewer")
    return fitting[-1]


def _absolute(path: str | os.PathLike[str]) -> str:
    return os.path.abspath(path)  # noqa: PTH100  (Path.absolute keeps `..`)
