"""The limit of receiving: plain sockets in threads, no HTTP library, no hash, straight into a file.

Ranges of 8 MiB over kept-alive connections; whole MiBs by `recv_into` with MSG_WAITALL and `pwrite`. Over
TLS an SSLSocket refuses MSG_WAITALL and gives a record of 16 KiB a call; the MiB is collected of those.
"""

from __future__ import annotations

import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from agent.transfer.landing import write_all

MIB = 1024 * 1024
RANGE = 8 * MIB
RECORD = 16 * 1024
OP_ENABLE_KTLS = 1 << 3  # SSL_OP_ENABLE_KTLS of openssl/ssl.h; Python 3.11 has no name for it
TIMEOUT = 60.0  # seconds that a connection may take; afterwards it is blocking, for MSG_WAITALL


class Truncated(Exception):
    """The server answered something else than the range, or closed in the middle of it."""


@dataclass(slots=True)
class Connection:
    """A kept-alive connection; `rest` are bytes that came with the head of the last response."""

    parts: SplitResult
    sock: socket.socket
    rest: bytes = b""

    def get(self, offset: int, length: int, target: str = "") -> None:
        """Ask for a range and read the head of the answer; the body follows with `take`."""
        wanted = target or f"{self.parts.path}?{self.parts.query}"
        head = (
            f"GET {wanted} HTTP/1.1\r\nHost: {self.parts.netloc}\r\n"
            f"Range: bytes={offset}-{offset + length - 1}\r\n\r\n"
        )
        self.sock.sendall(head.encode())
        data = b""
        while b"\r\n\r\n" not in data:
            more = self.sock.recv(RECORD)
            if not more:
                raise Truncated("the server closed the connection")
            data += more
        answer, _, self.rest = data.partition(b"\r\n\r\n")
        if not answer.startswith(b"HTTP/1.1 206"):
            raise Truncated(answer.partition(b"\r\n")[0].decode("latin-1"))

    def take(self, view: memoryview) -> None:
        """Fill the view with the next bytes of the body."""
        done = min(len(self.rest), len(view))
        view[:done] = self.rest[:done]
        self.rest = self.rest[done:]
        tls = isinstance(self.sock, ssl.SSLSocket)
        while done < len(view):
            if tls:
                count = self.sock.recv_into(view[done : done + RECORD])
            else:
                count = self.sock.recv_into(view[done:], 0, socket.MSG_WAITALL)
            if not count:
                raise Truncated("the server closed the connection")
            done += count


def connect(url: str, cafile: str | None = None, *, kernel_tls: bool = False) -> Connection:
    """Connect to the server of a URL; over TLS its certificate is checked against `cafile`."""
    parts = urlsplit(url)
    plain = socket.create_connection((parts.hostname or "", parts.port or 80), timeout=TIMEOUT)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    plain.settimeout(None)
    if parts.scheme != "https":
        return Connection(parts, plain)
    context = ssl.create_default_context(cafile=cafile)
    if kernel_tls:
        context.options |= OP_ENABLE_KTLS
    return Connection(parts, context.wrap_socket(plain, server_hostname=parts.hostname))


def download(size: int, connections: int, path: str, open_connection: Callable[[], Connection]) -> None:
    """Receive an object of `size` bytes into a new file. Raises what the first thread that failed raised."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    offsets = iter(range(0, size, RANGE))
    lock = threading.Lock()
    errors: list[BaseException] = []

    def work() -> None:
        try:
            _receive(open_connection(), _shared(offsets, lock), size, descriptor)
        except (OSError, Truncated) as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.close(descriptor)
    if errors:
        raise errors[0]


def _shared(offsets: Iterator[int], lock: threading.Lock) -> Iterator[int]:
    while True:
        with lock:
            offset = next(offsets, None)
        if offset is None:
            return
        yield offset


def _receive(connection: Connection, offsets: Iterator[int], size: int, descriptor: int) -> None:
    buffer = memoryview(bytearray(MIB))
    for start in offsets:
        end = min(start + RANGE, size)
        connection.get(start, end - start)
        for offset in range(start, end, MIB):
            part = buffer[: min(MIB, end - offset)]
            connection.take(part)
            write_all(descriptor, part, offset)
    connection.sock.close()
