"""Opening an index: what is damaged is set aside, what is newer is refused, what is doubtful is believed in
nothing."""

from __future__ import annotations

import logging
import random
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.cache.index import ChunkRow, Index, Totals
from agent.cache.opening import CHECKED_AT_ONCE, condemn, pages_fault
from agent.content import ObjectRef
from agent.errors import StoreFailed

REF = ObjectRef("s3://bucket/object", '"etag"', 10_000)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "index.sqlite"


def filled(path: Path, chunks: int = 5) -> Index:
    index = Index(path, "boot-1")
    row = index.add(REF, 1000).id
    index.record([ChunkRow(row, chunk, bytes(16), 1000) for chunk in range(chunks)])
    return index


def copied(index: Index, path: Path) -> Path:
    """The files of an index as a killed process leaves them."""
    path.parent.mkdir()
    for suffix in ("", "-wal"):
        source = index.path.with_name(index.path.name + suffix)
        path.with_name(path.name + suffix).write_bytes(source.read_bytes())
    index.close()
    return path


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def cut(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 4096)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "no database": lambda path: path.write_bytes(b"not a database" * 100),
    "zeros": lambda path: path.write_bytes(bytes(5000)),
    "empty": lambda path: path.write_bytes(b""),
    "header": lambda path: overwrite(path, 0, random.Random(1).randbytes(100)),
    "a page": lambda path: overwrite(path, 4096, random.Random(2).randbytes(4096)),
    "cut short": cut,
    "half a page": lambda path: path.write_bytes(path.read_bytes()[:2000]),
    "version": lambda path: overwrite(path, 60, b"\x7f\0\0\0"),
    "version of no tables": lambda path: overwrite(path, 60, b"\0\0\0\1"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_index_is_set_aside_and_a_new_one_begins(
    path: Path, damage: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    filled(path).close()
    damage(path)
    junk = path.read_bytes()
    with caplog.at_level(logging.ERROR):
        index = Index(path, "boot-1")
    assert index.set_aside == path.with_name("index.sqlite.corrupt-1")
    assert index.set_aside.read_bytes() == junk
    assert index.totals() == Totals(0, 0, 0)
    assert "is kept as index.sqlite.corrupt-1" in caplog.text
    index.close()
    path.write_bytes(b"again")
    again = Index(path, "boot-1")
    assert again.set_aside == path.with_name("index.sqlite.corrupt-2")
    again.close()


def test_a_sound_index_is_not_set_aside(path: Path) -> None:
    filled(path).close()
    index = Index(path, "boot-1")
    assert (index.set_aside, index.totals()) == (None, Totals(1, 5, 5000))
    index.close()


def test_an_index_of_a_newer_agent_is_refused_with_what_to_do(path: Path) -> None:
    filled(path).close()
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(StoreFailed, match=r"newer agent .*99.*start the newer agent or give it another"):
        Index(path, "boot-1")
    assert path.exists() and not path.with_name("index.sqlite.corrupt-1").exists()


def test_what_a_crash_leaves_in_the_log_is_there(path: Path, tmp_path: Path) -> None:
    crashed = Index(copied(filled(path), tmp_path / "after" / "index.sqlite"), "boot-1")
    found = crashed.find(REF.key)
    assert found is not None and len(found.present) == 5
    crashed.close()


def test_a_transaction_that_was_under_way_at_the_crash_raises_no_doubt(path: Path, tmp_path: Path) -> None:
    after = copied(filled(path), tmp_path / "after" / "index.sqlite")
    wal = after.with_name("index.sqlite-wal")
    wal.write_bytes(wal.read_bytes()[:-100])  # the last commit's frame came only in part
    index = Index(after, "boot-1")
    found = index.find(REF.key)
    assert found is not None and not found.suspect
    index.close()


@pytest.mark.parametrize("offset", [4, 32 + 30, -5000])
def test_after_damage_to_the_log_every_chunk_is_suspect(path: Path, tmp_path: Path, offset: int) -> None:
    first = filled(path)
    first.close()
    index = Index(path, "boot-1")
    index.record([ChunkRow(1, 7, bytes(16), 1000)])
    index.record([ChunkRow(1, 8, bytes(16), 1000)])
    after = copied(index, tmp_path / "after" / "index.sqlite")
    wal = after.with_name("index.sqlite-wal")
    overwrite(wal, offset % wal.stat().st_size, b"garbage!")
    doubted = Index(after, "boot-1")
    found = doubted.find(REF.key)
    assert found is not None and not found.present and len(found.suspect) >= 5
    doubted.settle(found.id, good=[0], bad=[])
    doubted.close()
    again = Index(after, "boot-1")  # the doubt stays with the rows that nobody has checked
    found = again.find(REF.key)
    assert found is not None and found.present == (0,)
    again.close()


def test_damage_that_shows_in_a_query_condemns_the_index_until_the_next_start(path: Path) -> None:
    many(path, 100_000)  # too large to be checked at the start
    overwrite(path, path.stat().st_size // 8192 * 4096, b"\xff" * (1 << 20))
    index = Index(path, "boot-1")
    assert index.set_aside is None
    with pytest.raises(StoreFailed, match=r"is damaged \(.*restart the agent"):
        for number in range(1000):
            index.find(ObjectRef(f"s3://bucket/model-{number}.safetensors", "etag", 100 << 23).key)
    index.close()
    again = Index(path, "boot-1")
    assert again.set_aside is not None and again.totals() == Totals(0, 0, 0)
    again.close()


def test_a_condemned_index_is_set_aside_once(path: Path) -> None:
    filled(path).close()
    condemn(path, "the scrub found a bad page")
    first = Index(path, "boot-1")
    assert first.set_aside is not None
    first.close()
    second = Index(path, "boot-1")
    assert second.set_aside is None
    second.close()


def test_pages_are_checked_beside_a_writer(path: Path) -> None:
    index = filled(path)
    assert pages_fault(path) == ""
    index.close()
    overwrite(path, 4096 * 2, b"\xff" * 4096)
    assert pages_fault(path) != ""


def many(path: Path, count: int) -> None:
    Index(path, "boot-1").close()
    with sqlite3.connect(path) as database:
        boot = "8a1c0f0e-5d0f-4b59-a3e1-0c6a5e0c8f11"
        refs = [
            ObjectRef(f"s3://bucket/model-{number}.safetensors", "etag", 100 << 23)
            for number in range(count // 100)
        ]
        database.executemany(
            "INSERT INTO objects (id, key, uri, version, size, chunk_size, present)"
            " VALUES (?, ?, ?, 'etag', ?, ?, ?)",
            ((number + 1, ref.key, ref.uri, ref.size, 1 << 23, ref.size) for number, ref in enumerate(refs)),
        )
        database.executemany(
            "INSERT INTO chunks VALUES (?, ?, ?, ?)",
            ((1 + number // 100, number % 100, bytes(16), boot) for number in range(count)),
        )
    database.close()


@pytest.mark.parametrize("count", [100_000, pytest.param(1_000_000, marks=pytest.mark.long)])
def test_opening_and_finding_scan_nothing_however_many_chunks_there_are(
    path: Path, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    many(path, count)
    assert path.stat().st_size > CHECKED_AT_ONCE
    steps: list[int] = []
    connect = sqlite3.connect

    def counting(database: Path, isolation_level: None, timeout: float) -> sqlite3.Connection:
        made = connect(database, isolation_level=isolation_level, timeout=timeout)
        made.set_progress_handler(lambda: steps.append(1), 100)
        return made

    monkeypatch.setattr(sqlite3, "connect", counting)
    began = time.monotonic()
    index = Index(path, "another-boot")
    assert index.totals() == Totals(count // 100, count, count << 23)
    ref = ObjectRef("s3://bucket/model-7.safetensors", "etag", 100 << 23)
    assert index.presence([ref.key])[ref.key].suspect
    found = index.find(ref.key)
    assert found is not None and len(found.suspect) == 100
    took = time.monotonic() - began
    print(f"{count} chunks: {len(steps)} hundred steps of SQLite, {1000 * took:.1f} ms")
    assert len(steps) < 50
    index.close()
