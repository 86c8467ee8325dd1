"""The S3 server of tests and demonstrations: it comes up although others take ports as well."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local import s3


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which somebody listens."""
    with socket.create_server(("127.0.0.1", s3.free_ports(1)[0])) as listening:
        yield listening.getsockname()[1]


def test_a_port_that_was_taken_meanwhile_costs_a_start_and_no_more(
    taken: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = [[taken, *s3.free_ports(4)], s3.free_ports(5)]
    monkeypatch.setattr(s3, "free_ports", lambda count: chosen.pop(0))
    with s3.SeaweedS3(tmp_path) as server:
        server.put("bucket", "key", b"bytes")
        assert server.client().get_object(Bucket="bucket", Key="key")["Body"].read() == b"bytes"
    assert not chosen


def test_free_ports_are_none_that_the_kernel_gives_to_a_connection() -> None:
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = s3.free_ports(8)
    assert len(set(ports)) == 8
    assert max(ports) + s3.GRPC_OFFSET < first
