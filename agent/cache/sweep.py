"""Files in `objects/` that the index does not know: those that could be an object's are removed, for what is
in them cannot be told; all others are somebody else's, left alone and named once in the log.

Runs behind the start, one subdirectory after another. Whether a file has a row is asked, and the file
removed, in one step on the index thread, where files and rows are made too: nothing new is taken for old.
"""

from __future__ import annotations

import logging
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from agent.cache.index import Index
from agent.errors import StoreFailed

log = logging.getLogger(__name__)

OURS = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Found:
    """The names in one subdirectory: those of files that could be objects', and the paths of all others."""

    keys: tuple[str, ...]
    foreign: tuple[Path, ...]


def subdirectories(store: Path) -> Iterator[Path]:
    """Where objects' files are. Raises StoreFailed."""
    objects = store / "objects"
    for name in _listed(objects):
        if len(name) == 2:
            yield objects / name


def strangers(store: Path) -> list[Path]:
    """What else lies beside those. Raises StoreFailed."""
    return [store / "objects" / name for name in _listed(store / "objects") if len(name) != 2]


def look(directory: Path) -> Found:
    """What is in one of them. Raises StoreFailed."""
    keys, foreign = [], []
    for name in _listed(directory):
        path = directory / name
        if OURS.fullmatch(name) and name.startswith(directory.name) and _is_file(path):
            keys.append(name)
        else:
            foreign.append(path)
    return Found(tuple(keys), tuple(foreign))


def remove_unknown(index: Index, directory: Path, keys: Iterable[str]) -> int:
    """Remove the files that have no row; how many there were (index thread). Raises StoreFailed."""
    keys = set(keys)
    removed = 0
    for key in keys - index.known(keys):
        try:
            (directory / key).unlink()
            removed += 1
        except FileNotFoundError:
            continue
        except OSError as error:
            raise StoreFailed(f"cannot remove {directory / key}: {error.strerror}") from error
    return removed


def say_foreign(store: Path, foreign: list[Path]) -> None:
    """Tell of what is not the store's."""
    if foreign:
        log.warning(
            "%s: %d files are not the store's and are left alone; the first is %s",
            store,
            len(foreign),
            foreign[0],
        )


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def _listed(directory: Path) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise StoreFailed(f"cannot list {directory}: {error.strerror}") from error
