"""Whether SQLite's write-ahead log is as the last agent left it.

SQLite reads the log up to the first frame whose checksum is wrong and passes over the rest without a word.
After a crash that is right: the rest was never committed. After damage it is not: rows that say a chunk is
gone may be lost with it. So the frames behind those that SQLite took are looked at here. Format: "WAL-Index
Format" and "WAL File Format" in https://www.sqlite.org/fileformat2.html, section 4.
"""

from __future__ import annotations

import struct
from pathlib import Path

MAGICS = {0x377F0682: "<", 0x377F0683: ">"}  # and the byte order of the checksums' words
HEADER = struct.Struct(">8I")
FRAME = struct.Struct(">6I")


def frames_lost(wal: Path, taken: int) -> bool:
    """Whether the log has damage: its header, or a frame behind the `taken` ones that SQLite went by.

    Frames there are sound where a transaction was under way when its writer died; those of an older
    generation of the log have another salt. OSError where it cannot be read; no log is a sound one.
    """
    try:
        data = wal.open("rb")
    except FileNotFoundError:
        return False
    with data as file:
        head = file.read(HEADER.size)
        if not head:
            return False
        order = _order(head)
        if order is None:
            return True
        page_size, _, salt1, salt2, _, _ = HEADER.unpack(head)[2:]
        size = FRAME.size + page_size
        start = HEADER.size + taken * size
        before = HEADER.unpack(head)[6:]
        if taken:
            file.seek(start - size)
            before = FRAME.unpack(file.read(FRAME.size))[4:]
        file.seek(start)
        while len(frame := file.read(size)) == size:
            fields = FRAME.unpack_from(frame)
            if fields[2:4] != (salt1, salt2):
                return False
            before = checksum(frame[:8] + frame[FRAME.size :], order, before)
            if before != fields[4:]:
                return True
    return False


def _order(head: bytes) -> str | None:
    """The byte order of the log's checksums; None where the header is no header."""
    if len(head) < HEADER.size:
        return None
    fields = HEADER.unpack(head)
    order = MAGICS.get(fields[0])
    if order is None or checksum(head[:24], order, (0, 0)) != fields[6:]:
        return None
    return order


def checksum(data: bytes, order: str, start: tuple[int, ...]) -> tuple[int, int]:
    """The log's running checksum over whole pairs of 32-bit words (section 4.2 of the format)."""
    first, second = start
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for even, odd in zip(words[::2], words[1::2], strict=True):
        first = (first + even + second) & 0xFFFFFFFF
        second = (second + odd + first) & 0xFFFFFFFF
    return first, second
