"""How far ahead to fill: alone first, then a window that follows the stream, nothing after a jump."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.cache.prefetch import FIRST_WINDOW, WINDOW, Stream
from agent.content import Extent, chunk_count

CHUNK = 1000
AROUND = 500  # half a chunk, as in the agent


@given(
    size=st.integers(1, 50_000),
    reads=st.lists(st.tuples(st.integers(0, 50_000), st.integers(0, 5000)), max_size=30),
)
def test_what_is_filled_ahead_lies_in_the_object_behind_the_read_and_within_the_window(
    size: int, reads: list[tuple[int, int]]
) -> None:
    stream, chunks = Stream(AROUND), chunk_count(size, CHUNK)
    for offset, length in reads:
        ahead = stream.advance(Extent(offset, length), CHUNK, chunks)
        assert len(ahead) <= WINDOW
        assert all(offset // CHUNK < chunk < chunks for chunk in ahead)


def test_the_first_read_goes_alone() -> None:
    assert not Stream(AROUND).advance(Extent(0, 100), CHUNK, 50)
    assert not Stream(AROUND).advance(Extent(7000, 100), CHUNK, 50)


@settings(deadline=None)
@given(step=st.integers(10, CHUNK), start=st.integers(0, 20_000))
def test_a_sequential_reader_never_comes_to_a_chunk_that_was_not_asked_for(step: int, start: int) -> None:
    stream, chunks = Stream(AROUND), 40
    first = start // CHUNK
    wanted = {first, (start + step - 1) // CHUNK}
    proof = start + (AROUND if start else 0)
    for offset in range(start, chunks * CHUNK, step):
        extent = Extent(offset, min(step, chunks * CHUNK - offset))
        touched = set(range(offset // CHUNK, (extent.end - 1) // CHUNK + 1))
        assert touched <= wanted or offset <= proof + step
        wanted |= touched | set(stream.advance(extent, CHUNK, chunks))


@given(
    pages=st.lists(st.integers(0, 40), min_size=1, max_size=8, unique=True),
    order=st.permutations(range(5)),
)
def test_pages_touched_here_and_there_bring_nothing_but_what_the_kernel_reads_around_them(
    pages: list[int], order: list[int]
) -> None:
    stream = Stream(AROUND)
    for page in pages:
        start = 100 + page * 4 * AROUND
        for turn in order:  # the threads that take the reads need not keep their order
            assert not stream.advance(Extent(start + turn * AROUND // 5, AROUND // 5), CHUNK, 200)
        assert stream.closed


def test_what_goes_on_past_the_reads_around_one_page_is_a_stream() -> None:
    stream = Stream(AROUND)
    for offset in range(2300, 2300 + AROUND, 100):
        assert not stream.advance(Extent(offset, 100), CHUNK, 50)
    assert stream.advance(Extent(2300 + AROUND, 100), CHUNK, 50) == range(3, 3 + FIRST_WINDOW)
    assert not stream.closed


def test_a_file_that_is_read_by_jumps_within_the_reach_of_the_readahead_is_no_stream() -> None:
    stream = Stream(4 * CHUNK)
    stream.advance(Extent(0, CHUNK), CHUNK, 50)
    stream.advance(Extent(0, CHUNK), CHUNK, 50)
    for chunk in (2, 4, 6, 1, 3, 5):
        assert not stream.advance(Extent(chunk * CHUNK, CHUNK), CHUNK, 50)


@pytest.mark.parametrize(("readers", "window"), [(2, 4), (3, 2), (8, 1)])
def test_threads_that_read_through_one_handle_share_the_window(readers: int, window: int) -> None:
    stream = Stream(AROUND)
    ahead = [range(0)] * readers
    for offset in range(0, 3 * CHUNK, AROUND // 4):
        for reader in range(readers):
            start = (1 + 20 * reader) * CHUNK + offset
            ahead[reader] = stream.advance(Extent(start, AROUND // 4), CHUNK, 200)
    assert ahead == [range(4 + 20 * reader, 4 + 20 * reader + window) for reader in range(readers)]


def test_who_has_jumped_has_the_whole_window_again_some_chunks_later() -> None:
    stream = Stream(AROUND)
    for offset in (*range(0, 10 * CHUNK, 250), *range(50 * CHUNK, 50 * CHUNK + WINDOW * CHUNK, 250)):
        ahead = stream.advance(Extent(offset, 250), CHUNK, 200)
    assert ahead == range(50 + WINDOW, 50 + 2 * WINDOW)


def test_the_first_read_of_a_file_opens_the_window_once_it_is_served() -> None:
    stream = Stream(AROUND)
    assert not stream.advance(Extent(0, 100), CHUNK, 50)
    assert stream.advance(Extent(0, 100), CHUNK, 50) == range(1, 1 + FIRST_WINDOW)


def test_the_window_opens_in_two_steps() -> None:
    stream = Stream(AROUND)
    stream.advance(Extent(0, 500), CHUNK, 50)
    assert stream.advance(Extent(500, 500), CHUNK, 50) == range(1, 1 + FIRST_WINDOW)
    assert stream.advance(Extent(1000, 500), CHUNK, 50) == range(2, 2 + WINDOW)


def test_a_jump_closes_the_window_and_a_read_that_comes_a_little_late_does_not() -> None:
    stream = Stream(AROUND)
    for offset in (0, 500, 1000, 2000):
        stream.advance(Extent(offset, 500), CHUNK, 50)
    assert stream.advance(Extent(1500, 500), CHUNK, 50) == range(3, 3 + WINDOW)
    assert not stream.advance(Extent(30_000, 500), CHUNK, 50)
    assert stream.closed
    assert stream.advance(Extent(30_500, 500), CHUNK, 50) == range(31, 31 + FIRST_WINDOW)
