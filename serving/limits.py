"""What a server takes, and how long it keeps what it made; and how it says no."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import AmsaError

REFERENCES = 16
"""Photos of one order at most: 16 at five scales hold 1 GB of matches where the result has 16 megapixels."""


@dataclass(frozen=True)
class Limits:
    """Bounds of one server.

    Attributes:
        queue: orders that may wait while one is worked on.
        upload: bytes of a request's body.
        pixels: of the result, and of all references of one order together. 16 million: a phone's photo as the reference, for
            which the shipped model takes 4.7 GB where that is free.
        seconds: that an order may be worked on.
        keep: seconds that a result waits to be fetched.
        kept: bytes of results that wait; beyond, the oldest make room.
    """

    queue: int = 8
    upload: int = 64_000_000
    pixels: int = 16_000_000
    seconds: float = 600
    keep: float = 600
    kept: int = 512_000_000


class Refusal(AmsaError):
    """What a request gets instead of what it asked for: an HTTP status and one line.

    Args:
        status: 400 to 599.
        message: what is wrong and how to mend it.
        retry_after: seconds after which trying again makes sense.
    """

    def __init__(self, status: int, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after
