"""Whom a member asks, and how long a reader waits for that: with trackers that answer, and others."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.clock import SystemClock
from agent.content import Extent, ObjectRef
from agent.errors import BadRequest
from agent.peers import guide as guide_module
from agent.peers.courses import Courses, group_of
from agent.peers.exchange_client import ExchangeClient
from agent.peers.guide import ASK_WITHIN, DONE_AFTER, RelayGuide
from agent.peers.liveness import Liveness
from agent.peers.member import Peer
from agent.peers.messages import Answer, Renewal, SpanId
from agent.peers.placement import tracker_of
from agent.peers.relay import Place
from agent.peers.secrets import Secrets
from agent.peers.token import Tokens
from agent.peers.tracker import REBUILD, Tracker
from agent.peers.tracking import Tracking
from agent.peers.wire import AGAIN, CALL, Batch, Reply, answer_as, parse_batch, parse_reply, renewal_as
from agent.transfer.engine import Engine
from tests.agent.peers.conftest import CHUNK, Serve, secret_file
from tests.fakes.discovery import MemoryDiscovery
from tests.fakes.raw_http import head
from tests.harness.s3 import free_ports

OWN = Peer("127.0.0.1:1", "127.0.0.1:1")
FIRST = Extent(0, CHUNK)


@dataclass
class Member:
    guide: RelayGuide
    discovery: MemoryDiscovery
    liveness: Liveness
    tracking: Tracking


@asynccontextmanager
async def knowing(directory: Path, liveness: Liveness | None = None) -> AsyncIterator[Member]:
    """A member that does not announce yet."""
    clock = SystemClock()
    liveness = liveness or Liveness(clock)
    async with AsyncExitStack() as stack:
        engine = Engine(1, clock)
        stack.push_async_callback(engine.close)
        client = ExchangeClient(Tokens(Secrets(secret_file(directory), clock), clock, OWN.name), engine)
        stack.push_async_callback(client.close)
        discovery = MemoryDiscovery(OWN.address)
        tracking, courses = Tracking(Tracker(clock), clock), Courses(CHUNK)
        guide = RelayGuide(OWN, discovery, liveness, client, tracking, courses, clock)
        stack.push_async_callback(guide.close)
        yield Member(guide, discovery, liveness, tracking)


@pytest.fixture
async def member(tmp_path: Path) -> AsyncIterator[Member]:
    async with knowing(tmp_path) as found:
        found.guide.start()
        yield found


def objects() -> Iterator[ObjectRef]:
    return (ObjectRef(f"s3://b/{number}/w", "v", CHUNK) for number in range(1000))


def tracked_by(peer: Peer, *others: Peer) -> ObjectRef:
    """An object whose tracker a peer is."""
    return led_by((peer, *others))


def led_by(*groups: Sequence[Peer]) -> ObjectRef:
    """An object whose tracker is the first of each of these groups of live peers."""
    return next(ref for ref in objects() if all(_tracker(ref, *group) == group[0] for group in groups))


def _tracker(ref: ObjectRef, *peers: Peer) -> Peer | None:
    return tracker_of(group_of(ref), peers)


async def test_without_peers_nobody_is_asked(member: Member) -> None:
    assert await member.guide.parents(tracked_by(OWN), FIRST) == ()


async def test_an_agent_that_is_the_tracker_itself_and_alone_in_the_relay_is_the_head(member: Member) -> None:
    other = Peer("127.0.0.1:2", "127.0.0.1:2")
    member.discovery.set([other])
    assert list(await member.guide.parents(tracked_by(OWN, other), FIRST) or ()) == []


@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        ("silent", None),
        ("nonsense", head("200 OK", "Content-Length: 2") + b"[]"),
        ("refuses", head("401 Unauthorized", "Content-Length: 0")),
        ("gone", b""),
    ],
)
async def test_a_reader_waits_for_a_bad_tracker_no_longer_than_it_may(
    member: Member, kind: str, answer: bytes | None
) -> None:
    over = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if answer is None:
            await over.wait()
        writer.write(answer or b"")
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        bad = Peer(f"127.0.0.1:{port}", f"127.0.0.1:{port}")
        member.discovery.set([bad])
        ref = tracked_by(bad, OWN)
        begun = asyncio.get_running_loop().time()
        assert list(await member.guide.parents(ref, FIRST) or ()) == []
        assert asyncio.get_running_loop().time() - begun < ASK_WITHIN + 1
        assert member.liveness.usable(bad.name) == (kind == "silent")
        over.set()


async def test_after_a_failure_the_other_parents_serve_while_a_new_tracker_is_silent(member: Member) -> None:
    others = [Peer(f"127.0.0.1:{port}", f"127.0.0.1:{port}") for port in (2, 3)]
    with socket.create_server(("127.0.0.1", 0)) as never_accepts:
        name = f"127.0.0.1:{never_accepts.getsockname()[1]}"
        silent = Peer(name, name)
        ref = led_by((OWN, *others), (silent, OWN, *others))
        member.discovery.set(others)
        for one in others:
            member.tracking.answer(one.name, Batch(announce=[(SpanId.of(ref.key, 0), 1, None)]))
        first, second = await member.guide.parents(ref, FIRST) or ()
        member.discovery.set([*others, silent])
        member.liveness.failed(first.name)
        member.guide.failed(ref, FIRST, first, "silent")
        assert list(await member.guide.parents(ref, FIRST) or ()) == [second]


def test_a_new_tracker_gives_routes_when_all_that_receive_have_had_to_tell_it_something() -> None:
    assert REBUILD >= 2 * DONE_AFTER  # machines may be busy


async def test_a_new_tracker_hears_where_a_member_stands_with_its_first_ask(
    member: Member, serve: Serve
) -> None:
    heard: asyncio.Queue[Batch] = asyncio.Queue()
    new_tracker = Tracking(Tracker(SystemClock()), SystemClock())

    async def track(sender: str, body: bytes) -> bytes:
        heard.put_nowait(parse_batch(body))
        return await new_tracker.call(sender, body)

    served = await serve(calls={CALL: track})
    new = Peer(served.address, served.address)
    other = Peer("127.0.0.1:2", "127.0.0.1:2")
    ref = led_by((OWN, other), (new, OWN))
    member.discovery.set([other])
    assert list(await member.guide.parents(ref, FIRST) or ()) == []
    member.discovery.set([new])
    member.guide.failed(ref, FIRST, other, "silent")
    await member.guide.parents(ref, FIRST)
    async with asyncio.timeout(10):
        while not (batch := await heard.get()).asks:
            pass
    assert batch.announce is not None
    ((span, has, place),) = batch.announce
    assert (span, has) == (SpanId.of(ref.key, 0), 0)
    assert place is not None


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have routes waited for, however busy the machine is."""
    monkeypatch.setattr(guide_module, "ASK_WITHIN", 10.0)


