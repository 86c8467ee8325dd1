"""The exchange: what this agent answers to its peers, and to nobody else.

One aiohttp application on the loop's own sockets (uvloop has no sendfile). The first thing that happens to a
request is the check of its token: without a good one it is answered 401, logged with the address it came
from, and nothing of it is read. A range of an object is served while it is in the store or arrives there,
unit after unit, each with its digest; what is neither is 404, and the peer asks elsewhere.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from aiohttp import web

from agent.cache.objects import CachedObject
from agent.cache.store import Store
from agent.clock import Clock
from agent.content import Extent, ObjectRef
from agent.errors import BadRequest, ConfigError, StoreError
from agent.metrics import Metrics
from agent.peers.courier import NotHere
from agent.peers.digests import UnitDigests
from agent.peers.discovery import joined
from agent.peers.gate import BACKLOG, Gate
from agent.peers.outgoing import Outgoing, here
from agent.peers.protocol import (
    BODY_HEADER,
    OBJECT_HEADER,
    PREFIX,
    UNITS_HEADER,
    URGENT,
    URGENT_HEADER,
    parse_object,
    parse_range,
)
from agent.peers.token import Bound, TokenRefused, Tokens, body_digest
from agent.peers.units import KIND, UNIT, are_units, length_with_digests
from agent.peers.vouching import Vouching
from agent.rate import Rate
from agent.source import Urgency

log = logging.getLogger(__name__)

SENDER: web.RequestKey[str] = web.RequestKey("sender", str)
BODY_WITHIN = 5.0  # seconds for a request's body
LONGEST_BODY = 1 << 20  # bytes; larger batches are sent in several
STREAMS = 256  # answers under way at once; each has a descriptor and no buffer
SHUTDOWN = 2.0  # seconds that answers under way may still take
REFUSALS_LOGGED = 10  # a minute; a flood must not fill the log


class Helper(Protocol):
    """What the agent does for a peer beside sending what is there."""

    def bring(self, cached: CachedObject, extent: Extent, owner: object, urgency: Urgency) -> None:
        """See to it that the first chunk of an extent is fetched, where this agent is its peers' parent."""

    def disown(self, owner: object) -> None:
        """The peer has its bytes, or has gone."""


