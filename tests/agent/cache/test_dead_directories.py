"""A directory that is dead at the start: left out and told of where another works, else the start fails."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.cache.directory import StoreLimits
from agent.cache.store import Store
from agent.content import ObjectRef
from agent.errors import ConfigError, HeadraceError, StoreFailed
from agent.metrics import Metrics
from tests.fakes.clock import ManualClock

LIMITS = StoreLimits(1 << 30, 0)
Kill = Callable[[Path], "Iterator[None]"]


def no_index(path: Path) -> Iterator[None]:
    """SQLite cannot open the index."""
    (path / "index.sqlite-wal").mkdir(parents=True)
    (path / "index.sqlite").mkdir()
    yield


def read_only(path: Path) -> Iterator[None]:
    """A file system that is mounted read-only, as one is after an error."""
    path.mkdir(parents=True, mode=0o700)
    mounted = ["mount", "-t", "tmpfs", "-o", "ro,mode=0700", "none", str(path)]
    subprocess.run(mounted, check=True, timeout=20)
    try:
        yield
    finally:
        subprocess.run(["umount", str(path)], check=True, timeout=20)


async def opened(paths: list[Path], metrics: Metrics) -> Store:
    return await Store.open(paths, 65536, LIMITS, ManualClock(), metrics)


@pytest.mark.parametrize("kill", [no_index, read_only])
async def test_a_dead_directory_is_left_out_where_another_works_and_refused_alone(
    tmp_path: Path, kill: Kill
) -> None:
    dead, well = tmp_path / "disk" / "dead", tmp_path / "well"
    metrics = Metrics("test")
    with contextmanager(kill)(dead):
        store = await opened([dead, well], metrics)
        assert [one.path for one in store.directories] == [well]
        (fault,) = store.conditions.faults()
        assert fault.startswith(f"the store directory {dead} is left out")
        assert metrics.counters()[f'headrace_store_state{{directory="{dead}",state="failed"}}'] == 1
        cached = await store.acquire(ObjectRef("s3://b/k", "v", 10))
        assert cached.path.is_relative_to(well)
        store.release(cached)
        await store.close()
        with pytest.raises(HeadraceError) as caught:
            await opened([dead], metrics)
        assert "\n" not in str(caught.value)


async def test_a_mistake_or_another_agent_is_no_dead_directory(tmp_path: Path) -> None:
    used = await opened([tmp_path / "used"], Metrics("test"))
    with pytest.raises(StoreFailed, match="another agent"):
        await opened([tmp_path / "well", tmp_path / "used"], Metrics("test"))
    await used.close()
    (tmp_path / "wrong").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "wrong" / "objects").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="no directory"):
        await opened([tmp_path / "well", tmp_path / "wrong"], Metrics("test"))
