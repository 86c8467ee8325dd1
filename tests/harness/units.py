"""Bytes as peers send them: units, each with its digest behind it."""

from __future__ import annotations

from agent.peers.protocol import UNITS_HEADER
from agent.peers.units import DIGEST, KIND, UNIT, unit_digest
from tests.fakes.raw_http import head


def with_digests(data: bytes) -> bytes:
    """The units of bytes that begin where a unit does."""
    units = (data[at : at + UNIT] for at in range(0, len(data), UNIT))
    return b"".join(unit + unit_digest(unit) for unit in units)


def without_digests(body: bytes) -> bytes:
    """The bytes of units, each of which has the digest behind it."""
    found = [body[at : at + UNIT + DIGEST] for at in range(0, len(body), UNIT + DIGEST)]
    assert all(unit_digest(one[:-DIGEST]) == one[-DIGEST:] for one in found)
    return b"".join(one[:-DIGEST] for one in found)


def answer(data: bytes, start: int, end: int, kind: str = KIND) -> bytes:
    """A peer's answer to who asks for `[start, end)` of an object."""
    body = with_digests(data[start:end])
    fields = [f"Content-Range: bytes {start}-{end - 1}/{len(data)}", f"Content-Length: {len(body)}"]
    return head("206 Partial Content", *fields, f"{UNITS_HEADER}: {kind}") + body
