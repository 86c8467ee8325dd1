"""A plain receiver over http.client, for tests of the origins without the transfer engine."""

from __future__ import annotations

import asyncio
import http.client

from agent.errors import (
    AccessDenied,
    ObjectMissing,
    OriginMisbehaved,
    OriginUnavailable,
    VersionChanged,
)
from agent.source import Sink
from agent.transfer.request import RangedGet, Redirected


class PlainReceiver:
    """Sends each GET on a connection of its own, as the engine would, and remembers what it sent."""

    def __init__(self) -> None:
        self.sent: list[RangedGet] = []

    async def receive(self, get: RangedGet, sink: Sink) -> None:
        assert (get.extent.offset, get.extent.end) == (sink.position, sink.end)
        self.sent.append(get)
        await asyncio.to_thread(_receive, get, sink)


def _receive(get: RangedGet, sink: Sink) -> None:
    assert get.endpoint.scheme == "http"
    connection = http.client.HTTPConnection(get.endpoint.host, get.endpoint.port, timeout=get.stall_timeout)
    try:
        connection.putrequest("GET", get.target, skip_host=True, skip_accept_encoding=True)
        for name, value in get.headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        response = connection.getresponse()
        _raise_for(response, get)
        get.check({name.lower(): value for name, value in response.getheaders()})
        while piece := response.read(1024 * 1024):
            sink.write(memoryview(piece))
        if sink.position != sink.end:
            raise OriginMisbehaved(f"{get.name}: short body")
    except (OSError, http.client.HTTPException) as error:
        raise OriginUnavailable(f"{get.name}: {error}") from error
    finally:
        connection.close()


def _raise_for(response: http.client.HTTPResponse, get: RangedGet) -> None:
    status = response.status
    if status == 206 or (status == 200 and get.extent.length == get.size):
        return
    if status in (401, 403):
        raise AccessDenied(f"{get.name}: {status}")
    if status == 404:
        raise ObjectMissing(get.name)
    if status == 412:
        raise VersionChanged(get.name)
    if 300 <= status < 400:
        raise Redirected(response.getheader("location") or "")
    if status in (408, 425, 429) or status >= 500:
        raise OriginUnavailable(f"{get.name}: {status}")
    raise OriginMisbehaved(f"{get.name}: {status}")
