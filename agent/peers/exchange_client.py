"""Asking peers: bytes through an engine of receiving threads, small calls through aiohttp."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager

import aiohttp

from agent.content import Extent, ObjectRef
from agent.errors import HeadraceError
from agent.peers.member import Peer
from agent.peers.protocol import (
    BODY_HEADER,
    OBJECT_HEADER,
    PREFIX,
    UNITS_HEADER,
    URGENT,
    URGENT_HEADER,
    object_name,
    object_target,
    range_header,
)
from agent.peers.token import Bound, Tokens, body_digest
from agent.peers.units import KIND, UNITS, CheckedSink, UnitUnknown
from agent.transfer.engine import Engine
from agent.transfer.request import Endpoint, RangedGet

STALL_TIMEOUT = 16.0  # seconds of one stream; how long a peer may be silent says agent/peers/source.py
LONGEST_ANSWER = 4 << 20  # bytes of a call's answer
CONNECTIONS_PER_PEER = 4  # of calls that end; bytes have the engine's own


class PeerSilent(HeadraceError):
    """A peer did not answer a call in time, or not as a peer does."""


class CallUnknown(PeerSilent):
    """A peer does not know a call: its agent is of another version."""


class ExchangeClient:
    """This agent as a client of its peers. Made and used on one loop."""

    def __init__(self, tokens: Tokens, engine: Engine) -> None:
        """`engine` is the peers' own."""
        self._tokens = tokens
        self._engine = engine
        connector = aiohttp.TCPConnector(limit=0, limit_per_host=CONNECTIONS_PER_PEER)
        self._session = aiohttp.ClientSession(
            connector=connector, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()
        )

    async def close(self) -> None:
        """Close the calls' connections; the engine is closed by who made it."""
        await self._session.close()

    async def receive(self, peer: Peer, ref: ObjectRef, sink: CheckedSink) -> None:
        """Bring `[sink.position, sink.end)` of an object from a peer, with as much urgency as the sink says.

        Raises as `Engine.receive_units` does, and UnitUnknown.
        """
        target = object_target(ref)
        extent = Extent(sink.position, sink.end - sink.position)
        headers = {
            "Host": peer.address,
            "Authorization": self._tokens.issue(peer.address, Bound("GET", target)),
            OBJECT_HEADER: object_name(ref),
            "Range": range_header(extent),
            UNITS_HEADER: KIND,
        }
        if sink.urgency.awaited:
            headers[URGENT_HEADER] = URGENT
        get = RangedGet(
            endpoint=_endpoint(peer),
            target=target,
            headers=headers,
            extent=extent,
            size=ref.size,
            check=_check_units,
            name=f"{ref.uri} from {peer.name}",
            as_stored=True,
            stall_timeout=STALL_TIMEOUT,
            units=UNITS,
        )
        await self._engine.receive_units(get, sink)

    async def call(self, peer: Peer, name: str, body: bytes, within: float) -> bytes:
        """`POST /peer/v1/<name>`: the answer's body. Raises PeerSilent, at the latest after `within` s;
        CallUnknown where the peer has no such call."""
        try:
            async with asyncio.timeout(within), self._post(peer, name, body) as answer:
                if answer.status != 200:
                    failure = CallUnknown if answer.status == 404 else PeerSilent
                    raise failure(f"{peer.name} answers {answer.status} to {name}")
                return await _read(answer, peer)
        except TimeoutError:
            raise PeerSilent(f"{peer.name} did not answer {name} within {within:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise PeerSilent(f"{peer.name} cannot be asked: {type(error).__name__}") from error

    def _post(
        self, peer: Peer, name: str, body: bytes
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        target = f"{PREFIX}/{name}"
        headers = {"Authorization": self._tokens.issue(peer.address, Bound.of("POST", target, body))}
        if body:
            headers[BODY_HEADER] = body_digest(body)
        url = f"http://{peer.address}{target}"
        return self._session.post(url, data=body, headers=headers, allow_redirects=False)


def _endpoint(peer: Peer) -> Endpoint:
    return Endpoint("http", peer.host, int(peer.address.rpartition(":")[2]))


async def _read(answer: aiohttp.ClientResponse, peer: Peer) -> bytes:
    body = bytearray()
    async for part in answer.content.iter_any():
        body += part
        if len(body) > LONGEST_ANSWER:
            raise PeerSilent(f"{peer.name} answers more than {LONGEST_ANSWER} bytes")
    return bytes(body)


def _check_units(headers: Mapping[str, str]) -> None:
    """A version in the answer would prove nothing: each unit is checked by its digest."""
    if headers.get(UNITS_HEADER.lower()) != KIND:
        raise UnitUnknown(f"the peer does not send units of {KIND}")
