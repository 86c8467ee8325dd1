"""The loop of a real holder process: greetings, malformed packets, clients that die or do not read."""

from __future__ import annotations

import json
import os
import random
import socket
import struct

import pytest

from csi.holder.client import HolderGone
from csi.holder.protocol import Message, Packet, Refused, decode, encode, receive, send
from csi.holder.server import MAX_CONNECTIONS
from tests.csi.holding import WITHIN, HolderProcess, answer_one


def raw(holder: HolderProcess) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(holder.socket)
    connection.settimeout(WITHIN)
    return connection


def greeted(holder: HolderProcess, role: str = "command") -> socket.socket:
    connection = raw(holder)
    exchange(connection, encode({"id": 0, "op": "hello", "versions": [1], "role": role, "build": "t"}))
    return connection


def exchange(connection: socket.socket, data: bytes, descriptors: tuple[int, ...] = ()) -> Message:
    send(connection, data, descriptors)
    packet = receive(connection)
    assert packet is not None
    packet.close()
    return decode(packet)


def settles(holder: HolderProcess, connection: socket.socket, descriptors: int) -> bool:
    """Whether the holder comes to have so many descriptors; each turn is an answer of its loop."""
    for _ in range(100):
        exchange(connection, b'{"id":1,"op":"target","target":"/none"}')
        if holder.descriptors() == descriptors:
            return True
    return False


def test_hello_tells_version_build_and_pid(holder: HolderProcess) -> None:
    with raw(holder) as connection:
        hello: Message = {
            "id": "a",
            "op": "hello",
            "versions": [7, 1],
            "role": "agent",
            "build": "t",
            "new": {},
        }
        answer = exchange(connection, encode({**hello, "build": "t"}))
    assert (answer["id"], answer["ok"], answer["version"], answer["pid"]) == ("a", True, 1, holder.pid)


def test_without_a_common_version_the_error_says_so_and_the_connection_ends(holder: HolderProcess) -> None:
    with raw(holder) as connection:
        answer = exchange(connection, encode({"id": 1, "op": "hello", "versions": [2], "role": "agent"}))
        assert answer["error"] == "version"
        assert "speaks version 1" in str(answer["message"])
        assert receive(connection) is None


def test_nothing_is_answered_before_hello(holder: HolderProcess) -> None:
    with raw(holder) as connection:
        assert exchange(connection, b'{"id":1,"op":"list"}')["error"] == "bad-request"


def test_an_unknown_operation_and_unknown_fields_harm_nothing(holder: HolderProcess) -> None:
    with greeted(holder) as connection:
        assert exchange(connection, b'{"id":1,"op":"bequeath"}')["error"] == "unknown-op"
        assert exchange(connection, b'{"id":2,"op":"target","target":"/a","x":1}')["ok"] is True


MALFORMED = [
    b"\x00",
    b"nonsense",
    b"[]",
    b'"op"',
    b"{}",
    b'{"op":7}',
    b'{"op":"claim\\u0000"}',
    b'{"id":{},"op":"mount"}',
    b'{"id":1,"op":"mount","mount":"../x"}',
    b'{"id":1,"op":"mount","mount":"a","record":[]}',
    b'{"id":1,"op":"mount","mount":"a","record":{"a":NaN}}',
    b'{"id":1,"op":"mount","mount":"a","record":{"a":1e999}}',
    b'{"id":1,"op":"mount","mount":"a","record":{"a":' + b"[" * 200 + b"]" * 200 + b"}}",
    b'{"id":1,"op":"mount","mount":"a","record":{"a":"' + b"x" * 17000 + b'"}}',
    b'{"id":1,"op":"ready","mount":"a","record":{},"read_ahead_kb":-1}',
    b'{"id":1,"op":"ready","mount":"a","record":{},"read_ahead_kb":true}',
    b'{"id":1,"op":"backing_open","mount":"a","nodeid":"1"}',
    b'{"id":1,"op":"hello","versions":1,"role":"agent"}',
    b'{"id":1,"op":"hello","versions":[1],"role":"king"}',
    b'{"id":1' + b" " * 61440 + b"}",
]


def test_malformed_packets_get_an_error_and_leave_no_descriptor_behind(
    holder: HolderProcess, seed: int
) -> None:
    rng = random.Random(seed)
    with greeted(holder, "agent") as connection:
        exchange(connection, b'{"id":1,"op":"claim"}')
        receive(connection)
        before = holder.descriptors()
        for data in [*MALFORMED, *(rng.randbytes(rng.randrange(1, 200)) for _ in range(100))]:
            for descriptors in ((), (0, 1), (0,) * 9):
                assert "error" in exchange(connection, data, descriptors), data
        assert exchange(connection, b'{"id":1,"op":"list"}')["part"] == "end"
        assert holder.descriptors() == before
    assert holder.mounted_at("a") is None


@pytest.mark.parametrize(
    "fields",
    [
        {"op": "bind", "mount": "a", "target": "relative"},
        {"op": "bind", "mount": "a", "target": "/a/../b"},
        {"op": "bind", "mount": "a", "target": "/a\0b"},
        {"op": "bind", "mount": "a", "target": "/a/"},
        {"op": "target", "target": "//a"},
        {"op": "unbind", "target": "/"},
        {"op": "unbind", "target": "/\ud800"},
        {"op": "unbind", "target": "/x" * 4096},
    ],
)
def test_bad_targets_are_refused(holder: HolderProcess, fields: Message) -> None:
    with greeted(holder) as connection:
        answer = exchange(connection, json.dumps({"id": 1, **fields}).encode())
        assert answer["error"] in ("bad-request", "no-mount")


