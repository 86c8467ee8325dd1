"""The exchange over real sockets: what it serves, and what it refuses."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest

from agent.cache.objects import CachedObject
from agent.clock import SystemClock
from agent.content import Extent, ObjectRef
from agent.errors import BadRequest
from agent.peers import gate
from agent.peers.protocol import (
    BODY_HEADER,
    OBJECT_HEADER,
    UNITS_HEADER,
    URGENT_HEADER,
    object_name,
    object_target,
)
from agent.peers.secrets import Secrets
from agent.peers.token import Bound, Tokens, body_digest
from agent.peers.units import DIGEST, KIND, UNIT
from agent.source import Urgency
from agent.transfer.landing import Landing
from tests.agent.peers.conftest import CHUNK, Serve, Served, random_bytes, secret_file
from tests.harness.units import with_digests, without_digests

SIZE = 2 * CHUNK + 12345
REF = ObjectRef("s3://models/llama/weights", "etag-1", SIZE)
DATA = random_bytes(SIZE)
FIRST = f"bytes=0-{UNIT - 1}"  # the first unit


@dataclass
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes
    closed: bool


class Wire:
    """One connection, byte for byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def to(cls, served: Served, host: str = "127.0.0.1") -> Wire:
        """A connection that comes from `host`."""
        return cls(*await asyncio.open_connection("127.0.0.1", served.port, local_addr=(host, 0)))

    async def ask(self, method: str, target: str, headers: Mapping[str, str], body: bytes = b"") -> None:
        lines = [f"{method} {target} HTTP/1.1", "Host: x", *(f"{k}: {v}" for k, v in headers.items()), "", ""]
        self.writer.write("\r\n".join(lines).encode("latin-1") + body)
        with contextlib.suppress(ConnectionError):
            await self.writer.drain()

    async def head(self) -> Answer:
        raw = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in raw[1:] if line)}
        return Answer(int(raw[0].split()[1]), headers, b"", False)

    async def answer(self) -> Answer:
        async with asyncio.timeout(20):
            found = await self.head()
            length = int(found.headers.get("content-length", 0))
            found.body = await self.reader.readexactly(length)
            if found.headers.get("connection") == "close":
                found.closed = not await self.reader.read(1)
            return found

    async def close(self) -> None:
        self.writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


class Addressed(Protocol):
    """Whoever has a peers' port."""

    @property
    def address(self) -> str: ...


def get(served: Addressed, tokens: Tokens, ref: ObjectRef, wanted: str, target: str = "") -> dict[str, str]:
    target = target or object_target(ref)
    return {
        "Authorization": tokens.issue(served.address, Bound("GET", target)),
        OBJECT_HEADER: object_name(ref),
        UNITS_HEADER: KIND,
        "Range": wanted,
    }


async def fetched(served: Served, wanted: str, ref: ObjectRef = REF) -> Answer:
    wire = await Wire.to(served)
    await wire.ask("GET", object_target(ref), get(served, served.tokens, ref, wanted))
    found = await wire.answer()
    await wire.close()
    return found


@pytest.fixture
async def served(serve: Serve) -> Served:
    return await serve()


@pytest.mark.parametrize(
    ("start", "end"),
    [(0, CHUNK), (CHUNK - UNIT, CHUNK + UNIT), (0, SIZE), (2 * CHUNK, SIZE), (UNIT, 2 * UNIT)],
)
async def test_a_range_that_is_in_the_store_is_sent(served: Served, start: int, end: int) -> None:
    await served.keep(REF, DATA)
    found = await fetched(served, f"bytes={start}-{end - 1}")
    assert found.status == 206
    assert found.headers["content-range"] == f"bytes {start}-{end - 1}/{SIZE}"
    assert found.headers["headrace-units"] == KIND
    assert without_digests(found.body) == DATA[start:end]


async def test_a_chunk_that_is_damaged_is_404_and_the_others_are_served(served: Served) -> None:
    cached = await served.keep(REF, DATA)
    os.pwrite(cached.fd, b"damaged", CHUNK - 7)
    assert (await fetched(served, FIRST)).status == 404
    assert (await fetched(served, f"bytes={CHUNK}-{CHUNK + UNIT - 1}")).status == 206


