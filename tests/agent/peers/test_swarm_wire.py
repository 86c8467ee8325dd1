"""What agents say to each other about a set, as bytes that may be wrong in any way."""

from __future__ import annotations

import json

import pytest

from agent.content import ObjectRef
from agent.errors import BadRequest
from agent.peers.metainfo import PIECE, Layout, sets_of
from agent.peers.swarm_wire import (
    Reply,
    Word,
    chunks_in,
    objects_as,
    parse_reply,
    parse_word,
    refs_of,
    runs_of,
)

WORD = {"set": "ab" * 16, "chunk_size": 1 << 23, "tag": "cd" * 8, "port": 6881, "warming": True}


def test_a_word_and_a_reply_come_back_as_they_were() -> None:
    refs = [ObjectRef("s3://models/ü\udcff", "etag", 5)]
    word = Word(**WORD, objects=objects_as(refs), unknown=[(0, 0, 1)])  # type: ignore[arg-type]
    again = parse_word(word.model_dump_json().encode())
    assert again == word
    assert list(refs_of(again.objects)) == refs
    reply = Reply(port=5, hashes=[(0, 0, "ef" * 20)], coming=[(0, 1, 3)])
    assert parse_reply(reply.model_dump_json().encode()) == reply


@pytest.mark.parametrize(
    "wrong",
    [
        {"set": "../x"},
        {"set": None},
        {"chunk_size": 5},
        {"tag": "x" * 16},
        {"port": 70000},
        {"port": "6881"},
        {"objects": [["s3://x", "v", 0]]},
        {"objects": [["", "v", 1]]},
        {"objects": [["s3://x", "v"]]},
        {"unknown": [[0, -1, 5]]},
        {"more": 1},
    ],
)
def test_a_word_that_is_wrong_anywhere_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(BadRequest):
        parse_word(json.dumps(WORD | wrong).encode())


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'{"hashes": [[0, 0, "zz"]]}', b'{"hashes": [[0, 0, "ab"]]}', b'{"version": 2}']
)
def test_a_reply_that_is_wrong_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest):
        parse_reply(body)


def test_an_object_whose_uri_is_no_text_is_refused() -> None:
    with pytest.raises(BadRequest):
        refs_of([("s3://\u20ac", "v", 1)])  # beyond one byte


def test_runs_name_chunks_and_never_more_than_the_set_has() -> None:
    (objects,) = sets_of([ObjectRef("s3://a", "v", 5 * PIECE), ObjectRef("s3://b", "v", PIECE)])
    layout = Layout(objects, PIECE)
    chunks = list(layout.chunks())
    assert list(chunks_in(runs_of(chunks), layout)) == chunks
    assert runs_of([(0, 0), (0, 1), (0, 3), (1, 4)]) == [(0, 0, 2), (0, 3, 4), (1, 4, 5)]
    huge = [(0, 0, 1 << 39), (7, 0, 1 << 39)] * 100
    assert len(list(chunks_in(huge, layout))) <= len(chunks)
