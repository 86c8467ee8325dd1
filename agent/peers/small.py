"""Small objects on the wire: many are asked for in one `POST /peer/v1/small-xxh3`, and come in one answer.

The request is JSON: which objects, and whether what is not here should be fetched. The answer is frames, one
for each object: key (16 bytes), state (1), length (4, little-endian), digest (16, agent/peers/units.py), and
so many bytes. What comes from a peer is checked before anything is done with it: BadRequest.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agent.content import ObjectRef
from agent.errors import BadRequest
from agent.peers.units import UNIT, unit_digest

CALL = "small-xxh3"
OLD_CALL = "small"  # of agents whose digests are BLAKE3; their answers look the same
SMALL = 2 * UNIT  # bytes: little of so few can be passed on while they arrive, so a relay is only more hops
MOST_OBJECTS = 256  # in one request: a name of S3 has 1,024 bytes at most, a body 1 MiB
LONGEST_URI, LONGEST_VERSION = 3072, 1024  # characters
MOST_BYTES = 2 << 20  # in one answer, which both ends hold in memory
_FRAME = struct.Struct("<16sBI16s")


class State(enum.IntEnum):
    """What became of an object that was asked for."""

    ABSENT = 0  # not here, and not to be had here
    HERE = 1
    COMING = 2  # ask again


@dataclass(frozen=True, slots=True)
class Frame:
    """One object of an answer."""

    key: str
    state: State
    data: bytes = b""
    digest: bytes = b""

    @classmethod
    def of(cls, key: str, data: bytes) -> Frame:
        """An object that is here."""
        return cls(key, State.HERE, data, unit_digest(data))

    def right(self, ref: ObjectRef) -> bool:
        """Whether the bytes are as many as the object has, and those of the digest."""
        return len(self.data) == ref.size and unit_digest(self.data) == self.digest


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)

    version: Literal[1] = 1
    fetch: bool
    objects: Annotated[
        list[
            tuple[
                Annotated[str, Field(max_length=LONGEST_URI)],
                Annotated[str, Field(max_length=LONGEST_VERSION)],
                Annotated[int, Field(gt=0, le=SMALL)],
            ]
        ],
        Field(min_length=1, max_length=MOST_OBJECTS),
    ]


def has_room_for(ref: ObjectRef) -> bool:
    """Whether a request can name the object."""
    return len(ref.uri) <= LONGEST_URI and len(ref.version) <= LONGEST_VERSION


def batch_of(refs: Sequence[ObjectRef]) -> int:
    """How many of these go into one request: one at least, no more bytes than an answer has."""
    total = 0
    for count, ref in enumerate(refs[:MOST_OBJECTS]):
        total += ref.size
        if count and total > MOST_BYTES:
            return count
    return min(len(refs), MOST_OBJECTS)


def request_of(refs: Iterable[ObjectRef], *, fetch: bool) -> bytes:
    """The body of a request; `fetch` asks for what is not there, too."""
    objects = [(ref.uri, ref.version, ref.size) for ref in refs]
    return _Request(fetch=fetch, objects=objects).model_dump_json().encode()


def parse_request(body: bytes) -> tuple[list[ObjectRef], bool]:
    """The objects that are asked for, each once, and whether they are to be fetched. Raises BadRequest."""
    try:
        request = _Request.model_validate_json(body)
        refs = [ObjectRef(*named) for named in request.objects]
    except ValidationError as error:
        raise BadRequest(f"no question for small objects: {error.error_count()} faults") from None
    except ValueError:
        raise BadRequest("no question for small objects: one has no version") from None
    if batch_of(refs) < len(refs):
        raise BadRequest(f"more than {MOST_BYTES} bytes are asked for at once")
    return list({ref.key: ref for ref in refs}.values()), request.fetch


def answer_of(frames: Iterable[Frame]) -> bytes:
    """The body of an answer."""
    parts = []
    for one in frames:
        parts.append(_FRAME.pack(bytes.fromhex(one.key), one.state, len(one.data), one.digest))
        parts.append(one.data)
    return b"".join(parts)


async def answer_old(sender: str, body: bytes) -> bytes:
    """No object: an agent that asks by `OLD_CALL` goes to the origin then, and blames nobody."""
    return answer_of(())


def parse_answer(body: bytes) -> dict[str, Frame]:
    """The frames of an answer, by key. Raises BadRequest."""
    return {frame.key: frame for frame in _frames(body)}


def _frames(body: bytes) -> Iterator[Frame]:
    offset = 0
    while offset < len(body):
        try:
            key, state, length, digest = _FRAME.unpack_from(body, offset)
            named = State(state)
        except (struct.error, ValueError):
            raise BadRequest("no answer for small objects") from None
        offset += _FRAME.size
        if length > len(body) - offset:
            raise BadRequest("an answer for small objects breaks off")
        yield Frame(key.hex(), named, body[offset : offset + length], digest)
        offset += length
