"""Framing of the descriptor protocol: one JSON object a packet, descriptors beside it (PROTOCOL.md).

Both ends use this module, so that the framing exists once. A UNIX SOCK_SEQPACKET socket keeps the packets
apart and carries descriptors with SCM_RIGHTS (unix(7)); a packet stays under 64 KiB, so that none is cut.
"""

from __future__ import annotations

import array
import json
import os
import re
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

VERSIONS = (1,)
MAX_PACKET = 60 * 1024
MAX_RECORD = 16 * 1024
MAX_NOTE = 8 * 1024
MAX_DESCRIPTORS = 4  # of one packet; the kernel closes those beyond
MOUNT_NAME = re.compile(r"[a-z0-9-]{1,64}")

Message = dict[str, object]


class ProtocolError(Exception):
    """A packet that is none of this protocol: cut, not JSON, or not an object."""


class Refused(Exception):
    """The holder's answer to a request that it does not carry out: a code of PROTOCOL.md and one line."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True)
class Packet:
    """What one receive brought. Whoever takes the packet owns its descriptors."""

    data: bytes
    descriptors: list[int] = field(default_factory=list)
    cut: bool = False

    def close(self) -> None:
        """Close the descriptors that nobody took."""
        while self.descriptors:
            os.close(self.descriptors.pop())


def encode(message: Message) -> bytes:
    """The packet of a message. Raises ProtocolError where it is too big or no JSON."""
    try:
        data = json.dumps(message, separators=(",", ":"), allow_nan=False).encode("ascii")
    except (TypeError, ValueError, RecursionError) as error:
        raise ProtocolError(f"not JSON: {error}") from error
    if len(data) > MAX_PACKET:
        raise ProtocolError(f"a packet of {len(data)} bytes, {MAX_PACKET} are allowed")
    return data


def decode(packet: Packet) -> Message:
    """The message of a packet. Raises ProtocolError where there is none in it."""
    if packet.cut:
        raise ProtocolError(f"a packet longer than {MAX_PACKET} bytes or with too many descriptors")
    try:
        message = json.loads(packet.data)
    except (ValueError, RecursionError) as error:
        raise ProtocolError("a packet that is not JSON") from error
    if not isinstance(message, dict):
        raise ProtocolError("a packet that is not a JSON object")
    return message


def send(connection: socket.socket, data: bytes, descriptors: Sequence[int] = ()) -> None:
    """Send one packet; OSError as of sendmsg(2), BlockingIOError where the socket takes none now."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    connection.sendmsg([data], rights, socket.MSG_NOSIGNAL)


def receive(connection: socket.socket) -> Packet | None:
    """The next packet, or None where the other end has closed (or sent an empty packet)."""
    space = socket.CMSG_SPACE(MAX_DESCRIPTORS * array.array("i").itemsize)
    data, ancillary, flags, _ = connection.recvmsg(MAX_PACKET + 1, space, socket.MSG_CMSG_CLOEXEC)
    descriptors = array.array("i")
    for level, kind, rights in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(rights[: len(rights) - len(rights) % descriptors.itemsize])
    packet = Packet(
        data,
        list(descriptors),
        bool(flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)) or len(data) > MAX_PACKET,
    )
    if not data:
        packet.close()
        return None
    return packet


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end, as the kernel knows it (SO_PEERCRED, unix(7)); of the time it connected."""

    pid: int
    uid: int
    gid: int


def peer_of(connection: socket.socket) -> Peer:
    """The process that connected, or that listened, at the other end."""
    size = struct.calcsize("3i")
    return Peer(*struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)))


def pages(items: Iterable[object], limit: int = MAX_PACKET // 2) -> Iterator[list[object]]:
    """Cut a long list into lists whose JSON takes about `limit` bytes each; none where it is empty."""
    page: list[object] = []
    size = 0
    for item in items:
        length = len(json.dumps(item)) + 1
        if page and size + length > limit:
            yield page
            page, size = [], 0
        page.append(item)
        size += length
    if page:
        yield page
