"""Paths and our own mounts: a process that touches a file of a mount it serves may wait for itself for ever.

So a path is resolved name by name, and each step is compared with the mount table before it is touched.
The table is /proc/self/mountinfo (proc_pid_mountinfo(5)): ours have the type `fuse.headrace`.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from agent.errors import BadRequest

OWN_TYPE = "fuse.headrace"
MOUNTINFO = Path("/proc/self/mountinfo")
_OCTAL = re.compile(rb"\\([0-7]{3})")
_MAX_LINKS = 40  # as the kernel allows on one path, path_resolution(7)


@dataclass(frozen=True, slots=True)
class OwnMounts:
    """Where Headrace's own mounts are, as this process sees them."""

    points: frozenset[str]

    @classmethod
    def read(cls, table: Path = MOUNTINFO) -> OwnMounts:
        """The mounts that there are now."""
        return cls(frozenset(_own_points(table.read_bytes().splitlines())))

    def holds(self, path: str) -> bool:
        """Whether an absolute path without '..' is a mount of ours or lies below one."""
        if not self.points:
            return False
        while path not in self.points:
            if path in ("/", ""):
                return False
            path = os.path.dirname(path)
        return True

    def refuse(self, path: str) -> None:
        """Raise BadRequest where `holds`."""
        if self.holds(path):
            raise BadRequest(
                f"{path} lies in a mount of Headrace itself; name the origin of that mount instead"
            )


def _own_points(lines: Iterable[bytes]) -> Iterable[str]:
    for line in lines:
        before, _, after = line.partition(b" - ")
        if after.split(b" ", 1)[0].decode("ascii", "replace") == OWN_TYPE:
            raw = before.split(b" ")[4]
            yield os.fsdecode(_OCTAL.sub(lambda found: bytes([int(found[1], 8)]), raw))


def resolve(path: str, mounts: OwnMounts) -> str:
    """The path without symbolic links, '.' and '..', never touching a mount of ours.

    Raises BadRequest where it leads into one, OSError where it leads nowhere. `path` is absolute.
    """
    pending = path.split("/")[::-1]
    done = "/"
    links = 0
    while pending:
        name = pending.pop()
        if name in ("", "."):
            continue
        if name == "..":
            done = os.path.dirname(done)
            continue
        step = os.path.join(done, name)
        mounts.refuse(step)
        if not stat.S_ISLNK(os.lstat(step).st_mode):
            done = step
            continue
        links += 1
        if links > _MAX_LINKS:
            raise OSError(f"too many symbolic links in {path}")
        target = os.readlink(step)
        pending += target.split("/")[::-1]
        done = "/" if target.startswith("/") else done
    return done
