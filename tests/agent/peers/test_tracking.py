"""Batches and replies: what goes through, and what is refused before anything is done with it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping

import pytest

from agent.errors import BadRequest
from agent.peers.relay import SPAN
from agent.peers.tracker import GATHER, Tracker
from agent.peers.tracking import Tracking
from agent.peers.wire import Batch, parse_batch, parse_reply
from tests.fakes.clock import ManualClock

KEY = "0123456789abcdef" * 2
A, B, C = "10.1.0.17:7411", "10.1.0.18:7411", "10.1.0.19:7411"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def tracking(clock: ManualClock) -> Tracking:
    return Tracking(Tracker(clock), clock)


async def test_two_members_that_ask_together_are_each_others_parents_and_heads(
    tracking: Tracking, clock: ManualClock
) -> None:
    batch = Batch(asks=[((KEY, 1), SPAN, [])])
    asking = {
        name: asyncio.ensure_future(tracking.call(name, batch.model_dump_json().encode())) for name in (A, B)
    }
    for _ in asking:
        assert 0 < await clock.next_sleep() <= GATHER
    assert tracking.answer(A, batch).answers[0].wait > 0
    clock.advance(GATHER)
    routes = {}
    for name, asked in asking.items():
        reply = parse_reply(await asked, batch)
        assert reply.answers[0].wait == 0
        routes[name] = reply.answers[0].routes
    assert sorted(map(len, routes[A])) == [0] * (SPAN // 2) + [1] * (SPAN // 2)
    assert all(bool(a) != bool(b) for a, b in zip(routes[A], routes[B], strict=True))


async def test_chunks_that_one_tells_of_reach_the_other(tracking: Tracking) -> None:
    told = Batch(announce=[((KEY, 0), 0, None)], done=[((KEY, 0), 0b101)])
    reply = parse_reply(await tracking.call(A, told.model_dump_json().encode()), told)
    assert reply.renewal is not None
    assert reply.renewal.unknown
    asked = Batch(asks=[((KEY, 0), 3, [])])
    reply = tracking.answer(B, asked)
    assert reply.answers[0].routes == [[A], [], [A]]
    released = Batch(released=[(KEY, 0)])
    await tracking.call(A, released.model_dump_json().encode())
    reply = tracking.answer(B, asked)
    assert reply.answers[0].routes == [[], [], []]


def test_all_members_are_told_at_once_that_they_have_to_ask_again(
    tracking: Tracking, clock: ManualClock
) -> None:
    pushed: list[Mapping[str, list[tuple[str, int]]]] = []
    tracking.push = pushed.append
    for wait in (GATHER, 0.0):
        for name in (A, B, C):
            tracking.answer(name, Batch(asks=[((KEY, 0), 4, [])]))
        clock.advance(wait)
    for _ in range(40):
        for name in (A, B):
            tracking.answer(name, Batch(fastest=25e6, held_up_by=[C]))
        tracking.answer(C, Batch(fastest=2e6))
        clock.advance(0.1)
    assert pushed[0] == {name: [(KEY, 0)] for name in (A, B, C)}
    assert len(pushed) == 1


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"\xff",
        b'{"asks": 1}',
        b'{"other": 1}',
        b"[" * 100_000,
        {"asks": [[["../../etc/passwd", 0], 1, []]]},
        {"asks": [[[KEY, -1], 1, []]]},
        {"asks": [[[KEY, 0], SPAN + 1, []]]},
        {"asks": [[[KEY, 0], 0, []]]},
        {"asks": [[[KEY, 0], True, []]]},
        {"asks": [[[KEY, 0], 1, [""]]]},
        {"asks": [[[KEY, 0], 1, []]] * 5000},
        {"done": [[[KEY, 0], 1 << 64]]},
        {"failed": [[[KEY, 0], SPAN, A, "slow"]]},
        {"failed": [[[KEY, 0], 0, A, "ugly"]]},
        {"announce": [[[KEY, 0], 1, [0, 5, 2, 0, 2]]]},
        {"zone": "z" * 1000},
        {"fastest": -1.0},
        {"fastest": 1.0, "held_up_by": [A] * 65},
    ],
)
async def test_what_is_no_batch_is_refused(tracking: Tracking, body: object) -> None:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(BadRequest):
        await tracking.call(A, raw)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[1,2]",
        b"{}",
        {"answers": [{"wait": 1e9, "place": None, "routes": []}]},
        {"answers": [{"wait": 0, "place": None, "routes": [[""]]}]},
        {"answers": [{"wait": 0, "place": None, "routes": [[]] * (SPAN + 1)}]},
        {"version": 2, "answers": []},
    ],
)
def test_what_does_not_answer_a_batch_is_refused(body: object) -> None:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(BadRequest):
        parse_reply(raw, parse_batch(json.dumps({"asks": [[[KEY, 0], 1, []]]}).encode()))
