"""The kernel's side of FUSE as data: opcodes, flags, struct layouts.

Why by hand: the agent talks to /dev/fuse without libfuse, and these tables are all that libfuse would bring.
They state include/uapi/linux/fuse.h at protocol 7.45 (Linux 6.18). `tests/agent/mount/test_abi.py` compiles
a C program from the same tables against the installed header and compares every size, offset and number;
`SINCE` says what an older header cannot know yet.

A struct is written as its fields, one string for fields of one type (`"u32 major minor"`). All are naturally
aligned by design of the protocol, so they are packed in native byte order without padding. An array is
reserved space: it takes no value and is written as zeros.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from typing import Final

KERNEL_MAJOR: Final = 7
KERNEL_MINOR: Final = 45  # the newest minor whose meaning this file states
ROOT_NODEID: Final = 1
MIN_READ_BUFFER: Final = 8192  # the kernel refuses to hand a request to a smaller buffer
UNIQUE_RESEND: Final = (
    1 << 63
)  # set in `unique` of a request that came again; the reply carries it as it came


class Opcode(IntEnum):
    """What a request asks for (enum fuse_opcode, with `FUSE_` before each name)."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SETUPMAPPING = 48
    REMOVEMAPPING = 49
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52
    COPY_FILE_RANGE_64 = 53


UNANSWERED: Final = frozenset({Opcode.FORGET, Opcode.BATCH_FORGET})
"""Requests that the kernel takes no reply to (INTERRUPT takes one only to be sent again, EAGAIN)."""

MODIFYING: Final = frozenset(
    {
        Opcode.SETATTR,
        Opcode.SYMLINK,
        Opcode.MKNOD,
        Opcode.MKDIR,
        Opcode.UNLINK,
        Opcode.RMDIR,
        Opcode.RENAME,
        Opcode.LINK,
        Opcode.WRITE,
        Opcode.SETXATTR,
        Opcode.REMOVEXATTR,
        Opcode.CREATE,
        Opcode.FALLOCATE,
        Opcode.RENAME2,
        Opcode.COPY_FILE_RANGE,
        Opcode.TMPFILE,
        Opcode.COPY_FILE_RANGE_64,
    }
)
"""Requests that would change a file system: a read-only one answers EROFS."""


class NotifyCode(IntEnum):
    """What the server tells the kernel unasked (enum fuse_notify_code): `error` of a reply with unique 0."""

    POLL = 1
    INVAL_INODE = 2
    INVAL_ENTRY = 3
    STORE = 4
    RETRIEVE = 5
    DELETE = 6
    RESEND = 7
    INC_EPOCH = 8


class InitFlag(IntFlag):
    """What INIT offers and accepts; bits from 32 travel in `flags2`, and only where INIT_EXT is set."""

    ASYNC_READ = 1 << 0
    POSIX_LOCKS = 1 << 1
    FILE_OPS = 1 << 2
    ATOMIC_O_TRUNC = 1 << 3
    EXPORT_SUPPORT = 1 << 4
    BIG_WRITES = 1 << 5
    DONT_MASK = 1 << 6
    SPLICE_WRITE = 1 << 7
    SPLICE_MOVE = 1 << 8
    SPLICE_READ = 1 << 9
    FLOCK_LOCKS = 1 << 10
    HAS_IOCTL_DIR = 1 << 11
    AUTO_INVAL_DATA = 1 << 12
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    WRITEBACK_CACHE = 1 << 16
    NO_OPEN_SUPPORT = 1 << 17
    PARALLEL_DIROPS = 1 << 18
    HANDLE_KILLPRIV = 1 << 19
    POSIX_ACL = 1 << 20
    ABORT_ERROR = 1 << 21
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    NO_OPENDIR_SUPPORT = 1 << 24
    EXPLICIT_INVAL_DATA = 1 << 25
    MAP_ALIGNMENT = 1 << 26
    SUBMOUNTS = 1 << 27
    HANDLE_KILLPRIV_V2 = 1 << 28
    SETXATTR_EXT = 1 << 29
    INIT_EXT = 1 << 30
    SECURITY_CTX = 1 << 32
    HAS_INODE_DAX = 1 << 33
    CREATE_SUPP_GROUP = 1 << 34
    HAS_EXPIRE_ONLY = 1 << 35
    DIRECT_IO_ALLOW_MMAP = 1 << 36
    PASSTHROUGH = 1 << 37
    NO_EXPORT_SUPPORT = 1 << 38
    HAS_RESEND = 1 << 39
    ALLOW_IDMAP = 1 << 40
    OVER_IO_URING = 1 << 41
    REQUEST_TIMEOUT = 1 << 42


