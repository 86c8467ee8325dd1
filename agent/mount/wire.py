"""FUSE messages to and from bytes: pure, no descriptor, no state.

Requests are decoded where they lie, in the slot that a thread read them into: `decode_header` first, then
the decoder of the opcode with the same buffer; only names are copied. READ, the hot path, is decoded by one
unpack (`READ_REQUEST`). Whatever the bytes are, decoding raises `WireError` or nothing. Replies are encoded
as payload bytes; `reply_header` goes before them, in the same `writev`.

What a field means: include/uapi/linux/fuse.h; what the kernel does with it: fs/fuse/.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol, TypeAlias

from agent.errors import HeadraceError
from agent.mount import abi
from agent.mount.abi import Layout, NotifyCode, Opcode

Buffer: TypeAlias = bytes | bytearray | memoryview

HEADER_SIZE: Final = abi.IN_HEADER.size
REPLY_HEADER_SIZE: Final = abi.OUT_HEADER.size

READ_REQUEST: Final = struct.Struct("=IIQQ16xQQI20x")
"""Header and `fuse_read_in` at once: len, opcode, unique, nodeid, fh, offset, size."""

_HEADER: Final = struct.Struct("=IIQQIII4x")
_OPCODES: Final = frozenset(int(opcode) for opcode in Opcode)
_NAME_OFFSET: Final = abi.DIRENT.size
_PADDING: Final = tuple(bytes(-length % 8) for length in range(8))


class WireError(HeadraceError):
    """Bytes that are no request this protocol knows.

    `unique` names the request to refuse, 0 where not even that could be read (nothing can be answered then);
    `errno` is what to refuse it with: ENOSYS for an opcode from the future, EINVAL for the rest.
    """

    def __init__(self, message: str, unique: int = 0, error: int = errno.EINVAL) -> None:
        super().__init__(message)
        self.unique = unique
        self.errno = error


class Header(NamedTuple):
    """`fuse_in_header`: `len` counts it and its body; ids are those of the caller, 0 from a kernel thread."""

    len: int
    opcode: int
    unique: int
    nodeid: int
    uid: int
    gid: int
    pid: int


class InitRequest(NamedTuple):
    """INIT: what the kernel can do; `flags` joins the two halves."""

    major: int
    minor: int
    max_readahead: int
    flags: int


class Lseek(NamedTuple):
    """LSEEK: `offset` is signed, `whence` is SEEK_DATA or SEEK_HOLE (the kernel does the others itself)."""

    fh: int
    offset: int
    whence: int


class Forgotten(NamedTuple):
    """So many lookups of a nodeid that the kernel no longer holds."""

    nodeid: int
    nlookup: int


def decode_header(buf: Buffer, received: int | None = None) -> Header:
    """The header of the request at the start of `buf`.

    `received` is what the read returned; None takes the request's own word for it (a slot that was found).
    Raises WireError: short, a length that is not the received one or not in `buf`, an unknown opcode.
    """
    if len(buf) < HEADER_SIZE:
        raise WireError(f"a request of {len(buf)} bytes is shorter than its header")
    header = Header._make(_HEADER.unpack_from(buf))
    length = header.len
    if not HEADER_SIZE <= length <= len(buf) or (received is not None and received != length):
        raise WireError(f"a request of {received} bytes says that it has {length}", header.unique)
    if header.opcode not in _OPCODES:
        raise WireError(f"unknown opcode {header.opcode}", header.unique, errno.ENOSYS)
    return header


def decode_read(buf: Buffer, header: Header) -> tuple[int, int, int]:
    """READ, READDIR, READDIRPLUS: fh, offset, size. Where speed counts, unpack READ_REQUEST instead."""
    fh, offset, size, *_ = _body(abi.READ_IN, buf, header)
    return fh, offset, size


def decode_init(buf: Buffer, header: Header) -> InitRequest:
    """INIT; `flags2` counts with INIT_EXT only, and kernels before 7.36 do not send it."""
    length = min(header.len, len(buf)) - HEADER_SIZE
    if length < abi.INIT_IN_SHORT_SIZE:
        raise WireError(f"INIT of {length} bytes", header.unique)
    major, minor, readahead, flags = struct.unpack_from("=4I", buf, HEADER_SIZE)
    if flags & abi.InitFlag.INIT_EXT and length >= abi.INIT_IN_SHORT_SIZE + 4:
        flags |= struct.unpack_from("=I", buf, HEADER_SIZE + abi.INIT_IN_SHORT_SIZE)[0] << 32
    return InitRequest(major, minor, readahead, flags)


def decode_name(buf: Buffer, header: Header) -> bytes:
    """LOOKUP: the name asked for, one segment, without its NUL."""
    return _name(buf, header, HEADER_SIZE)


def decode_open(buf: Buffer, header: Header) -> int:
    """OPEN, OPENDIR: the flags of open(2)."""
    return _body(abi.OPEN_IN, buf, header)[0]


def decode_fh(buf: Buffer, header: Header) -> int:
    """RELEASE, RELEASEDIR, FLUSH: the handle."""
    return _body(abi.RELEASE_IN, buf, header)[0]


def decode_getattr(buf: Buffer, header: Header) -> int | None:
    """GETATTR: the handle that it goes through, None where it goes by nodeid only."""
    flags, _, fh = _body(abi.GETATTR_IN, buf, header)
    return fh if flags & 1 else None  # FUSE_GETATTR_FH


def decode_lseek(buf: Buffer, header: Header) -> Lseek:
    """LSEEK."""
    fh, offset, whence, _ = _body(abi.LSEEK_IN, buf, header)
    return Lseek(fh, offset - (offset >> 63 << 64), whence)


def decode_access(buf: Buffer, header: Header) -> int:
    """ACCESS: the mask of access(2)."""
    return _body(abi.ACCESS_IN, buf, header)[0]


def decode_getxattr(buf: Buffer, header: Header) -> tuple[int, bytes]:
    """GETXATTR: the room for the value (0: only its size is asked for) and the attribute's name."""
    size, _ = _body(abi.GETXATTR_IN, buf, header)
    return size, _name(buf, header, HEADER_SIZE + abi.GETXATTR_IN.size)


