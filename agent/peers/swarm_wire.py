"""The body of `POST /peer/v1/swarm`, and its answer: JSON about one set of objects.

One message does it all: it asks for hashes, and says how far the sender is, so that the other knows whom to
expect and whom to connect. What the sender does not know is told in runs of chunks. Whatever is wrong is
BadRequest here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agent.content import ObjectRef
from agent.errors import BadRequest
from agent.peers.metainfo import HASH, MOST_OBJECTS, Layout

CALL = "swarm"
MOST_CHUNKS = 4096  # whose hashes are in one answer
MOST_HASHES = 1 << 20  # bytes of hashes in one answer
MOST_RUNS = 8192
MOST_URI = 4096  # bytes
MOST_VERSION = 1024

_Id = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
_Number = Annotated[int, Field(ge=0, lt=1 << 40)]
_Port = Annotated[int, Field(ge=0, lt=1 << 16)]
_Zone = Annotated[str, Field(max_length=256)]
_Object = tuple[
    Annotated[str, Field(min_length=1, max_length=MOST_URI)],
    Annotated[str, Field(min_length=1, max_length=MOST_VERSION)],
    Annotated[int, Field(ge=1, lt=1 << 60)],
]
Run = tuple[_Number, _Number, _Number]  # object, first chunk, the one behind the last
_Runs = Annotated[list[Run], Field(max_length=MOST_RUNS)]
_Hashes = Annotated[
    list[
        tuple[
            _Number, _Number, Annotated[str, Field(pattern=r"^([0-9a-f]{40})+$", max_length=2 * HASH * 256)]
        ]
    ],
    Field(max_length=MOST_CHUNKS),
]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)


class Word(_Model):
    """What one agent says to another about a set; `objects` are left out where the other should know them.

    `port` is where it is in the swarm, 0 where it is not yet; `zone` is the sender's; `tag` names the secret
    of its infohash.
    """

    set: _Id
    chunk_size: Annotated[int, Field(ge=1 << 20, le=1 << 28)]
    objects: Annotated[list[_Object], Field(max_length=MOST_OBJECTS)] = []
    tag: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    port: _Port = 0
    zone: _Zone = ""
    warming: bool = False
    unknown: _Runs = []


class Reply(_Model):
    """The answer: hashes of what was unknown, and what else is `coming`: what is here, or on its way.

    With `stranger` the objects have to be told first.
    """

    version: Literal[1] = 1
    stranger: bool = False
    port: _Port = 0
    zone: _Zone = ""
    warming: bool = False
    hashes: _Hashes = []
    coming: _Runs = []


M = TypeVar("M", bound=BaseModel)


def parse_word(body: bytes) -> Word:
    """Raises BadRequest."""
    return _parsed(Word, body)


def parse_reply(body: bytes) -> Reply:
    """Raises BadRequest."""
    return _parsed(Reply, body)


def objects_as(refs: Iterable[ObjectRef]) -> list[_Object]:
    """Objects as the wire has them: a URI need not be UTF-8 (PEP 383), so each byte is a character."""
    return [
        (ref.uri.encode("utf-8", "surrogateescape").decode("latin-1"), ref.version, ref.size) for ref in refs
    ]


def nameable(refs: Iterable[ObjectRef]) -> bool:
    """Whether a word can name all of these objects."""
    return all(len(uri) <= MOST_URI and len(version) <= MOST_VERSION for uri, version, _ in objects_as(refs))


def refs_of(objects: Iterable[_Object]) -> tuple[ObjectRef, ...]:
    """Objects by what the wire has of them. Raises BadRequest."""
    try:
        return tuple(
            ObjectRef(uri.encode("latin-1").decode("utf-8", "surrogateescape"), version, size)
            for uri, version, size in objects
        )
    except ValueError:
        raise BadRequest("no word about a swarm: there is no such object") from None


def chunks_in(runs: Iterable[Run], layout: Layout) -> Iterator[tuple[int, int]]:
    """The chunks of runs that a set has, one after the other; no more than it has in all."""
    return islice(_chunks_in(runs, layout), sum(layout.counts))


def _chunks_in(runs: Iterable[Run], layout: Layout) -> Iterator[tuple[int, int]]:
    for number, first, end in runs:
        if number < len(layout.refs):
            yield from ((number, chunk) for chunk in range(first, min(end, layout.counts[number])))


def runs_of(chunks: Iterable[tuple[int, int]]) -> list[Run]:
    """Chunks in the order of their numbers, as runs."""
    runs: list[Run] = []
    for number, chunk in chunks:
        if runs and runs[-1][0] == number and runs[-1][2] == chunk:
            runs[-1] = (number, runs[-1][1], chunk + 1)
        else:
            runs.append((number, chunk, chunk + 1))
    return runs[:MOST_RUNS]


def _parsed(kind: type[M], body: bytes) -> M:
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise BadRequest(f"no word about a swarm: {error.error_count()} faults") from None
