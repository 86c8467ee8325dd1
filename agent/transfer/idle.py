"""Connections that wait for the next request to their endpoint, for a while. Any thread.

Whoever takes or keeps one closes all that have waited too long, to whomever they lead: an endpoint that is
gone is never asked again.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, defaultdict

from agent.clock import Clock
from agent.transfer.connection import Connection
from agent.transfer.request import Endpoint

IDLE_SECONDS = 20.0  # below the 60 s and more after which the usual servers close an idle connection
IDLE_PER_ENDPOINT = 32

Kind = tuple[Endpoint, bool]  # and whether its certificate was verified


class IdleConnections:
    """Those of one engine."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: OrderedDict[Connection, tuple[float, Kind]] = OrderedDict()  # since when, the first first
        self._by_kind: defaultdict[Kind, list[Connection]] = defaultdict(list)  # in the same order

    def take(self, kind: Kind) -> Connection | None:
        """The one that was kept last, which is the caller's from now on."""
        with self._lock:
            stale = self._stale()
            taken = self._by_kind[kind][-1] if kind in self._by_kind else None
            if taken is not None:
                self._remove(taken)
        for connection in stale:
            connection.close()
        return taken

    def keep(self, kind: Kind, connection: Connection) -> None:
        """Have it wait; where there are enough it is closed."""
        with self._lock:
            closed = self._stale()
            if len(self._by_kind[kind]) < IDLE_PER_ENDPOINT:
                self._by_kind[kind].append(connection)
                self._kept[connection] = self._clock.monotonic(), kind
            else:
                closed.append(connection)
        for one in closed:
            one.close()

    def close(self) -> None:
        """Close all."""
        with self._lock:
            kept = list(self._kept)
            self._kept.clear()
            self._by_kind.clear()
        for connection in kept:
            connection.close()

    def _stale(self) -> list[Connection]:
        """Those that have waited too long, taken out."""
        oldest = self._clock.monotonic() - IDLE_SECONDS
        stale: list[Connection] = []
        while self._kept:
            connection, (since, _) = next(iter(self._kept.items()))
            if since >= oldest:
                break
            self._remove(connection)
            stale.append(connection)
        return stale

    def _remove(self, connection: Connection) -> None:
        _, kind = self._kept.pop(connection)
        self._by_kind[kind].remove(connection)
        if not self._by_kind[kind]:
            del self._by_kind[kind]
