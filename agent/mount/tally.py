"""What one mount has served, for whoever looks after it: bytes by source, opens, and the last error."""

from __future__ import annotations

import threading
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Served:
    """A mount's counts since this agent took it up: bytes that came from the store and from the origin
    (bytes of the kernel's page cache and of passthrough opens are seen by nobody), opens by their way."""

    store_bytes: int = 0
    origin_bytes: int = 0
    opens_cached: int = 0
    opens_passthrough: int = 0
    last_error: str = ""


class Tally:
    """Counts from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._store_bytes = 0
        self._origin_bytes = 0
        self._opens_cached = 0
        self._opens_passthrough = 0
        self._last_error = ""

    def from_store(self, count: int) -> None:
        with self._lock:
            self._store_bytes += count

    def from_origin(self, count: int) -> None:
        with self._lock:
            self._origin_bytes += count

    def opened(self, *, passthrough: bool) -> None:
        with self._lock:
            self._opens_passthrough += passthrough
            self._opens_cached += not passthrough

    def failed(self, error: Exception) -> None:
        """The message of `error` is kept; errors of this code base carry no secret."""
        self._last_error = str(error)

    def served(self) -> Served:
        with self._lock:
            return Served(
                self._store_bytes,
                self._origin_bytes,
                self._opens_cached,
                self._opens_passthrough,
                self._last_error,
            )
