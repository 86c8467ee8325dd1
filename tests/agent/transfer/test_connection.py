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
