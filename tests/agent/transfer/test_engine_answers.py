"""The engine against a real server that misbehaves byte by byte: right bytes or the right error, in time."""

from __future__ import annotations

import asyncio
import dataclasses
import ssl
import threading
import time
from collections.abc import Mapping

import pytest

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
from agent.transfer.request import RangedGet, Redirected
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
from tests.fakes.raw_http import CLOSE, RESET, RawServer, head


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
