"""One kept-alive HTTP/1.1 connection, blocking, used by one receiving thread at a time.

Heads are the matter of heads.py and h11; of bodies h11 sees those in chunked coding only. Others are taken in
whole pieces by `recv_into` with MSG_WAITALL into the thread's own buffer (measured at 2000 MB/s per
CPU-second; http.client 1600, aiohttp 800 to 1250). Stalls are ended by SO_RCVTIMEO, because Python's own
timeouts make the socket non-blocking, and MSG_WAITALL without effect. TLS gives 16 KiB a call and no
MSG_WAITALL; the same loop collects its records to the same pieces, and Python's timeouts end its stalls: its
reads go on after an SO_RCVTIMEO as if nothing had been.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import socket
import ssl
import struct
import sys
import termios
from collections.abc import Callable, Iterator, Mapping, Sequence

import h11

from agent.errors import OriginMisbehaved, OriginUnavailable
from agent.transfer import heads
from agent.transfer.heads import ResponseHead
from agent.transfer.request import PIECE, Endpoint

HEAD_LIMIT = 64 * 1024
# The first pieces of a response that a reader waits for are smaller still, so that it does not wait for them.
FIRST_PIECES = (128 * 1024, 128 * 1024, 256 * 1024)
Watch = Callable[[Callable[[], None] | None], None]
STALLED = (BlockingIOError, TimeoutError)  # of SO_RCVTIMEO, of Python's own timeout
# A wait for the origin is cut into ticks of a quarter of the stall timeout. Three silent ones are a stall:
# the byte before them may have come early in a fourth, so the origin is silent for a whole one at most.
TICKS, SILENT_TICKS = 4, 3


class Connection:
    """A connection to one endpoint. Every method may raise OSError; `abort` may be called from any thread."""

    def __init__(
        self,
        endpoint: Endpoint,
        context: ssl.SSLContext | None,
        timeout: float,
        watch: Watch = lambda _: None,
    ) -> None:
        """Connect (and shake hands, where `context` is given), with no wait longer than `timeout` seconds.

        `watch` is told how to abort what goes on now, and None once that must not be done any more.
        """
        self.endpoint = endpoint
        self._rest = b""
        self._asked: tuple[str, str, Mapping[str, str]] | None = None  # method, target, headers
        self._silent = 0  # ticks since the last byte
        self._stall_timeout = -1.0
        self._wait_all = 0 if context is not None else socket.MSG_WAITALL
        self._socket = _connect(endpoint, timeout, watch)
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if context is not None:
                self._shake_hands(context, watch)
            self.set_stall_timeout(timeout)
        except BaseException:
            watch(None)
            self._socket.close()
            raise

    def set_stall_timeout(self, seconds: float) -> None:
        """How long the origin may be silent (socket(7), SO_RCVTIMEO and SO_SNDTIMEO)."""
        self._silent = 0
        if seconds == self._stall_timeout:
            return
        self._stall_timeout = seconds
        if not self._wait_all:
            self._socket.settimeout(seconds / TICKS)
            return
        self._socket.setblocking(True)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(seconds / TICKS))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(seconds))

    def send(self, method: str, target: str, headers: Mapping[str, str]) -> None:
        """Send a request without a body."""
        data = heads.request_bytes(method, target, headers)
        self._asked = (method, target, headers)
        self._socket.sendall(data)
        # What follows is no conversation, for which the kernel keeps acknowledgements back (tcp(7)): whoever
        # sends would wait with a full window. Measured on loopback: 1.33 GB/s with it, 1.24 without.
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def read_head(self) -> ResponseHead:
        """Read the response's head; 1xx responses are skipped. Raises OriginMisbehaved, OriginUnavailable."""
        parser = None
        while True:
            head = self._head_bytes()
            found = heads.ordinary(head)
            if found is not None:
                return found
            parser = parser or self._parser()
            try:
                parser.receive_data(head)
                event = parser.next_event()
            except h11.RemoteProtocolError as error:
                raise OriginMisbehaved(f"the origin's answer is not HTTP: {error}") from error
            if isinstance(event, h11.Response):
                return heads.parsed(event)

    def body(
        self, length: int, buffer: memoryview, first_pieces: Sequence[int] = FIRST_PIECES
    ) -> Iterator[memoryview]:
        """The next `length` bytes in pieces, each a view of `buffer`, valid until the next one.

        Raises OriginUnavailable where the origin stalls or closes before the last byte.
        """
        sizes = iter(first_pieces)
        while length:
            size = min(next(sizes, PIECE), length, len(buffer))
            count = self._fill(buffer[:size])
            length -= count
            yield buffer[:count]

    def units(
        self, length: int, buffer: memoryview, unit: int, trailer: int
    ) -> Iterator[tuple[memoryview, memoryview]]:
        """The next `length` bytes in units, behind each of which `trailer` bytes come that are not counted.

        Given are whole units, side by side in `buffer`, and their trailers: one unit, or as many as have
        arrived and fit. The last unit may be shorter. Raises as `body` does.
        """
        trailers = memoryview(bytearray(len(buffer) // unit * trailer))
        while length:
            arrived = self._arrived() // (unit + trailer)
            data = buffer[: min(length, unit * max(1, min(arrived, len(buffer) // unit)))]
            behind = trailers[: -(-len(data) // unit) * trailer]
            self._fill_units(data, behind, unit, trailer)
            length -= len(data)
            yield data, behind

    def chunked_body(self, length: int) -> Iterator[memoryview]:
        """A body of `length` bytes in chunked coding (RFC 9112, 7.1), decoded by h11; a slow, rare way."""
        parser = self._parser()
        parser.receive_data(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + self._rest)
        self._rest = b""
        try:
            while True:
                event = parser.next_event()
                if event is h11.NEED_DATA:
                    parser.receive_data(self._recv_some())
                elif isinstance(event, h11.Data):
                    length -= len(event.data)
                    if length < 0:
                        raise OriginMisbehaved("the origin sent more bytes than it was asked for")
                    yield memoryview(bytes(event.data))
                elif isinstance(event, h11.EndOfMessage):
                    break
        except h11.RemoteProtocolError as error:
            raise OriginUnavailable("the origin broke off the bytes") from error
        if length:
            raise OriginUnavailable("the origin's answer is too short")

    @property
    def drained(self) -> bool:
        """Whether nothing is left of the last response; what is left would pass for the next one's head."""
        return not self._rest

    def peek_error(self, limit: int = 4096) -> bytes:
        """Some of an error's body, for the message; the connection is of no use afterwards."""
        if not self._rest:
            with contextlib.suppress(OSError):
                self._rest = self._socket.recv(limit)
        return self._rest[:limit]

    def abort(self) -> None:
        """Wake whoever waits on this connection with an error."""
        _shut_down(self._socket)

    def close(self) -> None:
        self._socket.close()

    def _shake_hands(self, context: ssl.SSLContext, watch: Watch) -> None:
        secured = context.wrap_socket(
            self._socket, server_hostname=self.endpoint.host, do_handshake_on_connect=False
        )
        self._socket = secured
        watch(functools.partial(_shut_down, secured))
        secured.do_handshake()

    def _parser(self) -> h11.Connection:
        parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_LIMIT)
        if self._asked is not None:
            method, target, headers = self._asked
            parser.send(h11.Request(method=method, target=target, headers=list(headers.items())))
            parser.send(h11.EndOfMessage())
        return parser

    def _head_bytes(self) -> bytes:
        data = self._rest
        while (cut := data.find(b"\r\n\r\n")) < 0:
            if len(data) > HEAD_LIMIT:
                raise OriginMisbehaved("the head of the origin's answer is larger than 64 KiB")
            data += self._recv_some()
        self._rest = data[cut + 4 :]
        return data[: cut + 4]

    def _recv_some(self) -> bytes:
        while True:
            try:
                data = self._socket.recv(16 * 1024)
            except STALLED as error:
                self._count_silence("the origin does not answer", error)
                continue
            self._silent = 0
            if not data:
                raise ConnectionResetError("the origin closed the connection")
            return data

    def _count_silence(self, message: str, error: OSError) -> None:
        self._silent += 1
        if self._silent >= SILENT_TICKS:
            raise OriginUnavailable(message) from error

    def _arrived(self) -> int:
        """Bytes that the kernel has for this connection (tcp(7), SIOCINQ)."""
        return int.from_bytes(fcntl.ioctl(self._socket.fileno(), termios.FIONREAD, bytes(4)), sys.byteorder)

    def _fill_units(self, data: memoryview, trailers: memoryview, unit: int, trailer: int) -> None:
        views = []
        for number, start in enumerate(range(0, len(data), unit)):
            views += [data[start : start + unit], trailers[number * trailer : (number + 1) * trailer]]
        done = 0
        if self._wait_all and not self._rest:
            try:
                done = self._socket.recvmsg_into(views, 0, self._wait_all)[0]
                self._silent = 0
            except STALLED as error:
                self._count_silence("the origin stalled in the middle of the bytes", error)
        if done == len(data) + len(trailers):
            return
        for view in views:
            self._fill_all(view[done:])
            done = max(0, done - len(view))

    def _fill_all(self, view: memoryview) -> None:
        while view:
            view = view[self._fill(view) :]

    def _fill(self, view: memoryview) -> int:
        """Fill `view` if it can be; the count of bytes. A stall or the end before any byte raises.

        What came before a silence or the end is handed on first.
        """
        done = 0
        if self._rest:
            done = min(len(self._rest), len(view))
            view[:done] = self._rest[:done]
            self._rest = self._rest[done:]
        while done < len(view):
            try:
                count = self._socket.recv_into(view[done:] if done else view, 0, self._wait_all)
            except STALLED as error:
                self._count_silence("the origin stalled in the middle of the bytes", error)
                if done:
                    return done
                continue
            self._silent = 0
            done += count
            if not count or self._wait_all:  # with MSG_WAITALL less than asked for is a stall or the end
                break
        if not done:
            raise OriginUnavailable("the origin closed the connection in the middle of the bytes")
        return done


def _connect(endpoint: Endpoint, timeout: float, watch: Watch) -> socket.socket:
    """`socket.create_connection`, but for `watch`: an unreachable origin must not hold up who gives up."""
    failure = OSError(f"{endpoint.host} has no address")
    found = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    for family, kind, protocol, _, address in found:
        plain = socket.socket(family, kind, protocol)
        try:
            watch(functools.partial(_shut_down, plain))
            plain.settimeout(timeout)
            plain.connect(address)
            return plain
        except BaseException as error:
            watch(None)
            plain.close()
            if not isinstance(error, OSError):
                raise
            failure = error
    raise failure


def _timeval(seconds: float) -> bytes:
    return struct.pack("ll", int(seconds), int(seconds % 1 * 1_000_000))


def _shut_down(connected: socket.socket) -> None:
    """Wake whoever waits on a socket, from any thread.

    Not by `SSLSocket.shutdown`: that makes the socket a plain one, and a thread between two reads would take
    TLS records for the object's bytes.
    """
    with contextlib.suppress(OSError):
        socket.socket.shutdown(connected, socket.SHUT_RDWR)
