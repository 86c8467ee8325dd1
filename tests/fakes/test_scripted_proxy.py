"""The scripted proxy before a real S3 server and real HTTP clients."""

from __future__ import annotations

import http.client
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import botocore.session  # type: ignore[import-untyped]
import pytest
from botocore.config import Config  # type: ignore[import-untyped]

from tests.fakes.faults import (
    IgnoreRange,
    LengthOff,
    Reset,
    Silence,
    Stall,
    Status,
    Truncate,
    WrongContentRange,
)
from tests.fakes.scripted_proxy import ScriptedProxy
from tests.harness.s3 import SeaweedS3
from tests.harness.web import Resource, WebServer

DATA = os.urandom(3_000_000)


@pytest.fixture
def web() -> Iterator[WebServer]:
    with WebServer() as server:
        server.paths["/b/f"] = Resource.tagged(DATA)
        server.paths["/b/other"] = Resource.tagged(b"other")
        yield server


@pytest.fixture
def proxy(web: WebServer) -> Iterator[ScriptedProxy]:
    with ScriptedProxy(web.url) as proxy:
        yield proxy


def get(
    proxy: ScriptedProxy, path: str = "/b/f", start: int = 0, end: int = len(DATA), timeout: float = 10.0
) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=timeout)
    try:
        connection.request("GET", path, headers={"Range": f"bytes={start}-{end - 1}"})
        response = connection.getresponse()
        return response, response.read()
    finally:
        connection.close()


def test_signed_requests_pass_unchanged_and_are_counted(seaweed: SeaweedS3) -> None:
    bucket, key = f"proxy-{uuid.uuid4().hex[:8]}", "d/a b+\u00e9"
    with ScriptedProxy(seaweed.endpoint) as proxy:
        client = botocore.session.Session().create_client(
            "s3",
            endpoint_url=proxy.endpoint,
            region_name=seaweed.region,
            aws_access_key_id=seaweed.access_key,
            aws_secret_access_key=seaweed.secret_key,
            config=Config(s3={"addressing_style": "path"}),
        )
        client.create_bucket(Bucket=bucket)
        client.put_object(Bucket=bucket, Key=key, Body=DATA)
        assert [item["Key"] for item in client.list_objects_v2(Bucket=bucket)["Contents"]] == [key]
        assert client.head_object(Bucket=bucket, Key=key)["ContentLength"] == len(DATA)
        for _ in range(2):
            assert client.get_object(Bucket=bucket, Key=key, Range="bytes=5-")["Body"].read() == DATA[5:]
        assert [one.method for one in proxy.seen()] == ["PUT", "PUT", "GET", "HEAD", "GET", "GET"]
        assert [(one.key, one.range) for one in proxy.object_gets()] == [(f"{bucket}/{key}", "bytes=5-")] * 2
        client.close()


def test_one_connection_is_kept_over_faultless_requests(proxy: ScriptedProxy) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=10)
    for _ in range(3):
        connection.request("GET", "/b/f")
        assert connection.getresponse().read() == DATA
    connection.close()


def test_a_truncated_body_ends_early(proxy: ScriptedProxy) -> None:
    proxy.fault(Truncate(after=1000))
    with pytest.raises(http.client.IncompleteRead) as raised:
        get(proxy)
    assert raised.value.partial == DATA[:1000]
    assert get(proxy)[1] == DATA


def test_lengths_are_off_both_ways(proxy: ScriptedProxy) -> None:
    proxy.fault(LengthOff(by=-10))
    proxy.fault(LengthOff(by=10))
    assert get(proxy)[1] == DATA[:-10]
    with pytest.raises(http.client.IncompleteRead) as raised:
        get(proxy)
    assert raised.value.partial == DATA


def test_ranges_are_ignored_or_answered_wrongly(proxy: ScriptedProxy) -> None:
    proxy.fault(IgnoreRange(DATA))
    proxy.fault(WrongContentRange(shift=7))
    response, body = get(proxy, start=100, end=200)
    assert (response.status, response.getheader("Content-Range"), body) == (200, None, DATA)
    response, body = get(proxy, start=100, end=200)
    assert (response.status, body) == (206, DATA[100:200])
    assert response.getheader("Content-Range") == f"bytes 107-206/{len(DATA)}"