class OpenFlag(IntFlag):
    """What the reply to OPEN and OPENDIR asks of the kernel (`FOPEN_...`)."""

    DIRECT_IO = 1 << 0
    KEEP_CACHE = 1 << 1
    NONSEEKABLE = 1 << 2
    CACHE_DIR = 1 << 3
    STREAM = 1 << 4
    NOFLUSH = 1 << 5
    PARALLEL_DIRECT_WRITES = 1 << 6
    PASSTHROUGH = 1 << 7


_CODES: Final = {"u64": "Q", "s64": "q", "u32": "I", "s32": "i", "u16": "H"}
_ARRAY: Final = re.compile(r"(\w+)\[(\d+)\]")


@dataclass(frozen=True, slots=True)
class Field:
    """One field: its C name, its offset and size in bytes."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class Layout:
    """A struct of the kernel: its C name, its fields, and the `struct.Struct` that packs it.

    `packed` takes one value a field in the order of `fields`, none for arrays; a struct in a struct is bytes.
    """

    name: str
    declarations: tuple[str, ...]
    nested: Mapping[str, Layout] = field(default_factory=dict)
    fields: tuple[Field, ...] = field(init=False)
    packed: struct.Struct = field(init=False)

    def __post_init__(self) -> None:
        fields: list[Field] = []
        codes = ["="]
        for declaration in self.declarations:
            kind, *names = declaration.split()
            for text in names:
                name, code = self._code(kind, text)
                offset = struct.calcsize("".join(codes))
                fields.append(Field(name, offset, struct.calcsize("=" + code)))
                codes.append(code)
        object.__setattr__(self, "fields", tuple(fields))
        object.__setattr__(self, "packed", struct.Struct("".join(codes)))

    def _code(self, kind: str, text: str) -> tuple[str, str]:
        if kind in self.nested:
            return text, f"{self.nested[kind].size}s"
        array = _ARRAY.fullmatch(text)
        if array is None:
            return text, _CODES[kind]
        return array[1], f"{struct.calcsize('=' + _CODES[kind]) * int(array[2])}x"

    @property
    def size(self) -> int:
        return self.packed.size


def _layout(name: str, *declarations: str, nested: tuple[Layout, ...] = ()) -> Layout:
    return Layout(name, declarations, {layout.name: layout for layout in nested})


IN_HEADER = _layout(
    "fuse_in_header", "u32 len opcode", "u64 unique nodeid", "u32 uid gid pid", "u16 total_extlen padding"
)
OUT_HEADER = _layout("fuse_out_header", "u32 len", "s32 error", "u64 unique")

INIT_IN = _layout("fuse_init_in", "u32 major minor max_readahead flags flags2 unused[11]")
INIT_OUT = _layout(
    "fuse_init_out",
    "u32 major minor max_readahead flags",
    "u16 max_background congestion_threshold",
    "u32 max_write time_gran",
    "u16 max_pages map_alignment",
    "u32 flags2 max_stack_depth",
    "u16 request_timeout unused[11]",
)
INIT_IN_SHORT_SIZE: Final = 16  # what a kernel before protocol 7.36 sends: nothing from flags2 on

ATTR = _layout(
    "fuse_attr",
    "u64 ino size blocks atime mtime ctime",
    "u32 atimensec mtimensec ctimensec mode nlink uid gid rdev blksize flags",
)
ENTRY_OUT = _layout(
    "fuse_entry_out",
    "u64 nodeid generation entry_valid attr_valid",
    "u32 entry_valid_nsec attr_valid_nsec",
    "fuse_attr attr",
    nested=(ATTR,),
)
ATTR_OUT = _layout(
    "fuse_attr_out", "u64 attr_valid", "u32 attr_valid_nsec dummy", "fuse_attr attr", nested=(ATTR,)
)
GETATTR_IN = _layout("fuse_getattr_in", "u32 getattr_flags dummy", "u64 fh")

OPEN_IN = _layout("fuse_open_in", "u32 flags open_flags")
OPEN_OUT = _layout("fuse_open_out", "u64 fh", "u32 open_flags", "s32 backing_id")
READ_IN = _layout(
    "fuse_read_in", "u64 fh offset", "u32 size read_flags", "u64 lock_owner", "u32 flags padding"
)
RELEASE_IN = _layout("fuse_release_in", "u64 fh", "u32 flags release_flags", "u64 lock_owner")
FLUSH_IN = _layout("fuse_flush_in", "u64 fh", "u32 unused padding", "u64 lock_owner")
LSEEK_IN = _layout("fuse_lseek_in", "u64 fh offset", "u32 whence padding")
LSEEK_OUT = _layout("fuse_lseek_out", "u64 offset")

FORGET_IN = _layout("fuse_forget_in", "u64 nlookup")
FORGET_ONE = _layout("fuse_forget_one", "u64 nodeid nlookup")
BATCH_FORGET_IN = _layout("fuse_batch_forget_in", "u32 count dummy")
INTERRUPT_IN = _layout("fuse_interrupt_in", "u64 unique")

DIRENT = _layout("fuse_dirent", "u64 ino off", "u32 namelen type")
DIRENTPLUS = _layout(
    "fuse_direntplus", "fuse_entry_out entry_out", "fuse_dirent dirent", nested=(ENTRY_OUT, DIRENT)
)
KSTATFS = _layout(
    "fuse_kstatfs", "u64 blocks bfree bavail files ffree", "u32 bsize namelen frsize padding spare[6]"
)
STATFS_OUT = _layout("fuse_statfs_out", "fuse_kstatfs st", nested=(KSTATFS,))
GETXATTR_IN = _layout("fuse_getxattr_in", "u32 size padding")
GETXATTR_OUT = _layout("fuse_getxattr_out", "u32 size padding")
ACCESS_IN = _layout("fuse_access_in", "u32 mask padding")

NOTIFY_INVAL_INODE = _layout("fuse_notify_inval_inode_out", "u64 ino", "s64 off len")
NOTIFY_INVAL_ENTRY = _layout("fuse_notify_inval_entry_out", "u64 parent", "u32 namelen flags")
BACKING_MAP = _layout("fuse_backing_map", "s32 fd", "u32 flags", "u64 padding")

LAYOUTS: Final = tuple(value for value in list(globals().values()) if isinstance(value, Layout))


def _ioctl(direction: int, number: int, size: int) -> int:
    # include/uapi/asm-generic/ioctl.h, as on x86-64 and arm64; direction 1 is write, 2 is read.
    return direction << 30 | size << 16 | 229 << 8 | number


DEV_IOC_CLONE: Final = _ioctl(2, 0, 4)
"""On a fresh /dev/fuse descriptor: join the connection of the descriptor in the u32 argument."""
DEV_IOC_BACKING_OPEN: Final = _ioctl(1, 1, BACKING_MAP.size)
"""On a mount's descriptor, with a `fuse_backing_map`: register a file (CAP_SYS_ADMIN); returns its id."""
DEV_IOC_BACKING_CLOSE: Final = _ioctl(1, 2, 4)
"""On a mount's descriptor, with a u32 backing id: forget it; handles opened with it live on."""