Call = Callable[[str, bytes], Awaitable[bytes]]
_Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Exchange:
    """The exchange's server. Made and used on one loop."""

    def __init__(
        self,
        store: Store,
        tokens: Tokens,
        clock: Clock,
        metrics: Metrics,
        calls: Mapping[str, Call],
        digests: UnitDigests,
        helper: Helper | None = None,
        limit: Rate | None = None,
        binary: frozenset[str] = frozenset(),
        known: Callable[[str], bool] = lambda _: False,
    ) -> None:
        """`calls` are answered to `POST /peer/v1/<name>`: given the sender's name and the body, which may be
        wrong in any way (BadRequest is 400). They answer JSON, but those that `binary` names. `digests` has
        those of what arrives. `limit` is for the bytes of objects, `known` says of an address whether a
        peer is there."""
        self._store = store
        self._tokens = tokens
        self._clock = clock
        self._metrics = metrics
        self._calls = calls
        self._binary = binary
        self._helper = helper
        self._gate = Gate(clock, known)
        self._vouching = Vouching(store, digests)
        self.outgoing = Outgoing(clock, self._vouching.digest, limit)
        self._streams = 0
        self._refusals = Refusals(clock)
        self._runner: web.AppRunner | None = None

    async def start(self, address: tuple[str, int]) -> None:
        """Listen. Raises ConfigError where that cannot be."""
        try:
            listener = _listener(address)
        except OSError as error:
            reason = "the port is taken" if error.errno == errno.EADDRINUSE else error.strerror
            message = f"cannot listen on {address[0]}:{address[1]}: {reason}; choose another"
            raise ConfigError("peers.listen", message) from error
        runner = web.AppRunner(
            self._application(),
            access_log=None,
            shutdown_timeout=SHUTDOWN,
            lingering_time=0.0,
            auto_decompress=False,
        )
        await runner.setup()
        assert runner.server is not None
        self._runner = runner
        runner.server.request_handler = self._members_only(runner.server.request_handler)
        self._gate.start(listener, runner.server)

    async def close(self) -> None:
        """Listen no more, and end what is under way."""
        await self._gate.close()
        if self._runner is not None:
            await self._runner.cleanup()
        await self.outgoing.close()

    def _application(self) -> web.Application:
        app = web.Application(client_max_size=LONGEST_BODY)
        app.router.add_get(PREFIX + "/objects/{key}", self._object, allow_head=False)
        app.router.add_post(PREFIX + "/{call}", self._call)
        return app

    def _members_only(self, handler: _Handler) -> _Handler:
        """The token is checked before the application sees the request: it answers `Expect` before any
        middleware is asked."""

        async def check(request: web.BaseRequest) -> web.StreamResponse:
            bound = Bound(request.method, request.raw_path, request.headers.get(BODY_HEADER, ""))
            try:
                sender = self._tokens.check(request.headers.get("Authorization"), _reached(request), bound)
            except TokenRefused as refusal:
                self._refusals.log(request.remote or "somebody", refusal)
                self._metrics.peer_refusals.inc()
                return _closing(web.Response(status=401, headers={"WWW-Authenticate": "Headrace"}))
            request[SENDER] = sender
            transport = request.transport
            self._gate.begin(transport)
            try:
                return await handler(request)
            except BadRequest as error:
                return _closing(web.Response(status=400, text=f"{error}\n"))
            finally:
                self._gate.end(transport)

        return check

    async def _object(self, request: web.Request) -> web.StreamResponse:
        ref = parse_object(request.match_info["key"], request.headers.get(OBJECT_HEADER, ""))
        try:
            extent = parse_range(request.headers.get("Range"), ref.size)
            if request.headers.get(UNITS_HEADER) != KIND:
                return web.Response(status=404)
            if not are_units(extent, ref.size):
                raise BadRequest(f"the range is not of whole units of {UNIT} bytes")
        except BadRequest as error:
            return web.Response(
                status=416, text=f"{error}\n", headers={"Content-Range": f"bytes */{ref.size}"}
            )
        if self._streams >= STREAMS:
            return web.Response(status=503, headers={"Retry-After": "1"})
        self._streams += 1
        try:
            return await self._serve(request, ref, extent)
        finally:
            self._streams -= 1

    async def _serve(self, request: web.Request, ref: ObjectRef, extent: Extent) -> web.StreamResponse:
        cached = await self._acquired(ref)
        if cached is None:
            return web.Response(status=404)
        owner = object()
        urgency = Urgency.PEER if request.headers.get(URGENT_HEADER) == URGENT else Urgency.PREFETCH
        try:
            if self._helper is not None and (urgency.awaited or not here(cached, extent)):
                self._helper.bring(cached, extent, owner, urgency)
            if not here(cached, extent):
                return web.Response(status=404)
            if not await self._vouching.vouch(cached, extent):
                return web.Response(status=404)
            return await self._stream(request, cached, extent, urgency.awaited)
        finally:
            if self._helper is not None:
                self._helper.disown(owner)
            self._store.release(cached)

    async def _stream(
        self, request: web.Request, cached: CachedObject, extent: Extent, urgent: bool
    ) -> web.StreamResponse:
        response = web.StreamResponse(status=206)
        response.content_length = length_with_digests(extent)
        response.headers[UNITS_HEADER] = KIND
        response.headers["Content-Range"] = f"bytes {extent.offset}-{extent.end - 1}/{cached.ref.size}"
        await response.prepare(request)
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the peer has gone")
        assert isinstance(transport, asyncio.Transport)
        sent = 0
        try:
            sent = await self.outgoing.send(request[SENDER], transport, cached, extent, urgent)
        except (OSError, TimeoutError, NotHere) as error:
            log.debug("bytes of %s for %s broke off: %s", cached.ref.uri, request[SENDER], error)
        self._metrics.peer_bytes_sent.inc(sent)
        if sent < extent.length:
            transport.abort()  # the peer knows by the length that bytes are missing
        await response.write_eof()
        return response

    async def _acquired(self, ref: ObjectRef) -> CachedObject | None:
        """The object, held, if the store knows it: a peer's question makes no new one."""
        cached = self._store.peek(ref)
        if cached is not None:
            self._store.hold(cached)
            return cached
        try:
            if not (await self._store.present_bytes([ref.key])).get(ref.key):
                return None
            return await self._store.acquire(ref)
        except StoreError as error:
            log.warning("cannot serve %s to a peer: %s", ref.uri, error)
            return None

    async def _call(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["call"]
        call = self._calls.get(name)
        if call is None:
            return _closing(web.Response(status=404))
        try:
            async with self._clock.timeout(BODY_WITHIN):
                body = await request.read()
        except TimeoutError:
            return _closing(web.Response(status=408))
        if (body_digest(body) if body else "") != request.headers.get(BODY_HEADER, ""):
            raise BadRequest("the body is not the one that the token is for")
        kind = "application/octet-stream" if name in self._binary else "application/json"
        return web.Response(body=await call(request[SENDER], body), content_type=kind)


class Refusals:
    """Logs refused requests, some each minute, and how many there were beyond those."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._until = 0.0
        self._count = 0

    def log(self, address: str, refusal: TokenRefused) -> None:
        now = self._clock.monotonic()
        if now >= self._until:
            if self._count > REFUSALS_LOGGED:
                log.warning("refused %d more requests at the peers' port", self._count - REFUSALS_LOGGED)
            self._until, self._count = now + 60.0, 0
        self._count += 1
        if self._count <= REFUSALS_LOGGED:
            log.warning("refused a request from %s at the peers' port: %s", address, refusal)


def _closing(response: web.Response) -> web.Response:
    response.force_close()
    return response


def _reached(request: web.BaseRequest) -> str:
    """The address at which a request has reached this agent: the one that its token must be for."""
    name = request.transport.get_extra_info("sockname") if request.transport is not None else None
    return joined(name[0], name[1]) if name else ""


def _listener(address: tuple[str, int]) -> socket.socket:
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    return socket.create_server(address, family=family, backlog=BACKLOG)
