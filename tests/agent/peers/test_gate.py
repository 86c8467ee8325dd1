"""The door of the peers' port where descriptors are few, or none is left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
from collections.abc import Iterator

from aiohttp import web

from agent.peers.gate import CONNECTIONS, STRANGERS, SWEEP_EVERY, UNPACED, Gate, bounds
from tests.fakes.clock import ManualClock


@contextlib.contextmanager
def none_left() -> Iterator[None]:
    """This process can open nothing."""
    usual = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    most = max(map(int, os.listdir("/proc/self/fd"))) + 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, usual[1]))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, usual)
        for fd in taken:
            os.close(fd)


def test_peers_take_half_of_the_descriptors_at_most_and_strangers_of_each_kind_an_eighth() -> None:
    assert bounds(1024) == (512, 128)
    assert bounds(1 << 20) == bounds(resource.RLIM_INFINITY) == (CONNECTIONS, STRANGERS)


async def test_without_a_descriptor_it_looks_again_after_a_while_and_then_takes_who_waits() -> None:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=401)

    clock, server = ManualClock(), web.Server(answer)
    gate, listener = Gate(clock), socket.create_server(("127.0.0.1", 0))
    with socket.create_connection(listener.getsockname(), timeout=10) as peer:
        peer.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        with none_left():
            gate.start(listener, server)
            assert await clock.next_sleep() == SWEEP_EVERY
        clock.advance(SWEEP_EVERY)
        assert (await asyncio.to_thread(peer.recv, 12)) == b"HTTP/1.1 401"
    await gate.close()
    await server.shutdown(1.0)


async def test_what_comes_over_loopback_is_not_paced() -> None:
    asked: list[bytes] = []

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        assert request.transport is not None
        connection = request.transport.get_extra_info("socket")
        asked.append(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0"))
        return web.Response(status=401)

    gate, server = Gate(ManualClock()), web.Server(answer)
    listener = socket.create_server(("127.0.0.1", 0))
    with socket.create_connection(listener.getsockname(), timeout=10) as peer:
        gate.start(listener, server)
        peer.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await asyncio.to_thread(peer.recv, 12)
    await gate.close()
    await server.shutdown(1.0)
    assert asked == [UNPACED]
