"""The engine against a real server that misbehaves byte by byte: right bytes or the right error, in time."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import re
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from agent.clock import SystemClock
from agent.content import Extent
from agent.errors import (
    AccessDenied,
    ObjectMissing,
    OriginError,
    OriginMisbehaved,
    OriginUnavailable,
    VersionChanged,
)
from agent.transfer.engine import Engine
from agent.transfer.request import Endpoint, RangedGet, Redirected
from tests.fakes.raw_http import CLOSE, RESET, RawServer, head, partial
from tests.harness.sink import MemorySink

DATA = bytes(index * 7 % 251 for index in range(3_000_000))
SOME = Extent(1000, 2000)
NEVER = 60.0  # a stall timeout that no test waits for
SHORT = 0.2


def accept(headers: Mapping[str, str]) -> None:
    """A version check that likes every answer."""


def ranged(
    server: RawServer, extent: Extent = SOME, stall: float = NEVER, scheme: str = "http", verify: bool = True
) -> RangedGet:
    return RangedGet(
        endpoint=Endpoint(scheme, "127.0.0.1", server.port),
        target="/bucket/object?X-Amz-Signature=secret",
        headers={"Host": f"127.0.0.1:{server.port}", "Range": f"bytes={extent.offset}-{extent.end - 1}"},
        extent=extent,
        size=len(DATA),
        check=accept,
        name="s3://bucket/object",
        verify_tls=verify,
        stall_timeout=stall,
    )


def sink_for(extent: Extent) -> MemorySink:
    return MemorySink(extent.offset, extent.end)


def right(extent: Extent = SOME, *lines: str) -> bytes:
    return partial(DATA, extent.offset, extent.end, *lines)


def bytes_of(extent: Extent) -> bytes:
    return DATA[extent.offset : extent.end]


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    made = Engine(4, SystemClock())
    yield made
    await made.close()


async def take(engine: Engine, get: RangedGet) -> bytes:
    """Receive into a sink of memory, under a time limit that no stall timeout reaches."""
    sink = sink_for(get.extent)
    async with asyncio.timeout(10):
        await engine.receive(get, sink)
    return bytes(sink.data)


async def refusal(engine: Engine, get: RangedGet) -> tuple[OriginError, bytes]:
    """The error of a transfer, and what had arrived before it."""
    sink = sink_for(get.extent)
    with pytest.raises(OriginError) as caught:
        async with asyncio.timeout(10):
            await engine.receive(get, sink)
    assert "secret" not in str(caught.value)
    return caught.value, bytes(sink.data)


@pytest.mark.parametrize("extent", [Extent(0, 1), SOME, Extent(17, 2_800_000), Extent(2_999_999, 1)])
async def test_a_range_arrives(engine: Engine, extent: Extent) -> None:
    with RawServer([right(extent)]) as server:
        assert await take(engine, ranged(server, extent)) == bytes_of(extent)
        assert server.requests[0].startswith(b"GET /bucket/object?X-Amz-Signature=secret HTTP/1.1\r\n")


async def test_connections_are_kept_and_used_again(engine: Engine) -> None:
    with RawServer(*[[right()]] * 3) as server:
        for _ in range(3):
            assert await take(engine, ranged(server)) == bytes_of(SOME)
        assert (server.accepts, len(server.requests)) == (1, 3)


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


async def test_the_whole_object_is_accepted_where_it_was_asked_for(engine: Engine) -> None:
    whole = Extent(0, len(DATA))
    with RawServer([head("200 OK", f"Content-Length: {len(DATA)}") + DATA]) as server:
        assert await take(engine, ranged(server, whole)) == DATA


async def test_an_origin_that_ignores_range_is_refused(engine: Engine) -> None:
    with RawServer([head("200 OK", f"Content-Length: {len(DATA)}"), DATA, CLOSE]) as server:
        error, arrived = await refusal(engine, ranged(server))
    assert isinstance(error, OriginMisbehaved) and "ignores Range" in str(error)
    assert arrived == b""


@pytest.mark.parametrize(
    "said",
    [
        "bytes 0-1999/3000000",
        "bytes 1000-2998/3000000",
        "bytes 1000-3000/*",
        "items 1-2/3",
        "",
        "bytes */3000000",
    ],
)
async def test_a_wrong_content_range_is_refused(engine: Engine, said: str) -> None:
    answer = head("206 Partial Content", f"Content-Range: {said}", "Content-Length: 2000") + bytes(2000)
    with RawServer([answer]) as server:
        error, arrived = await refusal(engine, ranged(server))
    assert (type(error), arrived) == (OriginMisbehaved, b"")


async def test_another_total_size_is_another_version(engine: Engine) -> None:
    answer = head("206 Partial Content", "Content-Range: bytes 1000-2999/9", "Content-Length: 2000")
    with RawServer([answer + bytes(2000)]) as server:
        error, arrived = await refusal(engine, ranged(server))
    assert (type(error), arrived) == (VersionChanged, b"")


async def test_an_answer_of_another_version_is_refused_before_a_byte_is_taken(engine: Engine) -> None:
    def refuse(headers: Mapping[str, str]) -> None:
        raise VersionChanged(headers["etag"])

    with RawServer([right(SOME, 'ETag: "new"')]) as server:
        get = ranged(server)
        other = RangedGet(get.endpoint, get.target, get.headers, get.extent, get.size, refuse, get.name)
        error, arrived = await refusal(engine, other)
    assert (type(error), str(error), arrived) == (VersionChanged, '"new"', b"")


@pytest.mark.parametrize("end", [CLOSE, RESET])
@pytest.mark.parametrize("extent", [SOME, Extent(5, 2_500_000)])
async def test_a_short_body_is_an_outage_and_the_retry_goes_on_where_it_ended(
    engine: Engine, end: object, extent: Extent
) -> None:
    cut = len(right(extent)) - extent.length // 3
    gate = threading.Event()
    sink = sink_for(extent)
    with RawServer([right(extent)[:cut], gate, end]) as server:
        work = asyncio.create_task(engine.receive(ranged(server, extent), sink))
        gate.set()
        with pytest.raises(OriginUnavailable):
            await asyncio.wait_for(work, 10)
    assert bytes(sink.data) == bytes_of(extent)[: len(sink.data)]
    if end is CLOSE:  # a reset may throw away what the kernel had received
        assert sink.position == extent.end - extent.length // 3
    rest = Extent(sink.position, extent.end - sink.position)
    with RawServer([right(rest)]) as server:
        await asyncio.wait_for(engine.receive(ranged(server, rest), sink), 10)
    assert bytes(sink.data) == bytes_of(extent)


@pytest.mark.parametrize("lines", [["Content-Length: 2001"], ["Content-Length: 1999"], []])
async def test_a_length_that_is_not_the_asked_one_is_refused(engine: Engine, lines: list[str]) -> None:
    answer = head("206 Partial Content", "Content-Range: bytes 1000-2999/3000000", *lines)
    with RawServer([answer + bytes(2001), CLOSE]) as server:
        error, arrived = await refusal(engine, ranged(server))
    assert (type(error), arrived) == (OriginMisbehaved, b"")


def chunked(*sizes: int, end: bytes = b"0\r\n\r\n") -> bytes:
    body, start = b"", SOME.offset
    for size in sizes:
        body += b"%x\r\n" % size + DATA[start : start + size] + b"\r\n"
        start += size
    lines = ("Content-Range: bytes 1000-2999/3000000", "Transfer-Encoding: chunked")
    return head("206 Partial Content", *lines) + body + end


async def test_chunked_coding_is_decoded(engine: Engine) -> None:
    with RawServer([chunked(1, 999, 1000)]) as server:
        assert await take(engine, ranged(server)) == bytes_of(SOME)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (chunked(1000, 500), OriginUnavailable),
        (chunked(1000, end=b""), OriginUnavailable),
        (chunked(1000, end=b"zz\r\n"), OriginUnavailable),
        (chunked(1000, 1001), OriginMisbehaved),
    ],
)
async def test_chunked_coding_that_is_short_broken_or_too_long_gives_no_wrong_byte(
    engine: Engine, answer: bytes, kind: type[OriginError]
) -> None:
    with RawServer([answer, CLOSE]) as server:
        error, arrived = await refusal(engine, ranged(server))
    assert type(error) is kind
    assert arrived == bytes_of(SOME)[: len(arrived)]


async def test_informational_responses_are_skipped(engine: Engine) -> None:
    early = head("100 Continue") + head("103 Early Hints", "Link: </x>")
    with RawServer([early + right()]) as server:
        assert await take(engine, ranged(server)) == bytes_of(SOME)


async def test_encoded_bytes_are_refused(engine: Engine) -> None:
    with RawServer([right(SOME, "Content-Encoding: gzip")]) as server:
        error, arrived = await refusal(engine, ranged(server))
    assert (type(error), arrived) == (OriginMisbehaved, b"")


async def test_bytes_that_are_stored_encoded_are_taken_where_the_version_proves_them(engine: Engine) -> None:
    with RawServer([right(SOME, "Content-Encoding: gzip")]) as server:
        assert await take(engine, dataclasses.replace(ranged(server), as_stored=True)) == bytes_of(SOME)


async def test_encoded_bytes_without_a_length_are_refused(engine: Engine) -> None:
    answer = chunked(1000, 1000).replace(b"Transfer-", b"Content-Encoding: gzip\r\nTransfer-", 1)
    with RawServer([answer]) as server:
        error, arrived = await refusal(engine, dataclasses.replace(ranged(server), as_stored=True))
    assert (type(error), arrived) == (OriginMisbehaved, b"")


@pytest.mark.parametrize(
    "answer",
    [
        head("206 Partial Content", "X: " + "y" * (80 << 10)),
        b"SSH-2.0-x\r\n\r\n",
        b"\r\n\r\n\r\n",
        b"\0" * 99999,
    ],
)
async def test_a_head_that_is_too_large_or_no_http_is_refused(engine: Engine, answer: bytes) -> None:
    with RawServer([answer, CLOSE]) as server:
        error, arrived = await refusal(engine, ranged(server))
    assert (type(error), arrived) == (OriginMisbehaved, b"")


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 206 Partial"])
async def test_silence_before_the_head_is_over_ends_in_time(engine: Engine, said: bytes) -> None:
    with RawServer([said, threading.Event()]) as server:
        error, _ = await refusal(engine, ranged(server, stall=SHORT))
    assert type(error) is OriginUnavailable and "does not answer" in str(error)


@pytest.mark.parametrize("extent", [SOME, Extent(5, 2_500_000)])
async def test_a_stall_in_the_body_ends_in_time_and_keeps_the_bytes_before_it(
    engine: Engine, extent: Extent
) -> None:
    cut = len(right(extent)) - extent.length // 3
    with RawServer([right(extent)[:cut], threading.Event()]) as server:
        error, arrived = await refusal(engine, ranged(server, extent, stall=SHORT))
    assert type(error) is OriginUnavailable and "stalled" in str(error)
    assert arrived == bytes_of(extent)[: extent.length - extent.length // 3]


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_the_origin_is_silent_for_the_stall_timeout_at_most(
    engine: Engine, server_context: ssl.SSLContext, scheme: str
) -> None:
    context = server_context if scheme == "https" else None
    with RawServer([right()[:-500], threading.Event()], context=context) as server:
        started = time.monotonic()
        await refusal(engine, ranged(server, stall=2.0, scheme=scheme, verify=False))
        assert 1.4 <= time.monotonic() - started < 3.0  # twice the stall timeout would be 4 s


def s3_error(status: str, code: str, *lines: str) -> bytes:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code></Error>".encode()
    return head(status, f"Content-Length: {len(body)}", *lines) + body


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        ("400 Bad Request", "ExpiredToken", AccessDenied),
        ("400 Bad Request", "IncompleteBody", OriginMisbehaved),
        ("401 Unauthorized", "Unauthorized", AccessDenied),
        ("403 Forbidden", "SignatureDoesNotMatch", AccessDenied),
        ("404 Not Found", "NoSuchKey", ObjectMissing),
        ("412 Precondition Failed", "PreconditionFailed", VersionChanged),
        ("416 Range Not Satisfiable", "InvalidRange", OriginMisbehaved),
        ("429 Too Many Requests", "SlowDown", OriginUnavailable),
        ("500 Internal Server Error", "InternalError", OriginUnavailable),
        ("503 Service Unavailable", "SlowDown", OriginUnavailable),
    ],
)
async def test_each_status_is_its_error_and_names_the_code(
    engine: Engine, status: str, code: str, kind: type[OriginError]
) -> None:
    with RawServer([s3_error(status, code)]) as server:
        error, arrived = await refusal(engine, ranged(server))
    assert (type(error), arrived) == (kind, b"")
    assert "s3://bucket/object" in str(error)
    assert kind is VersionChanged or code in str(error)


@pytest.mark.parametrize("status", ["403 Forbidden", "404 Not Found", "412 Precondition Failed", "503 Busy"])
async def test_an_error_without_a_body_is_not_waited_for(engine: Engine, status: str) -> None:
    gate = threading.Event()
    with RawServer([head(status, "Content-Length: 0"), gate]) as server:
        await refusal(engine, ranged(server))
        assert not gate.is_set()


@pytest.mark.parametrize(
    ("said", "seconds"),
    [("7", 7.0), ("Wed, 21 Oct 2065 07:28:00 GMT", 1.0), ("soon", None), ("-3", None), ("1e9", None)],
)
async def test_retry_after_is_handed_on(engine: Engine, said: str, seconds: float | None) -> None:
    with RawServer([s3_error("429 Too Many Requests", "SlowDown", f"Retry-After: {said}")]) as server:
        error, _ = await refusal(engine, ranged(server))
    assert isinstance(error, OriginUnavailable)
    assert error.retry_after == seconds


@pytest.mark.parametrize(
    "status", ["301 Moved", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"]
)
async def test_a_redirect_names_its_target(engine: Engine, status: str) -> None:
    with RawServer([head(status, "Location: https://elsewhere/x", "Content-Length: 0")]) as server:
        error, _ = await refusal(engine, ranged(server))
    assert isinstance(error, Redirected)
    assert error.location == "https://elsewhere/x"


class HeldSink(MemorySink):
    """A sink whose first write reports to the loop and then waits to be let go."""

    def __init__(self, extent: Extent) -> None:
        super().__init__(extent.offset, extent.end)
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
