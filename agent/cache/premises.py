"""What must be true of a store directory before anything in it is believed: it is ours, closed to others, and
nobody else's agent works in it. And what lies there that is not ours is moved out of the way, never followed.

    <directory>/lock                  flock(2)ed while an agent, or `headrace-agent fsck`, works here
    <directory>/new/                  files on their way to replace damaged ones (renewal.py)
    <directory>/set-aside/            what lay where an object's file goes, and is no file of ours
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import stat
from pathlib import Path

from agent.errors import ConfigError, StoreFailed

log = logging.getLogger(__name__)

KEY = "store.directories"
MODE = 0o700


def occupy(path: Path) -> int:
    """Make the directory, close it to others and lock it; the descriptor that holds the lock.

    One that has something in it and is no store is left as it is: it may be "/" or somebody's home. Raises
    ConfigError for one that cannot be used, StoreFailed where another process uses it.
    """
    try:
        if path.exists() and not _is_store(path) and not _is_empty(path):
            raise ConfigError(KEY, f"{path} is no store, and not empty: name a directory of the agent's own")
        (path / "objects").mkdir(mode=MODE, parents=True, exist_ok=True)
        for one in (path, path / "objects"):
            _close_to_others(one)
        held = _lock(path)
    except OSError as error:
        remedy = "make it and give it to the agent's user"
        raise ConfigError(KEY, f"{path}: {error.strerror}; {remedy}") from error
    try:
        _straighten(path)
    except BaseException:
        os.close(held)
        raise
    return held


def owner_of(path: Path) -> tuple[int, int]:
    """User and group that a store directory belongs to. Raises ConfigError."""
    try:
        status = path.stat()
    except OSError as error:
        raise ConfigError(KEY, f"{path}: {error.strerror}; name the agent's own directory") from error
    return status.st_uid, status.st_gid


def set_aside(store: Path, path: Path) -> Path:
    """Move what lies at `path`, whatever it is, to the store's `set-aside`. Raises StoreFailed."""
    aside = store / "set-aside"
    number = 1
    while os.path.lexists(aside / f"{path.name}-{number}"):
        number += 1
    target = aside / f"{path.name}-{number}"
    try:
        aside.mkdir(mode=MODE, exist_ok=True)
        path.rename(target)
    except OSError as error:
        raise StoreFailed(f"cannot move {path} out of the way: {error.strerror}") from error
    log.error("%s is no file of the store: it is moved to %s", path, target)
    return target


def _is_empty(path: Path) -> bool:
    with os.scandir(path) as entries:
        return all(entry.name == "lost+found" for entry in entries)  # as mkfs makes it


def _is_store(path: Path) -> bool:
    """Whether a part of a store lies there; /var has a `lock` too, which is a link."""
    if any(os.path.lexists(path / name) for name in ("objects", "index.sqlite")):
        return True
    return (path / "lock").is_file() and not (path / "lock").is_symlink()


def _close_to_others(path: Path) -> None:
    status = path.stat()
    if not stat.S_ISDIR(path.lstat().st_mode) and path.name == "objects":
        raise ConfigError(KEY, f"{path} is no directory: remove it")
    if os.geteuid() not in (status.st_uid, 0):
        raise ConfigError(KEY, f"{path} belongs to user {status.st_uid}: give it to the agent's user")
    if stat.S_IMODE(status.st_mode) != MODE:
        log.warning("%s had mode %o: it is closed to other users now", path, stat.S_IMODE(status.st_mode))
        path.chmod(MODE)


def _lock(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    held = os.open(path / "lock", flags, 0o600)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(held, 20, 0).decode("ascii", "replace").strip()
        os.close(held)
        raise StoreFailed(
            f"{path} is in use by another agent (process {holder}): stop that one, or give each its own"
        ) from None
    os.ftruncate(held, 0)
    os.pwrite(held, f"{os.getpid()}\n".encode(), 0)
    return held


def _straighten(path: Path) -> None:
    """Have every `objects/ab` be a directory, and nothing half made in `new`."""
    shutil.rmtree(path / "new", ignore_errors=True)
    try:
        (path / "new").mkdir(mode=MODE, exist_ok=True)
        with os.scandir(path / "objects") as entries:
            wrong = [entry.name for entry in entries if not entry.is_dir(follow_symlinks=False)]
    except OSError as error:
        raise StoreFailed(f"{path} cannot be used: {error.strerror}") from error
    for name in wrong:
        if len(name) == 2:  # where objects go; anything else is left alone (sweep.py)
            set_aside(path, path / "objects" / name)
