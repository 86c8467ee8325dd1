"""What an origin asked one agent to wait is told to all: `POST /peer/v1/hold`.

Agents that hear the same at the same time would each tell all others. So each waits a moment by lot, and who
has been told meanwhile tells nobody.
"""

from __future__ import annotations

import contextlib
import random
from typing import Annotated, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agent.clock import Clock
from agent.errors import BadRequest
from agent.peers.discovery import Discovery
from agent.peers.exchange_client import ExchangeClient, PeerSilent
from agent.peers.liveness import Liveness
from agent.peers.member import Peer
from agent.peers.tasks import Tasks, for_each

CALL = "hold"
LOT = 0.002  # seconds by lot for each agent: of 100 some five tell all
TELL_WITHIN = 1.0  # seconds for one of them
MOST_ORIGINS = 64  # names that are taken from peers


class HoldOffs(Protocol):
    """Who keeps what was told (agent/origin/pacing.py)."""

    def told(self, origin: str, seconds: float) -> None: ...


class _Hold(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)

    origin: Annotated[str, Field(min_length=1, max_length=1024)]
    seconds: Annotated[float, Field(gt=0, le=86400)]


class Holding:
    """Tells and is told. Used on the loop."""

    def __init__(
        self,
        hold_offs: HoldOffs,
        discovery: Discovery,
        liveness: Liveness,
        client: ExchangeClient,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self._hold_offs = hold_offs
        self._discovery = discovery
        self._liveness = liveness
        self._client = client
        self._clock = clock
        self._rng = rng
        self._told: dict[str, float] = {}  # origin -> when somebody told of it last
        self._tasks = Tasks()

    async def close(self) -> None:
        """Tell nobody any more."""
        await self._tasks.close()

    async def call(self, sender: str, body: bytes) -> bytes:
        """A `Call` of the exchange. Raises BadRequest."""
        try:
            hold = _Hold.model_validate_json(body)
        except ValidationError as error:
            raise BadRequest(f"nothing to wait for: {error.error_count()} faults") from None
        if hold.origin not in self._told and len(self._told) >= MOST_ORIGINS:
            raise BadRequest("too many origins")
        self._told[hold.origin] = self._clock.monotonic()
        self._hold_offs.told(hold.origin, hold.seconds)
        return b""

    def tell(self, origin: str, seconds: float) -> None:
        """An origin asked this agent to wait: let the others know, unless one of them says so first."""
        self._tasks.spawn(self._tell(origin, seconds))

    async def _tell(self, origin: str, seconds: float) -> None:
        peers = [peer for peer in self._discovery.peers() if self._liveness.usable(peer.name)]
        heard = self._clock.monotonic()
        await self._clock.sleep(self._rng.uniform(0.0, LOT * len(peers)))
        if self._told.get(origin, -1.0) >= heard:
            return
        self._rng.shuffle(peers)
        body = _Hold(origin=origin, seconds=min(seconds, 86400.0)).model_dump_json().encode()
        await for_each(peers, lambda peer: self._say(peer, body))

    async def _say(self, peer: Peer, body: bytes) -> None:
        with contextlib.suppress(PeerSilent):  # who cannot be told asks the origin, which says it again
            await self._client.call(peer, CALL, body, TELL_WITHIN)
