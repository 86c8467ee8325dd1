"""The tables of the index, by schema version: what each version adds to the one before.

`totals` is kept by triggers, so that a start reads one row and scans nothing. `notes` is what the index knows
of itself (agent/cache/opening.py, agent/cache/scrub.py). `last_use` and `ever_complete` are what eviction
asks for (agent/cache/uses.py); a trigger sees to it that no file is complete without the mark. `verdicts` are
about whole objects (agent/cache/verdicts.py) and go with the bytes that they are about.
"""

from __future__ import annotations

SCHEMA = (
    """
CREATE TABLE objects (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, uri TEXT NOT NULL, version TEXT NOT NULL,
    size INTEGER NOT NULL, chunk_size INTEGER NOT NULL, present INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE chunks (
    object INTEGER NOT NULL REFERENCES objects(id) ON DELETE CASCADE, chunk INTEGER NOT NULL,
    xxh3 BLOB NOT NULL, boot TEXT NOT NULL, PRIMARY KEY (object, chunk)
) WITHOUT ROWID;
CREATE TABLE datasets (
    uri TEXT NOT NULL, revision TEXT NOT NULL, resolved REAL NOT NULL, listing BLOB NOT NULL,
    PRIMARY KEY (uri, revision)
) WITHOUT ROWID;
""",
    """
CREATE TABLE leases (
    tree TEXT PRIMARY KEY, uri TEXT NOT NULL, revision TEXT NOT NULL, since REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE leased (
    tree TEXT NOT NULL REFERENCES leases(tree) ON DELETE CASCADE, key TEXT NOT NULL, PRIMARY KEY (tree, key)
) WITHOUT ROWID;
""",
    """
CREATE TABLE totals (
    id INTEGER PRIMARY KEY CHECK (id = 1), objects INTEGER NOT NULL, chunks INTEGER NOT NULL,
    bytes INTEGER NOT NULL
);
INSERT INTO totals
    SELECT 1, COUNT(*), (SELECT COUNT(*) FROM chunks), COALESCE(SUM(present), 0) FROM objects;
CREATE TRIGGER object_added AFTER INSERT ON objects BEGIN
    UPDATE totals SET objects = objects + 1, bytes = bytes + NEW.present;
END;
CREATE TRIGGER object_changed AFTER UPDATE OF present ON objects BEGIN
    UPDATE totals SET bytes = bytes + NEW.present - OLD.present;
END;
CREATE TRIGGER object_dropped AFTER DELETE ON objects BEGIN
    UPDATE totals SET objects = objects - 1, bytes = bytes - OLD.present;
END;
CREATE TRIGGER chunk_added AFTER INSERT ON chunks BEGIN
    UPDATE totals SET chunks = chunks + 1;
END;
CREATE TRIGGER chunk_dropped AFTER DELETE ON chunks BEGIN
    UPDATE totals SET chunks = chunks - 1;
END;
CREATE TABLE notes (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
""",
    """
ALTER TABLE objects ADD COLUMN last_use INTEGER NOT NULL DEFAULT 0;
ALTER TABLE objects ADD COLUMN ever_complete INTEGER NOT NULL DEFAULT 0;
UPDATE objects SET ever_complete = (present >= size);
CREATE TRIGGER object_completed AFTER UPDATE OF present ON objects WHEN NEW.present >= NEW.size BEGIN
    UPDATE objects SET ever_complete = 1 WHERE id = NEW.id;
END;
CREATE TABLE pins (
    id TEXT PRIMARY KEY, uri TEXT NOT NULL, revision TEXT NOT NULL, until REAL NOT NULL, reason TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE pinned (
    pin TEXT NOT NULL REFERENCES pins(id) ON DELETE CASCADE, key TEXT NOT NULL, PRIMARY KEY (pin, key)
) WITHOUT ROWID;
""",
    """
CREATE TABLE verdicts (key TEXT PRIMARY KEY, verdict TEXT NOT NULL) WITHOUT ROWID;
CREATE TRIGGER verdict_of_object AFTER DELETE ON objects BEGIN
    DELETE FROM verdicts WHERE key = OLD.key AND verdict IN ('right', 'unstated');
END;
CREATE TRIGGER verdict_of_chunk AFTER DELETE ON chunks BEGIN
    DELETE FROM verdicts WHERE verdict = 'right' AND key = (SELECT key FROM objects WHERE id = OLD.object);
END;
CREATE INDEX objects_by_use ON objects (last_use);
""",
)
SCHEMA_VERSION = len(SCHEMA)
# SHA-1 of the pieces of chunks, for the swarm (agent/peers/piece_hashes.py); they outlive the bytes.
PIECES = """
CREATE TABLE IF NOT EXISTS pieces (
    key TEXT NOT NULL, chunk_size INTEGER NOT NULL, chunk INTEGER NOT NULL, sha1 BLOB NOT NULL,
    saved REAL NOT NULL, PRIMARY KEY (key, chunk_size, chunk)
) WITHOUT ROWID;
"""
# Which identity (agent/identity.py) was given which listing by the origin, and when.
PROOFS = """
CREATE TABLE IF NOT EXISTS proofs (
    uri TEXT NOT NULL, identity TEXT NOT NULL, revision TEXT NOT NULL, proven REAL NOT NULL,
    PRIMARY KEY (uri, identity)
) WITHOUT ROWID;
"""
