"""One connection: however the network splits an answer, the head and the body are the same."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import OriginUnavailable
from agent.transfer.connection import FIRST_PIECES, Connection
from agent.transfer.request import PIECE, Endpoint
from tests.fakes.raw_http import CLOSE, RawServer, head

BODY = bytes(index * 3 % 256 for index in range(700))


def asked(server: RawServer) -> Connection:
    connection = Connection(Endpoint("http", "127.0.0.1", server.port), None, 10.0)
    connection.send("GET", "/", {"Host": "x"})
    return connection


@settings(max_examples=40, deadline=None)
@given(cuts=st.lists(st.integers(0, 900), max_size=6), chunk=st.integers(1, 800), coded=st.booleans())
def test_an_answer_is_the_same_however_it_is_split(cuts: list[int], chunk: int, coded: bool) -> None:
    if coded:
        parts = [BODY[start : start + chunk] for start in range(0, len(BODY), chunk)]
        body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
        answer = head("206 Partial Content", "X-Twice: a", "Transfer-Encoding: chunked") + body
    else:
        answer = head("206 Partial Content", "X-Twice: a", f"Content-Length: {len(BODY)}") + BODY
    edges = sorted({0, len(answer), *(cut % len(answer) for cut in cuts)})
    pieces = [answer[start:end] for start, end in zip(edges, [*edges[1:], len(answer)], strict=True)]
    with RawServer([head("103 Early Hints"), *pieces]) as server:
        connection = asked(server)
        try:
            found = connection.read_head()
            assert (found.status, found.headers["x-twice"], found.chunked) == (206, "a", coded)
            buffer = memoryview(bytearray(100))
            pieces_of_body = (
                connection.chunked_body(len(BODY)) if coded else connection.body(len(BODY), buffer)
            )
            assert b"".join(bytes(piece) for piece in pieces_of_body) == BODY
            assert connection.drained
        finally:
            connection.close()


def test_the_first_pieces_are_small_and_the_later_ones_a_whole_mebibyte() -> None:
    size = sum(FIRST_PIECES) + 2 * PIECE + 5
    with RawServer([head("200 OK", f"Content-Length: {size}"), bytes(size)]) as server:
        connection = asked(server)
        try:
            connection.read_head()
            sizes = [len(piece) for piece in connection.body(size, memoryview(bytearray(PIECE)))]
            assert sizes == [*FIRST_PIECES, PIECE, PIECE, 5]
        finally:
            connection.close()


@pytest.mark.parametrize(
    ("lines", "kept"), [([], True), (["Connection: keep-alive"], True), (["Connection: Close"], False)]
)
def test_a_head_says_whether_the_connection_may_be_kept(lines: list[str], kept: bool) -> None:
    with RawServer([head("200 OK", "Content-Length: 0", *lines)]) as server:
        connection = asked(server)
        try:
            assert connection.read_head().keep_alive is kept
        finally:
            connection.close()


def test_an_answer_of_http_1_0_is_not_kept() -> None:
    with RawServer([b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", CLOSE]) as server:
        connection = asked(server)
        try:
            assert not connection.read_head().keep_alive
        finally:
            connection.close()


def test_abort_wakes_a_thread_that_waits_for_the_origin() -> None:
    silence = threading.Event()
    with RawServer([silence]) as server:
        connection = asked(server)
        errors: list[BaseException] = []
        waiting = threading.Event()

        def wait() -> None:
            waiting.set()
            try:
                connection.read_head()
            except (OSError, OriginUnavailable) as error:
                errors.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        waiting.wait(10)
        connection.abort()
        thread.join(5)
        connection.close()
        assert not thread.is_alive() and len(errors) == 1
        connection.abort()


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, 900), max_size=6), room=st.integers(1, 4))
def test_units_and_their_trailers_are_told_apart_however_an_answer_is_split(
    cuts: list[int], room: int
) -> None:
    units = [BODY[start : start + 150] for start in range(0, len(BODY), 150)]
    body = b"".join(unit + b"<%d>" % number for number, unit in enumerate(units))
    answer = head("206 Partial Content", f"Content-Length: {len(body)}") + body
    edges = sorted({0, len(answer), *(cut % len(answer) for cut in cuts)})
    pieces = [answer[start:end] for start, end in zip(edges, [*edges[1:], len(answer)], strict=True)]
    with RawServer(pieces) as server:
        connection = asked(server)
        try:
            connection.read_head()
            buffer = memoryview(bytearray(room * 150 + 7))
            found = [(bytes(d), bytes(t)) for d, t in connection.units(len(BODY), buffer, 150, 3)]
            assert b"".join(data for data, _ in found) == BODY
            assert b"".join(behind for _, behind in found) == b"<0><1><2><3><4>"
            assert all(len(behind) == -(-len(data) // 150) * 3 for data, behind in found)
            assert connection.drained
        finally:
            connection.close()


def test_units_that_have_arrived_come_together_and_one_that_breaks_off_does_not_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Connection, "_arrived", lambda connection: 3 * 153)
    body = b"".join(BODY[start : start + 150] + b"<->" for start in range(0, 600, 150))
    with RawServer([head("200 OK", "Content-Length: 612"), body[:-1], CLOSE]) as server:
        connection = asked(server)
        try:
            connection.read_head()
            units = connection.units(600, memoryview(bytearray(600)), 150, 3)
            assert bytes(next(units)[0]) == BODY[:450]
            with pytest.raises(OriginUnavailable):
                next(units)
        finally:
            connection.close()
