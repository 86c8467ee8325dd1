"""Values without I/O: objects, extents, chunks, datasets.

An object is one immutable sequence of bytes: a URI at one version. A dataset is a tree of objects with
an identity, its revision. A chunk is a fixed-size slice of an object; the last one may be shorter.
"""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property


@dataclass(frozen=True)
class ObjectRef:
    """One object: where it is, which version of it, and how many bytes that version has.

    `version` is what the origin can be held to (an ETag, a generation, a commit): opaque here, never empty.
    """

    uri: str
    version: str
    size: int

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError(f"size of {self.uri} is negative")
        if not self.version:
            raise ValueError(f"{self.uri} has no version")

    @cached_property
    def key(self) -> str:
        """The object's identity in the store: 32 hex digits of BLAKE2b over URI, version and size."""
        text = f"{self.uri}\0{self.version}\0{self.size}"
        return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class Extent:
    """The bytes `[offset, offset + length)` of an object."""

    offset: int
    length: int
    end: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.offset < 0 or self.length < 0:
            raise ValueError(f"bad extent {self.offset}+{self.length}")
        object.__setattr__(self, "end", self.offset + self.length)  # asked for several times in each read


def chunk_count(size: int, chunk_size: int) -> int:
    """How many chunks an object of `size` bytes has; none where it is empty."""
    return -(-size // chunk_size)


def chunk_extent(chunk: int, size: int, chunk_size: int) -> Extent:
    """Where chunk number `chunk` lies in an object of `size` bytes. IndexError where there is none."""
    if not 0 <= chunk < chunk_count(size, chunk_size):
        raise IndexError(f"no chunk {chunk} in {size} bytes")
    offset = chunk * chunk_size
    return Extent(offset, min(chunk_size, size - offset))


def chunks_of(extent: Extent, size: int, chunk_size: int) -> range:
    """The chunks that an extent touches, cut at the end of the object; empty where it touches none."""
    end = min(extent.end, size)
    if extent.offset >= end:
        return range(0)
    return range(extent.offset // chunk_size, (end - 1) // chunk_size + 1)


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a dataset: its path below the root ('/' between names), its object and its time.

    `mtime_ns` is what the origin says of the last change (nanoseconds since 1970), 0 where it says nothing;
    it is shown and never part of the revision.
    """

    path: str
    ref: ObjectRef
    mtime_ns: int = 0


@dataclass(frozen=True, slots=True)
class Unmapped:
    """A key of the origin that no file name can stand for, and why."""

    key: str
    reason: str


@dataclass(frozen=True)
class Dataset:
    """A named, immutable revision of a tree of objects.

    `entries` are sorted by path; `directories` are those that the origin names although nothing is in them.
    A part of a dataset (`narrow`) has the revision of the whole one, `of_revision`.
    """

    uri: str
    entries: tuple[Entry, ...]
    directories: tuple[str, ...] = ()
    unmapped: tuple[Unmapped, ...] = ()
    of_revision: str = ""

    @cached_property
    def revision(self) -> str:
        """32 hex digits of BLAKE2b over the sorted listing: path, size, version."""
        if self.of_revision:
            return self.of_revision
        return listing_revision((e.path, e.ref.size, e.ref.version) for e in self.entries)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.ref.size for entry in self.entries)


def listing_revision(listing: Iterable[tuple[str, int, str]]) -> str:
    """Hash of a listing of (path, size, version), whatever its order; fields cannot run into each other."""
    digest = hashlib.blake2b(digest_size=16)
    for row in sorted(listing):
        for part in row:
            raw = str(part).encode("utf-8", "surrogateescape")
            digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.hexdigest()


NAME_MAX = 255  # bytes of one name, include/uapi/linux/limits.h
_NO_BYTES = re.compile("[\ud800-\udc7f\udd00-\udfff]")  # \udc80 to \udcff stand for one byte each


def stands_for_no_bytes(text: str) -> bool:
    """Whether there is a lone surrogate in it that no byte of a name became (PEP 383)."""
    return _NO_BYTES.search(text) is not None


def key_fault(key: str) -> str | None:
    """Why a key cannot be a path below a mount, or None where it can.

    `key` is relative to the dataset's root and may end in '/' (an empty directory's marker).
    """
    path = key[:-1] if key.endswith("/") else key
    if not path:
        return "an empty name"
    if path.startswith("/"):
        return "an absolute path"
    for name in path.split("/"):
        if not name:
            return "an empty segment ('//')"
        if name in (".", ".."):
            return f"a segment {name!r}"
        if "\0" in name:
            return "a NUL byte"
        if stands_for_no_bytes(name):
            return "a character that stands for no bytes (a lone surrogate)"
        if len(name.encode("utf-8", "surrogateescape")) > NAME_MAX:
            return f"a segment of more than {NAME_MAX} bytes"
    return None


@dataclass(frozen=True, slots=True)
class ListedObject:
    """What an origin says of one object: `key` is relative to the tree's root."""

    key: str
    ref: ObjectRef
    mtime_ns: int = 0


def build_dataset(uri: str, listing: Iterable[ListedObject]) -> Dataset:
    """Map a listing to a tree (agent/mount/SEMANTICS.md states the mapping).

    A key that cannot be a path is left out and recorded, its neighbours stay. Where one key is another's
    directory (`x` beside `x/y`), the directory is shown and the file is left out. Keys that differ by
    Unicode normalisation only are two files, as they are two objects.
    """
    files: dict[str, ListedObject] = {}
    markers: set[str] = set()
    unmapped: list[Unmapped] = []
    for item in listing:
        fault = key_fault(item.key)
        if fault is not None:
            unmapped.append(Unmapped(item.key, fault))
        elif item.key.endswith("/"):
            markers.add(item.key[:-1])
            if item.ref.size:
                unmapped.append(Unmapped(item.key, "a directory marker that has bytes"))
        else:
            files[item.key] = item
    parents = {parent for path in files for parent in _parents(path)}
    parents |= {parent for path in markers for parent in (*_parents(path), path)}
    unmapped += [Unmapped(path, "other keys have it as their directory") for path in files if path in parents]
    entries = (Entry(path, item.ref, item.mtime_ns) for path, item in files.items() if path not in parents)
    return Dataset(
        uri=uri,
        entries=tuple(sorted(entries, key=lambda entry: entry.path)),
        directories=tuple(sorted(markers)),
        unmapped=tuple(sorted(unmapped, key=lambda item: item.key)),
    )


def _parents(path: str) -> Iterator[str]:
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path


# A view is the part of a dataset that one mount shows. Patterns are globs as Python's fnmatch has them, over
# whole paths below the mount's root: `*` matches everything, '/' too, `?` one character, `[...]` one of a
# set; case counts. A pattern that ends in '/' means all below such a directory. So `*.safetensors` is every
# such file at any depth, as in the `allow_patterns` of huggingface_hub.
MAX_PATTERNS = 64
MAX_PATTERN = 256  # characters


@dataclass(frozen=True, slots=True)
class View:
    """What is shown: a directory of the dataset ("" its root), and of the files below it those that match.

    A file is shown where some pattern of `include` matches (or there is none) and none of `exclude`.
    """

    sub_path: str = ""
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


WHOLE = View()


def narrow(dataset: Dataset, view: View) -> Dataset:
    """The dataset that a mount of this view shows; its revision is the whole one's, its objects are the same.

    A sub path that is no directory of the dataset gives an empty one. Unmapped keys are told of the whole
    dataset only.
    """
    if view == WHOLE:
        return dataset
    prefix = f"{view.sub_path}/" if view.sub_path else ""
    shown = _filter(view)
    entries = (replace(e, path=e.path[len(prefix) :]) for e in dataset.entries if e.path.startswith(prefix))
    inner = (path[len(prefix) :] for path in dataset.directories if path.startswith(prefix))
    return Dataset(
        uri=dataset.uri,
        entries=tuple(entry for entry in entries if shown(entry.path)),
        directories=tuple(path for path in inner if path and shown(f"{path}/")),
        of_revision=dataset.revision,
    )


def sub_path_fault(path: str) -> str | None:
    """Why a text cannot be the sub path of a view, or None where it can."""
    if not path:
        return None
    return "a '/' at its end" if path.endswith("/") else key_fault(path)


def pattern_fault(pattern: str) -> str | None:
    """Why a text cannot be a pattern, or None where it can."""
    if not pattern:
        return "an empty pattern"
    if len(pattern) > MAX_PATTERN:
        return f"a pattern of more than {MAX_PATTERN} characters"
    if "\0" in pattern:
        return "a NUL byte"
    return "a pattern that starts with '/'" if pattern.startswith("/") else None


def _filter(view: View) -> Callable[[str], bool]:
    include, exclude = _matcher(view.include), _matcher(view.exclude)

    def shown(path: str) -> bool:
        return (include is None or bool(include(path))) and not (exclude and exclude(path))

    return shown


def _matcher(patterns: Iterable[str]) -> Callable[[str], object] | None:
    sources = [fnmatch.translate(f"{one}*" if one.endswith("/") else one) for one in patterns]
    return re.compile("|".join(sources)).match if sources else None
