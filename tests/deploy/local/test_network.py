"""The network of namespaces: real sockets over its links."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from deploy.local.network import Host, Network, NetworkError, run

MIB = 1 << 20


@pytest.fixture
def network() -> Iterator[Network]:
    with Network() as made:
        yield made


def carry(sender: Host, receiver: Host, size: int) -> bytes:
    """Send bytes from one host to another; what came there, at most 64 KiB of it."""
    with receiver.namespace.inside():
        listener = socket.create_server((receiver.address, 5000))
    with sender.namespace.inside():
        out = socket.create_connection((receiver.address, 5000), timeout=10)
    with listener, out, listener.accept()[0] as accepted:
        out.sendall(bytes(size))
        out.shutdown(socket.SHUT_WR)
        accepted.settimeout(10)
        return accepted.recv(65536)


def test_hosts_reach_each_other_over_links_that_count_their_bytes(network: Network) -> None:
    first, second = network.add("200mbit"), network.add()
    assert set(carry(first, second, 1000)) == {0}
    sent, received = network.traffic()
    assert 1000 <= sent.sent < 10_000
    assert 1000 <= received.received < 10_000


def test_a_link_is_shaped_at_both_ends_and_can_be_given_another_rate(network: Network) -> None:
    host = network.add("200mbit")
    network.shape(host, "50mbit")
    with host.namespace.inside():
        assert "rate 50Mbit" in run("tc", "qdisc", "show", "dev", "eth0")


def test_a_thread_comes_back_from_a_namespace_also_by_an_error(network: Network) -> None:
    before = os.readlink("/proc/thread-self/ns/net")
    host = network.add()
    with pytest.raises(NetworkError, match="no-such"), host.namespace.inside():
        assert os.readlink("/proc/thread-self/ns/net") != before
        run("ip", "link", "set", "no-such", "up")
    assert os.readlink("/proc/thread-self/ns/net") == before
