"""The mounts that the holder keeps: descriptors, records and backing ids."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from csi.holder import kernel, stale
from csi.holder.mountinfo import FSTYPE, MountEntry, mount_entries
from csi.holder.protocol import Message, Refused
from csi.holder.restored import check_fuse
from csi.holder.state import KnownMount, StateFile
from csi.holder.trees import DELETED, TreePlaces

MAX_READ = 1 << 20  # bytes of one READ; 1 MiB is the most that the kernel asks for
_OPTIONS = f"rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions,max_read={MAX_READ}"
_FLAGS = kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV
# What BACKING_OPEN says where passthrough is not to be had: not agreed in INIT, unknown to the kernel, or
# the file system below is stacked too deep itself.
_NO_PASSTHROUGH = (errno.EPERM, errno.ENOTTY, errno.EOPNOTSUPP, errno.ENOSYS, errno.ELOOP)

_log = logging.getLogger("headrace.holder")


@dataclass
class Mount:
    """One mount: `number` is its name in the in-flight table, `device` its "major:minor" in mountinfo.

    A tree (trees.py) has no /dev/fuse descriptor, and shows the directory `root` of the disk. A FUSE mount
    without one is an earlier holder's that is served on: its agent has the descriptor, and restores it.
    """

    name: str
    number: int
    descriptor: int | None
    directory: str
    device: str
    record: Message = field(repr=False)  # may hold credentials
    backing: dict[int, int] = field(default_factory=dict)
    root: str = "/"
    kind: str = "fuse"  # or "tree"

    @property
    def held(self) -> bool:
        """Whether the holder has all of it: false for a mount that is still to be restored."""
        return self.kind == "tree" or self.descriptor is not None

    def shown_by(self, entry: MountEntry) -> bool:
        """Whether this is the mount itself or a bind of all of it."""
        return entry.device == self.device and entry.root.removesuffix(DELETED) == self.root

    def seen_in(self, entry: MountEntry) -> bool:
        """Whether this mount line shows the mount or something in it, as the bind of a subPath does."""
        inside = self.kind == "fuse" or f"{entry.root.removesuffix(DELETED)}/".startswith(f"{self.root}/")
        return entry.device == self.device and inside

    def fuse(self) -> int:
        """Its /dev/fuse descriptor. Raises Refused for a tree, and until it is restored."""
        if self.kind == "tree":
            raise Refused("bad-request", f"{self.name} is a tree, which nobody serves")
        if self.descriptor is None:
            raise Refused("no-mount", f"{self.name} is not restored yet")
        return self.descriptor


class Mounts:
    """All mounts of this holder, below one directory of its own."""

    def __init__(
        self, directory: str, devices: frozenset[tuple[int, int]], trees: TreePlaces, state: StateFile
    ) -> None:
        """`devices` are those of the store: only files on them may back a passthrough open."""
        self.directory = directory
        self.trees = trees
        self._devices = devices
        self._mounts: dict[str, Mount] = {}
        self._state = state

    def __iter__(self) -> Iterator[Mount]:
        return iter(list(self._mounts.values()))

    def find(self, name: str) -> Mount | None:
        return self._mounts.get(name)

    def get(self, name: str) -> Mount:
        """The mount of that name. Raises Refused `no-mount`."""
        try:
            return self._mounts[name]
        except KeyError:
            raise Refused("no-mount", f"there is no mount {name}") from None

    def add(self, name: str, record: Message) -> Mount:
        """Mount a new file system. Raises Refused `exists`, OSError."""
        known = self._mounts.get(name)
        if known is not None:
            if not _is_gone(known):
                left = "" if known.held else " of an earlier holder, still served by its agent"
                raise Refused("exists", f"there is a mount {name}{left} already")
            self.remove(known)
        directory = self._free_directory(name)
        os.mkdir(directory, 0o700)
        try:
            descriptor = _mount_at(directory)
        except OSError:
            os.rmdir(directory)
            raise
        mount = Mount(name, self._next_number(), descriptor, directory, _device_at(directory), record)
        self._keep(mount)
        _log.info("mounted %s (device %s)", name, mount.device)
        return mount

    def _next_number(self) -> int:
        """One that no mount had: a request of a mount that is gone may still be in the in-flight table."""
        self._state.numbers += 1
        return self._state.numbers

    def _keep(self, mount: Mount) -> None:
        self._mounts[mount.name] = mount
        self._state.mounts[mount.name] = KnownMount(mount.number, mount.device)
        self._state.save()

    def recall(self) -> None:
        """Know the FUSE mounts again that an earlier holder left and an agent serves on (after stale.clean).

        Their targets are told and unbound as ever; descriptors and records come with `restore`.
        """
        for name, known in list(self._state.mounts.items()):
            directory = os.path.join(self.directory, name)
            entry = _entry_at(directory)
            if entry is not None and entry.ours and entry.device == known.device:
                self._mounts[name] = Mount(name, known.number, None, directory, known.device, {})
            else:
                del self._state.mounts[name]

    def sweep(self) -> None:
        """Remove the mounts that nobody can restore any more: their agent has died as well."""
        waiting = {mount.directory: mount for mount in self if not mount.held}
        for directory in stale.dead_among(waiting):
            self.remove(waiting[directory])

    def restore(self, name: str, number: int, record: Message, given: int) -> Mount:
        """Take a mount of an earlier holder back from the agent that has its descriptor `given`.

        Raises Refused: `exists` where this holder has it, `no-mount` where nothing of ours is mounted there,
        `bad-file` and `bad-request` where descriptor or number is not that mount's; OSError.
        """
        known = self._mounts.get(name)
        if known is not None and known.held:
            raise Refused("exists", f"there is a mount {name} already")
        if any(other.number == number and other.kind == "fuse" for other in self if other is not known):
            raise Refused("bad-request", f"number {number} is another mount's")
        directory = os.path.join(self.directory, name)
        entry = _entry_at(directory)
        if entry is None or not entry.ours:
            raise Refused("no-mount", f"nothing of Headrace is mounted at {directory}")
        check_fuse(given, entry.device)
        mount = Mount(name, number, os.dup(given), directory, entry.device, record)
        self._state.numbers = max(self._state.numbers, number)
        self._keep(mount)
        _log.info("restored %s (device %s)", name, mount.device)
        return mount

    def add_tree(self, name: str, record: Message, given: int, agent: int) -> Mount:
        """Mount the agent's tree of that name (trees.py); again where it is mounted already.

        `given` is the agent's descriptor of the tree's root, `agent` its uid. Raises Refused `bad-tree`,
        `exists`, OSError.
        """
        opened = self.trees.open(name, given, agent)
        try:
            known = self._mounts.get(name)
            if known is None:
                return self._mount_tree(name, record, opened)
            if known.kind != "tree":
                raise Refused("exists", f"there is a mount {name} already")
            known.record = record
            return known
        finally:
            os.close(opened)

    def _mount_tree(self, name: str, record: Message, opened: int) -> Mount:
        directory = self._free_directory(name)
        os.mkdir(directory, 0o700)
        try:
            _bind_at(directory, opened)
        except OSError:
            os.rmdir(directory)
            raise
        return self._keep_tree(name, record, directory)

    def find_trees(self) -> None:
        """Know the mounts of trees that an earlier holder left, which live on; their records are lost."""
        for name in os.listdir(self.directory):
            directory = os.path.join(self.directory, name)
            entry = _entry_at(directory)
            if name not in self._mounts and entry is not None and self.trees.is_root(entry, name):
                self._keep_tree(name, {}, directory)

    def _keep_tree(self, name: str, record: Message, directory: str) -> Mount:
        entry = _entry_at(directory)
        assert entry is not None
        root = entry.root.removesuffix(DELETED)
        number = self._next_number()
        mount = Mount(name, number, None, directory, entry.device, record, root=root, kind="tree")
        self._mounts[name] = mount
        _log.info("mounted the tree %s (%s)", name, root)
        return mount

    def _free_directory(self, name: str) -> str:
        directory = os.path.join(self.directory, name)
        if name in os.listdir(self.directory):
            mounted = directory in {entry.point for entry in mount_entries()}
            if mounted and not stale.is_dead(directory):
                raise Refused("exists", f"a mount {name} of an earlier holder is still served")
            stale.remove(directory, mounted=mounted)
        return directory

    def read_ahead(self, mount: Mount, kib: int) -> None:
        """Let the kernel read that far ahead (FINDINGS: 128 KiB unless told). Raises OSError."""
        with open(f"/sys/class/bdi/{mount.device}/read_ahead_kb", "w", encoding="ascii") as setting:
            setting.write(str(kib))

    def open_backing(self, mount: Mount, nodeid: int, file: int) -> int:
        """The backing id of a nodeid; one id as long as it is not closed, whatever file is given again.

        Raises Refused `bad-file` and `unsupported`, OSError.
        """
        fuse = mount.fuse()
        self._check_backing(file)
        known = mount.backing.get(nodeid)
        if known is not None:
            return known
        try:
            backing = kernel.backing_open(fuse, file)
        except OSError as error:
            if error.errno in _NO_PASSTHROUGH:
                raise Refused("unsupported", f"no passthrough here: {error.strerror}") from error
            raise
        mount.backing[nodeid] = backing
        return backing

    def _check_backing(self, file: int) -> None:
        status = kernel.status(file)
        if not stat.S_ISREG(status.mode):
            raise Refused("bad-file", "a backing file must be a regular file")
        flags = fcntl.fcntl(file, fcntl.F_GETFL)
        if flags & os.O_PATH or flags & os.O_ACCMODE != os.O_RDONLY:
            raise Refused("bad-file", "a backing file must be opened read-only")
        if status.device not in self._devices:
            raise Refused("bad-file", "a backing file must lie on the device of a --store directory")

    def close_backing(self, mount: Mount, nodeid: int) -> None:
        """Give the backing id of a nodeid back; nothing where it has none. Raises OSError."""
        backing = mount.backing.pop(nodeid, None)
        if backing is not None:
            kernel.backing_close(mount.fuse(), backing)

    def remove(self, mount: Mount) -> None:
        """Unmount, lazily: programs that have files open keep them while the agent holds its descriptor."""
        del self._mounts[mount.name]
        if self._state.mounts.pop(mount.name, None) is not None:
            self._state.save()
        for nodeid in list(mount.backing):
            try:
                self.close_backing(mount, nodeid)
            except OSError as error:
                _log.warning("backing id of %s, nodeid %d: %s", mount.name, nodeid, error.strerror)
        stale.remove(mount.directory, mounted=_entry_at(mount.directory) is not None)
        if mount.descriptor is not None:
            os.close(mount.descriptor)
        _log.info("unmounted %s", mount.name)


def _mount_at(directory: str) -> int:
    descriptor = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        kernel.mount("headrace", directory, FSTYPE, _FLAGS, f"fd={descriptor},{_OPTIONS}")
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _device_at(directory: str) -> str:
    """From mountinfo: a mount without a server must not be opened."""
    entry = _entry_at(directory)
    assert entry is not None
    return entry.device


def _is_gone(mount: Mount) -> bool:
    """Whether somebody else unmounted it, or its last descriptor is closed."""
    entry = _entry_at(mount.directory)
    return entry is None or not mount.shown_by(entry) or stale.is_dead(mount.directory)


def _entry_at(directory: str) -> MountEntry | None:
    return next((entry for entry in reversed(mount_entries()) if entry.point == directory), None)


def _bind_at(directory: str, tree: int) -> None:
    clone = kernel.clone_directory(tree)
    try:
        target = kernel.open_directory(directory)
        try:
            kernel.attach_tree(clone, target)
        finally:
            os.close(target)
    finally:
        os.close(clone)