@pytest.mark.usefixtures("patient")
async def test_where_a_tracker_is_gone_the_next_one_answers_the_same_reader(member: Member) -> None:
    name = f"127.0.0.1:{free_ports(1)[0]}"
    gone, holder = Peer(name, name), Peer("127.0.0.1:2", "127.0.0.1:2")
    ref = led_by((gone, OWN, holder), (OWN, holder))
    member.discovery.set([gone, holder])
    member.tracking.answer(holder.name, Batch(announce=[(SpanId.of(ref.key, 0), 1, None)]))
    assert list(await member.guide.parents(ref, FIRST) or ()) == [holder]


async def test_what_a_tracker_did_not_take_is_told_to_the_next_one(member: Member) -> None:
    name = f"127.0.0.1:{free_ports(1)[0]}"
    gone, head_of_it = Peer(name, name), Peer("127.0.0.1:2", "127.0.0.1:2")
    ref = led_by((gone, OWN, head_of_it), (OWN, head_of_it))
    member.discovery.set([head_of_it])
    await member.guide.parents(ref, FIRST)
    member.guide.failed(ref, FIRST, head_of_it, "silent")
    await member.guide.parents(ref, FIRST)  # tells the next one where this agent stands: once
    member.discovery.set([gone, head_of_it])
    member.guide.brought(ref, FIRST, None)
    asked = Batch(asks=[((ref.key, 0), 1, [])])

    def routes() -> list[str]:
        return member.tracking.answer(head_of_it.name, asked).answers[0].routes[0]

    async with asyncio.timeout(10):
        while not routes():  # noqa: ASYNC110 - a tracker tells nobody what it has heard
            await asyncio.sleep(0.01)
    assert routes() == [OWN.name]