def decode_listxattr(buf: Buffer, header: Header) -> int:
    """LISTXATTR: the room for the list (0: only its size is asked for)."""
    return _body(abi.GETXATTR_IN, buf, header)[0]


def decode_interrupt(buf: Buffer, header: Header) -> int:
    """INTERRUPT: `unique` of the request whose caller got a signal."""
    return _body(abi.INTERRUPT_IN, buf, header)[0]


def decode_forget(buf: Buffer, header: Header) -> Forgotten:
    """FORGET: of the header's nodeid."""
    return Forgotten(header.nodeid, _body(abi.FORGET_IN, buf, header)[0])


def decode_batch_forget(buf: Buffer, header: Header) -> list[Forgotten]:
    """BATCH_FORGET: of many nodeids."""
    count, _ = _body(abi.BATCH_FORGET_IN, buf, header)
    start = HEADER_SIZE + abi.BATCH_FORGET_IN.size
    end = start + count * abi.FORGET_ONE.size
    if end > min(header.len, len(buf)):
        raise WireError(f"BATCH_FORGET of {count} nodeids in {header.len} bytes", header.unique)
    return [Forgotten._make(one) for one in abi.FORGET_ONE.packed.iter_unpack(memoryview(buf)[start:end])]


def _body(layout: Layout, buf: Buffer, header: Header) -> tuple[int, ...]:
    # Longer than the struct is right: later protocols append fields.
    if HEADER_SIZE + layout.size > min(header.len, len(buf)):
        raise WireError(f"{layout.name} does not fit into {header.len} bytes", header.unique)
    return layout.packed.unpack_from(buf, HEADER_SIZE)


def _name(buf: Buffer, header: Header, start: int) -> bytes:
    text = bytes(memoryview(buf)[start : header.len])
    name, nul, _ = text.partition(b"\0")
    if not nul or not name:
        raise WireError("a name that is empty or has no end", header.unique)
    return name


def reply_header(unique: int, error: int = 0, length: int = 0) -> bytes:
    """`fuse_out_header` before `length` bytes of payload; `error` is a positive errno, with no payload."""
    return abi.OUT_HEADER.packed.pack(REPLY_HEADER_SIZE + length, -error, unique)


def reply(unique: int, payload: Buffer = b"") -> bytes:
    """A whole reply in one piece, for small payloads."""
    return reply_header(unique, 0, len(payload)) + bytes(payload)


