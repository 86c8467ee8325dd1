"""How objects leave the store."""

from __future__ import annotations

from pathlib import Path

from agent.content import ObjectRef
from tests.agent.cache.conftest import open_store


async def test_who_keeps_a_file_open_is_told_before_it_is_unlinked(tmp_path: Path) -> None:
    store = await open_store(tmp_path / "store")
    ref = ObjectRef("s3://b/o", "v", 100)
    store.release(await store.acquire(ref))
    directory = store.directories[0]
    told: list[tuple[str, bool]] = []

    async def note(key: str) -> None:
        told.append((key, directory.file_of(key).exists()))

    store.before_removal = note
    await store.take_object(directory, ref.key)
    assert told == [(ref.key, True)]
    assert not directory.file_of(ref.key).exists()
    await store.close()
