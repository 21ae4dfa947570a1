"""Thousands of damaged files: what each holds, or one line; no crash, no traceback, no hang, bounded memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

CHILD = Path(__file__).with_name("child.py")
SLOW = pytest.mark.slow


def read_damaged(kind: str, first: int, count: int) -> dict[str, int]:
    """Outcomes by kind. A child that dies is told with the last file that it began."""
    done = subprocess.run([sys.executable, CHILD, kind, str(first), str(count)], capture_output=True, text=True)
    last = "\n".join(done.stderr.splitlines()[-12:])
    assert done.returncode == 0, f"exit code {done.returncode}, a signal where negative:\n{last}"
    outcomes: dict[str, int] = json.loads(done.stdout)
    assert sum(outcomes.values()) == count
    return outcomes


@pytest.mark.parametrize(("first", "count"), [(0, 200), pytest.param(1000, 2000, marks=SLOW)])
def test_pictures(first: int, count: int) -> None:
    outcomes = read_damaged("images", first, count)
    # Damage that does not show would prove nothing, and so would damage that is all of one kind.
    assert outcomes["refused"] > count / 10
    assert outcomes["read"] > count / 10


@pytest.mark.parametrize(("first", "count"), [(0, 42), pytest.param(1000, 500, marks=SLOW)])
def test_models(first: int, count: int) -> None:
    outcomes = read_damaged("models", first, count)
    assert outcomes["refused"] > count / 2
