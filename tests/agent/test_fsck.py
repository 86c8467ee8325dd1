"""`headrace-agent fsck` on real stores: what it finds, what it repairs, and what it says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import xxhash

from agent.cache.objects import CachedObject
from agent.cache.store import Store
from agent.content import ObjectRef
from tests.agent.cache.conftest import CHUNK, open_store

NAMES = ("a", "b", "c")


def ref(name: str) -> ObjectRef:
    return ObjectRef(f"s3://bucket/{name}", "v1", 3 * CHUNK)


async def fill(store: Store, name: str, chunks: int = 3) -> CachedObject:
    cached = await store.acquire(ref(name))
    for chunk in range(chunks):
        store.reserve(cached, chunk)
        data = (name * CHUNK).encode()
        os.pwrite(cached.fd, data, chunk * CHUNK)
        await store.record(cached, chunk, xxhash.xxh3_128_digest(data))
    store.release(cached)
    return cached


@pytest.fixture
async def paths(tmp_path: Path) -> dict[str, Path]:
    """The files of three objects in a closed store, the last not complete."""
    store = await open_store(tmp_path / "store")
    found = {name: (await fill(store, name, 2 if name == "c" else 3)).path for name in NAMES}
    await store.close()
    return found


def fsck(tmp_path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    config = tmp_path / "agent.toml"
    config.write_text(f'[store]\ndirectories = ["{tmp_path / "store"}"]\n')
    command = [sys.executable, "-m", "agent", "fsck", "--config", str(config), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


async def test_a_sound_store_is_clean(tmp_path: Path, paths: dict[str, Path]) -> None:
    ended = fsck(tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == "3 objects, 512KiB checked: clean\n"


async def test_damage_is_repaired_told_and_gone_the_next_time(tmp_path: Path, paths: dict[str, Path]) -> None:
    flip(paths["a"], CHUNK + 9)
    held = paths["a"].open("rb")  # as a passthrough handle
    os.truncate(paths["b"], 4096)
    unknown = paths["c"].with_name(paths["c"].name[:2] + "0" * 30)
    unknown.write_bytes(b"?")
    foreign = tmp_path / "store" / "objects" / "README"
    foreign.write_text("mine")
    ended = fsck(tmp_path)
    assert ended.returncode == 1
    lines = ended.stdout.splitlines()
    assert any("chunk: s3://bucket/a: 1 of 3 chunks are wrong: dropped" in line for line in lines)
    assert any("file: s3://bucket/b" in line and "has 4096 bytes and not" in line for line in lines)
    assert any("unknown: 2 files" in line for line in lines)  # b's too
    assert any(f"foreign: {foreign} is not the store's: left alone" in line for line in lines)
    assert lines[-1] == "3 objects, 320KiB checked: 3 found, 3 repaired"
    assert foreign.read_text() == "mine" and not unknown.exists()
    assert os.fstat(held.fileno()).st_nlink == 0  # nothing is written into a file that may be open
    held.close()
    again = fsck(tmp_path)
    assert again.returncode == 0 and again.stdout.endswith("clean\n")
    store = await open_store(tmp_path / "store")
    assert [list((await store.acquire(ref(name))).present) for name in NAMES] == [
        [1, 0, 1],
        [0, 0, 0],
        [1, 1, 0],
    ]
    await store.close()


async def test_findings_come_as_json(tmp_path: Path, paths: dict[str, Path]) -> None:
    paths["a"].unlink()
    paths["a"].mkdir()
    ended = fsck(tmp_path, "--json")
    assert ended.returncode == 1
    told = json.loads(ended.stdout)
    assert told["summary"] == {"objects": 3, "bytes": 5 * CHUNK, "damage": 1, "not_repaired": 0}
    assert [(one["kind"], one["repaired"]) for one in told["findings"]] == [("file", True)]


async def test_a_damaged_index_is_set_aside_and_the_files_go(tmp_path: Path, paths: dict[str, Path]) -> None:
    (tmp_path / "store" / "index.sqlite").write_bytes(b"garbage" * 1000)
    ended = fsck(tmp_path)
    assert ended.returncode == 1
    assert "index.sqlite.corrupt-1" in ended.stdout and "unknown: 3 files" in ended.stdout
    assert not any(path.exists() for path in paths.values())


async def test_a_store_that_an_agent_uses_is_left_alone(tmp_path: Path, paths: dict[str, Path]) -> None:
    flip(paths["a"], 9)
    store = await open_store(tmp_path / "store")
    ended = fsck(tmp_path)
    assert ended.returncode == 1
    assert f"in use by another agent (process {os.getpid()})" in ended.stderr
    assert await store.present_bytes([ref("a").key]) == {ref("a").key: 3 * CHUNK}
    await store.close()


async def test_root_checks_as_the_owner_of_the_store(traversable: Path) -> None:
    store = await open_store(traversable / "store")
    await fill(store, "a")
    await store.close()
    for path in [traversable / "store", *(traversable / "store").rglob("*")]:
        os.chown(path, 65534, 65534)
    ended = fsck(traversable)
    assert (ended.returncode, ended.stdout) == (0, "1 objects, 192KiB checked: clean\n")
    assert {path.stat().st_uid for path in (traversable / "store").rglob("*")} == {65534}


def test_wrong_usage_ends_with_2(tmp_path: Path) -> None:
    assert fsck(tmp_path, "--what").returncode == 2
    missing = fsck(tmp_path)
    assert missing.returncode == 2 and "store.directories" in missing.stderr
