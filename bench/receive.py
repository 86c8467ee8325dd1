"""The receiving child: `python -m bench.receive`, a job as JSON on stdin, a reading on stdout.

The ways: `raw` and `raw-ktls` (bench/raw.py), `engine` (the agent's transfer engine into landings, as the
fill uses it: hashed, written), `one` (a plain ranged GET of the first MiB) and `many` (small objects, one
after another on one connection).
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from agent.clock import SystemClock
from agent.content import Extent
from agent.origin.url import endpoint_of
from agent.transfer.engine import Engine
from agent.transfer.landing import Landing
from agent.transfer.request import RangedGet
from bench.raw import MIB, RANGE, connect, download

Job = Mapping[str, Any]


def raw(job: Job) -> int:
    """Download the object as bench/raw.py does."""
    kernel_tls = job["way"] == "raw-ktls"
    size: int = job["size"]
    download(
        size,
        job["connections"],
        job["path"],
        lambda: connect(job["url"], job.get("cafile"), kernel_tls=kernel_tls),
    )
    return size


def engine(job: Job) -> int:
    """Download the object with the transfer engine; SSL_CERT_FILE says whom it trusts."""
    descriptor = os.open(job["path"], os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        asyncio.run(_with_engine(job, descriptor))
    finally:
        os.close(descriptor)
    size: int = job["size"]
    return size


def one(job: Job) -> int:
    """GET the first MiB on a new connection, with nothing around it."""
    connection = connect(job["url"])
    connection.get(0, MIB)
    connection.take(memoryview(bytearray(MIB)))
    connection.sock.close()
    return MIB


def many(job: Job) -> int:
    """GET small objects one after another on one kept-alive connection."""
    urls, length = job["urls"], job["length"]
    connection = connect(urls[0])
    view = memoryview(bytearray(length))
    for url in urls:
        parts = urlsplit(url)
        connection.get(0, length, f"{parts.path}?{parts.query}")
        connection.take(view)
    connection.sock.close()
    received: int = length * len(urls)
    return received


async def _with_engine(job: Job, descriptor: int) -> None:
    connections: int = job["connections"]
    receiving = Engine(connections, SystemClock())
    room = asyncio.Semaphore(connections)

    async def fetch(offset: int) -> None:
        extent = Extent(offset, min(RANGE, job["size"] - offset))
        async with room:
            landing = Landing(descriptor, extent)
            await receiving.receive(_ranged_get(job["url"], job["size"], extent), landing)
            landing.digest()

    try:
        await asyncio.gather(*(fetch(offset) for offset in range(0, job["size"], RANGE)))
    finally:
        await receiving.close()


def _ranged_get(url: str, size: int, extent: Extent) -> RangedGet:
    parts = urlsplit(url)
    return RangedGet(
        endpoint=endpoint_of(url),
        target=f"{parts.path}?{parts.query}",
        headers={"Host": parts.netloc, "Range": f"bytes={extent.offset}-{extent.end - 1}"},
        extent=extent,
        size=size,
        check=lambda _: None,
        name="bench",
    )


WAYS: dict[str, Callable[[Job], int]] = {
    "raw": raw,
    "raw-ktls": raw,
    "engine": engine,
    "one": one,
    "many": many,
}


def main() -> None:
    """Do one job and say how long it took; the file that it made is removed when the clock has stopped."""
    job: Job = json.load(sys.stdin)
    before = resource.getrusage(resource.RUSAGE_SELF)
    started = time.monotonic()
    size = WAYS[job["way"]](job)
    seconds = time.monotonic() - started
    usage = resource.getrusage(resource.RUSAGE_SELF)
    cpu = usage.ru_utime + usage.ru_stime - before.ru_utime - before.ru_stime
    if "path" in job:
        Path(job["path"]).unlink()
    print(json.dumps({"seconds": seconds, "size": size, "cpu_seconds": cpu}))


if __name__ == "__main__":
    main()