@pytest.mark.parametrize("code", [403, 412, 429, 503])
def test_statuses_come_from_the_proxy(proxy: ScriptedProxy, web: WebServer, code: int) -> None:
    proxy.fault(Status(code, retry_after=2, s3_code="SlowDown"))
    response, body = get(proxy)
    assert (response.status, response.getheader("Retry-After")) == (code, "2")
    assert b"<Code>SlowDown</Code>" in body
    assert not web.seen


@pytest.mark.parametrize("after", [None, 0, 5000])
def test_a_reset_is_a_reset(proxy: ScriptedProxy, after: int | None) -> None:
    proxy.fault(Reset(after=after))
    with pytest.raises(ConnectionResetError):
        get(proxy)


@pytest.mark.parametrize("fault", [Stall(after=1000), Silence()])
def test_silence_lasts_until_the_client_gives_up(proxy: ScriptedProxy, fault: Stall | Silence) -> None:
    proxy.fault(fault)
    with pytest.raises(TimeoutError):
        get(proxy, timeout=0.2)
    assert get(proxy)[1] == DATA


def test_faults_are_for_keys_and_for_a_number_of_times(proxy: ScriptedProxy) -> None:
    proxy.fault(Status(503), key="b/f", times=2, skip=1)
    proxy.fault(Status(429), key="*/oth*", times=None)
    assert [get(proxy)[0].status for _ in range(4)] == [206, 503, 503, 206]
    assert [get(proxy, "/b/other", 0, 5)[0].status for _ in range(3)] == [429] * 3
    proxy.clear()
    assert get(proxy, "/b/other", 0, 5)[1] == b"other"


def test_other_requests_are_spared_unless_asked_for(proxy: ScriptedProxy) -> None:
    proxy.fault(Status(503), times=None)
    assert get(proxy, "/b?list-type=2")[0].status == 404
    proxy.fault(Status(429), times=1, on="others")
    assert get(proxy, "/b?list-type=2")[0].status == 429


def test_a_gate_holds_requests_until_it_is_opened(proxy: ScriptedProxy, web: WebServer) -> None:
    gate = proxy.hold(key="b/f")
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(get, proxy) for _ in range(3)]
        gate.await_held(3)
        proxy.await_object_gets(3)
        assert not web.seen
        assert get(proxy, "/b/other", 0, 5)[1] == b"other"
        gate.release()
        assert all(future.result(10)[1] == DATA for future in waiting)
    assert get(proxy)[1] == DATA


def test_a_gate_in_the_body_lets_exactly_the_first_bytes_out(proxy: ScriptedProxy) -> None:
    gate = proxy.hold(after=1_000_000)
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=10)
    connection.request("GET", "/b/f")
    response = connection.getresponse()
    assert response.read(1_000_000) == DATA[:1_000_000]
    gate.await_held(1)
    connection.sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        connection.sock.recv(1, socket.MSG_PEEK)
    connection.sock.setblocking(True)
    gate.release()
    assert response.read() == DATA[1_000_000:]
    connection.close()


def test_a_server_that_is_down_refuses_and_comes_back(proxy: ScriptedProxy) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=10)
    connection.request("GET", "/b/other")
    assert connection.getresponse().read() == b"other"
    proxy.down()
    with pytest.raises(ConnectionRefusedError):
        get(proxy)
    with pytest.raises((OSError, http.client.RemoteDisconnected)):
        connection.request("GET", "/b/other")
        connection.getresponse()
    connection.close()
    proxy.up()
    assert get(proxy)[1] == DATA


def test_closing_leaves_no_thread_behind(web: WebServer) -> None:
    before = set(threading.enumerate())
    proxy = ScriptedProxy(web.url)
    gate = proxy.hold()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(get, proxy)
        gate.await_held(1)
        proxy.close()
        with pytest.raises((OSError, http.client.HTTPException)):
            future.result(10)
    assert not [one for one in set(threading.enumerate()) - before if one.name.startswith("proxy")]
