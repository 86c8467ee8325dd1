"""A small HTTP server with ETags, Last-Modified and ranges, and the ways in which servers differ.

aiohttp in a thread of its own. Objects are in memory; `paths` maps a URL path to one, `redirects` to another
URL. Every request is recorded.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Coroutine
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any, TypeVar
from urllib.parse import unquote

from aiohttp import web

T = TypeVar("T")


@dataclass
class Resource:
    """One object; None leaves its header out."""

    data: bytes
    etag: str | None = None
    last_modified: str | None = None
    content_type: str = "application/octet-stream"
    head_status: int = 200
    content_encoding: str | None = None

    @classmethod
    def tagged(cls, data: bytes) -> Resource:
        """With a strong ETag and Last-Modified, as most servers have."""
        digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
        return cls(data, f'"{digest}"', formatdate(1_700_000_000, usegmt=True))


@dataclass(frozen=True)
class Seen:
    """One request as the server got it."""

    method: str
    path: str
    headers: dict[str, str] = field(hash=False)


class WebServer:
    """The server, running from construction to `stop`; also a context manager."""

    def __init__(self) -> None:
        self.paths: dict[str, Resource] = {}
        self.redirects: dict[str, str] = {}
        self.seen: list[Seen] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="web-server")
        self._thread.start()
        self._runner, self.port = self._wait(self._start())
        self.url = f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        """Stop serving; connections under way are cut."""
        self._wait(self._runner.cleanup())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def __enter__(self) -> WebServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _start(self) -> tuple[web.AppRunner, int]:
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", self._answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return runner, runner.addresses[0][1]

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        path = unquote(request.raw_path.partition("?")[0])
        self.seen.append(Seen(request.method, request.raw_path, dict(request.headers)))
        if path in self.redirects:
            return web.Response(status=302, headers={"Location": self.redirects[path]})
        resource = self.paths.get(path)
        if resource is None:
            return web.Response(status=404)
        if request.method == "HEAD" and resource.head_status != 200:
            return web.Response(status=resource.head_status)
        return _respond(request, resource)


def _respond(request: web.Request, resource: Resource) -> web.Response:
    headers = {"Content-Type": resource.content_type, "Accept-Ranges": "bytes"}
    if resource.etag is not None:
        headers["ETag"] = resource.etag
    if resource.content_encoding is not None:
        headers["Content-Encoding"] = resource.content_encoding
    if resource.last_modified is not None:
        headers["Last-Modified"] = resource.last_modified
    if _condition_fails(request, resource):
        return web.Response(status=412, headers=headers)
    wanted = request.http_range
    if "Range" not in request.headers:
        return web.Response(body=resource.data, headers=headers)
    total = len(resource.data)
    start = wanted.start or 0
    stop = min(wanted.stop if wanted.stop is not None else total, total)
    if start >= total:
        return web.Response(status=416, headers=headers | {"Content-Range": f"bytes */{total}"})
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{total}"
    return web.Response(status=206, body=resource.data[start:stop], headers=headers)


def _condition_fails(request: web.Request, resource: Resource) -> bool:
    if_match = request.headers.get("If-Match")
    since = request.headers.get("If-Unmodified-Since")
    return (if_match is not None and if_match != resource.etag) or (
        since is not None and since != resource.last_modified
    )
