"""One connection through the scripted proxy: a thread that passes messages on as the script says."""

from __future__ import annotations

import contextlib
import io
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import unquote

from tests.fakes.faults import (
    Fault,
    Gate,
    IgnoreRange,
    LengthOff,
    Reset,
    Silence,
    Slow,
    Stall,
    Status,
    Truncate,
    WrongContentRange,
)
from tests.fakes.http_message import PIECE, BrokenOff, Head, chunked, counted, cut


@dataclass(frozen=True, slots=True)
class Seen:
    """One request as it came: `key` is the decoded path without the first '/', so `bucket/key` for S3."""

    method: str
    target: str
    key: str
    range: str | None

    @property
    def is_object_get(self) -> bool:
        """A GET of an object, not a listing or another question to a bucket."""
        listing = "list-type=" in self.target or "location" in self.target.partition("?")[2]
        return self.method == "GET" and bool(self.key.partition("/")[2]) and not listing


class Script(Protocol):
    """What a connection asks the proxy."""

    def take(self, seen: Seen) -> list[Fault | Gate]:
        """Note a request and say what is to happen to it: gates, and one fault at most."""

    def left(self, connection: Connection) -> None:
        """A connection has ended."""


class _End(Exception):
    """This connection is to be closed now."""


class Connection(threading.Thread):
    """One client's connection and its own connection to the server."""

    def __init__(self, proxy: Script, client: socket.socket, upstream: tuple[str, int]) -> None:
        super().__init__(name="proxy-connection", daemon=True)
        self._proxy = proxy
        self._client = client
        self._reader = client.makefile("rb")
        self._address = upstream
        self._server: socket.socket | None = None
        self._answers: io.BufferedReader | None = None

    def abort(self) -> None:
        """End it from another thread."""
        for one in (self._client, self._server):
            if one is not None:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

    def run(self) -> None:
        try:
            while (request := Head.read(self._reader)) is not None:
                self._exchange(request)
        except (_End, BrokenOff, OSError, ValueError):
            pass
        finally:
            self._reader.close()
            self._client.close()
            self._hang_up()
            self._proxy.left(self)

    def _exchange(self, request: Head) -> None:
        seen = _seen(request)
        actions = self._proxy.take(seen)
        gates = [action for action in actions if isinstance(action, Gate)]
        fault = next((action for action in actions if not isinstance(action, Gate)), None)
        for gate in gates:
            if gate.after is None:
                gate.pass_through()
        if isinstance(fault, Silence):
            self._fall_silent()
        if isinstance(fault, Reset) and fault.after is None:
            self._reset()
        if isinstance(fault, Status):
            self._drop_body(request)
            self._client.sendall(_status_answer(fault, seen.method))
            return
        answer = self._forward(request)
        body = self._body(answer, seen.method)
        self._reply(answer, body, fault, [gate for gate in gates if gate.after is not None])

    def _reply(self, answer: Head, body: Iterator[bytes], fault: Fault | None, gates: list[Gate]) -> None:
        whole = _spoil(answer, fault)
        self._client.sendall(answer.encode())
        if whole is not None:
            self._client.sendall(whole)
            raise _End
        stops = sorted(((gate.after or 0, gate) for gate in gates), key=lambda stop: stop[0])
        end = fault.after if isinstance(fault, Truncate | Reset | Stall) else None
        if isinstance(fault, Slow):
            self._drip(body, fault.rate)
            return
        self._send(body, stops, end)
        if isinstance(fault, Stall):
            self._fall_silent()
        if isinstance(fault, Reset):
            self._reset()
        if fault is not None and not isinstance(fault, WrongContentRange):
            raise _End
        if (answer.get("connection") or "").lower() == "close":
            raise _End

    def _send(self, body: Iterator[bytes], stops: list[tuple[int, Gate]], end: int | None) -> None:
        sent = 0
        for piece in cut(body, [offset for offset, _ in stops] + ([end] if end is not None else [])):
            while stops and stops[0][0] <= sent:
                stops.pop(0)[1].pass_through()
            if end is not None and sent >= end:
                return
            self._client.sendall(piece)
            sent += len(piece)

    def _drip(self, body: Iterator[bytes], rate: int) -> None:
        """In sixteenths of a MiB: a real slow line is not silent between two bursts."""
        start, sent, never = time.monotonic(), 0, threading.Event()
        for piece in body:
            for at in range(0, len(piece), 1 << 16):
                self._client.sendall(piece[at : at + (1 << 16)])
                sent += 1 << 16
                never.wait(max(0.0, start + sent / rate - time.monotonic()))

    def _forward(self, request: Head) -> Head:
        self._dial()
        assert self._server is not None and self._answers is not None
        if request.get("expect") is not None:
            request.put("Expect", None)
            self._client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._server.sendall(request.encode())
        for piece in self._request_body(request):
            self._server.sendall(piece)
        answer = Head.read(self._answers)
        if answer is None:
            raise _End
        return answer

    def _request_body(self, request: Head) -> Iterator[bytes]:
        if request.get("transfer-encoding") is not None:
            yield from chunked(self._reader)
        else:
            yield from counted(self._reader, int(request.get("content-length") or 0))

    def _drop_body(self, request: Head) -> None:
        for _ in self._request_body(request):
            pass

    def _body(self, answer: Head, method: str) -> Iterator[bytes]:
        assert self._answers is not None
        status = int(answer.first.split(b" ", 2)[1])
        if method == "HEAD" or status in (204, 304):
            return iter(())
        if (answer.get("transfer-encoding") or "").lower() == "chunked":
            return chunked(self._answers)
        length = answer.get("content-length")
        return counted(self._answers, int(length)) if length is not None else iter(self._answers.read1, b"")

    def _dial(self) -> None:
        if self._server is None:
            self._server = socket.create_connection(self._address, timeout=30)
            self._server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._answers = self._server.makefile("rb")

    def _hang_up(self) -> None:
        if self._answers is not None:
            self._answers.close()
        if self._server is not None:
            self._server.close()

    def _fall_silent(self) -> None:
        self._hang_up()
        while self._client.recv(PIECE):
            pass
        raise _End

    def _reset(self) -> None:
        self._client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise _End


