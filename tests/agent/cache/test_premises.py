"""A store directory is ours alone, closed to others, and what is not ours in it is never followed."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent.cache.premises import occupy
from agent.errors import ConfigError, StoreFailed
from tests.agent.cache.conftest import CHUNK, open_store
from tests.agent.cache.test_store import fill, ref


def test_one_agent_at_a_time_works_in_a_directory(tmp_path: Path) -> None:
    held = occupy(tmp_path)
    with pytest.raises(
        StoreFailed, match=rf"in use by another agent \(process {os.getpid()}\): stop that one"
    ):
        occupy(tmp_path)
    os.close(held)
    os.close(occupy(tmp_path))


def test_the_lock_of_a_killed_agent_is_gone(tmp_path: Path) -> None:
    script = "import os, sys; from agent.cache.premises import occupy; from pathlib import Path;"
    script += "occupy(Path(sys.argv[1])); print(flush=True); os.kill(os.getpid(), 9)"
    command = [sys.executable, "-c", script, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, timeout=30, check=False)
    assert ended.returncode == -9 and ended.stdout == b"\n"
    os.close(occupy(tmp_path))


def test_directories_are_closed_to_other_users_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = tmp_path / "store"
    (store / "objects").mkdir(parents=True)
    store.chmod(0o755)
    with caplog.at_level(logging.WARNING):
        os.close(occupy(store))
    assert [oct(path.stat().st_mode & 0o777) for path in (store, store / "objects")] == ["0o700", "0o700"]
    assert f"{store} had mode 755" in caplog.text


@pytest.mark.parametrize("name", ["f", "d/f", "lock/f"])
def test_a_directory_that_is_neither_empty_nor_a_store_is_refused_and_left_as_it_is(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"somebody's")
    tmp_path.chmod(0o755)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match=r"^store\.directories: .* is no store, and not empty: name a"):
        occupy(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before
    assert tmp_path.stat().st_mode & 0o777 == 0o755


def test_a_lock_that_is_a_link_as_in_var_makes_no_store(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(Path(__file__))
    with pytest.raises(ConfigError, match="is no store"):
        occupy(tmp_path)


@pytest.mark.parametrize("name", ["lost+found/", "lock", "index.sqlite", "objects/"])
def test_a_new_file_system_and_what_is_left_of_a_store_are_taken(tmp_path: Path, name: str) -> None:
    if name.endswith("/"):
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_bytes(b"")
    os.close(occupy(tmp_path))


def test_a_directory_of_another_user_is_refused_with_what_to_do(traversable: Path) -> None:
    store = traversable / "store"
    store.mkdir()
    store.chmod(0o777)
    script = (
        "import os, sys; os.setuid(65534); from agent.cache.premises import occupy; from pathlib import Path;"
    )
    script += "occupy(Path(sys.argv[1]))"
    ended = subprocess.run(
        [sys.executable, "-c", script, str(store)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        cwd=Path(__file__).parents[3],
    )
    assert "belongs to user 0: give it to the agent's user" in ended.stderr


def test_a_linked_objects_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    store = tmp_path / "store"
    store.mkdir()
    (store / "objects").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="objects is no directory: remove it"):
        occupy(store)


async def test_a_linked_subdirectory_is_moved_away_and_never_followed(tmp_path: Path) -> None:
    elsewhere, store = tmp_path / "elsewhere", tmp_path / "store"
    elsewhere.mkdir()
    (store / "objects").mkdir(parents=True)
    (store / "objects" / ref().key[:2]).symlink_to(elsewhere)
    opened = await open_store(store)
    await fill(opened, await opened.acquire(ref()), 0)
    assert list(elsewhere.iterdir()) == []
    assert [path.name for path in (store / "set-aside").iterdir()] == [f"{ref().key[:2]}-1"]
    await opened.close()


@pytest.mark.parametrize("kind", ["a directory", "a link", "a link to a file of its length", "a pipe"])
async def test_what_is_no_file_in_an_objects_place_is_moved_away(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = tmp_path / "store"
    first = await open_store(store)
    cached = await first.acquire(ref())
    await fill(first, cached, 0)
    await first.close()
    victim = tmp_path / "victim"
    victim.write_bytes(b"v" * ref().size)
    cached.path.unlink()
    if kind == "a directory":
        cached.path.mkdir()
        (cached.path / "kept").touch()
    elif kind == "a pipe":
        os.mkfifo(cached.path)
    else:
        cached.path.symlink_to(victim if "length" in kind else tmp_path / "nowhere")
    second = await open_store(store)
    again = await second.acquire(ref())
    assert not any(again.present)
    await fill(second, again, 0, 1)
    assert victim.read_bytes() == b"v" * ref().size
    assert cached.path.read_bytes()[: 2 * CHUNK] == b"\1" * CHUNK + b"\2" * CHUNK
    assert [path.name for path in (store / "set-aside").iterdir()] == [f"{ref().key}-1"]
    assert "is no file of the store" in caplog.text
    assert second.directories[0].used == 2 * CHUNK
    await second.close()


async def test_a_file_without_a_row_is_never_used_again(tmp_path: Path) -> None:
    first = await open_store(tmp_path)
    cached = await first.acquire(ref())
    await first.close()
    (tmp_path / "index.sqlite").unlink()
    held = cached.path.open("r+b")  # as a process that has it open still
    before = os.fstat(held.fileno()).st_ino
    second = await open_store(tmp_path)
    again = await second.acquire(ref())
    assert again.path.stat().st_ino != before
    held.close()
    await second.close()
