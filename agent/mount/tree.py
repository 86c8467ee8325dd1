"""A mounted dataset as inodes: immutable, built once, looked up in constant time.

Inode numbers follow the paths sorted as UTF-8 bytes (root 1, then directories and files in one order), so
that a restarted agent, which has nothing but the listing, gives every file the number it had. Names are
compared as bytes: Unicode twins are two files.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from agent.content import NAME_MAX, Dataset, Entry
from agent.mount import abi, wire
from agent.mount.wire import Dirent

ROOT: Final = abi.ROOT_NODEID
FILE_MODE: Final = stat.S_IFREG | 0o444
DIRECTORY_MODE: Final = stat.S_IFDIR | 0o555

BLKSIZE: Final = 128 * 1024
"""`st_blksize`: the buffer that programs choose to read with. Python before 3.14 takes it as it is, for every
open(): 4096 would make it read in pages, 1 MiB would make a seek and a read of 8 bytes (a safetensors header,
a zip directory) fetch and copy 1 MiB. cp and cat use at least 128 KiB anyway, and the size of the requests
that reach us follows the readahead, not this."""

STATFS_BLOCK: Final = 4096  # what statfs counts in


@dataclass(frozen=True, slots=True)
class Node:
    """A file (`entry` is what it shows) or a directory (`entry` is None); the root's parent is itself."""

    ino: int
    name: bytes
    parent: int
    entry: Entry | None
    mtime_ns: int
    nlink: int

    @property
    def is_dir(self) -> bool:
        return self.entry is None

    @property
    def size(self) -> int:
        """Bytes; 0 for a directory."""
        return 0 if self.entry is None else self.entry.ref.size

    @property
    def mode(self) -> int:
        return DIRECTORY_MODE if self.entry is None else FILE_MODE

    @property
    def dirent(self) -> Dirent:
        return Dirent(self.ino, self.mode >> 12, self.name)


class Tree:
    """The directory tree of a dataset."""

    __slots__ = ("_children", "_names", "_nodes", "total_bytes")

    def __init__(self, dataset: Dataset) -> None:
        """Raises ValueError where a path comes twice or is file and directory (`build_dataset` never)."""
        files = _files(dataset)
        paths = sorted((*_directories(dataset, files), *files))
        self._nodes = _nodes(paths, files)
        self._names: dict[int, dict[bytes, Node]] = {node.ino: {} for node in self._nodes if node.is_dir}
        for node in self._nodes[1:]:
            self._names[node.parent][node.name] = node
        self._children = {ino: tuple(names.values()) for ino, names in self._names.items()}
        self.total_bytes = sum(entry.ref.size for entry in files.values())

    def __len__(self) -> int:
        """Files and directories, the root included."""
        return len(self._nodes)

    def node(self, ino: int) -> Node | None:
        """The file or directory with this number, None where there is none."""
        return self._nodes[ino - 1] if 0 < ino <= len(self._nodes) else None

    def lookup(self, parent: int, name: bytes) -> Node | None:
        """What `name` stands for in the directory `parent`; None where nothing, or where that is none."""
        names = self._names.get(parent)
        return None if names is None else names.get(name)

    def children(self, ino: int) -> Sequence[Node]:
        """What is in a directory, by name; empty for a file and for no inode at all."""
        return self._children.get(ino, ())

    def listing(self, ino: int) -> Listing | None:
        """What READDIR shows of a directory, None where it is none."""
        node = self.node(ino)
        return Listing(node, self._children[ino]) if node is not None and node.is_dir else None


class Listing:
    """`.`, `..` and the children, made up as they are asked for; satisfies `wire.Dirents`."""

    __slots__ = ("_children", "_node")

    def __init__(self, node: Node, children: Sequence[Node]) -> None:
        self._node = node
        self._children = children

    def __len__(self) -> int:
        return len(self._children) + 2

    def __getitem__(self, index: int, /) -> Dirent:
        if index >= 2:
            return self._children[index - 2].dirent
        kind = DIRECTORY_MODE >> 12
        return Dirent(self._node.parent, kind, b"..") if index else Dirent(self._node.ino, kind, b".")


def attr_of(node: Node) -> bytes:
    """`fuse_attr` of a node: owner 0:0, read-only modes, the origin's time for all three times."""
    return wire.encode_attr(
        ino=node.ino,
        size=node.size,
        mode=node.mode,
        nlink=node.nlink,
        mtime_ns=node.mtime_ns,
        blksize=BLKSIZE,
    )


def statfs_of(tree: Tree) -> bytes:
    """`fuse_statfs_out`: as large as its files, and full."""
    blocks = -(-tree.total_bytes // STATFS_BLOCK)
    return wire.encode_statfs(blocks=blocks, files=len(tree), bsize=STATFS_BLOCK, name_max=NAME_MAX)


def _raw(path: str) -> bytes:
    # What os.fsencode does where the locale is UTF-8, whatever the locale is.
    return path.encode("utf-8", "surrogateescape")


def _files(dataset: Dataset) -> dict[bytes, Entry]:
    files = {_raw(entry.path): entry for entry in dataset.entries}
    if len(files) != len(dataset.entries):
        raise ValueError(f"a path comes twice in {dataset.uri}")
    return files


def _directories(dataset: Dataset, files: Mapping[bytes, Entry]) -> set[bytes]:
    """All directories, the root (an empty path) included."""
    found = {b""}
    pending = {path.rpartition(b"/")[0] for path in files} | {_raw(path) for path in dataset.directories}
    while pending := pending - found:
        found |= pending
        pending = {path.rpartition(b"/")[0] for path in pending}
    both = found & files.keys()
    if both:
        raise ValueError(f"{min(both)!r} in {dataset.uri} is a file and a directory")
    return found


def _nodes(paths: Sequence[bytes], files: Mapping[bytes, Entry]) -> tuple[Node, ...]:
    """One node a path, in the order given, which has each directory before what is in it."""
    numbers = {path: number for number, path in enumerate(paths, ROOT)}
    splits = [path.rpartition(b"/") for path in paths]
    parents = [numbers[parent] for parent, _, _ in splits]
    entries = [files.get(path) for path in paths]
    times = [0 if entry is None else entry.mtime_ns for entry in entries]
    links = [2 if entry is None else 1 for entry in entries]
    for index in range(len(paths) - 1, 0, -1):  # children before their directory
        above = parents[index] - ROOT
        times[above] = max(times[above], times[index])
        links[above] += entries[index] is None  # its `..`
    return tuple(
        Node(number, name, parent, entry, time, nlink)
        for number, (_, _, name), parent, entry, time, nlink in zip(
            range(ROOT, ROOT + len(paths)), splits, parents, entries, times, links, strict=True
        )
    )