@pytest.mark.parametrize("kind", [None, "", "sha256/131072", f"{KIND}0"])
async def test_who_knows_no_units_of_this_kind_is_answered_404(served: Served, kind: str | None) -> None:
    await served.keep(REF, DATA)
    headers = get(served, served.tokens, REF, FIRST)
    del headers[UNITS_HEADER]
    wire = await Wire.to(served)
    await wire.ask("GET", object_target(REF), headers if kind is None else headers | {UNITS_HEADER: kind})
    assert (await wire.answer()).status == 404
    await wire.close()


async def test_one_connection_takes_one_request_after_the_other(served: Served) -> None:
    await served.keep(REF, DATA)
    wire = await Wire.to(served)
    for offset in (UNIT, CHUNK, 0):
        wanted = f"bytes={offset}-{offset + UNIT - 1}"
        await wire.ask("GET", object_target(REF), get(served, served.tokens, REF, wanted))
        assert without_digests((await wire.answer()).body) == DATA[offset : offset + UNIT]
    await wire.close()


async def test_what_is_not_in_the_store_is_404_and_no_object_is_made_of_the_question(
    served: Served,
) -> None:
    assert (await fetched(served, FIRST)).status == 404
    assert served.store.peek(REF) is None
    assert await served.store.present_bytes([REF.key]) == {}
    await served.keep(REF, DATA, 1)
    assert (await fetched(served, FIRST)).status == 404
    found = await fetched(served, f"bytes={CHUNK}-{CHUNK + UNIT - 1}")
    assert without_digests(found.body) == DATA[CHUNK : CHUNK + UNIT]


def landing_of(cached: CachedObject, chunk: int) -> Landing:
    landing = cached.landings[chunk] = Landing(cached.fd, cached.extent(chunk))
    return landing


async def write(landing: Landing, data: bytes) -> None:
    """As a receiving thread does."""
    await asyncio.to_thread(landing.write, memoryview(data))


async def test_bytes_are_passed_on_while_they_arrive(served: Served) -> None:
    cached = await served.store.acquire(REF)
    landing = landing_of(cached, 0)
    await write(landing, DATA[:1000])
    wire = await Wire.to(served)
    await wire.ask("GET", object_target(REF), get(served, served.tokens, REF, f"bytes=0-{CHUNK - 1}"))
    async with asyncio.timeout(20):
        assert (await wire.head()).status == 206
        assert await wire.reader.readexactly(1000) == DATA[:1000]
        await write(landing, DATA[1000:1001])
        assert await wire.reader.readexactly(1) == DATA[1000:1001]
        await write(landing, DATA[1001:UNIT])
        assert await wire.reader.readexactly(UNIT - 1001 + DIGEST) == with_digests(DATA[:UNIT])[1001:]
        await write(landing, DATA[UNIT : CHUNK - 1])
        rest = with_digests(DATA[UNIT:CHUNK])
        assert await wire.reader.readexactly(len(rest) - 1 - DIGEST) == rest[: -1 - DIGEST]
        await write(landing, DATA[CHUNK - 1 : CHUNK])
        assert await wire.reader.readexactly(1 + DIGEST) == rest[-1 - DIGEST :]
    await wire.close()
    assert not landing.awaited


async def test_bytes_that_break_off_end_the_connection_and_not_the_answer(served: Served) -> None:
    cached = await served.store.acquire(REF)
    landing = landing_of(cached, 0)
    await write(landing, DATA[:1000])
    wire = await Wire.to(served)
    await wire.ask("GET", object_target(REF), get(served, served.tokens, REF, FIRST))
    async with asyncio.timeout(20):
        assert (await wire.head()).headers["content-length"] == str(UNIT + DIGEST)
        assert await wire.reader.readexactly(1000) == DATA[:1000]
        del cached.landings[0]
        landing.dismiss()
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await wire.reader.readexactly(1000)
    await wire.close()


