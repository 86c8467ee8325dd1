"""The node service's way to the holder: one short connection a call, so that a restarted holder just works.

Everything here blocks and is run in a thread. What serve must know later of a target (which volume, whether
it made the directory) is the note that the holder keeps with it: serve itself keeps no state.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from csi.holder.client import Answer, HolderConnection
from csi.holder.protocol import Message
from csi.publication import Publication
from csi.roots import Place, opened_target, remove_target

DEADLINE = 10.0  # seconds for one answer of the holder, which has nothing to wait for


@dataclass(frozen=True, slots=True)
class Published:
    """What is bound on a target: the mount, and serve's note of what it was bound for.

    `wanted` is the digest of the volume's attributes; `files` and `bytes` are what the mount shows. A note of
    an older release lacks them.
    """

    mount: str
    volume: str
    uri: str
    made: bool
    wanted: str | None = None
    revision: str | None = None
    files: int | None = None
    bytes: int | None = None

    def shows(self, wanted: Publication) -> bool:
        """Whether it was bound for a volume of the same attributes."""
        if self.wanted is None:
            return self.uri == wanted.request.uri
        return self.wanted == wanted.wanted


@dataclass(frozen=True, slots=True)
class Unbound:
    """What was taken off a target, and on how many targets its mount is still bound."""

    mount: str
    remaining: int


class Binder:
    """Binds and unbinds targets through the holder. Raises HolderGone, Refused, InvalidArgument, OSError."""

    def __init__(self, socket_path: str, build: str) -> None:
        self._path = socket_path
        self._build = build

    def check(self) -> None:
        """Raise HolderGone where no holder answers."""
        HolderConnection.open(self._path, "command", self._build, DEADLINE).close()

    def published(self, place: Place) -> Published | None:
        """What is bound on the target now."""
        with self._request("target", {"target": place.path}) as answer:
            return _published(answer.message)

    def bind(self, place: Place, mount: str, note: Message) -> None:
        """Bind a mount on the target, whose directory is made where it is missing."""
        with opened_target(place, create=True) as (descriptor, made):
            fields: Message = {"mount": mount, "target": place.path, "note": {**note, "made": made}}
            bound = False
            try:
                with self._request("bind", fields, descriptor):
                    bound = True
            finally:
                if made and not bound:
                    remove_target(place)

    def unbind(self, place: Place) -> Unbound | None:
        """Unbind the target and remove the directory that `bind` made; None where nothing was known of it."""
        with self._request("unbind", {"target": place.path}) as answer:
            before = _published(answer.message)
            remaining = answer.message.get("remaining")
        if before is None:
            return None
        if before.made:
            remove_target(place)
        return Unbound(before.mount, remaining if isinstance(remaining, int) else 0)

    @contextmanager
    def _request(self, op: str, fields: Message, descriptor: int | None = None) -> Iterator[Answer]:
        connection = HolderConnection.open(self._path, "command", self._build, DEADLINE)
        try:
            descriptors = [] if descriptor is None else [descriptor]
            with connection.request(op, fields, descriptors) as (answer,):
                yield answer
        finally:
            connection.close()


def _published(message: Message) -> Published | None:
    mount, note = message.get("mount"), message.get("note")
    if not isinstance(mount, str) or not isinstance(note, dict):
        return None
    return Published(
        mount,
        str(note.get("volume")),
        str(note.get("uri")),
        note.get("made") is True,
        _text(note.get("wanted")),
        _text(note.get("revision")),
        _count(note.get("files")),
        _count(note.get("bytes")),
    )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and value >= 0 else None
