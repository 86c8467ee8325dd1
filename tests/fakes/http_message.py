"""HTTP/1.1 messages as they are on the wire, for a proxy that must not change them (RFC 9112)."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field

PIECE = 256 * 1024


class BrokenOff(Exception):
    """The message ends before its end."""


@dataclass(slots=True)
class Head:
    """The first line and the headers of a message, in their order and spelling."""

    first: bytes
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)

    @classmethod
    def read(cls, reader: io.BufferedReader) -> Head | None:
        first = reader.readline(65536)
        if not first.endswith(b"\r\n"):
            return None
        head = cls(first[:-2])
        while (line := reader.readline(65536)) != b"\r\n":
            if not line.endswith(b"\r\n"):
                return None
            name, _, value = line[:-2].partition(b":")
            head.headers.append((name, value.strip()))
        return head

    def get(self, name: str) -> str | None:
        wanted = name.lower().encode()
        return next((value.decode("latin-1") for key, value in self.headers if key.lower() == wanted), None)

    def put(self, name: str, value: str | None) -> None:
        """Replace a header; None takes it out."""
        lower = name.lower().encode()
        self.headers = [pair for pair in self.headers if pair[0].lower() != lower]
        if value is not None:
            self.headers.append((name.encode(), value.encode("latin-1")))

    def encode(self) -> bytes:
        lines = [self.first, *(name + b": " + value for name, value in self.headers)]
        return b"\r\n".join(lines) + b"\r\n\r\n"


def counted(reader: io.BufferedReader, length: int) -> Iterator[bytes]:
    while length:
        piece = reader.read1(min(length, PIECE))
        if not piece:
            raise BrokenOff
        length -= len(piece)
        yield piece


def chunked(reader: io.BufferedReader) -> Iterator[bytes]:
    """A chunked body as it is on the wire, to its end (RFC 9112, 7.1)."""
    while True:
        line = reader.readline(65536)
        yield line
        size = int(line.partition(b";")[0], 16)
        yield from counted(reader, size) if size else ()
        if not size:
            while (line := reader.readline(65536)) not in (b"\r\n", b""):
                yield line
            yield b"\r\n"
            return
        yield reader.readline(2)


def cut(body: Iterator[bytes], offsets: list[int]) -> Iterator[bytes]:
    """The same bytes, with a boundary at each offset; empty pieces mark offsets 0 and the end."""
    yield b""
    done = 0
    for piece in body:
        view = piece
        for offset in sorted(offsets):
            if done < offset < done + len(view):
                yield view[: offset - done]
                view, done = view[offset - done :], offset
        yield view
        done += len(view)
    yield b""
