"""The kernel calls that Python's standard library lacks, by ctypes, and the ioctls of /dev/fuse.

Numbers come from the kernel's headers: include/uapi/linux/{mount,openat2,stat,fuse}.h. System calls that are
newer than 5.0 have the same number on every architecture but alpha. Everything raises OSError.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from dataclasses import dataclass

MS_RDONLY, MS_NOSUID, MS_NODEV = 1, 2, 4
MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8

RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH = 0x02, 0x04, 0x08

_SYS_OPEN_TREE, _SYS_MOVE_MOUNT, _SYS_OPENAT2, _SYS_MOUNT_SETATTR = 428, 429, 437, 442
_AT_FDCWD = -100
_AT_EMPTY_PATH, _AT_STATX_DONT_SYNC = 0x1000, 0x4000
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH, _MOVE_MOUNT_T_EMPTY_PATH = 0x04, 0x40
_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_NOSUID, _MOUNT_ATTR_NODEV = 1, 2, 4
_MS_PRIVATE = 1 << 18
_STATX_TYPE, _STATX_UID, _STATX_INO, _STATX_MNT_ID = 0x1, 0x8, 0x100, 0x1000
_STATX_ATTR_MOUNT_ROOT = 0x2000

# _IOW(229, nr, size), include/uapi/asm-generic/ioctl.h
_BACKING_OPEN = (1 << 30) | (16 << 16) | (229 << 8) | 1
_BACKING_CLOSE = (1 << 30) | (4 << 16) | (229 << 8) | 2

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _syscall(what: str, number: int, *arguments: object) -> int:
    wide = [ctypes.c_long(item) if isinstance(item, int) else item for item in arguments]
    return _checked(_libc.syscall(ctypes.c_long(number), *wide), what)


def _path(path: str) -> bytes:
    if "\0" in path:
        raise ValueError("a path with a NUL byte")
    return os.fsencode(path)


def mount(source: str, target: str, fstype: str, flags: int, data: str) -> None:
    """mount(2)."""
    result = _libc.mount(_path(source), _path(target), fstype.encode(), ctypes.c_ulong(flags), data.encode())
    _checked(result, "mount")


def unmount(target: str, flags: int) -> None:
    """umount2(2)."""
    _checked(_libc.umount2(_path(target), ctypes.c_int(flags)), "umount")


def detach(descriptor: int) -> None:
    """Unmount, lazily, the mount whose root this descriptor is; it names the mount whatever moved meanwhile.

    The magic link has to be followed, so without UMOUNT_NOFOLLOW.
    """
    unmount(f"/proc/self/fd/{descriptor}", MNT_DETACH)


def open_directory(path: str, at: int = _AT_FDCWD, *, beneath: bool = False) -> int:
    """An O_PATH descriptor of a directory, reached by no symbolic link (openat2(2)).

    Where something is mounted on it the descriptor is of what is mounted; its file system is not asked.
    With `beneath` the path is relative to the directory `at` and cannot leave it.
    """
    resolve = RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | (RESOLVE_BENEATH if beneath else 0)
    how = struct.pack("=QQQ", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, 0, resolve)
    return _syscall("openat2", _SYS_OPENAT2, at, ctypes.c_char_p(_path(path)), ctypes.c_char_p(how), len(how))


def clone_tree(path: str) -> int:
    """A detached copy of the mount at `path`, which has its flags too (open_tree with OPEN_TREE_CLONE)."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC
    return _syscall("open_tree", _SYS_OPEN_TREE, _AT_FDCWD, ctypes.c_char_p(_path(path)), flags)


def clone_directory(descriptor: int) -> int:
    """A detached, private mount of a directory, which must be of this mount namespace: ro, nosuid, nodev.

    (open_tree with OPEN_TREE_CLONE; mount_setattr, Linux 5.12.)
    """
    empty = ctypes.c_char_p(b"")
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_EMPTY_PATH
    tree = _syscall("open_tree", _SYS_OPEN_TREE, descriptor, empty, flags)
    # struct mount_attr: attr_set, attr_clr, propagation, userns_fd
    attributes = _MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV
    how = ctypes.c_char_p(struct.pack("=QQQQ", attributes, 0, _MS_PRIVATE, 0))
    try:
        _syscall("mount_setattr", _SYS_MOUNT_SETATTR, tree, empty, _AT_EMPTY_PATH, how, 32)
    except OSError:
        os.close(tree)
        raise
    return tree


def attach_tree(tree: int, target: int) -> None:
    """Mount a detached tree on the directory `target` (move_mount)."""
    empty = ctypes.c_char_p(b"")
    flags = _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH
    _syscall("move_mount", _SYS_MOVE_MOUNT, tree, empty, target, empty, flags)


@dataclass(frozen=True, slots=True)
class Status:
    """What the kernel knows of a descriptor without asking a file system's server."""

    mode: int
    uid: int
    inode: int
    device: tuple[int, int]
    rdev: tuple[int, int]  # of a device file: which device it is
    mount_id: int
    mount_root: bool


def status(descriptor: int) -> Status:
    """statx(2) with AT_STATX_DONT_SYNC: answers from the inode in memory, so it cannot hang on a dead server.

    Raises OSError; NotImplementedError where the kernel tells no mount id (before 5.8).
    """
    buffer = ctypes.create_string_buffer(256)
    flags = ctypes.c_int(_AT_EMPTY_PATH | _AT_STATX_DONT_SYNC)
    mask = ctypes.c_uint(_STATX_TYPE | _STATX_UID | _STATX_INO | _STATX_MNT_ID)
    _checked(_libc.statx(ctypes.c_int(descriptor), b"", flags, mask, buffer), "statx")
    raw = buffer.raw
    (got,) = struct.unpack_from("=I", raw, 0)
    if not got & _STATX_MNT_ID:
        raise NotImplementedError("the kernel tells no mount id; Linux 5.8 or newer is needed")
    (attributes,) = struct.unpack_from("=Q", raw, 8)
    (uid,) = struct.unpack_from("=I", raw, 20)
    (mode,) = struct.unpack_from("=H", raw, 28)
    (inode,) = struct.unpack_from("=Q", raw, 32)
    *rdev, major, minor, mount_id = struct.unpack_from("=IIIIQ", raw, 128)
    root = bool(attributes & _STATX_ATTR_MOUNT_ROOT)
    return Status(mode, uid, inode, (major, minor), (rdev[0], rdev[1]), mount_id, root)


def backing_open(fuse: int, file: int) -> int:
    """FUSE_DEV_IOC_BACKING_OPEN: register a file for passthrough opens; returns its backing id.

    EPERM where INIT did not agree on passthrough, ENOTTY where the kernel has none (fuse.h, before 6.9).
    """
    request = bytearray(struct.pack("=iIQ", file, 0, 0))
    return int(fcntl.ioctl(fuse, _BACKING_OPEN, request, True))


def backing_close(fuse: int, backing: int) -> None:
    """FUSE_DEV_IOC_BACKING_CLOSE: give a backing id back; opens that use it go on."""
    fcntl.ioctl(fuse, _BACKING_CLOSE, bytearray(struct.pack("=I", backing)), True)
