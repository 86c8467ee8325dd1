"""What torrents are made of, without libtorrent but for one comparison with it."""

from __future__ import annotations

import hashlib
from typing import Any, cast

import libtorrent
from hypothesis import given
from hypothesis import strategies as st

from agent.content import ObjectRef
from agent.peers.metainfo import (
    HASH,
    MOST_NAMES,
    MOST_OBJECTS,
    PIECE,
    Layout,
    mark_of,
    piece_hashes,
    pieces_in,
    secret_with,
    sets_of,
    tag_of,
)

CHUNK = 2 * PIECE
SECRET, OTHER = b"s" * 32, b"t" * 32


def refs(*sizes: int) -> list[ObjectRef]:
    return [ObjectRef(f"s3://models/{number}", "etag", size) for number, size in enumerate(sizes)]


def some_hashes(layout: Layout) -> dict[tuple[int, int], bytes]:
    """Hashes of the right lengths."""
    return {at: bytes(HASH * pieces_in(layout.extent(*at).length)) for at in layout.chunks()}


@given(st.lists(st.integers(min_value=1, max_value=9 * PIECE), min_size=1, max_size=6))
def test_objects_begin_on_pieces_and_chunks_are_whole_numbers_of_them(sizes: list[int]) -> None:
    (objects,) = sets_of(refs(*sizes))
    layout = Layout(objects, CHUNK)
    info = layout.info(some_hashes(layout), b"mark")
    files = cast(list[dict[bytes, Any]], info[b"files"])
    offset, begins = 0, []
    for file, number in zip(files, layout.files(), strict=True):
        assert (b"attr" in file) == (number is None)
        if number is not None:
            assert file[b"length"] == objects[number].size
            begins.append(offset)
        offset += file[b"length"]
    assert all(begin % PIECE == 0 for begin in begins)
    assert len(cast(bytes, info[b"pieces"])) == HASH * layout.pieces == HASH * -(-offset // PIECE)


def test_libtorrent_reads_the_metainfo_and_knows_its_pads() -> None:
    (objects,) = sets_of(refs(PIECE + 1, 5, 3 * PIECE))
    layout = Layout(objects, CHUNK)
    info = layout.info(some_hashes(layout), mark_of(SECRET, layout.id))
    encoded = libtorrent.bencode(cast(Any, {b"info": info}))
    parameters = libtorrent.load_torrent_buffer(encoded)
    assert parameters.ti is not None
    assert parameters.ti.num_pieces() == layout.pieces
    assert parameters.ti.priv()
    whole = hashlib.sha1(libtorrent.bencode(cast(Any, info))).hexdigest()
    assert str(parameters.ti.info_hashes().v1) == whole


def test_pieces_are_hashed_with_the_zeros_of_the_pad_file() -> None:
    first, last = bytes(range(256)) * (PIECE // 256), b"end"
    expected = [hashlib.sha1(first).digest(), hashlib.sha1(last + bytes(PIECE - 3)).digest()]
    assert list(piece_hashes([first, last], PIECE - 3)) == expected
    assert not list(piece_hashes([], 0))


def test_a_set_is_the_same_whatever_the_order_and_holds_what_a_request_can_name() -> None:
    some = refs(*range(MOST_OBJECTS + 10))
    sets = sets_of(reversed([*some, *some]))
    assert sets == sets_of(some)
    assert [len(one) for one in sets] == [MOST_OBJECTS, 9]  # the empty object is in none
    long = [ObjectRef(f"s3://{number}/{'x' * 1000}", "v", 1) for number in range(600)]
    assert all(sum(len(ref.uri) for ref in one) <= MOST_NAMES for one in sets_of(long))
    assert sum(map(len, sets_of(long))) == 600


def test_the_infohash_is_made_with_the_secret_and_the_tag_tells_which_one() -> None:
    (objects,) = sets_of(refs(PIECE))
    layout = Layout(objects, CHUNK)
    assert mark_of(SECRET, layout.id) != mark_of(OTHER, layout.id)
    assert mark_of(SECRET, layout.id) != mark_of(SECRET, Layout(objects, 2 * CHUNK).id)
    assert secret_with(tag_of(SECRET, layout.id), [OTHER, SECRET], layout.id) == SECRET
    assert secret_with(tag_of(SECRET, layout.id), [OTHER], layout.id) is None
    assert bytes.fromhex(tag_of(SECRET, layout.id)) not in mark_of(SECRET, layout.id)
