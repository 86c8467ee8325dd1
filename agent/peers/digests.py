"""The digests of the units that are here or arrive, for whom this agent sends them to. Any thread.

They are those that came with the bytes: made by the head that read them from the origin, checked on the way
in, and sent on as they are. So a fault of this agent's disk or memory shows at whoever has the bytes from
here.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field

from agent.content import Extent
from agent.peers.units import DIGEST, UNIT

BLOCK = 64  # units whose digests are kept together: 8 MiB
MOST_BLOCKS = 1 << 15  # of 256 GiB, in about 40 MB; the first that came are forgotten


@dataclass(eq=False, slots=True)
class _Block:
    digests: bytearray = field(default_factory=lambda: bytearray(BLOCK * DIGEST))
    known: int = 0  # a bit for each unit


class UnitDigests:
    """Digests by an object's key and the number of the unit in it."""

    def __init__(self, most_blocks: int = MOST_BLOCKS) -> None:
        self._most = most_blocks
        self._blocks: OrderedDict[tuple[str, int], _Block] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, key: str, unit: int, digests: bytes) -> None:
        """Know the digests, `DIGEST` bytes each, of units from `unit` on; others replace those before."""
        done, end = 0, len(digests) // DIGEST
        with self._lock:
            while done < end:
                number, at, count = _in_block(unit + done, end - done)
                block = self._blocks.get((key, number))
                if block is None:
                    block = self._blocks[key, number] = _Block()
                    if len(self._blocks) > self._most:
                        self._blocks.popitem(last=False)
                part = digests[done * DIGEST : (done + count) * DIGEST]
                block.digests[at * DIGEST : (at + count) * DIGEST] = part
                block.known |= _bits(at, count)
                done += count

    def get(self, key: str, unit: int) -> bytes | None:
        """The digest of a unit; None where it is not known.

        It needs no lock: each step is one of the interpreter's, and a unit is known once its digest is there.
        """
        number, at = divmod(unit, BLOCK)
        block = self._blocks.get((key, number))
        if block is None or not block.known >> at & 1:
            return None
        return bytes(block.digests[at * DIGEST : (at + 1) * DIGEST])

    def knows(self, key: str, extent: Extent) -> bool:
        """Whether the digests of all units of an extent are known."""
        unit, end = extent.offset // UNIT, -(-extent.end // UNIT)
        while unit < end:
            number, at, count = _in_block(unit, end - unit)
            block = self._blocks.get((key, number))
            if block is None or ~block.known & _bits(at, count):
                return False
            unit += count
        return True


def _in_block(unit: int, count: int) -> tuple[int, int, int]:
    """The block of a unit, its place there, and how many of `count` units from it on lie in that block."""
    number, at = divmod(unit, BLOCK)
    return number, at, min(count, BLOCK - at)


def _bits(at: int, count: int) -> int:
    return ((1 << count) - 1) << at
