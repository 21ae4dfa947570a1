"""Workers as child processes of this one. Each runs `python -m amsa.engine.batch`; the two exchange lines of JSON."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from ...errors import AmsaError
from ..memory import available, parse_bytes
from .pool import WorkerDied
from .worker import Opened, Outcome, Task


class ProcessPool:
    """Child processes that share this machine's cores.

    Args:
        size: processes at a time.
        upscaler: arguments of `Upscaler`; `threads` and `max_memory` are for all of them together, None: the cores and the
            memory that are free now.
        seed: of the initial matches.
    """

    def __init__(self, size: int, upscaler: Mapping[str, Any], seed: int) -> None:
        self.size = size
        threads = max(1, (upscaler.get("threads") or len(os.sched_getaffinity(0))) // size)
        self._settings = {"upscaler": {**upscaler, "threads": threads, **memory_each(upscaler, size)}, "seed": seed}

    def start(self) -> ProcessWorker:
        return ProcessWorker(self._settings)

    def wait(self, workers: Sequence[ProcessWorker]) -> Sequence[ProcessWorker]:
        return select.select(workers, [], [])[0]

    def close(self) -> None:
        pass


def memory_each(upscaler: Mapping[str, Any], workers: int) -> dict[str, int]:
    """What each of several workers may hold, as an argument of `Upscaler`; empty where it may take what it finds.

    Each would otherwise plan with all that is free.
    """
    cap = upscaler.get("max_memory")
    if cap is not None:
        return {"max_memory": parse_bytes(cap) // workers}
    if workers == 1 or upscaler.get("backend") == "tensorrt":  # the GPU's memory; its own to look after
        return {}
    return {"max_memory": available() * 9 // 10 // workers}


class ProcessWorker:
    """A child process. It has a session of its own, so that Ctrl-C reaches only us; it ends when we do, however that is."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the worker)
        # Modules come from where this process finds them, and not from the folder it is in.
        command = [sys.executable, "-P", "-m", __package__]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        pipe = subprocess.PIPE
        try:
            self._child = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=self._errors, env=environment, start_new_session=True
            )
        except OSError as e:
            raise AmsaError(f"no worker can be started ({e.strerror}); close other programs, or take fewer workers") from e
        self._write(settings)

    def fileno(self) -> int:
        assert self._child.stdout is not None
        return self._child.stdout.fileno()

    def send(self, task: Task) -> None:
        self._write(asdict(task))

    def receive(self) -> Opened | Outcome:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()  # it says nothing unasked, so no second line waits in the buffer
        if not line.endswith(b"\n"):
            raise WorkerDied(self._ending())
        answer = json.loads(line)
        return Opened(**answer) if "refused" in answer else Outcome(**answer)

    def close(self) -> None:
        self._child.kill()
        with suppress(BrokenPipeError):
            self._child.__exit__(None, None, None)  # closes the pipes, and waits
        self._errors.close()

    def _write(self, values: Mapping[str, Any]) -> None:
        assert self._child.stdin is not None
        with suppress(BrokenPipeError):
            self._child.stdin.write(json.dumps(values).encode() + b"\n")
            self._child.stdin.flush()

    def _ending(self) -> str:
        """How the process ended, in words, with the last line it wrote."""
        self._child.kill()  # one that closed its end and lives on
        code = self._child.wait()
        if code == -signal.SIGKILL:
            return "was killed (SIGKILL; the system does that where memory runs out)"
        ended = f"ended with exit code {code}" if code >= 0 else f"ended by signal {-code} ({signal.strsignal(-code)})"
        self._errors.seek(0)
        said = [line for line in self._errors.read().decode(errors="replace").splitlines() if line.strip()]
        return ": ".join((ended, *(" ".join(line.split())[:200] for line in said[-1:])))
