"""A tracker of an agent that knows of nobody's speed is asked by the call that it knows."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from agent.clock import SystemClock
from agent.peers.exchange_client import ExchangeClient
from agent.peers.member import Peer
from agent.peers.secrets import Secrets
from agent.peers.token import Tokens
from agent.peers.tracker import Tracker
from agent.peers.tracker_client import TrackerClient
from agent.peers.tracking import Tracking
from agent.peers.wire import CALL, OLD_CALL, Batch
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
        self.tracking = Tracking(Tracker(SystemClock()))
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
    tracking = Tracking(Tracker(SystemClock()))
    asked = Batch(asks=ASK.asks).model_dump_json(exclude={"fastest", "held_up_by"}).encode()
    reply = json.loads(await tracking.call_old(OWN, asked))
    assert reply.keys() == {"version", "renewal", "answers", "digests"}
    assert reply["answers"][0].keys() == {"wait", "place", "routes"}
