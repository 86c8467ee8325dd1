"""Turns of the streams to one peer."""

from __future__ import annotations

import socket
from collections.abc import Container
from pathlib import Path

from agent.cache.objects import CachedObject
from agent.content import Extent, ObjectRef
from agent.peers.turns import RAMP, SILENT, Stream, beside, chosen

CACHED = CachedObject(ObjectRef("s3://models/llama/weights", "etag-1", 1 << 20), Path("/"), -1, 1, 1 << 20)


def streams_of(*offsets: int, urgent: Container[int] = ()) -> list[Stream]:
    streams = []
    for offset in offsets:
        one, other = socket.socketpair()
        other.close()
        with one:
            extent = Extent(offset, 1)
            streams.append(Stream(CACHED, extent, offset in urgent, one, gone=bool, ended=lambda _: None))
    return streams


def test_the_stream_that_comes_first_in_the_object_sends_next() -> None:
    streams = sorted(streams_of(300, 100, 200))
    assert [stream.extent.offset for stream in streams] == [100, 200, 300]
    assert chosen(streams, 0.0) is streams[0]


def test_what_a_reader_waits_for_goes_before_the_others() -> None:
    streams = sorted(streams_of(30, 90, 10, 80, urgent=(80, 90)))
    assert [stream.extent.offset for stream in streams] == [80, 90, 10, 30]
    assert chosen(streams, 0.0) is streams[0]


def test_a_stream_without_bytes_has_no_turn() -> None:
    first, second = streams_of(1, 2)
    first.ready = False
    assert chosen([first, second], 0.0) is second
    second.ready = False
    assert chosen([first, second], 0.0) is None
    assert chosen([], 0.0) is None


def test_no_stream_is_silent_for_long() -> None:
    first, late, later = streams_of(1, 2, 3)
    first.since, late.since, later.since = 10.0 + SILENT, 10.0, 10.5
    assert chosen([first, late, later], 10.0 + SILENT) is late
    late.ready = False
    assert chosen([first, late, later], 10.0 + SILENT) is first
    assert chosen([first, late, later], 10.5 + SILENT) is later


def test_whoever_is_blocked_has_its_turn_where_nobody_else_could_send() -> None:
    first, second, third = streams_of(1, 2, 3)
    first.blocked = second.blocked = True
    first.since, second.since = 11.0, 10.0
    assert chosen([first, second, third], 11.0) is third
    third.ready = False
    assert chosen([first, second, third], 11.0) is second


def test_the_next_stream_goes_beside_one_that_begins_or_ends_and_not_in_between() -> None:
    first, blocked, waiting, second = streams_of(0, 1, 2, 3)
    first.extent = Extent(0, 4 * RAMP)
    blocked.blocked, waiting.ready = True, False
    streams = [first, blocked, waiting, second]
    seen = {}
    for position in (0, RAMP, RAMP + 1, 3 * RAMP - 1, 3 * RAMP, 4 * RAMP - 1):
        first.position = position
        seen[position] = beside(streams, first)
    assert seen == {
        0: second,
        RAMP: second,
        RAMP + 1: None,
        3 * RAMP - 1: None,
        3 * RAMP: second,
        4 * RAMP - 1: second,
    }
    assert beside([first], first) is None
    second.position += RAMP  # it has come to its speed
    assert beside(streams, first) is None
