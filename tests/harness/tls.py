"""TLS in front of a server on loopback, with a certificate of an authority that no machine knows."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

_KEY = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"


@dataclass(frozen=True)
class Authority:
    """A private CA, and what it has signed: a certificate for 127.0.0.1."""

    certificate: Path
    context: ssl.SSLContext


def authority(directory: Path) -> Authority:
    """Made in `directory` with openssl."""
    ca, ca_key, served, key = (directory / name for name in ("ca.pem", "ca.key", "served.pem", "served.key"))
    _openssl(f"{_KEY} -subj /CN=authority -keyout {ca_key} -out {ca}")
    signed = f"-CA {ca} -CAkey {ca_key} -addext subjectAltName=IP:127.0.0.1 -addext basicConstraints=CA:FALSE"
    _openssl(f"{_KEY} -subj /CN=origin {signed} -keyout {key} -out {served}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(served, key)
    return Authority(ca, context)


def _openssl(arguments: str) -> None:
    subprocess.run(
        ["openssl", "req", "-x509", *arguments.split()], check=True, capture_output=True, timeout=30
    )


@contextlib.asynccontextmanager
async def in_front_of(port: int, context: ssl.SSLContext) -> AsyncIterator[int]:
    """The port that answers over TLS for `port`."""
    tasks: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):  # a side that goes away
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_connection("127.0.0.1", port)
        try:
            await asyncio.gather(pump(reader, forth), pump(back, writer))
        finally:
            for side in (forth, writer):
                side.transport.abort()  # a close would wait for the other side's in TLS

    def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accepted, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await asyncio.sleep(0)  # in which the connections go
