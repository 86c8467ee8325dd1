"""The index: what was committed is there after a reopen, all of it or nothing; bad files are refused."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.cache.index import ChunkRow, Index, Lease, Presence, Totals
from agent.cache.schema import SCHEMA
from agent.content import Dataset, Entry, ObjectRef, Unmapped
from agent.errors import StoreFailed

REF = ObjectRef("s3://bucket/object", '"etag"', 10_000)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "index.sqlite"


@pytest.fixture
def index(path: Path) -> Iterator[Index]:
    made = Index(path, "boot-1")
    yield made
    made.close()


def rows(object_id: int, *chunks: int) -> list[ChunkRow]:
    return [ChunkRow(object_id, chunk, bytes([chunk]) * 16, 1000) for chunk in chunks]


def test_what_was_recorded_is_there_after_a_reopen(index: Index, path: Path) -> None:
    assert index.find(REF.key) is None
    added = index.add(REF, 1000)
    assert (added.chunk_size, added.present) == (1000, ())
    index.record(rows(added.id, 3, 1))
    index.record(rows(added.id, 9))
    again = Index(path, "boot-1")
    found = again.find(REF.key)
    assert found is not None
    assert (found.id, found.chunk_size, sorted(found.present)) == (added.id, 1000, [1, 3, 9])
    assert again.totals() == Totals(objects=1, chunks=3, bytes=3000)
    assert again.present_bytes([REF.key, "unknown"]) == {REF.key: 3000}
    again.close()


def test_what_was_recorded_under_another_boot_id_is_suspect_until_it_is_settled(
    index: Index, path: Path
) -> None:
    added = index.add(REF, 1000)
    index.record(rows(added.id, 3, 1))
    again = Index(path, "boot-2")
    found = again.find(REF.key)
    assert found is not None
    assert (found.present, dict(found.suspect)) == ((), {1: b"\1" * 16, 3: b"\3" * 16})
    again.settle(added.id, good=[3], bad=[(1, 1000)])
    settled = again.find(REF.key)
    assert settled is not None
    assert (settled.present, settled.suspect) == ((3,), ())
    assert again.totals() == Totals(objects=1, chunks=1, bytes=1000)
    again.close()


def test_each_chunk_keeps_its_checksum_and_the_boot_that_wrote_it(index: Index, path: Path) -> None:
    index.record(rows(index.add(REF, 1000).id, 7))
    reader = sqlite3.connect(path)
    assert reader.execute("SELECT chunk, xxh3, boot FROM chunks").fetchall() == [(7, b"\7" * 16, "boot-1")]
    reader.close()


def test_a_batch_is_recorded_whole_or_not_at_all(index: Index) -> None:
    added = index.add(REF, 1000)
    index.record(rows(added.id, 1))
    with pytest.raises(StoreFailed):
        index.record(rows(added.id, 2, 3, 1))
    with pytest.raises(StoreFailed):
        index.record([*rows(added.id, 4), *rows(added.id + 99, 5)])
    assert index.totals() == Totals(objects=1, chunks=1, bytes=1000)
    index.record(rows(added.id, 2))
    assert index.totals().chunks == 2


def test_a_forgotten_object_takes_its_chunks_along(index: Index) -> None:
    index.record(rows(index.add(REF, 1000).id, 1, 2))
    index.forget(REF.key)
    assert index.find(REF.key) is None
    assert index.totals() == Totals(0, 0, 0)


def test_a_database_of_a_newer_agent_is_refused_and_left_as_it_is(path: Path) -> None:
    newer = sqlite3.connect(path)
    newer.execute("PRAGMA user_version = 99")
    newer.close()
    with pytest.raises(StoreFailed, match=r"newer agent .*99"):
        Index(path, "boot-1")
    reader = sqlite3.connect(path)
    assert reader.execute("PRAGMA user_version").fetchone() == (99,)
    assert reader.execute("SELECT name FROM sqlite_master").fetchall() == []
    reader.close()


ESCAPED = st.characters(categories=["Cs"], min_codepoint=0xDC80, max_codepoint=0xDCFF)  # PEP 383
NAMES = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0/") | ESCAPED, min_size=1, max_size=20
)
REFS = st.builds(ObjectRef, NAMES, NAMES, st.integers(0, 2**62))


@settings(max_examples=40, deadline=None)  # each example opens a database
@given(
    uri=NAMES,
    entries=st.lists(st.builds(Entry, NAMES, REFS, st.integers(0, 2**62)), max_size=5),
    directories=st.lists(NAMES, max_size=3),
    unmapped=st.lists(st.builds(Unmapped, NAMES, NAMES), max_size=3),
)
def test_datasets_come_back_as_they_were_whatever_their_names(
    tmp_path_factory: pytest.TempPathFactory,
    uri: str,
    entries: list[Entry],
    directories: list[str],
    unmapped: list[Unmapped],
) -> None:
    dataset = Dataset(uri, tuple(entries), tuple(directories), tuple(unmapped))
    index = Index(tmp_path_factory.mktemp("index") / "index.sqlite", "boot-1")
    index.save_dataset(dataset, 1.0)
    assert index.load_dataset(uri, dataset.revision) == dataset
    assert index.datasets() == [(uri, dataset.revision)]
    assert index.load_dataset(uri, "other") is None
    index.close()


def test_datasets_are_listed_with_the_latest_resolved_first(index: Index) -> None:
    one = Dataset("s3://one", ())
    two = Dataset("s3://two", (Entry("a", REF),))
    index.save_dataset(one, 1.0)
    index.save_dataset(two, 2.0)
    assert [uri for uri, _ in index.datasets()] == ["s3://two", "s3://one"]
    index.save_dataset(one, 3.0)
    assert [uri for uri, _ in index.datasets()] == ["s3://one", "s3://two"]


@pytest.mark.parametrize("uri", ["file:///data/\udcff\udcfe", "s3://b/cafe\u0301", "s3://b/\U0001f600'\";--"])
def test_an_object_may_have_any_name(index: Index, uri: str) -> None:
    ref = ObjectRef(uri, "v", 5)
    added = index.add(ref, 1000)
    assert index.find(ref.key) == added


def test_finding_an_object_searches_by_keys_and_never_scans(index: Index, path: Path) -> None:
    statements: list[str] = []
    reader = sqlite3.connect(path)
    for query in ("SELECT id FROM objects WHERE key = 'x'", "SELECT chunk FROM chunks WHERE object = 1"):
        statements += [row[3] for row in reader.execute(f"EXPLAIN QUERY PLAN {query}")]
    reader.close()
    assert all("SEARCH" in statement for statement in statements) and len(statements) == 2


def test_an_index_of_the_first_version_is_brought_up_with_what_it_has(path: Path) -> None:
    old = sqlite3.connect(path)
    old.executescript(f"BEGIN; {SCHEMA[0]} PRAGMA user_version = 1; COMMIT;")
    old.execute("INSERT INTO objects VALUES (1, 'k', 'u', 'v', 5, 5, 5)")
    old.commit()
    old.close()
    index = Index(path, "boot-1")
    index.lease(Lease("t", "u", "r", 1.0), ["k"])
    assert (index.totals(), index.leased_keys()) == (Totals(1, 0, 5), {"k"})
    index.close()


def test_a_lease_names_its_objects_until_it_ends(index: Index, path: Path) -> None:
    first, second = Lease("t-1", "s3://b/\udcff", "r", 1.5), Lease("t-2", "s3://b/x", "r", 2.5)
    index.lease(first, ["a", "b", "b"])
    index.lease(second, ["b", "c"])
    again = Index(path, "boot-2")
    assert sorted(again.leases(), key=lambda lease: lease.tree) == [first, second]
    assert again.leased_keys() == {"a", "b", "c"}
    again.lease(second, ["d"])
    again.end_lease("t-1")
    again.end_lease("t-1")
    assert (again.leases(), again.leased_keys()) == ([second], {"d"})
    again.close()


def test_presence_tells_bytes_of_another_boot(index: Index, path: Path) -> None:
    index.record(rows(index.add(REF, 1000).id, 1, 2))
    assert index.presence([REF.key, "unknown"]) == {REF.key: Presence(2000, suspect=False)}
    again = Index(path, "boot-2")
    assert again.presence([REF.key]) == {REF.key: Presence(2000, suspect=True)}
    again.close()
