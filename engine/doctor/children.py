"""Runs the checks in child processes (`python -m amsa.engine.doctor`), and makes findings of what happens to these."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from . import checks
from .checks import PATIENCE, REPORT, Check
from .findings import BROKEN, Finding, one_line


def examine_machine() -> Iterator[Finding]:
    """Run all checks, in child processes; yields each finding as soon as there is one. None is left out, whatever happens."""
    for section, group in checks.GROUPS:
        left = list(group)
        while left:
            yield from _in_child(section, left)


def _in_child(section: str, left: list[Check]) -> Iterator[Finding]:
    """Start a child on these checks and take those off that it answered; where it ended, also the one it did so in."""
    # Modules come from where this process finds them, and not from the folder it is in.
    command = [sys.executable, "-P", "-m", __package__, *(check.name for check in left)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    last = ""
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            command, bufsize=0, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, env=environment
        ) as child,
    ):
        assert child.stdout is not None
        try:
            while left:
                if not select.select([child.stdout], [], [], left[0].seconds)[0]:
                    last = f"no answer after {left[0].seconds:.0f} s"
                    break
                line = child.stdout.readline()
                if not line:
                    break
                yield Finding(**json.loads(line))
                last, name = "", left.pop(0).name
            if not last:
                try:
                    last = _ending(child.wait(PATIENCE), bool(left))
                except subprocess.TimeoutExpired:
                    last = f"did not end after {PATIENCE:.0f} s"
        finally:
            child.kill()
        if last:
            errors.seek(0)
            said = [line for line in errors.read().decode(errors="replace").splitlines() if line.strip()]
            text = one_line(": ".join((last, *said[-1:])))
            if left:
                check = left.pop(0)
                yield Finding(section, check.name, BROKEN, text, check.mend)
            else:
                yield Finding(section, f"end of {section}", BROKEN, f"after {name} the process {text}", REPORT)


def _ending(code: int, early: bool) -> str:
    """How a process ended, in words; nothing where it ended well."""
    if code >= 0:
        return f"ended with exit code {code}" if code or early else ""
    try:
        return f"ended by signal {-code} ({signal.Signals(-code).name})"
    except ValueError:
        return f"ended by signal {-code}"
