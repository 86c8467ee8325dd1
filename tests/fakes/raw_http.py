"""A real HTTP server on loopback that says exactly what a script says, byte for byte.

Each request takes the next answer, whichever connection it comes on. An answer is a sequence of steps:
bytes are sent, an `Event` is waited for, `CLOSE` closes the connection in order, `RESET` breaks it off.
A connection stays open after an answer that ends without one of those.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
from collections import deque
from collections.abc import Sequence
from types import TracebackType

CLOSE = object()
RESET = object()
Answer = Sequence[object]


class RawServer:
    """`requests` are the heads as they came, `accepts` counts connections. Use as a context manager."""

    def __init__(self, *answers: Answer, context: ssl.SSLContext | None = None) -> None:
        self.requests: list[bytes] = []
        self.accepts = 0
        self._answers = deque(answers)
        self._events = [step for answer in answers for step in answer if isinstance(step, threading.Event)]
        self._context = context
        self._threads: list[threading.Thread] = []
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> RawServer:
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for event in self._events:
            event.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for connection in self._sockets:
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)

    def _start(self, target: object, *args: object) -> None:
        assert callable(target)
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self.accepts += 1
                self._sockets.append(connection)
            self._start(self._serve, connection)

    def _serve(self, plain: socket.socket) -> None:
        connection = plain
        # A client that refuses the certificate or goes away is part of the tests.
        with contextlib.suppress(OSError):
            if self._context is not None:
                connection = self._context.wrap_socket(plain, server_side=True)
                with self._lock:
                    self._sockets.append(connection)
            while head := _read_head(connection):
                with self._lock:
                    self.requests.append(head)
                    answer = self._answers.popleft() if self._answers else (CLOSE,)
                if not _say(connection, answer):
                    break
        connection.close()


def _read_head(connection: socket.socket) -> bytes:
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        more = connection.recv(4096)
        if not more:
            return b""
        data += more
    return data


def _say(connection: socket.socket, answer: Answer) -> bool:
    for step in answer:
        if isinstance(step, bytes):
            connection.sendall(step)
        elif isinstance(step, threading.Event):
            step.wait(30)
        else:
            if step is RESET:
                linger = struct.pack("ii", 1, 0)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            return False
    return True


def head(status: str, *lines: str) -> bytes:
    """A response head: `head("206 Partial Content", "Content-Length: 3")`."""
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode()


def partial(data: bytes, start: int, end: int, *lines: str) -> bytes:
    """The right answer to a GET of `[start, end)` out of `data`."""
    said = [f"Content-Range: bytes {start}-{end - 1}/{len(data)}", f"Content-Length: {end - start}", *lines]
    return head("206 Partial Content", *said) + data[start:end]
