"""The durable record of which chunks are present: one SQLite database (WAL) per store directory.

Blocking; used by one thread only, the index thread of the store, which makes it the one writer. A commit is
not synced to the disk: a crash of the process loses nothing that was committed, and after a crash of the
machine another boot id makes every chunk suspect anyway (DESIGN.md rule 2), so a sync per chunk would buy
nothing. Its tables are in schema.py, how it is opened in opening.py.
"""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from agent.cache.opening import condemn, is_damage, open_index
from agent.content import Dataset, Entry, ObjectRef, Unmapped
from agent.errors import StoreFailed

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class ObjectRow:
    """One object as the index knows it: `present` are the numbers of its chunks.

    `suspect` are those that were recorded under another boot id, with the xxh3-128 that they should have: the
    machine may have lost their bytes, though not their record.
    """

    id: int
    chunk_size: int
    present: tuple[int, ...] = ()
    suspect: tuple[tuple[int, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class ChunkRow:
    """A chunk to record: row id of its object, its number, its xxh3-128 and its length in bytes."""

    object: int
    chunk: int
    xxh3: bytes
    length: int


@dataclass(frozen=True, slots=True)
class Presence:
    """Bytes present of an object, and whether some of them were written under another boot id."""

    bytes: int
    suspect: bool


@dataclass(frozen=True, slots=True)
class Lease:
    """The claim of a promoted tree on its objects: whose tree it is, and since when (seconds since 1970)."""

    tree: str
    uri: str
    revision: str
    since: float


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One object as a pass over the index finds it."""

    id: int
    key: str
    uri: str
    version: str
    size: int
    chunk_size: int

    @property
    def ref(self) -> ObjectRef:
        return ObjectRef(self.uri, self.version, self.size)


@dataclass(frozen=True, slots=True)
class Totals:
    """What a store directory holds."""

    objects: int
    chunks: int
    bytes: int


class Index:
    """The index of one store directory. Every method may raise StoreFailed."""

    def __init__(self, path: Path, boot_id: str) -> None:
        """Open or make the database; a damaged one is set aside. StoreFailed where it is of a newer version
        or cannot be read."""
        self.path = path
        with self._errors():
            opened = open_index(path, boot_id)
        self._db = opened.db
        self._boot_id = opened.boot
        self.set_aside = opened.set_aside

    def close(self) -> None:
        with self._errors():
            self._db.close()

    def find(self, key: str) -> ObjectRow | None:
        """The object with this key (`ObjectRef.key`), with its chunks."""
        with self._errors():
            row = self._db.execute("SELECT id, chunk_size FROM objects WHERE key = ?", (key,)).fetchone()
            if row is None:
                return None
            query = "SELECT chunk, xxh3, boot FROM chunks WHERE object = ?"
            chunks = self._db.execute(query, (row[0],)).fetchall()
        return ObjectRow(
            row[0],
            row[1],
            tuple(chunk for chunk, _, boot in chunks if boot == self._boot_id),
            tuple((chunk, xxh3) for chunk, xxh3, boot in chunks if boot != self._boot_id),
        )

    def add(self, ref: ObjectRef, chunk_size: int) -> ObjectRow:
        """Record an object of which nothing is present yet."""
        with self._errors():
            cursor = self._db.execute(
                "INSERT INTO objects (key, uri, version, size, chunk_size) VALUES (?, ?, ?, ?, ?)",
                (ref.key, _stored(ref.uri), _stored(ref.version), ref.size, chunk_size),
            )
        return ObjectRow(cursor.lastrowid or 0, chunk_size)

    def record(self, rows: Iterable[ChunkRow]) -> None:
        """Record chunks as present, all of them or none."""
        with self._errors(), self._db:
            self._db.execute("BEGIN IMMEDIATE")
            for row in rows:
                self._db.execute(
                    "INSERT INTO chunks VALUES (?, ?, ?, ?)", (row.object, row.chunk, row.xxh3, self._boot_id)
                )
                self._db.execute(
                    "UPDATE objects SET present = present + ? WHERE id = ?", (row.length, row.object)
                )

    def settle(self, row: int, good: Iterable[int], bad: Iterable[tuple[int, int]]) -> None:
        """Say of an object's suspect chunks which are right, and which (number, length) are dropped."""
        with self._errors(), self._db:
            self._db.execute("BEGIN IMMEDIATE")
            for chunk in good:
                self._db.execute(
                    "UPDATE chunks SET boot = ? WHERE object = ? AND chunk = ?", (self._boot_id, row, chunk)
                )
            for chunk, length in bad:
                gone = self._db.execute("DELETE FROM chunks WHERE object = ? AND chunk = ?", (row, chunk))
                self._db.execute(
                    "UPDATE objects SET present = present - ? WHERE id = ?", (length * gone.rowcount, row)
                )

    def renewed(self, row: int) -> None:
        """An object has a new file (renewal.py), which was never complete."""
        with self._errors():
            self._db.execute("UPDATE objects SET ever_complete = 0 WHERE id = ?", (row,))

    def forget(self, key: str) -> None:
        """Drop an object and its chunks."""
        with self._errors():
            self._db.execute("DELETE FROM objects WHERE key = ?", (key,))

    def present_bytes(self, keys: Iterable[str]) -> dict[str, int]:
        """Bytes present of those of the keys that the index knows."""
        found: dict[str, int] = {}
        with self._errors():
            for key in keys:
                row = self._db.execute("SELECT present FROM objects WHERE key = ?", (key,)).fetchone()
                if row is not None:
                    found[key] = row[0]
        return found

    def presence(self, keys: Iterable[str]) -> dict[str, Presence]:
        """What is present of those of the keys that the index knows."""
        query = (
            "SELECT present, EXISTS (SELECT 1 FROM chunks WHERE object = objects.id AND boot != ?) "
            "FROM objects WHERE key = ?"
        )
        found: dict[str, Presence] = {}
        with self._errors():
            for key in keys:
                row = self._db.execute(query, (self._boot_id, key)).fetchone()
                if row is not None:
                    found[key] = Presence(row[0], bool(row[1]))
        return found

    def lease(self, lease: Lease, keys: Iterable[str]) -> None:
        """Record a tree's claim on the objects with these keys, in place of one of that tree."""
        row = (lease.tree, _stored(lease.uri), lease.revision, lease.since)
        with self._errors(), self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute("DELETE FROM leases WHERE tree = ?", (lease.tree,))
            self._db.execute("INSERT INTO leases VALUES (?, ?, ?, ?)", row)
            self._db.executemany("INSERT INTO leased VALUES (?, ?)", ((lease.tree, key) for key in set(keys)))

    def end_lease(self, tree: str) -> None:
        """Drop a tree's claim; nothing where it has none."""
        with self._errors():
            self._db.execute("DELETE FROM leases WHERE tree = ?", (tree,))

    def leases(self) -> list[Lease]:
        """The claims of all trees."""
        with self._errors():
            rows = self._db.execute("SELECT tree, uri, revision, since FROM leases").fetchall()
        return [Lease(tree, _loaded(uri), revision, since) for tree, uri, revision, since in rows]

    def leased_keys(self) -> set[str]:
        """The keys of the objects that some tree has a claim on."""
        with self._errors():
            return {key for (key,) in self._db.execute("SELECT DISTINCT key FROM leased")}

    def totals(self) -> Totals:
        with self._errors():
            return Totals(*self._db.execute("SELECT objects, chunks, bytes FROM totals").fetchone())

    def objects_after(self, key: str, limit: int) -> list[StoredObject]:
        """The next objects in the order of their keys; all of them come by and by."""
        query = (
            "SELECT id, key, uri, version, size, chunk_size FROM objects WHERE key > ? ORDER BY key LIMIT ?"
        )
        with self._errors():
            rows = self._db.execute(query, (key, limit)).fetchall()
        return [
            StoredObject(row, key, _loaded(uri), _loaded(version), size, chunk)
            for row, key, uri, version, size, chunk in rows
        ]

    def checksums(self, row: int) -> list[tuple[int, bytes]]:
        """The chunks of the object with this row id, in order, each with its xxh3-128."""
        with self._errors():
            query = "SELECT chunk, xxh3 FROM chunks WHERE object = ? ORDER BY chunk"
            return self._db.execute(query, (row,)).fetchall()

    def checksum(self, row: int, chunk: int) -> bytes | None:
        """The xxh3-128 of one chunk of the object with this row id; None where it is not recorded."""
        with self._errors():
            query = "SELECT xxh3 FROM chunks WHERE object = ? AND chunk = ?"
            found = self._db.execute(query, (row, chunk)).fetchone()
            return None if found is None else bytes(found[0])

    def known(self, keys: Iterable[str]) -> set[str]:
        """Those of the keys that have a row."""
        with self._errors():
            query = "SELECT 1 FROM objects WHERE key = ?"
            return {key for key in keys if self._db.execute(query, (key,)).fetchone() is not None}

    def note(self, name: str) -> str:
        """What was noted under a name; "" where nothing was."""
        with self._errors():
            row = self._db.execute("SELECT value FROM notes WHERE name = ?", (name,)).fetchone()
            return "" if row is None else str(row[0])

    def set_note(self, name: str, value: str) -> None:
        """Note something about the index itself, durably."""
        with self._errors():
            self._db.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", (name, value))

    def save_dataset(self, dataset: Dataset, resolved: float) -> None:
        """Record a dataset's listing; `resolved` is when the origin gave it (seconds since 1970)."""
        listing = zlib.compress(json.dumps(_plain(dataset)).encode(), 1)
        with self._errors():
            self._db.execute(
                "INSERT OR REPLACE INTO datasets VALUES (?, ?, ?, ?)",
                (_stored(dataset.uri), dataset.revision, resolved, listing),
            )

    def load_dataset(self, uri: str, revision: str) -> Dataset | None:
        with self._errors():
            row = self._db.execute(
                "SELECT listing FROM datasets WHERE uri = ? AND revision = ?", (_stored(uri), revision)
            ).fetchone()
            return None if row is None else _dataset(uri, json.loads(zlib.decompress(row[0])))

    def datasets(self) -> list[tuple[str, str]]:
        """(URI, revision) of every dataset known, the latest resolved first."""
        with self._errors():
            rows = self._db.execute("SELECT uri, revision FROM datasets ORDER BY resolved DESC").fetchall()
        return [(_loaded(uri), revision) for uri, revision in rows]

    def save_proof(self, uri: str, identity: str, revision: str, proven: float) -> None:
        """Record that the origin gave this identity this listing; `proven` is seconds since 1970."""
        with self._errors():
            self._db.execute(
                "INSERT OR REPLACE INTO proofs VALUES (?, ?, ?, ?)",
                (_stored(uri), identity, revision, proven),
            )

    def proven(self, uri: str, identity: str) -> str | None:
        """The revision that the origin last gave this identity; None where it never did."""
        with self._errors():
            row = self._db.execute(
                "SELECT revision FROM proofs WHERE uri = ? AND identity = ?", (_stored(uri), identity)
            ).fetchone()
            return None if row is None else str(row[0])

    def transact(self, work: Callable[[sqlite3.Connection], R]) -> R:
        """Run work in one transaction, for the modules that keep tables of their own (uses.py, pins.py)."""
        with self._errors(), self._db:
            self._db.execute("BEGIN IMMEDIATE")
            return work(self._db)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            if not is_damage(error):
                raise StoreFailed(f"the index {self.path} is not usable: {error}") from error
            condemn(self.path, str(error))
            raise StoreFailed(
                f"the index {self.path} is damaged ({error}); restart the agent to begin a new one"
            ) from error
        except (zlib.error, ValueError, KeyError, TypeError) as error:
            raise StoreFailed(f"the index {self.path} holds a listing that is not readable") from error


def _stored(text: str) -> str | bytes:
    """Text as SQLite takes it: names of files need not be UTF-8 (PEP 383), those are kept as their bytes."""
    return text.encode("utf-8", "surrogateescape") if _escaped(text) else text


def _loaded(stored: str | bytes) -> str:
    return stored if isinstance(stored, str) else stored.decode("utf-8", "surrogateescape")


def _escaped(text: str) -> bool:
    return any("\udc80" <= character <= "\udcff" for character in text)


def _plain(dataset: Dataset) -> dict[str, object]:
    return {
        "entries": [
            [entry.path, entry.ref.uri, entry.ref.version, entry.ref.size, entry.mtime_ns]
            for entry in dataset.entries
        ],
        "directories": list(dataset.directories),
        "unmapped": [[item.key, item.reason] for item in dataset.unmapped],
    }


def _dataset(uri: str, plain: dict[str, list[list[str]]]) -> Dataset:
    return Dataset(
        uri=uri,
        entries=tuple(
            Entry(path, ObjectRef(origin, version, int(size)), int(mtime_ns))
            for path, origin, version, size, mtime_ns in plain["entries"]
        ),
        directories=tuple(str(path) for path in plain["directories"]),
        unmapped=tuple(Unmapped(key, reason) for key, reason in plain["unmapped"]),
    )
