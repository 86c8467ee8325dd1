"""Receiver threads: ranged GETs from S3 and HTTP origins straight into the store.

A pool of threads, each with one reused buffer, and a pool of idle kept-alive connections per endpoint. The
loop hands a `RangedGet` and a sink to `receive` and awaits the end; whatever cuts that wait short (a
deadline, the last reader leaving) aborts the connection and waits until the thread has let go of the sink, so
that nobody writes into a landing that its owner has given up.

What is under way at once the lanes bound (agent/cache/lanes.py), each origin by its own `max_connections`;
the pool sets no bound beside theirs, or those who wait for one silent origin would hold up all others. A
thread is made only where none is idle, and stays: there are as many, of 512 KiB each, as were ever busy at
once.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
import ssl
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime

from agent import trust
from agent.clock import Clock, ended
from agent.content import Extent
from agent.errors import (
    AccessDenied,
    ObjectMissing,
    OriginError,
    OriginMisbehaved,
    OriginUnavailable,
    VersionChanged,
)
from agent.memory import resident
from agent.source import Sink
from agent.transfer.connection import FIRST_PIECES, Connection
from agent.transfer.heads import ResponseHead
from agent.transfer.idle import IdleConnections
from agent.transfer.request import PIECE, RangedGet, Redirected, UnitSink

RECEIVERS = 1 << 16  # more threads than all lanes together ask for
RETRYABLE = frozenset({408, 425, 429, 500, 502, 503, 504, 509})


_Take = Callable[[Connection, ResponseHead], None]


class Engine:
    """The node's receiving end for S3 and HTTP. Made and used on one loop."""

    def __init__(self, threads: int, clock: Clock) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="receive")
        self._local = threading.local()
        self._idle = IdleConnections(clock)
        self._lock = threading.Lock()
        self._contexts: dict[bool, ssl.SSLContext] = {}

    async def receive(self, get: RangedGet, sink: Sink) -> None:
        """Send the GET and write its bytes into the sink. Raises OriginError and what the sink raises.

        When it ends, in whatever way, no thread touches the sink any more.
        """
        await self._receive(get, functools.partial(self._take_body, get, sink))

    async def receive_units(self, get: RangedGet, sink: UnitSink) -> None:
        """The same where `get.units` says that the body comes in units."""
        await self._receive(get, functools.partial(self._take_units, get, sink))

    async def _receive(self, get: RangedGet, take: _Take) -> None:
        transfer = _Transfer()
        loop = asyncio.get_running_loop()
        over: asyncio.Future[BaseException | None] = loop.create_future()

        def run() -> None:
            try:
                self._run(get, take, transfer)
            except BaseException as error:
                loop.call_soon_threadsafe(_settle, over, error)
                raise
            else:
                loop.call_soon_threadsafe(_settle, over, None)

        job = self._pool.submit(run)
        try:
            error = await over  # to wrap and to shield the job takes five steps of the loop in place of two
        except asyncio.CancelledError:
            transfer.abort()
            if not job.cancel():  # False where a thread has it already
                await ended(asyncio.wrap_future(job))
            raise
        if error is not None:
            raise error

    async def close(self) -> None:
        """End the threads and close every connection; transfers under way must have been cancelled."""
        await asyncio.to_thread(self._pool.shutdown)
        self._idle.close()

    def _run(self, get: RangedGet, take: _Take, transfer: _Transfer) -> None:
        try:
            self._exchange(get, take, transfer)
        except ssl.SSLCertVerificationError as error:
            raise OriginUnavailable(f"{get.name}: {trust.refusal('origin', error)}") from error
        except OSError as error:
            raise OriginUnavailable(f"{get.name}: {error.strerror or error}") from error
        except OriginUnavailable as error:
            error.args = (f"{get.name}: {error}",)
            raise

    def _exchange(self, get: RangedGet, take: _Take, transfer: _Transfer) -> None:
        connection, head = self._answered(get, transfer)
        kept = False
        try:
            _check_head(get, head, connection)
            take(connection, head)
            kept = head.keep_alive and not head.chunked and connection.drained
        finally:
            transfer.use(None)
            if kept:
                self._idle.keep((get.endpoint, get.verify_tls), connection)
            else:
                connection.close()

    def _answered(self, get: RangedGet, transfer: _Transfer) -> tuple[Connection, ResponseHead]:
        """A connection on which the head has been read; one retry where a kept one had been closed."""
        connection = self._idle.take((get.endpoint, get.verify_tls))
        if connection is not None:
            connection.set_stall_timeout(get.stall_timeout)
            with contextlib.suppress(OSError):
                return connection, _ask(connection, get, transfer)
            transfer.check()
        connection = Connection(get.endpoint, self._context(get), get.stall_timeout, transfer.use)
        return connection, _ask(connection, get, transfer)

    def _take_body(self, get: RangedGet, sink: Sink, connection: Connection, head: ResponseHead) -> None:
        length = get.extent.length
        first = FIRST_PIECES if sink.urgency.awaited else ()
        if head.chunked:
            body = connection.chunked_body(length)
        else:
            body = connection.body(length, self._buffer(), first)
        for piece in body:
            sink.write(piece)

    def _take_units(self, get: RangedGet, sink: UnitSink, connection: Connection, head: ResponseHead) -> None:
        assert get.units is not None
        if head.chunked:
            raise OriginMisbehaved(f"{get.name} comes in chunks, and not in units")
        size, trailer = get.units.size, get.units.trailer
        for data, trailers in connection.units(get.extent.length, self._buffer(), size, trailer):
            sink.take(data, trailers)

    def _buffer(self) -> memoryview:
        if not hasattr(self._local, "buffer"):
            self._local.buffer = resident(PIECE)
        buffer: memoryview = self._local.buffer
        return buffer

    def _context(self, get: RangedGet) -> ssl.SSLContext | None:
        if get.endpoint.scheme != "https":
            return None
        with self._lock:
            if get.verify_tls not in self._contexts:
                self._contexts[get.verify_tls] = trust.context(verify=get.verify_tls)
            return self._contexts[get.verify_tls]