class CountingLiveness(Liveness):
    looks = 0

    def usable(self, name: str) -> bool:
        self.looks += 1
        return super().usable(name)


async def test_to_announce_it_looks_at_the_peers_once_for_each_group_and_not_for_each_span(
    tmp_path: Path, serve: Serve
) -> None:
    heard: asyncio.Queue[Batch] = asyncio.Queue()

    async def track(sender: str, body: bytes) -> bytes:
        heard.put_nowait(parse_batch(body))
        return Reply(renewal=renewal_as(Renewal(6.0))).model_dump_json().encode()

    served = await serve(calls={CALL: track})
    tracker = Peer(served.address, served.address)
    group = group_of(tracked_by(tracker, OWN))
    liveness = CountingLiveness(SystemClock())
    async with knowing(tmp_path, liveness) as member:
        member.discovery.set([tracker])
        for number in range(50):
            member.guide.brought(ObjectRef(f"{group}/{number}", "v", CHUNK), FIRST, None)
        member.guide.start()
        batch = await asyncio.wait_for(heard.get(), 10)
        assert len(batch.announce or ()) == 50
        assert liveness.looks < 50


async def announced_with_an_ask(heard: asyncio.Queue[Batch]) -> object:
    """The first standing that a tracker is told in the same request as an ask: span, chunks, place."""
    async with asyncio.timeout(10):
        while True:
            batch = await heard.get()
            if batch.asks and batch.announce:
                return batch.announce[0]


@pytest.mark.usefixtures("patient")
async def test_a_tracker_that_was_restarted_under_its_name_hears_the_place_that_it_gave(
    member: Member, serve: Serve
) -> None:
    heard: asyncio.Queue[Batch] = asyncio.Queue()
    lives = [Tracking(Tracker(SystemClock()), SystemClock()) for _ in range(2)]

    async def track(sender: str, body: bytes) -> bytes:
        heard.put_nowait(parse_batch(body))
        return await lives[0].call(sender, body)

    served = await serve(calls={CALL: track})
    tracker, other = Peer(served.address, served.address), Peer("127.0.0.1:2", "127.0.0.1:2")
    ref = next(one for one in objects() if _tracker(one, tracker, OWN, other) == tracker)
    member.discovery.set([tracker, other])
    assert list(await member.guide.parents(ref, FIRST) or ()) == []
    for life in range(2):
        if life:
            del lives[0]
        member.guide.failed(ref, FIRST, other, "silent")
        await member.guide.parents(ref, FIRST)
        assert await announced_with_an_ask(heard) == (SpanId.of(ref.key, 0), 0, (0, 0, 1, 0, 1))


@pytest.mark.usefixtures("patient")
async def test_a_member_that_has_to_wait_for_its_place_keeps_the_one_it_had_for_the_next_tracker(
    member: Member, serve: Serve
) -> None:
    heard: asyncio.Queue[Batch] = asyncio.Queue()
    place = Place(0, 0, 1, 0, 1)
    answers = [Answer(0.0, place, ()), Answer(0.01, None, ())]

    async def first(sender: str, body: bytes) -> bytes:
        batch = parse_batch(body)
        found = [answer_as(answers.pop(0)) for _ in batch.asks]
        if batch.asks and not answers:
            member.discovery.set([second])
        return Reply(answers=found).model_dump_json().encode()

    async def then(sender: str, body: bytes) -> bytes:
        heard.put_nowait(parse_batch(body))
        return await Tracking(Tracker(SystemClock()), SystemClock()).call(sender, body)

    one, two = [await serve(name, calls={CALL: call}) for name, call in (("one", first), ("two", then))]
    tracker, second = Peer(one.address, one.address), Peer(two.address, two.address)
    ref = led_by((tracker, OWN), (second, OWN))
    member.discovery.set([tracker])
    await member.guide.parents(ref, FIRST)
    member.guide.failed(ref, FIRST, second, "silent")
    await member.guide.parents(ref, FIRST)
    assert await announced_with_an_ask(heard) == (SpanId.of(ref.key, 0), 0, (0, 0, 1, 0, 1))


