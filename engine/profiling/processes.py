"""The processes that contenders run in, seen from the one that asks them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from types import TracebackType
from typing import Any

PATIENCE = 10.0
"""Seconds that a process has to end by itself."""


class Failed(Exception):
    """A contender cannot go on; why, in one line. `refused`: it said so itself, as of wrong input; else its process ended."""

    def __init__(self, reason: str, refused: bool) -> None:
        super().__init__(reason)
        self.refused = refused


class Worker:
    """A process that runs `worker.py`. Use it in a `with`: it ends there."""

    def __init__(self) -> None:
        # Modules come from where this process finds them, and not from the folder it is in.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed by __exit__)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", f"{__package__}.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment,
        )

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """Let it do something, and wait for the answer.

        Raises:
            Failed: it answers with an error, or not at all.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = ""
        with suppress(BrokenPipeError):  # it ended since
            self._process.stdin.write(json.dumps({"do": do, **request}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        if not line:
            raise Failed(self._ending(), refused=False)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Failed(answer["error"], refused=answer["refused"])
        return answer

    def _ending(self) -> str:
        code = self._process.wait(PATIENCE)
        self._errors.seek(0)
        said = [line for line in self._errors.read().decode(errors="replace").splitlines() if line.strip()]
        if code == -signal.SIGKILL:
            return "its process was killed, as by the system when memory is short; take smaller pictures or free memory"
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return " ".join(": ".join((f"its process {how}", *said[-1:])).split())

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()  # it ends when nothing more can come, with what it started itself
        try:
            self._process.wait(PATIENCE if error is None else 0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()