async def test_a_peer_that_goes_away_lets_go_of_the_object(served: Served) -> None:
    cached = await served.keep(REF, DATA)
    wire = await Wire.to(served)
    await wire.ask("GET", object_target(REF), get(served, served.tokens, REF, f"bytes=0-{SIZE - 1}"))
    await wire.head()
    wire.writer.transport.abort()
    await served.exchange.close()
    assert cached.users == 1


@pytest.mark.parametrize(
    "wanted",
    [
        "bytes=9-1",
        "bytes=0-9",
        f"bytes=1-{UNIT - 1}",
        "bytes=0-1,5-6",
        "bytes=-5",
        "bytes=5-",
        f"bytes=0-{SIZE}",
        "bits=0-1",
        "bytes=0-" + "9" * 19,
        "",
    ],
)
async def test_a_range_that_is_not_one_in_the_object_is_416(served: Served, wanted: str) -> None:
    await served.keep(REF, DATA)
    assert (await fetched(served, wanted)).status == 416


@pytest.mark.parametrize(
    "key", ["../../etc/passwd", "..%2f..%2fetc%2fpasswd", "0" * 31, "0" * 33, "G" * 32, "%00", "0" * 32]
)
async def test_what_is_no_objects_key_is_4xx(served: Served, key: str) -> None:
    await served.keep(REF, DATA)
    target = f"/peer/v1/objects/{key}"
    wire = await Wire.to(served)
    await wire.ask("GET", target, get(served, served.tokens, REF, "bytes=0-9", target))
    assert 400 <= (await wire.answer()).status < 500
    await wire.close()


class Asked:
    """A helper that cannot bring anything, and what it was asked for."""

    def __init__(self) -> None:
        self.urgencies: list[Urgency] = []

    def bring(self, cached: CachedObject, extent: Extent, owner: object, urgency: Urgency) -> None:
        self.urgencies.append(urgency)

    def disown(self, owner: object) -> None:
        pass


@pytest.mark.parametrize(
    "said", ["1", "", "0", "2", "-1", "1, 1", "true", "9" * 5000, "\xff\xfe", "1\r\nHeadrace-Urgent: 0"]
)
async def test_only_a_1_makes_a_request_urgent_and_nothing_makes_it_fail(serve: Serve, said: str) -> None:
    helper = Asked()
    served = await serve(helper=helper)
    await served.keep(REF, DATA, 1)
    wire = await Wire.to(served)
    for wanted, status in ((FIRST, 404), (f"bytes={CHUNK}-{CHUNK + UNIT - 1}", 206)):
        headers = get(served, served.tokens, REF, wanted) | {URGENT_HEADER: said}
        await wire.ask("GET", object_target(REF), headers)
        assert (await wire.answer()).status == status
    await wire.close()
    urgent = said.startswith("1") and "," not in said
    assert helper.urgencies == ([Urgency.PEER] * 2 if urgent else [Urgency.PREFETCH])


@pytest.mark.parametrize("name", ["", "!", "W10=", "WzEsMiwzXQ==", "A" * 7000, "bnVsbA=="])
async def test_a_name_that_is_not_the_keys_is_400(served: Served, name: str) -> None:
    wire = await Wire.to(served)
    headers = get(served, served.tokens, REF, FIRST) | {OBJECT_HEADER: name}
    await wire.ask("GET", object_target(REF), headers)
    assert (await wire.answer()).status == 400
    await wire.close()


