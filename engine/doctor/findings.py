"""What a check finds, and how it says that it did not find it."""

from __future__ import annotations

from dataclasses import dataclass

OK, ABSENT, BROKEN = "ok", "absent", "broken"
"""States: it works; it is not there, which may be fine; it is there and does not work."""

_LONGEST = 400  # characters of a text


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        section: the group it is shown in.
        name: of the check.
        state: OK, ABSENT or BROKEN.
        text: what was found, with versions and names; one line.
        mend: where not OK: what to do, a command where one does it.
    """

    section: str
    name: str
    state: str
    text: str
    mend: str = ""


class Problem(Exception):
    """Ends a check with another state than OK. Without a mend, the check's own is shown."""

    def __init__(self, state: str, text: str, mend: str = "") -> None:
        super().__init__(text)
        self.state, self.text, self.mend = state, text, mend


def one_line(text: str) -> str:
    """A text without line breaks, cut where it is too long for a finding."""
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 3]}..."
