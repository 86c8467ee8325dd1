"""Headrace mounts below one directory: told from mountinfo, and taken away without touching them.

The last resort for a mount that hangs is to abort its connection (Documentation/filesystems/fuse in the
kernel tree): whoever waits for it gets ECONNABORTED.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from pathlib import Path

from csi.holder.kernel import MNT_DETACH, UMOUNT_NOFOLLOW, unmount
from csi.holder.mountinfo import MountEntry, mount_entries


def mounts_below(directory: Path) -> list[MountEntry]:
    """Everything that is mounted below a directory, of whatever type, in the order of mounting."""
    return [entry for entry in mount_entries() if entry.point.startswith(f"{directory}/")]


def detach_below(directory: Path) -> None:
    """Unmount, lazily, everything below a directory, the last mounted first. Raises OSError."""
    for entry in reversed(mounts_below(directory)):
        unmount(entry.point, MNT_DETACH | UMOUNT_NOFOLLOW)


def abort_connections(devices: Iterable[str], control: Path) -> None:
    """Abort the FUSE connections of devices ("major:minor") that are mounted nowhere.

    The control file system is mounted on `control`, an empty directory, for as long as this takes. A device
    number that is seen in mountinfo has gone to a mount of somebody else meanwhile, and is left alone.
    """
    elsewhere = {entry.device for entry in mount_entries()}
    subprocess.run(["mount", "-t", "fusectl", "fusectl", str(control)], check=True, timeout=10)
    try:
        for device in set(devices) - elsewhere:
            handle = control / device.partition(":")[2] / "abort"
            if handle.exists():
                handle.write_text("1")
    finally:
        unmount(str(control), MNT_DETACH)