@pytest.mark.parametrize(
    "kind", ["none", "forged", "old", "future", "for another agent", "for another object"]
)
async def test_a_request_without_a_good_token_is_401_logged_and_nothing_is_read(
    served: Served, tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    await served.keep(REF, DATA)
    headers = get(served, served.tokens, REF, FIRST)
    bound = Bound("GET", object_target(REF))
    if kind == "none":
        del headers["Authorization"]
    elif kind == "for another agent":
        headers["Authorization"] = served.tokens.issue("127.0.0.1:1", bound)
    elif kind == "for another object":
        headers["Authorization"] = served.tokens.issue(served.address, Bound("GET", "/peer/v1/objects/0"))
    else:
        (tmp_path / "other").mkdir()
        other = (
            secret_file(tmp_path / "other", "a-forged-secret" * 4)
            if kind == "forged"
            else tmp_path / "peer-secret"
        )
        moved = _Moved({"forged": 0.0, "old": -61.0, "future": 62.0}[kind])
        headers["Authorization"] = Tokens(Secrets(other, moved), moved, "x").issue(served.address, bound)
    wire = await Wire.to(served)
    await wire.ask("GET", object_target(REF), headers)
    found = await wire.answer()
    assert (found.status, found.body, found.closed) == (401, b"", True)
    assert [r.levelname for r in caplog.records if "from 127.0.0.1" in r.getMessage()] == ["WARNING"]
    assert headers.get("Authorization", "none there") not in caplog.text
    assert served.metrics.peer_refusals._value.get() == 1
    await wire.close()


class _Moved(SystemClock):
    def __init__(self, by: float) -> None:
        self._by = by

    def time(self) -> float:
        return super().time() + self._by


async def test_a_flood_of_refusals_does_not_fill_the_log(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(30):
        wire = await Wire.to(served)
        await wire.ask("GET", "/", {})
        assert (await wire.answer()).status == 401
        await wire.close()
    assert len(caplog.records) == 10


async def test_the_body_of_a_request_without_a_token_is_not_waited_for(served: Served) -> None:
    wire = await Wire.to(served)
    await wire.ask("POST", "/peer/v1/ask", {"Content-Length": "1000000"})
    assert (await wire.answer()).status == 401
    await wire.close()


@pytest.mark.parametrize("expected", ["100-continue", "other"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/peer/v1/tracker"),
        ("GET", "/peer/v1/objects/0"),
        ("PUT", "/peer/v1/tracker"),
        ("GET", "/"),
        ("GET", "http://elsewhere"),
        ("OPTIONS", "*"),
        ("CONNECT", "elsewhere:1"),
    ],
)
async def test_what_a_request_without_a_token_expects_is_not_heard(
    served: Served, caplog: pytest.LogCaptureFixture, method: str, path: str, expected: str
) -> None:
    wire = await Wire.to(served)
    await wire.ask(method, path, {"Expect": expected, "Content-Length": "1000"})
    assert (await wire.answer()).status == 401
    assert [r.levelname for r in caplog.records if "from 127.0.0.1" in r.getMessage()] == ["WARNING"]
    assert served.metrics.peer_refusals._value.get() == 1
    await wire.close()


async def test_a_member_that_expects_to_be_asked_for_its_body_is(serve: Serve) -> None:
    async def echo(sender: str, body: bytes) -> bytes:
        return body

    served = await serve(calls={"echo": echo})
    wire = await Wire.to(served)
    headers = post(served, "/peer/v1/echo", b"body") | {"Expect": "100-continue", "Content-Length": "4"}
    await wire.ask("POST", "/peer/v1/echo", headers)
    assert (await wire.answer()).status == 100
    wire.writer.write(b"body")
    found = await wire.answer()
    assert (found.status, found.body) == (200, b"body")
    await wire.close()


def post(served: Served, target: str, body: bytes) -> dict[str, str]:
    return {
        "Authorization": served.tokens.issue(served.address, Bound.of("POST", target, body)),
        BODY_HEADER: body_digest(body),
        "Content-Length": str(len(body)),
    }


async def test_an_answer_says_whether_it_is_json_or_bytes(serve: Serve) -> None:
    async def answer(sender: str, body: bytes) -> bytes:
        return b"{}"

    served = await serve(calls={"words": answer, "frames": answer}, binary=frozenset({"frames"}))
    for call, kind in (("words", "application/json"), ("frames", "application/octet-stream")):
        wire = await Wire.to(served)
        await wire.ask("POST", f"/peer/v1/{call}", post(served, f"/peer/v1/{call}", b"x"), b"x")
        assert (await wire.answer()).headers["content-type"].startswith(kind)
        await wire.close()


async def test_a_call_gets_its_sender_and_body_and_a_wrong_one_is_400(serve: Serve) -> None:
    async def echo(sender: str, body: bytes) -> bytes:
        if body == b"bad":
            raise BadRequest("no good")
        return sender.encode() + b" " + body

    served = await serve(calls={"echo": echo})
    wire = await Wire.to(served)
    await wire.ask("POST", "/peer/v1/echo", post(served, "/peer/v1/echo", b"hello"), b"hello")
    assert (await wire.answer()).body == served.address.encode() + b" hello"
    await wire.ask("POST", "/peer/v1/echo", post(served, "/peer/v1/echo", b"hello"), b"hallo")
    assert (await wire.answer()).status == 400
    await wire.close()
    for body, target, status in (
        (b"bad", "echo", 400),
        (b"x", "other", 404),
        (b"x" * (2 << 20), "echo", 413),
    ):
        wire = await Wire.to(served)
        await wire.ask("POST", f"/peer/v1/{target}", post(served, f"/peer/v1/{target}", body), body)
        assert (await wire.answer()).status == status
        await wire.close()


@pytest.mark.parametrize(
    "flood",
    [b"GET / HTTP/1.1\r\nX: " + b"a" * (1 << 20), b"GET /" + b"a" * (1 << 20), b"\x16\x03\x01\x00" * 100],
)
async def test_heads_that_are_too_large_or_none_are_4xx_or_cut_off(served: Served, flood: bytes) -> None:
    wire = await Wire.to(served)
    wire.writer.write(flood + b"\r\n\r\n")
    async with asyncio.timeout(20):
        with contextlib.suppress(ConnectionError):
            answer = await wire.reader.read(100)
            assert not answer or re.match(rb"HTTP/1.[01] 4\d\d ", answer)
    await wire.close()


async def test_strangers_beyond_their_number_are_503_and_a_member_is_served(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "STRANGERS", 5)
    served = await serve()
    await served.keep(REF, DATA)
    member = await Wire.to(served)
    await member.ask("GET", object_target(REF), get(served, served.tokens, REF, FIRST))
    assert (await member.answer()).status == 206
    strangers = [await Wire.to(served) for _ in range(6)]
    assert (await strangers[-1].answer()).status == 503
    await member.ask("GET", object_target(REF), get(served, served.tokens, REF, FIRST))
    assert (await member.answer()).status == 206
    for wire in [*strangers, member]:
        await wire.close()


async def test_strangers_leave_room_for_who_comes_from_where_a_peer_is_and_there_are_bounds_there_too(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "STRANGERS", 3)
    served = await serve(known="127.0.0.2".__eq__)
    await served.keep(REF, DATA)
    strangers = [await Wire.to(served) for _ in range(4)]
    assert (await strangers[-1].answer()).status == 503
    member = await Wire.to(served, "127.0.0.2")
    await member.ask("GET", object_target(REF), get(served, served.tokens, REF, FIRST))
    assert (await member.answer()).status == 206
    beside = [await Wire.to(served, "127.0.0.2") for _ in range(4)]
    assert (await beside[-1].answer()).status == 503
    for wire in [*strangers, member, *beside]:
        await wire.close()


async def test_a_head_that_comes_byte_by_byte_is_cut_off_and_an_idle_member_is_not(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "HEAD_WITHIN", 0.3)
    monkeypatch.setattr(gate, "SWEEP_EVERY", 0.05)
    served = await serve()
    await served.keep(REF, DATA)
    member, slow = await Wire.to(served), await Wire.to(served)
    await member.ask("GET", object_target(REF), get(served, served.tokens, REF, FIRST))
    assert (await member.answer()).status == 206
    slow.writer.write(b"GET / HTTP/1.1\r\nX: ")

    async def drip() -> None:
        with contextlib.suppress(ConnectionError):
            while not slow.reader.at_eof():
                slow.writer.write(b"a")
                await slow.writer.drain()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(slow.reader.read(1), 0.02)

    await asyncio.wait_for(drip(), 10)
    await member.ask("GET", object_target(REF), get(served, served.tokens, REF, FIRST))
    assert (await member.answer()).status == 206
    for wire in (member, slow):
        await wire.close()
