"""Stores with objects in them, and exchanges on loopback."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import xxhash

from agent.cache.directory import StoreLimits
from agent.cache.objects import CachedObject
from agent.cache.store import Store
from agent.clock import SystemClock
from agent.content import ObjectRef
from agent.metrics import Metrics
from agent.peers.digests import UnitDigests
from agent.peers.exchange_server import Call, Exchange, Helper
from agent.peers.secrets import Secrets
from agent.peers.token import Tokens
from tests.harness.s3 import free_ports

CHUNK = 4 << 20
SECRET = "the-secret-of-the-tests-cluster-0123456789"


def random_bytes(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def secret_file(directory: Path, secret: str = SECRET) -> Path:
    path = directory / "peer-secret"
    path.write_text(secret + "\n")
    path.chmod(0o600)
    return path


@dataclass(eq=False)
class Served:
    """One agent's store and exchange."""

    store: Store
    exchange: Exchange
    tokens: Tokens
    metrics: Metrics
    digests: UnitDigests
    address: str
    port: int

    async def keep(self, ref: ObjectRef, data: bytes, *chunks: int) -> CachedObject:
        """Put an object into the store: these chunks of it, all where none are named."""
        cached = await self.store.acquire(ref)
        for chunk in chunks or range(len(cached.present)):
            extent = cached.extent(chunk)
            part = data[extent.offset : extent.end]
            self.store.reserve(cached, chunk)
            os.pwrite(cached.fd, part, extent.offset)
            await self.store.record(cached, chunk, xxhash.xxh3_128_digest(part))
        return cached


Serve = Callable[..., Awaitable[Served]]


@pytest.fixture
async def serve(tmp_path: Path) -> AsyncIterator[Serve]:
    """Starts an agent's exchange; all end with the test."""
    clock = SystemClock()
    async with AsyncExitStack() as stack:

        async def start(
            name: str = "store",
            calls: dict[str, Call] | None = None,
            binary: frozenset[str] = frozenset(),
            helper: Helper | None = None,
            known: Callable[[str], bool] = lambda _: False,
        ) -> Served:
            directory = tmp_path / name
            directory.mkdir(mode=0o700)
            store = await Store.open([directory], CHUNK, StoreLimits(None, 0), clock)
            stack.push_async_callback(store.close)
            (port,) = free_ports(1)
            address = f"127.0.0.1:{port}"
            tokens = Tokens(Secrets(secret_file(tmp_path), clock), clock, address)
            metrics = Metrics()
            calls = {} if calls is None else calls
            digests = UnitDigests()
            exchange = Exchange(store, tokens, clock, metrics, calls, digests, helper, None, binary, known)
            await exchange.start(("127.0.0.1", port))
            stack.push_async_callback(exchange.close)
            return Served(store, exchange, tokens, metrics, digests, address, port)

        yield start
