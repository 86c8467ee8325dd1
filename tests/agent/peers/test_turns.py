"""Turns of the streams to one peer."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Container
from pathlib import Path

from agent.cache.objects import CachedObject
from agent.content import Extent, ObjectRef
from agent.peers.turns import BESIDE, SILENT, Stream, beside, chosen, receiver_is_busy

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


def test_those_that_come_next_and_have_bytes_go_beside_the_one_whose_turn_it_is() -> None:
    streams = streams_of(*range(BESIDE + 4))
    streams[0].blocked, streams[1].ready = True, False
    assert beside(streams, streams[3], busy=False) == [streams[2], *streams[4 : 3 + BESIDE]]
    assert beside(streams, streams[3], busy=True) == [streams[2]]
    assert beside(streams[:2], streams[0], busy=False) == []


async def test_the_receiver_is_busy_where_the_kernel_waits_for_its_window() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sender = socket.create_connection(listener.getsockname())
        receiver, _ = listener.accept()
    with sender, receiver:
        assert not receiver_is_busy(sender)
        sender.setblocking(False)
        async with asyncio.timeout(10):
            while not receiver_is_busy(sender):  # which takes nothing
                with contextlib.suppress(BlockingIOError):
                    sender.send(bytes(1 << 20))
                await asyncio.sleep(0.002)
