"""Promoted datasets: read-only bind mounts of the trees that the agent makes in its store.

A tree is `<store>/trees/<mount>/root`, of hard links to the store's files. Its mount has the disk's own file
system: it needs no server, outlives holder and agent, and is told from other mounts by its place on the
disk. The agent's descriptor may be of another mount namespace, which open_tree(2) refuses; so the holder
opens the place itself, by no symbolic link, and compares both.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass

from csi.holder import kernel
from csi.holder.mountinfo import MountEntry, mount_entries
from csi.holder.protocol import Refused

DELETED = "//deleted"  # what mountinfo puts behind the root of a mount whose directory was removed


@dataclass(frozen=True, slots=True)
class _Place:
    """A store directory: its path, and where its trees are on the disk as mountinfo tells it."""

    path: str
    device: str
    prefix: str


class TreePlaces:
    """Where the agent's trees lie."""

    def __init__(self, stores: Sequence[str]) -> None:
        """`stores` are the `--store` directories. Raises OSError."""
        self._places = [_place(os.path.realpath(store)) for store in stores]

    def holds(self, entry: MountEntry) -> bool:
        """Whether this is a mount of a tree, or of something in one."""
        return any(
            entry.device == place.device and entry.root.startswith(place.prefix) for place in self._places
        )

    def is_root(self, entry: MountEntry, name: str) -> bool:
        """Whether this is a mount of the whole tree of that name."""
        root = entry.root.removesuffix(DELETED)
        return any(
            entry.device == place.device and root == f"{place.prefix}{name}/root" for place in self._places
        )

    def open(self, name: str, given: int, owner: int) -> int:
        """The tree's root opened here, the one that the agent sent; `owner` is the agent's uid.

        Raises Refused `bad-tree`, OSError.
        """
        wanted = kernel.status(given)
        for place in self._places:
            try:
                found = _open(place.path, name)
            except FileNotFoundError:
                continue
            try:
                _check(kernel.status(found), wanted, owner)
            except BaseException:
                os.close(found)
                raise
            return found
        raise Refused("bad-tree", f"there is no trees/{name}/root in a --store directory")


def _check(found: kernel.Status, wanted: kernel.Status, owner: int) -> None:
    if (found.device, found.inode) != (wanted.device, wanted.inode):
        raise Refused("bad-tree", "the tree is another directory for the holder than for the agent")
    if not stat.S_ISDIR(found.mode) or found.uid != owner:
        raise Refused("bad-tree", "a tree must be a directory of the agent's user")
    if found.mount_root:
        raise Refused("bad-tree", "a tree must lie on the device of its store")


def _open(store: str, name: str) -> int:
    directory = kernel.open_directory(store)
    try:
        return kernel.open_directory(f"trees/{name}/root", directory, beneath=True)
    finally:
        os.close(directory)


def _place(path: str) -> _Place:
    descriptor = kernel.open_directory(path)
    try:
        mount_id = kernel.status(descriptor).mount_id
    finally:
        os.close(descriptor)
    entry = next(entry for entry in mount_entries() if entry.mount_id == mount_id)
    below = os.path.relpath(path, entry.point)
    inside = entry.root.rstrip("/") + ("" if below == "." else f"/{below}")
    return _Place(path, entry.device, f"{inside}/trees/")
