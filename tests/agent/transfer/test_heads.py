"""Heads that are read and written without h11 are what h11 makes of them, and nothing that it refuses."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.transfer import heads
from tests.fakes.raw_http import head

NAMES = st.sampled_from(
    ["Content-Length", "content-length", "ETag", "Connection", "X-A", "Transfer-Encoding"]
)
VALUES = st.sampled_from(
    ['"v"', "5", " 5 ", "+5", "5,5", "", "\t", "close", "Keep-Alive, Close", "chunked", "\xe9", "\x7f", "a\n"]
)
STATUS = st.sampled_from(
    ["206 Partial Content", "200", "200 ", "100 Continue", "2000 X", "099 X", "503 \xe9"]
)


def by_h11(data: bytes) -> heads.ResponseHead | None:
    parser = h11.Connection(h11.CLIENT)
    parser.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
    parser.send(h11.EndOfMessage())
    parser.receive_data(data)
    try:
        event = parser.next_event()
    except h11.RemoteProtocolError:
        return None
    return heads.parsed(event) if isinstance(event, h11.Response) else None


@settings(max_examples=150, deadline=None)
@given(status=STATUS, fields=st.lists(st.tuples(NAMES, VALUES), max_size=4))
def test_an_ordinary_head_says_what_h11_says(status: str, fields: list[tuple[str, str]]) -> None:
    lines = "".join(f"{name}:{value}\r\n" for name, value in fields)
    data = f"HTTP/1.1 {status}\r\n{lines}\r\n".encode("latin-1")
    found = heads.ordinary(data)
    assert found is None or found == by_h11(data)


def test_what_servers_send_is_ordinary() -> None:
    found = heads.ordinary(head("206 Partial Content", "Content-Length: 5", 'ETag: "v"', "Connection: Close"))
    assert found is not None and (found.status, found.headers["etag"]) == (206, '"v"')
    assert (found.keep_alive, found.chunked) == (False, False)


@pytest.mark.parametrize(
    "lines",
    [
        ["Content-Length: 5", "Content-Length: 6"],
        ["Content-Length: 0x5"],
        ["Transfer-Encoding: chunked"],
        ["X: a", " b"],
        ["X : a"],
        ["X: a\0"],
        [],
    ],
)
def test_what_is_not_ordinary_is_left_to_h11(lines: list[str]) -> None:
    assert heads.ordinary(head("206 Partial Content", *lines)) is None


def test_a_request_is_what_h11_writes() -> None:
    headers = {"Host": "h:1", "Range": "bytes=0-4", "If-Match": '"v"', "Authorization": "AWS4 a=b, c=d"}
    request = h11.Request(method="GET", target="/a%20b?c=d", headers=list(headers.items()))
    expected = h11.Connection(h11.CLIENT).send(request)
    assert heads.request_bytes("GET", "/a%20b?c=d", headers) == expected


@pytest.mark.parametrize(
    ("target", "headers"),
    [
        ("/a", {"Host": "x", "Range": "a\r\nX: b"}),
        ("/a HTTP/1.1\r\nX: b", {"Host": "x"}),
        ("/a b", {"Host": "x"}),
        ("/a", {"Host": "x\n"}),
        ("/a", {"Host": "x", "X": " a"}),
        ("/a", {"X": "a"}),
    ],
)
def test_no_request_says_more_than_it_was_given(target: str, headers: dict[str, str]) -> None:
    with pytest.raises(h11.LocalProtocolError):
        heads.request_bytes("GET", target, headers)