@pytest.mark.usefixtures("patient")
async def test_any_answer_of_the_tracker_may_have_a_member_ask_again_and_streams_leave_who_turned_out_slow(
    member: Member, serve: Serve
) -> None:
    slow, other = [Peer(f"127.0.0.1:{port}", f"127.0.0.1:{port}") for port in (2, 3)]
    place = Place(0, 1, 3, 0, 3)
    answers = [Answer(0.0, place, ((slow,),)), Answer(0.0, place, ((other,),), frozenset({slow.name}))]

    async def track(sender: str, body: bytes) -> bytes:
        batch = parse_batch(body)
        found = [answer_as(answers.pop(0)) for _ in batch.asks]
        again = [(ref.key, 0)] if batch.fastest and len(answers) == 1 else []
        renewal = renewal_as(Renewal(6.0)) if batch.announce is not None else None
        reply = Reply(renewal=renewal, answers=found, again=again)
        return reply.model_dump_json().encode()

    served = await serve(calls={CALL: track})
    tracker = Peer(served.address, served.address)
    ref = next(one for one in objects() if _tracker(one, tracker, OWN, slow, other) == tracker)
    member.discovery.set([tracker, slow, other])
    assert list(await member.guide.parents(ref, FIRST) or ()) == [slow]
    assert not member.guide.left(ref, FIRST, slow)
    rerouted = member.guide.rerouted(ref, FIRST)
    member.guide.receives(1e6, [], False)
    await asyncio.wait_for(rerouted, 10)
    assert list(await member.guide.parents(ref, FIRST) or ()) == [other]
    assert member.guide.left(ref, FIRST, slow)
    assert not member.guide.left(ref, FIRST, other)


@pytest.mark.usefixtures("patient")
async def test_a_tracker_has_a_member_ask_again_that_said_nothing(member: Member, serve: Serve) -> None:
    one, other = [Peer(f"127.0.0.1:{port}", f"127.0.0.1:{port}") for port in (2, 3)]
    place = Place(0, 1, 3, 0, 3)
    answers = [Answer(0.0, place, ((one,),)), Answer(0.0, place, ((other,),))]

    async def track(sender: str, body: bytes) -> bytes:
        batch = parse_batch(body)
        found = [answer_as(answers.pop(0)) for _ in batch.asks]
        renewal = renewal_as(Renewal(6.0)) if batch.announce is not None else None
        return Reply(renewal=renewal, answers=found).model_dump_json().encode()

    served = await serve(calls={CALL: track})
    tracker = Peer(served.address, served.address)
    ref = next(found for found in objects() if _tracker(found, tracker, OWN, one, other) == tracker)
    member.discovery.set([tracker, one, other])
    assert list(await member.guide.parents(ref, FIRST) or ()) == [one]
    rerouted = member.guide.rerouted(ref, FIRST)
    await asyncio.sleep(0)
    body = Reply(again=[(ref.key, 0)]).model_dump_json().encode()
    assert await member.guide.called_again(tracker.name, body) == b""
    await asyncio.wait_for(rerouted, 10)
    assert list(await member.guide.parents(ref, FIRST) or ()) == [other]
    with pytest.raises(BadRequest):
        await member.guide.called_again(tracker.name, b"[]")


async def test_a_member_that_is_the_tracker_calls_the_others_that_have_to_ask_again(
    member: Member, serve: Serve
) -> None:
    heard: asyncio.Queue[Reply] = asyncio.Queue()

    async def again(sender: str, body: bytes) -> bytes:
        heard.put_nowait(parse_reply(body, Batch()))
        return b""

    served = await serve(calls={AGAIN: again})
    gone = f"127.0.0.1:{free_ports(1)[0]}"
    member.tracking.push({gone: [("a" * 32, 1)], served.address: [("a" * 32, 7)], OWN.name: []})
    assert (await asyncio.wait_for(heard.get(), 10)).again == [("a" * 32, 7)]
