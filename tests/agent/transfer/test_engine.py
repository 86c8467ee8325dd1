"""The engine's connections against a real server: kept, given up, secured."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import re
import socket
import ssl
import threading
from pathlib import Path

import pytest

from agent.clock import SystemClock
from agent.content import Extent
from agent.errors import OriginUnavailable
from agent.source import Urgency
from agent.transfer.connection import FIRST_PIECES
from agent.transfer.engine import RECEIVERS, Engine
from agent.transfer.idle import IDLE_SECONDS
from agent.transfer.request import PIECE, Endpoint
from tests.agent.transfer.asking import (
    DATA,
    SHORT,
    SOME,
    bytes_of,
    ranged,
    refusal,
    right,
    sink_for,
    take,
)
from tests.fakes.clock import ManualClock
from tests.fakes.raw_http import CLOSE, RESET, RawServer, head
from tests.harness.sink import MemorySink


@pytest.mark.parametrize("extent", [Extent(0, 1), SOME, Extent(17, 2_800_000), Extent(2_999_999, 1)])
async def test_a_range_arrives(engine: Engine, extent: Extent) -> None:
    with RawServer([right(extent)]) as server:
        assert await take(engine, ranged(server, extent)) == bytes_of(extent)
        assert server.requests[0].startswith(b"GET /bucket/object?X-Amz-Signature=secret HTTP/1.1\r\n")


@pytest.mark.parametrize("urgency", list(Urgency))
async def test_only_what_a_reader_waits_for_comes_in_small_pieces_at_first(
    engine: Engine, urgency: Urgency
) -> None:
    extent = Extent(0, PIECE + 1_000)
    lengths: list[int] = []

    class Listing(MemorySink):
        def write(self, data: memoryview) -> None:
            lengths.append(len(data))
            super().write(data)

    with RawServer([right(extent)]) as server:
        await engine.receive(ranged(server, extent), Listing(extent.offset, extent.end, urgency))
    first = list(FIRST_PIECES) if urgency <= Urgency.PEER else [PIECE]
    assert lengths == [*first, extent.length - PIECE]


async def test_connections_are_kept_and_used_again(engine: Engine) -> None:
    with RawServer(*[[right()]] * 3) as server:
        for _ in range(3):
            assert await take(engine, ranged(server)) == bytes_of(SOME)
        assert (server.accepts, len(server.requests)) == (1, 3)


async def test_a_connection_that_waits_too_long_is_closed_whoever_is_asked_next() -> None:
    clock = ManualClock()
    engine = Engine(1, clock)
    with RawServer([right()]) as gone, RawServer([right()], [right()]) as other:
        for server in (gone, other):
            assert await take(engine, ranged(server)) == bytes_of(SOME)
            clock.advance(IDLE_SECONDS / 2)
        assert connections_to(gone, other) == [1, 1]
        clock.advance(1.0)
        assert await take(engine, ranged(other)) == bytes_of(SOME)
        assert connections_to(gone, other) == [0, 1]
        assert other.accepts == 1
        await engine.close()
        assert connections_to(other) == [0]


def connections_to(*servers: RawServer) -> list[int]:
    """How many connections this process has open to each of them."""
    ports: list[int] = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                with socket.socket(fileno=os.dup(int(name))) as one:
                    peer = one.getpeername()
                    ports += [peer[1]] if isinstance(peer, tuple) else []
    return [ports.count(server.port) for server in servers]


@pytest.mark.parametrize("stray", [b"x", b"HTTP/1.1 200 OK\r\n\r\n"])
async def test_a_connection_with_bytes_left_over_is_not_used_again(engine: Engine, stray: bytes) -> None:
    with RawServer([right() + stray], [right()]) as server:
        assert await take(engine, ranged(server)) == bytes_of(SOME)
        assert await take(engine, ranged(server)) == bytes_of(SOME)
        assert server.accepts == 2


async def test_a_connection_that_the_origin_wants_closed_is_not_used_again(engine: Engine) -> None:
    with RawServer(*[[right(SOME, "Connection: close"), CLOSE]] * 2) as server:
        for _ in range(2):
            assert await take(engine, ranged(server)) == bytes_of(SOME)
        assert server.accepts == 2


@pytest.mark.parametrize("end", [CLOSE, RESET])
async def test_a_kept_connection_that_the_origin_closed_is_retried_once_on_a_new_one(
    engine: Engine, end: object
) -> None:
    with RawServer([right()], [end], [right()], [end], [end]) as server:
        assert await take(engine, ranged(server)) == bytes_of(SOME)
        assert await take(engine, ranged(server)) == bytes_of(SOME)
        assert (server.accepts, len(server.requests)) == (2, 3)
        error, _ = await refusal(engine, ranged(server))
        assert type(error) is OriginUnavailable
        assert (server.accepts, len(server.requests)) == (3, 5)


async def test_a_connection_that_cannot_be_made_is_an_outage(engine: Engine) -> None:
    with RawServer() as server:
        pass
    error, _ = await refusal(engine, ranged(server))
    assert type(error) is OriginUnavailable
    assert "s3://bucket/object" in str(error) and "refused" in str(error)


class HeldSink(MemorySink):
    """A sink whose first write reports to the loop and then waits to be let go."""

    def __init__(self, extent: Extent) -> None:
        super().__init__(extent.offset, extent.end, Urgency.READER)
        self.reached = asyncio.Event()
        self.go_on = threading.Event()
        self.inside = False
        self._loop = asyncio.get_running_loop()

    def write(self, data: memoryview) -> None:
        self.inside = True
        self._loop.call_soon_threadsafe(self.reached.set)
        self.go_on.wait(30)
        super().write(data)
        self.inside = False


async def test_a_transfer_that_is_cancelled_while_the_origin_is_silent_ends_at_once(engine: Engine) -> None:
    extent = Extent(0, 2_000_000)
    sink = HeldSink(extent)
    sink.go_on.set()
    with RawServer([right(extent)[:600_000], threading.Event()]) as server:
        work = asyncio.create_task(engine.receive(ranged(server, extent), sink))
        await asyncio.wait_for(sink.reached.wait(), 10)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(work, 10)
        before = sink.position
    assert bytes(sink.data) == DATA[:before]


async def test_a_cancelled_transfer_returns_only_when_its_thread_has_let_go_of_the_sink(
    engine: Engine,
) -> None:
    sink = HeldSink(SOME)
    with RawServer([right()]) as server:
        work = asyncio.create_task(engine.receive(ranged(server), sink))
        await asyncio.wait_for(sink.reached.wait(), 10)
        for _ in range(3):  # a deadline and a last reader that leaves may both cancel
            work.cancel()
            done, _ = await asyncio.wait([work], timeout=0.01)
            assert not done
        assert sink.inside
        sink.go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(work, 10)
        assert not sink.inside


async def test_a_transfer_that_waits_for_a_thread_is_cancelled_at_once() -> None:
    engine = Engine(1, SystemClock())
    busy, idle = HeldSink(SOME), sink_for(SOME)
    with RawServer([right()], [right()]) as server:
        first = asyncio.create_task(engine.receive(ranged(server), busy))
        await asyncio.wait_for(busy.reached.wait(), 10)
        second = asyncio.create_task(engine.receive(ranged(server), idle))
        await asyncio.wait([second], timeout=0.01)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(second, 5)
        busy.go_on.set()
        await asyncio.wait_for(first, 10)
        await engine.close()
        assert (len(server.requests), bytes(idle.data)) == (1, b"")


async def test_however_many_wait_for_a_silent_origin_a_healthy_one_is_received_from() -> None:
    engine = Engine(RECEIVERS, SystemClock())
    silence = threading.Event()
    with RawServer(*[[silence]] * 100) as silent, RawServer(*[[right()]] * 5) as healthy:
        waiting = [asyncio.create_task(engine.receive(ranged(silent), sink_for(SOME))) for _ in range(100)]
        for _ in range(5):
            assert await take(engine, ranged(healthy)) == bytes_of(SOME)
        assert not any(work.done() for work in waiting)
        for work in waiting:
            work.cancel()
        await asyncio.wait(waiting)
    await engine.close()


async def test_threads_are_made_only_where_none_is_idle() -> None:
    engine = Engine(RECEIVERS, SystemClock())
    with RawServer(*[[right()]] * 20) as server:
        for _ in range(20):
            assert await take(engine, ranged(server)) == bytes_of(SOME)
        assert server.accepts == 1
        ours = [one for one in threading.enumerate() if one.name.startswith("receive")]
    await engine.close()
    assert len(ours) < 5


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_transfer_that_is_cancelled_while_it_connects_ends_at_once(
    engine: Engine, scheme: str
) -> None:
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(RawServer())
        get = ranged(server, scheme=scheme, verify=False)
        if (
            scheme == "http"
        ):  # a full backlog lets a connect wait; the other server is silent in the handshake
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
            address = listener.getsockname()
            for _ in range(4):
                waiting = stack.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(address)
            get = dataclasses.replace(get, endpoint=Endpoint(scheme, *address))
        work = asyncio.create_task(engine.receive(get, sink_for(SOME)))
        done, _ = await asyncio.wait([work], timeout=0.2)
        assert not done
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(work, 5)


async def test_tls_is_verified_against_the_machines_authorities(
    engine: Engine, server_context: ssl.SSLContext, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    extent = Extent(3, 2_000_000)
    with RawServer([right(extent)], [right()], context=server_context) as server:
        assert await take(engine, ranged(server, extent, scheme="https")) == bytes_of(extent)
        assert await take(engine, ranged(server, scheme="https")) == bytes_of(SOME)
        assert server.accepts == 1


async def test_a_certificate_that_nobody_trusts_is_refused_unless_the_settings_allow_it(
    engine: Engine, server_context: ssl.SSLContext
) -> None:
    with RawServer([right()], context=server_context) as server:
        error, _ = await refusal(engine, ranged(server, scheme="https"))
        assert type(error) is OriginUnavailable and "not trusted" in str(error)
        assert server.requests == []
        get = ranged(server, scheme="https", verify=False)
        assert await take(engine, get) == bytes_of(SOME)


@pytest.mark.parametrize("cut", [0, 40, 700_000])
async def test_a_stall_over_tls_ends_in_time(
    engine: Engine, server_context: ssl.SSLContext, cut: int
) -> None:
    extent = Extent(0, 2_000_000)
    with RawServer([right(extent)[:cut], threading.Event()], context=server_context) as server:
        get = ranged(server, extent, stall=SHORT, scheme="https", verify=False)
        error, arrived = await refusal(engine, get)
    assert type(error) is OriginUnavailable
    assert arrived == DATA[: len(arrived)]
    assert len(arrived) == max(0, cut - len(right(extent)) + extent.length)


async def test_a_transfer_over_tls_that_is_given_up_never_takes_the_raw_records_for_bytes(
    engine: Engine, server_context: ssl.SSLContext
) -> None:
    extent = Extent(0, 2_000_000)
    sink = HeldSink(extent)
    with RawServer([right(extent), threading.Event()], context=server_context) as server:
        get = ranged(server, extent, scheme="https", verify=False)
        work = asyncio.create_task(engine.receive(get, sink))
        await asyncio.wait_for(sink.reached.wait(), 10)
        work.cancel()
        await asyncio.wait([work], timeout=0.05)
        sink.go_on.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait_for(work, 10)
    assert bytes(sink.data) == DATA[: len(sink.data)]


async def test_the_messages_of_errors_are_one_line(engine: Engine) -> None:
    with RawServer([head("418 I'm a teapot", "Content-Length: 0")]) as server:
        error, _ = await refusal(engine, ranged(server))
    assert re.fullmatch(r"s3://bucket/object: the origin answers 418[^\n]*", str(error))