def encode_attr(
    *, ino: int, size: int, mode: int, nlink: int, mtime_ns: int, blksize: int, uid: int = 0, gid: int = 0
) -> bytes:
    """`fuse_attr`. All three times are `mtime_ns` (nanoseconds since 1970, may be negative); `blksize` is a
    power of two; the blocks are of 512 bytes, as if the file had no hole."""
    seconds, nanos = divmod(mtime_ns, 1_000_000_000)
    seconds &= 0xFFFF_FFFF_FFFF_FFFF  # the kernel reads its u64 as a signed time64_t
    times = (seconds, seconds, seconds, nanos, nanos, nanos)
    return abi.ATTR.packed.pack(ino, size, -(-size // 512), *times, mode, nlink, uid, gid, 0, blksize, 0)


def encode_entry(nodeid: int, generation: int, attr: bytes, valid: int) -> bytes:
    """`fuse_entry_out`: the kernel keeps name and attributes for `valid` seconds."""
    return abi.ENTRY_OUT.packed.pack(nodeid, generation, valid, valid, 0, 0, attr)


def encode_absent(valid: int) -> bytes:
    """LOOKUP of a name that is not there, and that the kernel may remember so for `valid` seconds."""
    return abi.ENTRY_OUT.packed.pack(0, 0, valid, 0, 0, 0, bytes(abi.ATTR.size))


def encode_attr_out(attr: bytes, valid: int) -> bytes:
    """`fuse_attr_out`: the kernel keeps the attributes for `valid` seconds."""
    return abi.ATTR_OUT.packed.pack(valid, 0, 0, attr)


def encode_open(fh: int, flags: int = 0, backing_id: int = 0) -> bytes:
    """`fuse_open_out`: `flags` of abi.OpenFlag; `backing_id` counts with PASSTHROUGH only."""
    return abi.OPEN_OUT.packed.pack(fh, flags, backing_id)


def encode_statfs(*, blocks: int, files: int, bsize: int, name_max: int) -> bytes:
    """`fuse_statfs_out` of a file system that is full: `blocks` of `bsize` bytes, none free."""
    return abi.KSTATFS.packed.pack(blocks, 0, 0, files, 0, bsize, name_max, bsize, 0)


def encode_lseek(offset: int) -> bytes:
    """`fuse_lseek_out`."""
    return abi.LSEEK_OUT.packed.pack(offset)


def encode_xattr_size(size: int) -> bytes:
    """`fuse_getxattr_out`: the answer to GETXATTR and LISTXATTR of size 0; else the value itself is."""
    return abi.GETXATTR_OUT.packed.pack(size, 0)


def encode_xattr_names(names: Sequence[bytes]) -> bytes:
    """The list that LISTXATTR answers: each name with its NUL."""
    return b"".join(name + b"\0" for name in names)


def notify_inval_inode(nodeid: int, offset: int = 0, length: int = 0) -> bytes:
    """A whole notification: forget the attributes and the cached bytes of a nodeid (length 0: to the end;
    offset -1: attributes only). ENOENT from the write says that the kernel does not know the nodeid."""
    return _notify(NotifyCode.INVAL_INODE, abi.NOTIFY_INVAL_INODE.packed.pack(nodeid, offset, length))


def notify_inval_entry(parent: int, name: bytes) -> bytes:
    """A whole notification: forget a name. It takes the parent's lock: never from a thread that serves it."""
    body = abi.NOTIFY_INVAL_ENTRY.packed.pack(parent, len(name), 0)
    return _notify(NotifyCode.INVAL_ENTRY, body + name + b"\0")


def _notify(code: NotifyCode, body: bytes) -> bytes:
    return abi.OUT_HEADER.packed.pack(REPLY_HEADER_SIZE + len(body), code, 0) + body


class Dirent(NamedTuple):
    """A name in a directory: what it stands for (`ino` of `stat`, never 0) and its type (S_IFMT >> 12)."""

    ino: int
    kind: int
    name: bytes


class Dirents(Protocol):
    """A directory's names in an order that never changes, `.` and `..` among them."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Dirent: ...


def pack_dirents(entries: Dirents, offset: int, size: int) -> bytearray:
    """READDIR: as many of `entries[offset:]` as fit into `size` bytes; the cookie of entry i is i + 1.

    Empty at the end of the directory (the kernel asks with a page at least, so one name always fits).
    """
    out = bytearray()
    for index in range(offset, len(entries)):
        record = _dirent(entries[index], index + 1)
        if len(out) + len(record) > size:
            break
        out += record
    return out


def pack_direntplus(
    entries: Dirents, offset: int, size: int, entry_of: Callable[[Dirent], bytes]
) -> bytearray:
    """READDIRPLUS: like READDIR with a `fuse_entry_out` before each name.

    `entry_of` is called once for each entry that goes out and for no other: the kernel counts a lookup for
    each but `.` and `..`, which get zeros (nodeid 0: nothing looked up) without a call.
    """
    out = bytearray()
    for index in range(offset, len(entries)):
        entry = entries[index]
        record = _dirent(entry, index + 1)
        if len(out) + abi.ENTRY_OUT.size + len(record) > size:
            break
        out += _NOTHING_LOOKED_UP if entry.name in (b".", b"..") else entry_of(entry)
        out += record
    return out


_NOTHING_LOOKED_UP: Final = bytes(abi.ENTRY_OUT.size)


def _dirent(entry: Dirent, cookie: int) -> bytes:
    ino, kind, name = entry
    return abi.DIRENT.packed.pack(ino, cookie, len(name), kind) + name + _PADDING[len(name) & 7]
