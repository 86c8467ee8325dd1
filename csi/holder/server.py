"""The holder's loop: one thread, one selector, connections that cannot harm each other.

A connection's next request is read only when all of the last answer is sent: a client that does not read
holds up itself and no memory beyond one answer. Descriptors that a request brought are closed when it is
answered, whatever it was; descriptors that go out are copies, closed when they are sent.
"""

from __future__ import annotations

import logging
import os
import select
import selectors
import socket
from collections import deque
from dataclasses import dataclass, field
from functools import partial

from csi.holder.operations import Client, Operations, Reply, Request
from csi.holder.protocol import (
    Message,
    Packet,
    ProtocolError,
    Refused,
    decode,
    encode,
    peer_of,
    receive,
    send,
)

MAX_CONNECTIONS = 64  # an agent, a serve and their successors are a handful

_log = logging.getLogger("headrace.holder")


@dataclass(eq=False)
class _Connection:
    socket: socket.socket
    client: Client
    out: deque[tuple[bytes, list[int]]] = field(default_factory=deque)
    ends: bool = False

    def queue(self, message: Message, descriptor: int | None) -> None:
        data = encode(message)
        self.out.append((data, [] if descriptor is None else [os.dup(descriptor)]))

    def drop(self) -> None:
        """Forget what is not sent."""
        for _, descriptors in self.out:
            for descriptor in descriptors:
                os.close(descriptor)
        self.out.clear()


class Server:
    """Accepts, checks who it is, and passes requests to the operations."""

    def __init__(
        self, listener: socket.socket, operations: Operations, users: frozenset[int], wake: socket.socket
    ) -> None:
        """`users` are the uids that may connect; a byte on `wake` ends `run`. Sockets are non-blocking."""
        self._listener = listener
        self._operations = operations
        self._users = users
        self._selector = selectors.DefaultSelector()
        self._connections: set[_Connection] = set()
        self._selector.register(listener, selectors.EVENT_READ)
        self._selector.register(wake, selectors.EVENT_READ)
        self._wake = wake

    def run(self) -> None:
        """Serve until woken."""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._wake:
                    return
                if key.fileobj is self._listener:
                    self._accept()
                elif key.data in self._connections:
                    self._turn(key.data)

    def close(self) -> None:
        """Close every connection; the listener is the caller's."""
        for connection in list(self._connections):
            self._close(connection)
        self._selector.close()

    def _accept(self) -> None:
        try:
            accepted, _ = self._listener.accept()
        except OSError as error:  # the client has gone again, or descriptors ran out
            _log.warning("accept: %s", error.strerror)
            return
        accepted.setblocking(False)
        peer = peer_of(accepted)
        if peer.uid not in self._users:
            _log.warning("refused a connection of uid %d, pid %d", peer.uid, peer.pid)
            accepted.close()
        elif len(self._connections) >= MAX_CONNECTIONS:
            _log.warning("refused a connection of pid %d: there are %d already", peer.pid, MAX_CONNECTIONS)
            accepted.close()
        else:
            connection = _Connection(accepted, Client(peer, partial(_hung_up, accepted)))
            self._connections.add(connection)
            self._selector.register(accepted, selectors.EVENT_READ, connection)

    def _turn(self, connection: _Connection) -> None:
        """The socket is ready for what its connection waits for: to send, else to receive."""
        try:
            if not connection.out:
                packet = receive(connection.socket)
                if packet is None:
                    self._close(connection)
                    return
                self._serve(connection, packet)
            self._flush(connection)
        except BlockingIOError:
            pass
        except OSError as error:
            _log.info("connection of pid %d: %s", connection.client.peer.pid, error.strerror)
            self._close(connection)
            return
        if connection.ends and not connection.out:
            self._close(connection)
            return
        events = selectors.EVENT_WRITE if connection.out else selectors.EVENT_READ
        self._selector.modify(connection.socket, events, connection)

    def _serve(self, connection: _Connection, packet: Packet) -> None:
        identity: object = None
        try:
            message = decode(packet)
            identity = _identity(message)
            replies = self._operations.answer(Request(connection.client, message, packet.descriptors))
            for reply in replies:
                self._queue(connection, identity, reply)
        except ProtocolError as error:
            connection.queue({"id": identity, "error": "bad-request", "message": str(error)}, None)
        except Refused as error:
            connection.queue({"id": identity, "error": error.code, "message": error.message}, None)
            connection.ends = error.code == "version"
        finally:
            packet.close()

    def _queue(self, connection: _Connection, identity: object, reply: Reply) -> None:
        connection.queue({"id": identity, "ok": True, **reply.message}, reply.descriptor)

    def _flush(self, connection: _Connection) -> None:
        while connection.out:
            data, descriptors = connection.out[0]
            send(connection.socket, data, descriptors)
            connection.out.popleft()
            for descriptor in descriptors:
                os.close(descriptor)

    def _close(self, connection: _Connection) -> None:
        self._connections.discard(connection)
        self._selector.unregister(connection.socket)
        connection.socket.close()
        connection.drop()
        self._operations.closed(connection.client)


def _hung_up(connection: socket.socket) -> bool:
    """Packets may still lie before the end, so that receiving would tell late."""
    poll = select.poll()
    poll.register(connection, 0)  # POLLHUP is told always
    return bool(poll.poll(0))


def _identity(message: Message) -> object:
    """The request's id, given back as it came; None where it is no small number or text."""
    identity = message.get("id")
    if isinstance(identity, int) and abs(identity) < 1 << 64:
        return identity
    return identity if isinstance(identity, str) and len(identity) <= 64 else None