def _seen(request: Head) -> Seen:
    method, target, _ = request.first.decode("latin-1").split(" ", 2)
    path = unquote(target.partition("?")[0], errors="surrogateescape")
    return Seen(method, target, path.removeprefix("/"), request.get("range"))


def _spoil(answer: Head, fault: Fault | None) -> bytes | None:
    """Change the head as the fault wants it; the body that goes with it where it is not the server's."""
    if isinstance(fault, LengthOff):
        answer.put("Content-Length", str(int(answer.get("content-length") or 0) + fault.by))
    elif isinstance(fault, WrongContentRange):
        answer.put("Content-Range", _shifted(answer.get("content-range") or "", fault.shift))
    elif isinstance(fault, IgnoreRange):
        answer.first = b"HTTP/1.1 200 OK"
        answer.put("Content-Range", None)
        answer.put("Content-Length", str(len(fault.whole)))
        return fault.whole
    return None


def _shifted(value: str, shift: int) -> str:
    return re.sub(
        r"(\d+)-(\d+)/", lambda found: f"{int(found[1]) + shift}-{int(found[2]) + shift}/", value, count=1
    )


def _status_answer(fault: Status, method: str) -> bytes:
    body = f"<?xml version='1.0'?><Error><Code>{fault.s3_code}</Code></Error>".encode()
    head = Head(f"HTTP/1.1 {fault.code} Scripted".encode())
    head.put("Content-Type", "application/xml")
    head.put("Content-Length", str(len(body)))
    if fault.retry_after is not None:
        head.put("Retry-After", str(fault.retry_after))
    return head.encode() + (b"" if method == "HEAD" else body)
