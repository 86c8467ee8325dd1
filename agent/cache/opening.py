"""Opening the index of a store directory: brought up from an older version, refused from a newer one, and
set aside where it is damaged.

What is checked at each start is what costs the same for a million chunks as for ten: the header, the tables,
the length of the file against its page count, and that the write-ahead log was not damaged. A small database
(CHECKED_AT_ONCE) is checked page by page too; a larger one is, in the background, by the scrub. Damage that
shows later condemns the index: a mark beside it says so, and the next start sets it aside.

A log whose commits may be lost leaves a database that is sound, and rows that may claim chunks which are
gone. Then every row counts as written under another boot id, without a pass over them: the id that rows are
compared with has an epoch, a note in the database, and the epoch moves on.
"""

from __future__ import annotations

import logging
import sqlite3
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from agent.cache.schema import PIECES, PROOFS, SCHEMA, SCHEMA_VERSION
from agent.cache.wal import frames_lost
from agent.errors import StoreFailed

log = logging.getLogger(__name__)

CHECKED_AT_ONCE = 4 << 20  # bytes of a database that is checked whole at the start: 10 ms, 50,000 chunks
DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT})
# A database that lacks a table, or has one that its version does not have yet, is no index of ours.
FOREIGN = frozenset({*DAMAGE, sqlite3.SQLITE_ERROR})
NO_VERSION = 1000  # schema versions that no release will have: the number itself is damaged
BUSY_SECONDS = 5.0  # how long another process's lock on the database is waited for


@dataclass(frozen=True, slots=True)
class Opened:
    """An open database. Rows are compared with `boot`; `set_aside` is where a damaged database went."""

    db: sqlite3.Connection
    boot: str
    set_aside: Path | None = None


class _Damaged(Exception):
    """The file is no index any more; the text says why."""


def is_damage(error: sqlite3.Error) -> bool:
    """Whether an error says that the database is damaged, and not that the disk is."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in DAMAGE


def open_index(path: Path, boot_id: str) -> Opened:
    """Open or make the database. StoreFailed where it is of a newer version or cannot be read."""
    try:
        return _open(path, boot_id)
    except _Damaged as error:
        aside = set_aside(path, str(error))
    try:
        opened = _open(path, boot_id)
    except _Damaged as error:
        raise StoreFailed(f"the index {path} is not usable: {error}; check the disk") from error
    return Opened(opened.db, opened.boot, aside)


def condemn(path: Path, reason: str) -> None:
    """Have the next start set the index aside."""
    with suppress(OSError):  # a disk that takes no file is told by the reads that fail
        _mark(path).write_text(f"{reason}\n")


def set_aside(path: Path, reason: str) -> Path:
    """Rename a damaged index, and its log, to the first free name. StoreFailed where the disk refuses."""
    number = 1
    while (aside := path.with_name(f"{path.name}.corrupt-{number}")).exists():
        number += 1
    try:
        for suffix in ("-wal", "-shm", ""):
            with suppress(FileNotFoundError):
                path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
        _mark(path).unlink(missing_ok=True)
    except OSError as error:
        raise StoreFailed(f"cannot set the damaged index {path} aside: {error.strerror}") from error
    log.error("the index %s is damaged (%s): it is kept as %s, a new one begins", path, reason, aside.name)
    return aside


def pages_fault(path: Path) -> str:
    """What SQLite finds wrong with the pages, "" where nothing; reads all, over a connection of its own."""
    try:
        db = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=BUSY_SECONDS)
        try:
            return _quick_check(db)
        finally:
            db.close()
    except sqlite3.OperationalError as error:
        log.warning("%s cannot be checked: %s", path, error)
        return ""
    except sqlite3.DatabaseError as error:
        return str(error)


def _open(path: Path, boot_id: str) -> Opened:
    known = path.exists()
    if _mark(path).exists():
        raise _Damaged(_mark(path).read_text(errors="replace").strip())
    if known and not path.stat().st_size:
        raise _Damaged("it is empty")
    if not known and path.with_name(f"{path.name}-wal").exists():
        raise _Damaged("its log is there without it")
    db = sqlite3.connect(path, isolation_level=None, timeout=BUSY_SECONDS)
    try:
        doubted = _recovered(path, db) if known else False
        _prepare(path, db, fresh=not known)
        return Opened(db, _boot(db, boot_id, doubted))
    except sqlite3.DatabaseError as error:
        db.close()
        if error.sqlite_errorcode & 0xFF in FOREIGN:
            raise _Damaged(str(error)) from error
        raise
    except BaseException:
        db.close()
        raise


def _recovered(path: Path, db: sqlite3.Connection) -> bool:
    """Take over the log that a crash has left, then check the database; whether commits may be lost."""
    wal = path.with_name(f"{path.name}-wal")
    left = wal.exists()
    (tables,) = db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()  # SQLite reads the log here
    _, taken, _ = db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    doubted = left and (frames_lost(wal, taken) if taken >= 0 else wal.stat().st_size > 0)
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    (pages,) = db.execute("PRAGMA page_count").fetchone()
    (page_size,) = db.execute("PRAGMA page_size").fetchone()
    size = path.stat().st_size
    if size < pages * page_size:
        raise _Damaged(f"it has {size} bytes of {pages * page_size}")
    if size <= CHECKED_AT_ONCE and tables and (fault := _quick_check(db)):
        raise _Damaged(fault)
    return doubted


def _prepare(path: Path, db: sqlite3.Connection, *, fresh: bool) -> None:
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute("PRAGMA foreign_keys = ON")
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version < 0 or version >= NO_VERSION:
        raise _Damaged(f"its version is {version}")
    if version > SCHEMA_VERSION:
        raise StoreFailed(
            f"{path} was written by a newer agent (index version {version}, this one knows "
            f"{SCHEMA_VERSION}); start the newer agent or give it another directory"
        )
    if not version and not fresh and db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone() != (0,):
        raise _Damaged("it has tables and no version")
    if version < SCHEMA_VERSION:
        missing = "".join(SCHEMA[version:])
        db.executescript(f"BEGIN; {missing} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
    db.executescript(PROOFS + PIECES)  # a release that does not know it is not harmed by it
    for table in ("objects", "chunks", "datasets", "totals", "notes"):
        db.execute(f"SELECT * FROM {table} LIMIT 1").fetchone()
    if db.execute("SELECT COUNT(*) FROM totals").fetchone() != (1,):
        raise _Damaged("it has no totals")


def _boot(db: sqlite3.Connection, boot_id: str, doubted: bool) -> str:
    """The boot id with the epoch of the rows that are believed."""
    row = db.execute("SELECT value FROM notes WHERE name = 'epoch'").fetchone()
    epoch = int(row[0]) if row is not None and str(row[0]).isdecimal() else 0
    if doubted:
        log.error("commits of the index may be lost: every chunk is checked before it is served")
        epoch += 1
        db.execute("INSERT OR REPLACE INTO notes VALUES ('epoch', ?)", (str(epoch),))
    return f"{boot_id}+{epoch}" if epoch else boot_id


def _quick_check(db: sqlite3.Connection) -> str:
    (fault,) = db.execute("PRAGMA quick_check(1)").fetchone()
    return "" if fault == "ok" else str(fault).replace("\n", " ")


def _mark(path: Path) -> Path:
    return path.with_name(f"{path.name}.condemned")
