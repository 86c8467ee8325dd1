"""The requests that a tree alone can answer: pure, called from any FUSE thread.

A nodeid is the inode number with the file's generation above it (`join`). Generations alternate: an even one
is served by the agent through the page cache, an odd one by the kernel through a backing file. One inode must
never serve both ways, so a file that becomes complete, or stops to be, goes on under the next generation.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from typing import Final

from agent.errors import HeadraceError
from agent.mount import abi, wire
from agent.mount.abi import Opcode, OpenFlag
from agent.mount.tree import Node, Tree, attr_of, statfs_of
from agent.mount.wire import Dirent, Header

INO_BITS: Final = 40
VALID: Final = 24 * 3600  # seconds; nothing in a revision ever changes
DIRECTORY_FLAGS: Final = OpenFlag.CACHE_DIR | OpenFlag.KEEP_CACHE


class Refused(HeadraceError):
    """A request that gets an errno."""

    def __init__(self, error: int) -> None:
        super().__init__(os.strerror(error))
        self.errno = error


def join(ino: int, generation: int) -> int:
    """The nodeid of an inode at a generation."""
    return generation << INO_BITS | ino


def split(nodeid: int) -> tuple[int, int]:
    """(inode number, generation) of a nodeid."""
    return nodeid & (1 << INO_BITS) - 1, nodeid >> INO_BITS


class Operations:
    """Answers over one tree. `generations` has the files that left generation 0; `looked_up` hears of each
    nodeid given to the kernel, before it is given."""

    def __init__(self, tree: Tree, generations: Mapping[int, int], looked_up: Callable[[int], None]) -> None:
        self._tree = tree
        self._generations = generations
        self._looked_up = looked_up
        self._table: dict[int, Callable[[wire.Buffer, Header], bytes | bytearray]] = {
            Opcode.LOOKUP: self._lookup,
            Opcode.GETATTR: self._getattr,
            Opcode.READLINK: self._readlink,
            Opcode.STATFS: self._statfs,
            Opcode.OPENDIR: self._opendir,
            Opcode.READDIR: self._readdir,
            Opcode.READDIRPLUS: self._readdirplus,
            Opcode.RELEASEDIR: _nothing,
            Opcode.ACCESS: self._access,
            Opcode.FLUSH: _nothing,
            Opcode.LSEEK: self._lseek,
            Opcode.GETXATTR: self._getxattr,
            Opcode.LISTXATTR: self._listxattr,
            Opcode.DESTROY: _nothing,
        }

    def answer(self, buffer: wire.Buffer, header: Header) -> bytes | bytearray:
        """The reply's payload. Raises Refused, WireError."""
        operation = self._table.get(header.opcode)
        if operation is not None:
            return operation(buffer, header)
        raise Refused(errno.EROFS if header.opcode in abi.MODIFYING else errno.ENOSYS)

    def node(self, nodeid: int) -> Node:
        """What a nodeid of any generation stands for. Raises Refused(ESTALE)."""
        node = self._tree.node(split(nodeid)[0])
        if node is None:
            raise Refused(errno.ESTALE)
        return node

    def file(self, nodeid: int) -> Node:
        """The file with this nodeid. Raises Refused(EISDIR, ESTALE)."""
        node = self.node(nodeid)
        if node.is_dir:
            raise Refused(errno.EISDIR)
        return node

    def _lookup(self, buffer: wire.Buffer, header: Header) -> bytes:
        name = wire.decode_name(buffer, header)
        parent = self.node(header.nodeid)
        node = {b".": parent, b"..": self._tree.node(parent.parent)}.get(name) or self._tree.lookup(
            parent.ino, name
        )
        return wire.encode_absent(VALID) if node is None else self._entry(node)

    def _entry(self, node: Node) -> bytes:
        generation = self._generations.get(node.ino, 0)
        nodeid = join(node.ino, generation)
        self._looked_up(nodeid)
        return wire.encode_entry(nodeid, generation, attr_of(node), VALID)

    def _getattr(self, buffer: wire.Buffer, header: Header) -> bytes:
        return wire.encode_attr_out(attr_of(self.node(header.nodeid)), VALID)

    def _readlink(self, buffer: wire.Buffer, header: Header) -> bytes:
        raise Refused(errno.EINVAL)  # what readlink(2) says of a file that is no link: there are none here

    def _statfs(self, buffer: wire.Buffer, header: Header) -> bytes:
        return statfs_of(self._tree)

    def _opendir(self, buffer: wire.Buffer, header: Header) -> bytes:
        if not self.node(header.nodeid).is_dir:
            raise Refused(errno.ENOTDIR)
        return wire.encode_open(0, DIRECTORY_FLAGS)

    def _readdir(self, buffer: wire.Buffer, header: Header) -> bytearray:
        _, offset, size = wire.decode_read(buffer, header)
        return wire.pack_dirents(self._listing(header), offset, size)

    def _readdirplus(self, buffer: wire.Buffer, header: Header) -> bytearray:
        _, offset, size = wire.decode_read(buffer, header)
        return wire.pack_direntplus(self._listing(header), offset, size, self._dirent_entry)

    def _dirent_entry(self, dirent: Dirent) -> bytes:
        return self._entry(self.node(dirent.ino))

    def _listing(self, header: Header) -> wire.Dirents:
        listing = self._tree.listing(split(header.nodeid)[0])
        if listing is None:
            raise Refused(errno.ENOTDIR)
        return listing

    def _access(self, buffer: wire.Buffer, header: Header) -> bytes:
        if wire.decode_access(buffer, header) & os.W_OK:
            raise Refused(errno.EROFS)
        return b""

    def _lseek(self, buffer: wire.Buffer, header: Header) -> bytes:
        """A file has no holes, wherever its bytes are now (lseek(2), SEEK_DATA and SEEK_HOLE)."""
        seek = wire.decode_lseek(buffer, header)
        size = self.file(header.nodeid).size
        if not 0 <= seek.offset < size:
            raise Refused(errno.ENXIO)
        if seek.whence == os.SEEK_DATA:
            return wire.encode_lseek(seek.offset)
        if seek.whence == os.SEEK_HOLE:
            return wire.encode_lseek(size)
        raise Refused(errno.EINVAL)

    def _getxattr(self, buffer: wire.Buffer, header: Header) -> bytes:
        wire.decode_getxattr(buffer, header)
        raise Refused(errno.ENODATA)

    def _listxattr(self, buffer: wire.Buffer, header: Header) -> bytes:
        return wire.encode_xattr_size(0) if wire.decode_listxattr(buffer, header) == 0 else b""


def _nothing(buffer: wire.Buffer, header: Header) -> bytes:
    return b""
