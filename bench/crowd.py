"""A crowd of strangers at a port: each connects, begins a request's head and sends it byte by byte, and comes
again where it is shut out.

The connections are spread over processes, so that the crowd is larger than what one process may have open.

    python crowd.py HOST PORT COUNT

is one such process: it says "open", and at the end of its input how many 503 it got.
"""

from __future__ import annotations

import contextlib
import select
import socket
import subprocess
import sys
from collections.abc import Iterator

EACH = 500  # connections of one process; a limit of 1,024 descriptors is the lowest that is common
EVERY = 1.0  # seconds between two bytes of a connection
AGAIN = 10  # one in so many of those that were shut out comes again each time
WITHIN = 30.0  # seconds for one connection, and for the end
HEAD = b"GET / HTTP/1.1\r\nX: "


class Crowd:
    """The processes, all of whose connections have been made once."""

    def __init__(self, address: str, count: int) -> None:
        host, _, port = address.rpartition(":")
        shares = [min(EACH, count - begun) for begun in range(0, count, EACH)]
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-ES", __file__, host, port, str(share)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for share in shares
        ]
        for process in self._processes:
            assert process.stdout is not None
            if process.stdout.readline() != "open\n":
                self.kill()
                raise RuntimeError("the crowd cannot connect")

    def refused(self) -> int:
        """Have all leave, and give the number of 503 that they got."""
        try:
            return sum(int(process.communicate(timeout=WITHIN)[0]) for process in self._processes)
        finally:
            self.kill()

    def kill(self) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()


@contextlib.contextmanager
def crowd(address: str, count: int) -> Iterator[Crowd]:
    """A crowd until the block ends."""
    found = Crowd(address, count)
    try:
        yield found
    finally:
        found.kill()


class _Member:
    """One process's share."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self._begun: set[int] = set()  # descriptors of connections that have sent the beginning of a head
        self._sockets: dict[int, socket.socket] = {}
        self._poll = select.epoll()
        self.refused = 0

    def __len__(self) -> int:
        return len(self._sockets)

    def connect(self, count: int) -> None:
        """Raises OSError where nobody answers."""
        for _ in range(count):
            connection = socket.create_connection(self._address, timeout=WITHIN)
            connection.setblocking(False)
            self._sockets[connection.fileno()] = connection
            self._poll.register(connection, select.EPOLLIN)

    def drip(self) -> None:
        """Let go of those that were shut out, and send a byte for the others."""
        for fd, _ in self._poll.poll(0):
            with contextlib.suppress(OSError):
                self.refused += self._sockets[fd].recv(4096).startswith(b"HTTP/1.1 503 ")
            self._leave(fd)
        for fd, connection in list(self._sockets.items()):
            try:
                connection.send(b"a" if fd in self._begun else HEAD)
                self._begun.add(fd)
            except OSError:
                self._leave(fd)

    def _leave(self, fd: int) -> None:
        self._begun.discard(fd)
        self._sockets.pop(fd).close()


def _main(host: str, port: str, count: str) -> None:
    member = _Member((host, int(port)))
    member.connect(int(count))
    print("open", flush=True)
    while not select.select([sys.stdin], [], [], EVERY)[0]:
        member.drip()
        with contextlib.suppress(OSError):  # it is full, and lets nobody wait any more
            member.connect((int(count) - len(member)) // AGAIN)
    member.drip()
    print(member.refused, flush=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])
