"""What the origins need of the transfer engine: somebody who sends one GET and brings its bytes."""

from __future__ import annotations

from typing import Protocol

from agent.source import Sink
from agent.transfer.request import RangedGet


class Receiver(Protocol):
    """Receives ranges straight into sinks (agent/transfer/engine.py in the agent)."""

    async def receive(self, get: RangedGet, sink: Sink) -> None:
        """Send `get`, check the answer's status, range, length and `get.check`, write the body into `sink`.

        `get.extent` is `[sink.position, sink.end)`. Raises OriginError (401, 403 AccessDenied; 404
        ObjectMissing; 412 VersionChanged; 3xx Redirected; 408, 425, 429 and 5xx OriginUnavailable; an
        answer that breaks the protocol OriginMisbehaved) and StoreError.
        """


STALL_TIMEOUT = 10.0  # seconds


def stall_timeout(deadline: float) -> float:
    """How many seconds of silence one GET bears: a third of the deadline at most, so that retries fit in."""
    return min(STALL_TIMEOUT, deadline / 3)
