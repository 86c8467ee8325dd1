"""A tracker of an agent that knows of nobody's speed is asked by the call that it knows."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any

import pytest

from agent.clock import SystemClock
from agent.peers import exchange_server, tracker_client
from agent.peers.exchange_client import ExchangeClient, PeerSilent
from agent.peers.exchange_server import SHUTDOWN, Stream
from agent.peers.member import Peer
from agent.peers.secrets import Secrets
from agent.peers.token import Tokens
from agent.peers.tracker import Tracker
from agent.peers.tracker_client import TrackerClient
from agent.peers.tracking import Tracking
from agent.peers.wire import CALL, FOLLOW, OLD_CALL, Batch
from agent.transfer.engine import Engine
from tests.agent.peers.conftest import Serve, secret_file

OWN = "127.0.0.1:1"
KEY = "0" * 32
ASK = Batch(asks=[((KEY, 0), 1, [])], fastest=1e6, held_up_by=["127.0.0.1:2"])


@pytest.fixture
async def trackers(tmp_path: Path) -> AsyncIterator[TrackerClient]:
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        engine = Engine(1, clock)
        stack.push_async_callback(engine.close)
        client = ExchangeClient(Tokens(Secrets(secret_file(tmp_path), clock), clock, OWN), engine)
        stack.push_async_callback(client.close)
        yield TrackerClient(client)


class Heard:
    """Calls that were made, by their names, and their bodies; answered by a tracker."""

    def __init__(self) -> None:
        self.tracking = Tracking(Tracker(SystemClock()), SystemClock())
        self.calls: list[tuple[str, dict[str, Any]]] = []

    async def new(self, sender: str, body: bytes) -> bytes:
        self.calls.append((CALL, json.loads(body)))
        return await self.tracking.call(sender, body)

    async def old(self, sender: str, body: bytes) -> bytes:
        self.calls.append((OLD_CALL, json.loads(body)))
        return await self.tracking.call_old(sender, body)


async def test_a_tracker_is_told_how_fast_bytes_come(trackers: TrackerClient, serve: Serve) -> None:
    heard = Heard()
    served = await serve(calls={CALL: heard.new, OLD_CALL: heard.old})
    await trackers.say(Peer(served.address, served.address), ASK)
    (name, batch) = heard.calls[0]
    assert (name, batch["fastest"], batch["held_up_by"]) == (CALL, 1e6, ["127.0.0.1:2"])


async def test_an_older_one_is_told_what_it_knows_and_is_tried_again_later(
    trackers: TrackerClient, serve: Serve
) -> None:
    heard = Heard()
    calls = {OLD_CALL: heard.old}
    served = await serve(calls=calls)
    tracker = Peer(served.address, served.address)
    for _ in range(2):
        assert len((await trackers.say(tracker, ASK)).answers) == 1
    assert [name for name, _ in heard.calls] == [OLD_CALL, OLD_CALL]
    assert not {"fastest", "held_up_by"}.intersection(heard.calls[0][1])
    trackers.try_all_again()
    calls[CALL] = heard.new
    await trackers.say(tracker, ASK)
    assert heard.calls[-1][0] == CALL


async def test_an_older_member_is_answered_what_it_knows() -> None:
    tracking = Tracking(Tracker(SystemClock()), SystemClock())
    asked = Batch(asks=ASK.asks).model_dump_json(exclude={"fastest", "held_up_by"}).encode()
    reply = json.loads(await tracking.call_old(OWN, asked))
    assert reply.keys() == {"version", "renewal", "answers", "digests"}
    assert reply["answers"][0].keys() == {"wait", "place", "routes"}


async def followed(trackers: TrackerClient, tracker: Peer, batch: Batch) -> AsyncIterator[list[int]]:
    """The units of each reply."""
    async with aclosing(trackers.follow(tracker, batch)) as replies:
        async for reply in replies:
            yield [unit for unit, _ in reply.digests[0].units]


BOOK = Batch(digests=[(KEY, 0)])


async def test_a_tracker_is_followed_until_it_ends(trackers: TrackerClient, serve: Serve) -> None:
    tracking = Tracking(Tracker(SystemClock()), SystemClock())
    served = await serve(calls={CALL: tracking.call}, streams={FOLLOW: tracking.call_follow})
    tracker = Peer(served.address, served.address)
    units = followed(trackers, tracker, BOOK)
    assert await anext(units) == []
    for unit in (1, 2):
        told = Batch(announce=[], made=[(KEY, [(unit, f"{unit:032x}")])])
        await trackers.say(tracker, told)
        async with asyncio.timeout(10):
            while (found := await anext(units)) != [unit]:
                assert found == []
    begun = asyncio.get_running_loop().time()
    await served.exchange.close()
    with pytest.raises(PeerSilent):
        while True:
            await anext(units)
    assert asyncio.get_running_loop().time() - begun < SHUTDOWN


async def test_one_that_cannot_be_followed_or_has_too_many_already_is_tried_again_later(
    trackers: TrackerClient, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking = Tracking(Tracker(SystemClock()), SystemClock())
    streams: dict[str, Stream] = {}
    served = await serve(calls={CALL: tracking.call}, streams=streams)
    tracker = Peer(served.address, served.address)
    assert [units async for units in followed(trackers, tracker, BOOK)] == []
    streams[FOLLOW] = tracking.call_follow
    assert [units async for units in followed(trackers, tracker, BOOK)] == []
    trackers.try_all_again()
    first = followed(trackers, tracker, BOOK)
    assert await anext(first) == []
    monkeypatch.setattr(exchange_server, "FOLLOWERS", 1)
    assert [units async for units in followed(trackers, tracker, BOOK)] == []
    assert await anext(first) == []
    monkeypatch.setattr(tracker_client, "FOLLOWED", 1)
    trackers.try_all_again()
    assert [units async for units in followed(trackers, tracker, BOOK)] == []


async def test_what_does_not_ask_for_one_book_is_400(trackers: TrackerClient, serve: Serve) -> None:
    tracking = Tracking(Tracker(SystemClock()), SystemClock())
    served = await serve(streams={FOLLOW: tracking.call_follow})
    with pytest.raises(PeerSilent, match="answers 400"):
        await anext(followed(trackers, Peer(served.address, served.address), Batch()))
