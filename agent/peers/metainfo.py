"""What a torrent of the swarm is made of: a set of objects, cut into pieces. Pure.

Each object is one file; a pad file (BEP 47) behind it fills its last piece, so that objects begin on pieces
and a chunk is a whole number of them. Files are named by their objects' keys, never by URIs. The infohash
(BEP 3) covers a mark that only who knows the cluster's secret can make.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from agent.content import Extent, ObjectRef, chunk_count, chunk_extent

PIECE = 1 << 20  # bytes; v1 hashes of 20 bytes make 2 MB for 100 GiB, and a chunk is never smaller
HASH = 20  # bytes of SHA-1
MOST_OBJECTS = 1024  # of one set: their names fit in one request between peers
MOST_NAMES = 256 * 1024  # bytes of their URIs and versions
LABEL = b"headrace swarm "  # what else is made of the same secret says something else here


def sets_of(refs: Iterable[ObjectRef]) -> list[tuple[ObjectRef, ...]]:
    """Objects in sets, each of which becomes a torrent: all that have bytes, once, in the order of keys."""
    ordered = sorted({ref.key: ref for ref in refs if ref.size}.values(), key=lambda ref: ref.key)
    sets: list[list[ObjectRef]] = []
    names = 0
    for ref in ordered:
        length = len(ref.uri) + len(ref.version)
        names += length
        if not sets or len(sets[-1]) == MOST_OBJECTS or names > MOST_NAMES:
            sets.append([])
            names = length
        sets[-1].append(ref)
    return [tuple(one) for one in sets]


@dataclass(frozen=True)
class Layout:
    """Where the objects of a set lie in its torrent."""

    refs: tuple[ObjectRef, ...]
    chunk_size: int

    @cached_property
    def id(self) -> str:
        """The set's identity: 32 hex digits of BLAKE2b over the chunk size and the objects' keys."""
        digest = hashlib.blake2b(str(self.chunk_size).encode(), digest_size=16)
        for ref in self.refs:
            digest.update(ref.key.encode())
        return digest.hexdigest()

    @cached_property
    def counts(self) -> list[int]:
        """How many chunks each object has."""
        return [chunk_count(ref.size, self.chunk_size) for ref in self.refs]

    @cached_property
    def pieces(self) -> int:
        """How many pieces all objects have."""
        return sum(_pieces(ref.size) for ref in self.refs)

    def chunks(self) -> Iterator[tuple[int, int]]:
        """All chunks: number of the object in the set, number of the chunk in the object."""
        for number, count in enumerate(self.counts):
            yield from ((number, chunk) for chunk in range(count))

    def extent(self, number: int, chunk: int) -> Extent:
        """Where a chunk lies in its object."""
        return chunk_extent(chunk, self.refs[number].size, self.chunk_size)

    def starts(self) -> list[int]:
        """The first piece of each object."""
        starts, piece = [], 0
        for ref in self.refs:
            starts.append(piece)
            piece += _pieces(ref.size)
        return starts

    def files(self) -> list[int | None]:
        """The torrent's files in order: the number of the object, or None for a pad file."""
        found: list[int | None] = []
        for number, pad in enumerate(self._pads()):
            found.append(number)
            if pad:
                found.append(None)
        return found

    def info(self, hashes: Mapping[tuple[int, int], bytes], mark: bytes) -> dict[bytes, object]:
        """The torrent's info dictionary; `hashes` has those of every chunk (`piece_hashes`)."""
        files: list[dict[bytes, object]] = []
        for ref, pad in zip(self.refs, self._pads(), strict=True):
            files.append({b"length": ref.size, b"path": [ref.key.encode()]})
            if pad:
                files.append({b"attr": b"p", b"length": pad, b"path": [b".pad", str(pad).encode()]})
        return {
            b"files": files,
            b"headrace": mark,
            b"name": self.id.encode(),
            b"piece length": PIECE,
            b"pieces": b"".join(hashes[chunk] for chunk in self.chunks()),
            b"private": 1,
        }

    def _pads(self) -> list[int]:
        """Bytes of the pad file behind each object; the last one has none."""
        return [self._pad(number) for number in range(len(self.refs))]

    def _pad(self, number: int) -> int:
        return 0 if number == len(self.refs) - 1 else -self.refs[number].size % PIECE

    def padding(self, number: int, chunk: int) -> int:
        """Zeros that belong to the last piece of a chunk."""
        return self._pad(number) if chunk == self.counts[number] - 1 else 0


def piece_hashes(data: Iterable[bytes | memoryview], padding: int) -> Iterator[bytes]:
    """SHA-1 of each piece of a chunk, given as pieces; `padding` zeros belong to the last one."""
    held: bytes | memoryview | None = None
    for part in data:
        if held is not None:
            yield hashlib.sha1(held).digest()
        held = part
    if held is not None:
        yield hashlib.sha1(bytes(held) + bytes(padding)).digest()


def pieces_in(length: int) -> int:
    """How many pieces a chunk of so many bytes has."""
    return _pieces(length)


def mark_of(secret: bytes, set_id: str) -> bytes:
    """What makes the infohash of a set one that cannot be guessed without the cluster's secret."""
    return hmac.digest(secret, LABEL + b"mark " + set_id.encode(), "sha256")


def tag_of(secret: bytes, set_id: str) -> str:
    """What tells a member which secret a mark was made with; it says nothing of the mark."""
    return hmac.digest(secret, LABEL + b"tag " + set_id.encode(), "sha256")[:8].hex()


def secret_with(tag: str, secrets: Sequence[bytes], set_id: str) -> bytes | None:
    """The secret that a tag was made with; None where it is none of ours."""
    return next((one for one in secrets if hmac.compare_digest(tag_of(one, set_id), tag)), None)


def _pieces(size: int) -> int:
    return -(-size // PIECE)
