"""/proc/self/mountinfo (proc_pid_mountinfo(5)): what is mounted, told without touching any of it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

FSTYPE = "fuse.headrace"
_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class MountEntry:
    """One line: the mount's id, its device as "major:minor", which directory of it (`root`), where it is
    mounted, and its type."""

    mount_id: int
    device: str
    root: str
    point: str
    fstype: str
    options: str

    @property
    def ours(self) -> bool:
        """Whether it is a Headrace mount, of this holder or another."""
        return self.fstype == FSTYPE


def mount_entries() -> list[MountEntry]:
    """What is mounted in this process's mount namespace, in the order of mounting."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape", newline="\n") as lines:
        return parse_mountinfo(lines)


def parse_mountinfo(lines: Iterable[str]) -> list[MountEntry]:
    """Parse mountinfo lines; the optional fields before the separator '-' vary in number."""
    entries = []
    for line in lines:
        fields = line.rstrip("\n").split(" ")  # no other white space is escaped
        kind = fields[fields.index("-", 6) + 1]
        entries.append(_entry(fields, kind))
    return entries


def _entry(fields: list[str], kind: str) -> MountEntry:
    return MountEntry(int(fields[0]), fields[2], _unescape(fields[3]), _unescape(fields[4]), kind, fields[5])


def _unescape(text: str) -> str:
    """Space, tab, newline and backslash stand as octal escapes."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)


def inside_ours(path: str, entries: Iterable[MountEntry]) -> MountEntry | None:
    """The Headrace mount that `path` lies inside (not the one at it), whose lookups could hang; or None."""
    for entry in entries:
        if entry.ours and path.startswith(entry.point.rstrip("/") + "/"):
            return entry
    return None
