"""A small server for the transfer workloads: `python -m bench.ranged_server [CERTIFICATE KEY]`.

It answers every ranged GET with that many bytes of one MiB of memory, over TLS where it is given a
certificate, prints its port and serves until it is ended, in a process of its own.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import ssl
import sys
import threading

MIB = 1024 * 1024
_RANGE = re.compile(rb"range: bytes=(\d+)-(\d+)", re.IGNORECASE)


def _answer(sock: socket.socket, head: bytes, block: memoryview, size: int) -> None:
    match = _RANGE.search(head)
    if match is None:
        raise ConnectionError("a GET without a Range")
    start, last = int(match[1]), int(match[2])
    length = last - start + 1
    sock.sendall(
        f"HTTP/1.1 206 Partial Content\r\nContent-Length: {length}\r\n"
        f"Content-Range: bytes {start}-{last}/{size}\r\n\r\n".encode()
    )
    while length:
        part = block[: min(MIB, length)]
        sock.sendall(part)
        length -= len(part)


def _serve(plain: socket.socket, context: ssl.SSLContext | None, block: memoryview, size: int) -> None:
    with contextlib.suppress(OSError), plain:
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock = context.wrap_socket(plain, server_side=True) if context else plain
        with sock:
            data = b""
            while more := sock.recv(16 * 1024):
                data += more
                if b"\r\n\r\n" in data:
                    head, _, data = data.partition(b"\r\n\r\n")
                    _answer(sock, head, block, size)


def main(arguments: list[str]) -> None:
    """Serve an object of the size that the first argument says."""
    size = int(arguments[0])
    context = None
    if len(arguments) > 1:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(arguments[1], arguments[2])
    block = memoryview(os.urandom(MIB))
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
        print(listening.getsockname()[1], flush=True)
        while True:
            plain, _ = listening.accept()
            threading.Thread(target=_serve, args=(plain, context, block, size), daemon=True).start()


if __name__ == "__main__":
    main(sys.argv[1:])
