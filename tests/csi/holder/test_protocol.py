"""Framing, over real socket pairs."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi.holder.protocol import (
    MAX_DESCRIPTORS,
    MAX_PACKET,
    Message,
    Packet,
    ProtocolError,
    decode,
    encode,
    pages,
    peer_of,
    receive,
    send,
)

Pair = tuple[socket.socket, socket.socket]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)


@pytest.fixture
def pair() -> Iterator[Pair]:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with left, right:
        yield left, right


def test_a_message_and_its_descriptor_arrive_as_one_packet(pair: Pair) -> None:
    reading, writing = os.pipe()
    send(pair[0], encode({"id": 1, "op": "x"}), [writing])
    send(pair[0], encode({"id": 2}))
    first, second = receive(pair[1]), receive(pair[1])
    assert first is not None and second is not None
    assert (decode(first), decode(second)) == ({"id": 1, "op": "x"}, {"id": 2})
    assert not second.descriptors
    os.write(first.descriptors[0], b"through")
    assert os.read(reading, 10) == b"through"
    assert not os.get_inheritable(first.descriptors[0])
    first.close()
    os.close(reading)
    os.close(writing)


@given(st.dictionaries(st.text(max_size=8), JSON, max_size=4))
def test_every_message_comes_back_as_it_went(message: Message) -> None:
    assert decode(Packet(encode(message))) == message


def test_more_descriptors_than_a_packet_may_have_make_it_cut(pair: Pair) -> None:
    send(pair[0], b"{}", [0] * (MAX_DESCRIPTORS + 3))
    packet = receive(pair[1])
    assert packet is not None and packet.cut
    with pytest.raises(ProtocolError):
        decode(packet)
    packet.close()


def test_a_packet_that_is_too_long_is_cut_not_split(pair: Pair) -> None:
    pair[0].send(b"[" + b" " * MAX_PACKET + b"]")
    pair[0].send(b"{}")
    packet, second = receive(pair[1]), receive(pair[1])
    assert packet is not None and packet.cut
    assert second is not None and second.data == b"{}"


@pytest.mark.parametrize("data", [b"\xff", b"[]", b"1", b"{", b'{"a":' * 20000, b"[" * 50000])
def test_what_is_no_json_object_is_a_protocol_error(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(Packet(data))


@pytest.mark.parametrize("message", [{"a": float("nan")}, {"a": "x" * MAX_PACKET}, {"a": object()}])
def test_what_fits_no_packet_is_not_encoded(message: Message) -> None:
    with pytest.raises(ProtocolError):
        encode(message)


def test_the_end_of_a_connection_is_no_packet(pair: Pair) -> None:
    pair[0].close()
    assert receive(pair[1]) is None


def test_the_peer_is_who_the_kernel_says(pair: Pair) -> None:
    peer = peer_of(pair[0])
    assert (peer.pid, peer.uid) == (os.getpid(), os.getuid())


@given(st.lists(st.text(max_size=40)), st.integers(1, 200))
def test_pages_lose_and_reorder_nothing(items: list[str], limit: int) -> None:
    cut = list(pages(items, limit))
    assert [item for page in cut for item in page] == items
    assert all(cut)
