"""The body of `POST /peer/v1/tracker`, and its answer: JSON, many messages in one.

`POST /peer/v1/ask-again` is the tracker's: a reply that nobody asked for, which says for which spans a member
should ask at once. The next reply would say it too.

Everything that an agent has to say to one tracker goes in one batch. What comes from a peer is checked in
every number and length before anything is done with it; whatever is wrong is BadRequest here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agent.errors import BadRequest
from agent.peers.member import Peer
from agent.peers.messages import ALL, Answer, Reason, Renewal, SpanId, Standing
from agent.peers.relay import SPAN, Place

CALL = "tracker"
AGAIN = "ask-again"
MOST = 4096  # messages of a kind in one batch

_Key = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
_Name = Annotated[str, Field(min_length=1, max_length=256)]
_Number = Annotated[int, Field(ge=0, lt=1 << 40)]
_Bits = Annotated[int, Field(ge=0, le=ALL)]
_Span = tuple[_Key, _Number]
_Place = tuple[_Number, _Number, _Number, _Number, _Number]
Ask = tuple[_Span, Annotated[int, Field(ge=1, le=SPAN)], Annotated[list[_Name], Field(max_length=64)]]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)


class Batch(_Model):
    """What one agent says to one tracker; `announce` None where it only asks.

    `fastest`: bytes a second that it received at its best of late; `held_up_by`: children that do not take
    theirs.
    """

    zone: Annotated[str, Field(max_length=256)] = ""
    announce: Annotated[list[tuple[_Span, _Bits, _Place | None]], Field(max_length=MOST)] | None = None
    whole: bool = False
    asks: Annotated[list[Ask], Field(max_length=MOST)] = []
    done: Annotated[list[tuple[_Span, _Bits]], Field(max_length=MOST)] = []
    released: Annotated[list[_Span], Field(max_length=MOST)] = []
    failed: Annotated[
        list[tuple[_Span, Annotated[int, Field(ge=0, lt=SPAN)], _Name, Reason]], Field(max_length=MOST)
    ] = []
    fastest: Annotated[float, Field(ge=0, le=1e15)] | None = None
    held_up_by: Annotated[list[_Name], Field(max_length=64)] = []


class _Answer(_Model):
    wait: Annotated[float, Field(ge=0, le=60)]
    place: _Place | None
    routes: Annotated[list[Annotated[list[_Name], Field(max_length=16)]], Field(max_length=SPAN)]
    slow: Annotated[list[_Name], Field(max_length=MOST)] = []


class _Renewal(_Model):
    lease: Annotated[float, Field(gt=0, le=3600)]
    again: list[_Span]
    unknown: bool


class Reply(_Model):
    """The tracker's answer; `answers` in the order of the asks.

    `again`: spans to ask for at once.
    """

    version: Literal[1] = 1
    renewal: _Renewal | None = None
    answers: list[_Answer] = []
    again: list[_Span] = []


def parse_batch(body: bytes) -> Batch:
    """Raises BadRequest."""
    try:
        return Batch.model_validate_json(body)
    except ValidationError as error:
        raise BadRequest(f"no batch for a tracker: {error.error_count()} faults") from None


def again_as(spans: Iterable[SpanId]) -> list[tuple[str, int]]:
    """Spans to be asked for again, as the wire has them."""
    return [(span.key, span.number) for span in spans]


def parse_reply(body: bytes, batch: Batch) -> Reply:
    """The reply to a batch. Raises BadRequest where it is none."""
    try:
        reply = Reply.model_validate_json(body)
    except ValidationError as error:
        raise BadRequest(f"no answer of a tracker: {error.error_count()} faults") from None
    if len(reply.answers) != len(batch.asks):
        raise BadRequest("no answer of a tracker: it answers something else")
    return reply


def standing_of(has: int, place: _Place | None) -> Standing:
    """Raises BadRequest for a place that cannot be."""
    return Standing(has, place_of(place))


def place_of(place: _Place | None) -> Place | None:
    """Raises BadRequest for a place that cannot be."""
    try:
        return Place(*place) if place is not None else None
    except ValueError:
        raise BadRequest("there is no such place") from None


def place_as(place: Place | None) -> _Place | None:
    """A place as the wire has it."""
    if place is None:
        return None
    return place.group, place.index, place.count, place.zone_start, place.zone_end


def answer_as(answer: Answer) -> _Answer:
    """An answer as the wire has it: peers by their names, which are their addresses."""
    routes = [[peer.name for peer in route] for route in answer.routes]
    slow = sorted(answer.slow)
    return _Answer(wait=answer.wait, place=place_as(answer.place), routes=routes, slow=slow)


def renewal_as(renewal: Renewal) -> _Renewal:
    """A renewal as the wire has it."""
    return _Renewal(lease=renewal.lease, again=again_as(renewal.again), unknown=renewal.unknown)


def span_of(span: _Span) -> SpanId:
    """A span by what the wire has of it."""
    return SpanId(*span)


def peer_of(name: str, zone: str = "") -> Peer:
    """The peer of a name: found by a list or by DNS, its address is its name."""
    return Peer(name, name, zone)