SINCE: Final[Mapping[str, int]] = {
    "fuse_attr.flags": 32,
    "FUSE_SUBMOUNTS": 32,
    "FUSE_HANDLE_KILLPRIV_V2": 33,
    "FUSE_SETXATTR_EXT": 33,
    "fuse_open_in.open_flags": 33,
    "FUSE_SYNCFS": 34,
    "FOPEN_NOFLUSH": 35,
    "FUSE_INIT_EXT": 36,
    "FUSE_SECURITY_CTX": 36,
    "FUSE_HAS_INODE_DAX": 36,
    "fuse_init_in": 36,
    "fuse_init_out.flags2": 36,
    "FUSE_TMPFILE": 37,
    "FOPEN_PARALLEL_DIRECT_WRITES": 38,
    "FUSE_CREATE_SUPP_GROUP": 39,  # some headers of 7.38 lack it
    "FUSE_HAS_EXPIRE_ONLY": 38,
    "fuse_in_header.total_extlen": 38,
    "fuse_in_header.padding": 38,
    "fuse_notify_inval_entry_out.flags": 38,
    "FUSE_DIRECT_IO_ALLOW_MMAP": 39,
    "FUSE_STATX": 39,
    "FOPEN_PASSTHROUGH": 40,
    "FUSE_PASSTHROUGH": 40,
    "FUSE_NO_EXPORT_SUPPORT": 40,
    "FUSE_HAS_RESEND": 40,
    "FUSE_NOTIFY_RESEND": 40,
    "FUSE_UNIQUE_RESEND": 40,
    "FUSE_DEV_IOC_BACKING_OPEN": 40,
    "FUSE_DEV_IOC_BACKING_CLOSE": 40,
    "fuse_backing_map": 40,
    "fuse_open_out.backing_id": 40,
    "fuse_init_out.max_stack_depth": 40,
    "FUSE_ALLOW_IDMAP": 41,
    "FUSE_OVER_IO_URING": 42,
    "FUSE_REQUEST_TIMEOUT": 43,
    "fuse_init_out.request_timeout": 43,
    "fuse_init_out.unused": 43,
    "FUSE_NOTIFY_INC_EPOCH": 44,
    "FUSE_COPY_FILE_RANGE_64": 45,
}
"""The minor of protocol 7 that brought a name; what is not listed was there at 7.31, the oldest served."""