def test_a_claim_is_one_agents_and_ends_with_its_connection(holder: HolderProcess) -> None:
    first = greeted(holder, "agent")
    with greeted(holder, "agent") as second:
        assert exchange(first, b'{"id":1,"op":"claim"}')["ok"] is True
        refusal = exchange(second, b'{"id":1,"op":"claim"}')
        assert refusal["error"] == "busy"
        assert f"pid {os.getpid()}" in str(refusal["message"])
        assert exchange(second, b'{"id":2,"op":"mount","mount":"a"}')["error"] == "not-claimed"
        first.close()
        assert exchange(second, b'{"id":3,"op":"claim"}')["ok"] is True


def test_clients_that_die_at_any_point_leave_nothing(holder: HolderProcess) -> None:
    with greeted(holder) as watcher:
        before = holder.descriptors()
        for data in (b"", b"{", b'{"id":1,"op":"claim"}', b'{"id":1,"op":"list"}'):
            for _ in range(5):
                with greeted(holder, "agent") as connection:
                    if data:
                        send(connection, data, (0,))
        for _ in range(20):
            raw(holder).close()
        assert settles(holder, watcher, before)


def test_a_client_that_does_not_read_holds_up_only_itself(holder: HolderProcess) -> None:
    with greeted(holder) as deaf, greeted(holder) as other:
        before = holder.descriptors()
        deaf.setblocking(False)
        sent = 0
        with pytest.raises(BlockingIOError):
            while True:
                send(deaf, b'{"id":1,"op":"list"}')
                sent += 1
        assert exchange(other, b'{"id":1,"op":"list"}')["part"] == "end"
        deaf.settimeout(WITHIN)
        for _ in range(sent):
            packet = receive(deaf)
            assert packet is not None and decode(packet)["part"] == "end"
        assert holder.descriptors() == before


def test_descriptors_that_were_never_read_are_closed_with_the_connection(holder: HolderProcess) -> None:
    with greeted(holder) as watcher:
        before = holder.descriptors()
        agent = greeted(holder, "agent")
        assert exchange(agent, b'{"id":1,"op":"claim"}')["part"] == "table"
        for number in range(5):
            send(agent, encode({"id": 2, "op": "mount", "mount": f"m{number}"}))
        agent.close()
        for _ in range(100):
            if holder.descriptors() == before + mounts_listed(watcher):
                return
    pytest.fail("the holder keeps more descriptors than one for each mount")


def mounts_listed(connection: socket.socket) -> int:
    answer, count = exchange(connection, b'{"id":1,"op":"list"}'), 0
    while answer["part"] != "end":
        packet = receive(connection)
        assert packet is not None
        answer, count = decode(packet), count + 1
    return count


def test_connections_are_bounded(holder: HolderProcess) -> None:
    connections = [greeted(holder) for _ in range(MAX_CONNECTIONS)]
    with pytest.raises(HolderGone):
        holder.connect()
    kept = connections.pop()
    for connection in connections:
        connection.close()
    for _ in range(2):
        exchange(kept, b'{"id":1,"op":"list"}')
    holder.connect().close()
    kept.close()


def test_a_late_answer_is_not_taken_for_the_next_ones(holder: HolderProcess) -> None:
    connection = holder.connect("agent")
    with connection.request("claim", {}, several=True):
        pass
    with connection.request("mount", {"mount": "a", "record": {}}) as (answer,):
        answer.take()
    with pytest.raises(Refused) as refused, connection.request("mount", {"mount": "a"}):
        pass
    assert refused.value.code == "exists"
    connection.close()


def test_a_record_of_the_greatest_size_fits_the_packets(holder: HolderProcess) -> None:
    record: Message = {"k": "\u20ac" * 2700}  # six bytes each as JSON
    with greeted(holder, "agent") as agent:
        exchange(agent, b'{"id":1,"op":"claim"}')
        receive(agent)
        exchange(agent, encode({"id": 2, "op": "mount", "mount": "a", "record": record}))
    with greeted(holder, "agent") as agent:
        exchange(agent, b'{"id":1,"op":"claim"}')
        packet = receive(agent)
        assert packet is not None
        assert decode(packet)["record"] == record
        assert answer_one(packet.descriptors[0]) == 26
        packet.close()


def test_an_identity_too_long_is_not_given_back(holder: HolderProcess) -> None:
    with greeted(holder) as connection:
        assert exchange(connection, encode({"id": "x" * 50000, "op": "list"}))["id"] is None
        assert exchange(connection, b'{"id":' + b"9" * 40 + b',"op":"list"}')["id"] is None


def test_a_cut_ancillary_message_is_answered(holder: HolderProcess) -> None:
    with greeted(holder) as connection:
        credentials = struct.pack("3i", os.getpid(), 0, 0)
        connection.sendmsg(
            [b'{"id":1,"op":"list"}'], [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, credentials)]
        )
        packet = receive(connection)
        assert isinstance(packet, Packet)
        assert decode(packet)["part"] == "end"
