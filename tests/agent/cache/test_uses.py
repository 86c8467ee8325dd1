"""What eviction asks of the index: the order of uses, and which files were ever complete."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.cache import uses
from agent.cache.index import ChunkRow, Index, ObjectRow
from agent.content import ObjectRef


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    made = Index(tmp_path / "index.sqlite", "boot")
    yield made
    made.close()


def ref(name: str) -> ObjectRef:
    return ObjectRef(f"s3://b/{name}", "v", 250)


def filled(index: Index, name: str, *chunks: int) -> ObjectRow:
    row = index.add(ref(name), 100)
    index.record(ChunkRow(row.id, chunk, bytes(16), min(100, 250 - chunk * 100)) for chunk in chunks)
    return row


def test_objects_come_in_the_order_of_their_last_use_and_those_without_bytes_do_not(index: Index) -> None:
    for name in "abc":
        filled(index, name, 0)
    index.add(ref("empty"), 100)
    uses.save(index, [(ref("a").key, 9), (ref("b").key, 7), (ref("empty").key, 1)])
    assert [found.key for found in uses.used(index)] == [ref(name).key for name in "cba"]
    assert uses.last_number(index) == 9


def test_an_object_that_was_complete_once_stays_marked(index: Index) -> None:
    row = filled(index, "a", 0, 2)
    assert not uses.ever_complete(index, row.id)
    index.record([ChunkRow(row.id, 1, bytes(16), 100)])
    assert uses.ever_complete(index, row.id)
    index.settle(row.id, (), [(1, 100)])
    (found,) = uses.used(index)
    assert (found.ever_complete, found.bytes) == (True, 150)
    assert uses.chunks(index, row.id) == [0, 2]


def test_an_object_that_begins_anew_is_not_marked(index: Index) -> None:
    filled(index, "a", 0, 1, 2)
    index.forget(ref("a").key)
    assert not uses.ever_complete(index, filled(index, "a", 0).id)
