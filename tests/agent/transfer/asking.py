"""What the tests of the engine ask for, and how they take it or its refusal."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from agent.content import Extent
from agent.errors import OriginError
from agent.transfer.engine import Engine
from agent.transfer.request import Endpoint, RangedGet
from tests.fakes.raw_http import RawServer, partial
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