class _Transfer:
    """What is needed to abort one transfer from the loop."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._abort: Callable[[], None] | None = None
        self._aborted = False

    def use(self, abort: Callable[[], None] | None) -> None:
        """From now on `abort` wakes the thread; None before what it acts on is closed."""
        with self._lock:
            self._abort = abort
            if abort is not None:
                self._raise_if_aborted()

    def check(self) -> None:
        with self._lock:
            self._raise_if_aborted()

    def abort(self) -> None:
        with self._lock:
            self._aborted = True
            if self._abort is not None:
                self._abort()

    def _raise_if_aborted(self) -> None:
        if self._aborted:
            raise OriginUnavailable("the transfer was given up")


def _settle(over: asyncio.Future[BaseException | None], error: BaseException | None) -> None:
    if not over.done():  # else nobody awaits it any more
        over.set_result(error)


def _ask(connection: Connection, get: RangedGet, transfer: _Transfer) -> ResponseHead:
    """Ask and read the head; a connection on which that fails is closed."""
    try:
        transfer.use(connection.abort)
        connection.send("GET", get.target, get.headers)
        return connection.read_head()
    except BaseException:
        transfer.use(None)
        connection.close()
        raise


def _check_head(get: RangedGet, head: ResponseHead, connection: Connection) -> None:
    """Raise unless the answer is the asked range of the asked version (RFC 9110, 14.4 and 15.3.7)."""
    if head.status not in (200, 206):
        raise _status_error(get, head, connection)
    get.check(head.headers)
    coded = head.headers.get("content-encoding", "identity") not in ("identity", "")
    if coded and (head.chunked or not get.as_stored):  # in chunks, other bytes would show at their end only
        raise OriginMisbehaved("the origin encodes the bytes although it was asked not to")
    if head.status == 206:
        _check_content_range(head.headers, get.extent, get.size)
    elif get.extent != Extent(0, get.size):
        raise OriginMisbehaved("the origin ignores Range and answers with the whole object")
    if not head.chunked and head.headers.get("content-length") != str(get.length):
        said = head.headers.get("content-length", "no length")
        raise OriginMisbehaved(f"the origin answers {said} where {get.length} bytes were asked for")


def _check_content_range(headers: Mapping[str, str], extent: Extent, size: int) -> None:
    said = headers.get("content-range", "")
    match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", said)
    if match is None:
        raise OriginMisbehaved(f"the origin answers 206 with Content-Range {said!r}")
    if match[3] not in ("*", str(size)):
        raise VersionChanged(f"the object has {match[3]} bytes now, it had {size}")
    if (int(match[1]), int(match[2])) != (extent.offset, extent.end - 1):
        raise OriginMisbehaved(
            f"the origin answers {said!r} where {extent.offset}-{extent.end - 1} was asked for"
        )


def _status_error(get: RangedGet, head: ResponseHead, connection: Connection) -> OriginError:
    status = head.status
    if status in (301, 302, 303, 307, 308) and "location" in head.headers:
        return Redirected(head.headers["location"])
    if status == 412:
        return VersionChanged(f"{get.name} has changed at the origin")
    empty = head.headers.get("content-length") == "0"  # to wait for a body would last until the stall timeout
    detail = "" if empty else _error_code(connection.peek_error())
    if status in (404, 410):
        return ObjectMissing(f"{get.name} is no longer at the origin {detail}".rstrip())
    if status in (401, 403) or "ExpiredToken" in detail:
        return AccessDenied(
            f"the origin refuses {get.name} ({status} {detail}); check the agent's credentials"
        )
    if status in RETRYABLE:
        retry_after = _retry_after(head.headers.get("retry-after"))
        return OriginUnavailable(f"the origin answers {status} {detail}".rstrip(), retry_after)
    return OriginMisbehaved(f"the origin answers {status} {detail} to a ranged GET".replace("  ", " "))


def _error_code(body: bytes) -> str:
    """The error code of an S3 error document (Amazon S3 API, Error Responses), or nothing."""
    match = re.search(rb"<Code>([A-Za-z0-9.]{1,64})</Code>", body)
    return match[1].decode() if match else ""


def _retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header (RFC 9110, 10.2.3), in its delay form; a date counts as one second."""
    if value is None:
        return None
    if re.fullmatch(r"\d{1,9}", value.strip()):
        return float(value)
    try:
        parsedate_to_datetime(value)
    except (TypeError, ValueError):
        return None
    return 1.0
