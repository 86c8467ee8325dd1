"""The limit of serving: `python -m bench.sendfile_server PATH` answers ranged GETs by sendfile, in threads.

It prints its port and serves until it is ended, in a process of its own.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sys
import threading

_RANGE = re.compile(rb"range: bytes=(\d+)-(\d+)", re.IGNORECASE)


def _answer(sock: socket.socket, head: bytes, file: int, size: int) -> None:
    match = _RANGE.search(head)
    if match is None:
        raise ConnectionError("a GET without a Range")
    start, last = int(match[1]), int(match[2])
    sock.sendall(
        f"HTTP/1.1 206 Partial Content\r\nContent-Length: {last + 1 - start}\r\n"
        f"Content-Range: bytes {start}-{last}/{size}\r\n\r\n".encode()
    )
    while start <= last:
        start += os.sendfile(sock.fileno(), file, start, last + 1 - start)


def _serve(sock: socket.socket, file: int, size: int) -> None:
    with contextlib.suppress(OSError), sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        data = b""
        while more := sock.recv(16 * 1024):
            data += more
            if b"\r\n\r\n" in data:
                head, _, data = data.partition(b"\r\n\r\n")
                _answer(sock, head, file, size)


def main(arguments: list[str]) -> None:
    """Serve one file."""
    file = os.open(arguments[0], os.O_RDONLY)
    size = os.fstat(file).st_size
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
        print(listening.getsockname()[1], flush=True)
        while True:
            sock, _ = listening.accept()
            threading.Thread(target=_serve, args=(sock, file, size), daemon=True).start()


if __name__ == "__main__":
    main(sys.argv[1:])
