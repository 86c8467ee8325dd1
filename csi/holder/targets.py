"""Binding a mount onto a pod's directory and taking it off again, by names that nobody can change in between.

A target is named by its path without symbolic links. The holder opens it itself (openat2 with
RESOLVE_NO_SYMLINKS) and compares the inode with the descriptor that serve sent: both mean the same directory,
also where they live in different mount namespaces, whose descriptors move_mount(2) would refuse. From there
on only descriptors are used. A target that is mounted already is never asked anything: openat2 with O_PATH
and statx with AT_STATX_DONT_SYNC are answered by the kernel alone.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from csi.holder import kernel
from csi.holder.mountinfo import MountEntry, inside_ours, mount_entries
from csi.holder.mounts import Mount, Mounts
from csi.holder.protocol import Message, Refused
from csi.holder.state import KnownTarget, StateFile

# The directory is gone, or another one is in its way: a mount point cannot go before its mount.
_NO_DIRECTORY = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)

_log = logging.getLogger("headrace.holder")


class Targets:
    """The targets that mounts are bound on."""

    def __init__(self, mounts: Mounts, state: StateFile) -> None:
        """What `state` tells of targets is taken over where something of ours is still mounted on them."""
        self._mounts = mounts
        self._state = state
        self._bound = state.targets
        shown = {entry.point for entry in mount_entries() if self._is_ours(entry)}
        for target in self._bound.keys() - shown:
            del self._bound[target]
        state.save()

    def of(self, mount: Mount) -> list[str]:
        """Targets where the mount is bound now; those that somebody else unmounted are forgotten."""
        shown = {entry.point for entry in mount_entries() if mount.shown_by(entry)}
        for target, bound in list(self._bound.items()):
            if bound.mount == mount.name and target not in shown:
                del self._bound[target]
        return sorted(target for target, bound in self._bound.items() if bound.mount == mount.name)

    def find(self, target: str) -> KnownTarget | None:
        """What is bound on a target now, or None."""
        bound = self._bound.get(target)
        mount = self._mounts.find(bound.mount) if bound is not None else None
        return bound if mount is not None and target in self.of(mount) else None

    def places(self, mount: Mount) -> int:
        """On how many targets the mount is bound; where none is known, in how many places it is shown.

        What was known may be lost with an earlier holder, and a mount that is shown must not be given up.
        """
        known = len(self.of(mount))
        if known:
            return known
        shown = (entry.point for entry in mount_entries() if mount.seen_in(entry))
        return sum(point != mount.directory for point in shown)

    def bind(self, mount: Mount, target: str, given: int, note: Message) -> bool:
        """Bind the mount on the target; False where it was bound there already.

        Raises Refused `bad-target`, and `bound` where another live mount is there; OSError.
        """
        with self._opened(target) as (descriptor, status, entry):
            if entry is not None and mount.shown_by(entry):
                if self.find(target) is None:
                    self._note(target, KnownTarget(mount.name, note))
                return False
            meant = _same(status, given)
            if entry is None:
                _check_meant(meant, target)
                self._attach(mount, descriptor, target, note)
        if entry is not None:
            self._replace(mount, target, given, meant, note)
        _log.info("bound %s on %s", mount.name, target)
        return True

    def _replace(self, mount: Mount, target: str, given: int, meant: bool, note: Message) -> None:
        """Bind in place of a mount that this holder does not know: its server is gone."""
        if self.find(target) is not None:
            raise Refused("bound", f"another mount is bound on {target}")
        self._detach(target)
        with self._opened(target) as (descriptor, status, entry):
            if entry is not None:
                raise Refused("bad-target", f"{target} has several mounts on top of each other")
            _check_meant(meant or _same(status, given), target)
            self._attach(mount, descriptor, target, note)

    def _attach(self, mount: Mount, descriptor: int, target: str, note: Message) -> None:
        """The clone has the flags of the mount itself: read-only, nosuid, nodev."""
        tree = kernel.clone_tree(mount.directory)
        try:
            # Noted first: a holder killed in between has told its successor of a target that is not there,
            # and not left one that nobody knows.
            self._note(target, KnownTarget(mount.name, note))
            kernel.attach_tree(tree, descriptor)
        except OSError:
            self._forget(target)
            raise
        finally:
            os.close(tree)

    def unbind(self, target: str) -> KnownTarget | None:
        """Unmount the target, lazily, in whatever state; returns what was known of it. Raises OSError."""
        self._detach(target)
        return self._forget(target)

    def _note(self, target: str, bound: KnownTarget) -> None:
        self._bound[target] = bound
        self._state.save()

    def _forget(self, target: str) -> KnownTarget | None:
        bound = self._bound.pop(target, None)
        if bound is not None:
            self._state.save()
        return bound

    def _detach(self, target: str) -> None:
        try:
            with self._opened(target) as (descriptor, _, entry):
                if entry is not None:
                    kernel.detach(descriptor)
                    _log.info("unbound %s", target)
        except OSError as error:
            if error.errno not in _NO_DIRECTORY:
                raise

    @contextmanager
    def _opened(self, target: str) -> Iterator[tuple[int, kernel.Status, MountEntry | None]]:
        """The target's descriptor, its status, and the Headrace mount that is on it."""
        entries = mount_entries()
        around = inside_ours(target, entries)
        if around is not None or f"{target}/".startswith(f"{self._mounts.directory}/"):
            raise Refused(
                "bad-target", f"{target} lies inside a Headrace mount or the holder's own directory"
            )
        descriptor = kernel.open_directory(target)
        try:
            status = kernel.status(descriptor)
            entry = next((entry for entry in entries if entry.mount_id == status.mount_id), None)
            on_it = entry if entry is not None and status.mount_root and self._is_ours(entry) else None
            yield descriptor, status, on_it
        finally:
            os.close(descriptor)

    def _is_ours(self, entry: MountEntry) -> bool:
        return entry.ours or self._mounts.trees.holds(entry)


def _check_meant(meant: bool, target: str) -> None:
    if not meant:
        raise Refused("bad-target", f"{target} is another directory for the holder than for its caller")


def _same(status: kernel.Status, given: int) -> bool:
    other = kernel.status(given)
    return (status.device, status.inode) == (other.device, other.inode)
