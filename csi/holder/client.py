"""The asking end of the descriptor protocol, for the agent and for `headrace-csi serve`.

Calls block, up to a deadline, and go one at a time under a lock: requests are rare. An answer that comes
after its deadline is recognised by its id and dropped, with its descriptors.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from csi.holder.protocol import (
    VERSIONS,
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


class HolderGone(Exception):
    """The holder is not there, does not answer in time, or is none: one line that says what to do."""


@dataclass
class Answer:
    """One packet of an answer. `take` hands a descriptor over; the others are closed with `close`."""

    message: Message = field(repr=False)
    packet: Packet = field(repr=False)

    def take(self) -> int:
        """The packet's descriptor, from now on the caller's. Raises HolderGone where it has none."""
        if not self.packet.descriptors:
            raise HolderGone("the holder's answer lacks its descriptor; are holder and agent of one release?")
        return self.packet.descriptors.pop(0)

    def close(self) -> None:
        self.packet.close()


class HolderConnection:
    """One connection to the holder, greeted. Safe for several threads."""

    def __init__(self, connection: socket.socket, path: str, timeout: float) -> None:
        self._socket = connection
        self._path = path
        self._timeout = timeout
        self._lock = threading.Lock()
        self._last_id = 0
        self.version = 0
        self.build = ""  # the holder's

    @classmethod
    def open(cls, path: str, role: str, build: str, timeout: float) -> HolderConnection:
        """Connect, check that root listens, and say hello.

        `timeout` is the deadline of each request, in seconds. Raises HolderGone, or Refused where the
        holder shares no version.
        """
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        opened = cls(connection, path, timeout)
        try:
            opened._greet(role, build)
        except BaseException:
            connection.close()
            raise
        return opened

    def _greet(self, role: str, build: str) -> None:
        # Not a Python timeout: a non-blocking connect fails at once where the holder's backlog is full.
        seconds, fraction = divmod(self._timeout, 1)
        limit = struct.pack("ll", int(seconds), int(fraction * 1e6))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        try:
            self._socket.connect(self._path)
        except OSError as error:
            reason = error.strerror or "no answer"
            raise HolderGone(f"holder socket {self._path}: {reason}; start `headrace-csi hold`") from error
        listener = peer_of(self._socket)
        if listener.uid != 0:
            raise HolderGone(f"holder socket {self._path}: uid {listener.uid} listens there, not root")
        with self.request("hello", {"versions": list(VERSIONS), "role": role, "build": build}) as (answer,):
            version = answer.message.get("version")
            self.build = str(answer.message.get("build", "unknown"))
        if not isinstance(version, int) or version not in VERSIONS:
            raise HolderGone(
                f"holder socket {self._path}: it chose version {version!r}, which nobody offered"
            )
        self.version = version

    @contextmanager
    def request(
        self, op: str, fields: Message, descriptors: Sequence[int] = (), *, several: bool = False
    ) -> Iterator[list[Answer]]:
        """Ask, and give the answer's packets for the length of a `with` block.

        Descriptors that the block does not take are closed behind it. With `several` the answer goes on
        to the packet whose `part` is "end". Raises Refused and HolderGone.
        """
        answers: list[Answer] = []
        with self._lock:
            deadline = time.monotonic() + self._timeout
            try:
                self._last_id += 1
                self._send(op, fields, descriptors)
                answers.append(self._next(op, deadline))
                while several and answers[-1].message.get("part") != "end":
                    answers.append(self._next(op, deadline))
                yield answers
            finally:
                for answer in answers:
                    answer.close()

    def _send(self, op: str, fields: Message, descriptors: Sequence[int]) -> None:
        try:
            data = encode({**fields, "id": self._last_id, "op": op})
        except ProtocolError as error:
            raise Refused("bad-request", str(error)) from error
        self._socket.settimeout(self._timeout)
        try:
            send(self._socket, data, descriptors)
        except OSError as error:
            raise self._lost(op, error) from error

    def _next(self, op: str, deadline: float) -> Answer:
        while True:
            packet = self._receive(op, deadline)
            try:
                message = decode(packet)
            except ProtocolError as error:
                packet.close()
                raise HolderGone(f"holder socket {self._path}: {error} came back to {op}") from error
            if message.get("id") == self._last_id:
                break
            packet.close()
        if "error" in message:
            packet.close()
            raise Refused(str(message["error"]), str(message.get("message", "")))
        return Answer(message, packet)

    def _receive(self, op: str, deadline: float) -> Packet:
        self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
        try:
            packet = receive(self._socket)
        except OSError as error:
            raise self._lost(op, error) from error
        if packet is None:
            raise self._closed(op)
        return packet

    def _lost(self, op: str, error: OSError) -> HolderGone:
        if isinstance(error, TimeoutError):
            return HolderGone(f"holder socket {self._path}: no answer to {op} in {self._timeout:g} s")
        if isinstance(error, ConnectionError):
            return self._closed(op)
        return HolderGone(f"holder socket {self._path}: {op}: {error.strerror}")

    def _closed(self, op: str) -> HolderGone:
        return HolderGone(
            f"holder socket {self._path}: closed at {op}; the holder has ended, or serves"
            f" only root and its --agent-user (this is uid {os.getuid()})"
        )

    def fileno(self) -> int:
        """To poll for the connection's end (POLLHUP); answers are for `request` alone to read."""
        return self._socket.fileno()

    def close(self) -> None:
        """End the connection; a claim ends with it, and a request under way in another thread fails."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._socket.close()
