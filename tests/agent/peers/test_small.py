"""Questions for small objects and their answers: what goes in comes out, and nothing else is taken."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.content import ObjectRef
from agent.errors import BadRequest
from agent.peers.small import (
    MOST_BYTES,
    MOST_OBJECTS,
    SMALL,
    Frame,
    State,
    answer_of,
    answer_old,
    batch_of,
    parse_answer,
    parse_request,
    request_of,
)

REF = ObjectRef("s3://models/llama/config.json", "etag", 5)
KEYS = st.text("0123456789abcdef", min_size=32, max_size=32)
PARTS = st.lists(st.tuples(KEYS, st.binary(max_size=100)), unique_by=lambda part: part[0], max_size=5)


@given(PARTS)
def test_an_answer_has_the_frames_that_were_put_into_it(parts: list[tuple[str, bytes]]) -> None:
    frames = [Frame.of(key, data) for key, data in parts]
    assert list(parse_answer(answer_of(frames)).values()) == frames


@given(PARTS.filter(bool), st.data())
def test_an_answer_that_breaks_off_is_refused(parts: list[tuple[str, bytes]], data: st.DataObject) -> None:
    whole = answer_of(Frame.of(key, some) for key, some in parts)
    ends, end = {0}, 0
    for _, some in parts:
        ends.add(end := end + len(answer_of([Frame("0" * 32, State.HERE, some, b"d" * 16)])))
    cut = data.draw(st.integers(1, len(whole) - 1).filter(lambda at: at not in ends))
    with pytest.raises(BadRequest):
        parse_answer(whole[:cut])


def test_a_question_names_each_object_once() -> None:
    assert parse_request(request_of([REF, REF], fetch=True)) == ([REF], True)


@pytest.mark.parametrize(
    "objects",
    [
        [],
        [["s3://b/k", "v", 0]],
        [["s3://b/k", "v", SMALL + 1]],
        [["s3://b/k", "", 5]],
        [["s3://b/k", "v", 5.5]],
        [["s3://b/" + "k" * 4000, "v", 5]],
        [["s3://b/k", "v", 5]] * (MOST_OBJECTS + 1),
        [["s3://b/k", "v", SMALL]] * (MOST_BYTES // SMALL + 1),
    ],
)
def test_what_is_no_question_is_refused(objects: list[Any]) -> None:
    with pytest.raises(BadRequest):
        parse_request(json.dumps({"fetch": True, "objects": objects}).encode())


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"\xff", b'{"fetch": true, "objects": 1}'])
def test_a_body_of_another_kind_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest):
        parse_request(body)


def test_a_request_takes_as_many_as_its_answer_has_room_for() -> None:
    assert batch_of([REF] * 1000) == MOST_OBJECTS
    assert batch_of([ObjectRef("s3://b/k", "v", SMALL)] * 10) == MOST_BYTES // SMALL
    assert batch_of([REF]) == 1


async def test_an_agent_of_another_version_is_answered_and_given_nothing() -> None:
    assert parse_answer(await answer_old("older", request_of([REF], fetch=True))) == {}


def test_bytes_of_another_length_or_digest_are_not_right() -> None:
    assert Frame.of(REF.key, b"12345").right(REF)
    assert not Frame.of(REF.key, b"1234").right(REF)
    assert not Frame(REF.key, State.HERE, b"12345", b"0" * 16).right(REF)
