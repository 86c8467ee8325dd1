"""What a scripted proxy can do to an answer, and the gates that hold it."""

from __future__ import annotations

import threading
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Truncate:
    """Close the connection in good order after `after` bytes of the body."""

    after: int


@dataclass(frozen=True, slots=True)
class LengthOff:
    """Say a Content-Length that is `by` bytes off (negative: too short); the true body follows, then the end
    of the connection."""

    by: int


@dataclass(frozen=True, slots=True)
class IgnoreRange:
    """Answer 200 with the whole object instead of the range; `whole` is that object (the signature of the
    client covers Range, so the proxy cannot ask for it)."""

    whole: bytes


@dataclass(frozen=True, slots=True)
class WrongContentRange:
    """Say a Content-Range that lies `shift` bytes behind the true one."""

    shift: int = 1


@dataclass(frozen=True, slots=True)
class Status:
    """Answer with this status instead of asking the server."""

    code: int
    retry_after: int | None = None
    s3_code: str = "Scripted"


@dataclass(frozen=True, slots=True)
class Reset:
    """Reset the connection (SO_LINGER 0) after `after` bytes of the body; None: before the head."""

    after: int | None = None


@dataclass(frozen=True, slots=True)
class Stall:
    """Fall silent after `after` bytes of the body, until the client gives up."""

    after: int


@dataclass(frozen=True, slots=True)
class Silence:
    """Fall silent before the head, until the client gives up."""


@dataclass(frozen=True, slots=True)
class Slow:
    """Send the right body, `rate` bytes a second."""

    rate: int


Fault = Truncate | LengthOff | IgnoreRange | WrongContentRange | Status | Reset | Stall | Silence | Slow

HELD_AT_MOST = 60.0  # seconds; a forgotten gate must not hang a test for ever


class Gate:
    """Holds answers until `release`."""

    def __init__(self, after: int | None) -> None:
        self._after = after
        self._held = 0
        self._open = False
        self._changed = threading.Condition()

    @property
    def after(self) -> int | None:
        """How many bytes of the body go out before it holds; None: not even the request goes on."""
        return self._after

    @property
    def held(self) -> int:
        """How many requests have come to this gate so far."""
        return self._held

    def release(self) -> None:
        """Let all go on that wait here, and all that are still to come."""
        with self._changed:
            self._open = True
            self._changed.notify_all()

    def await_held(self, count: int, within: float = 10.0) -> None:
        """Wait until `count` requests have come here. Raises TimeoutError after `within` seconds."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._held >= count, within):
                raise TimeoutError(f"{self._held} of {count} requests came to the gate")

    def pass_through(self) -> None:
        """Wait here (called by the proxy)."""
        with self._changed:
            self._held += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._open, HELD_AT_MOST)
