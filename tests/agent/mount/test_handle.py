"""Which reads of an open file its stream is told of."""

from __future__ import annotations

from pathlib import Path

from agent.cache.objects import CachedObject
from agent.content import ObjectRef
from agent.mount.mounted import Handle

CHUNK = 1000


def opened() -> Handle:
    ref = ObjectRef("s3://bucket/object", "v1", 20 * CHUNK)
    return Handle(CachedObject(ref, Path(), -1, 0, CHUNK))


def test_in_an_open_window_one_read_of_each_chunk_is_told_however_threads_mix_them() -> None:
    handle = opened()
    handle.stream.closed = False
    reads = (0, 0, 1, 0, 1, 1, 2, 1, 3)
    assert [handle.tells(chunk * CHUNK) for chunk in reads] == [
        *(True, False, True, False, False, False),
        *(True, False, True),
    ]


def test_a_jump_is_told_in_either_direction() -> None:
    handle = opened()
    handle.stream.closed = False
    assert [handle.tells(chunk * CHUNK) for chunk in (3, 9, 3, 1)] == [True] * 4


def test_before_a_window_opens_every_read_is_told() -> None:
    handle = opened()
    assert handle.stream.closed
    assert [handle.tells(offset) for offset in (0, 10, 10, 0)] == [True] * 4
