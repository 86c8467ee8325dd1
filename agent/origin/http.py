"""HTTP origins: one file by its URL, or a tree by a JSON index (agent/origin/http_index.py has the schema).

A version is a strong ETag, else Last-Modified and the length; each GET is conditional on it and its answer is
checked, also behind redirects. Credentials that came with a publish go to the server that its URI names, and
to no other: not to one that a redirect or an index leads to.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from urllib.parse import unquote, urlsplit

from agent.config import OriginConfig
from agent.content import Dataset, Extent, ListedObject, ObjectRef, build_dataset
from agent.errors import BadRequest, OriginError, OriginMisbehaved
from agent.origin.budget import budget_of
from agent.origin.http_access import Access
from agent.origin.http_index import is_index, listing
from agent.origin.http_metadata import MAX_REDIRECTS, Described, Metadata
from agent.origin.http_version import checker, conditions, proves_the_bytes, version_text
from agent.origin.receiver import Receiver, stall_timeout
from agent.origin.url import (
    canonical,
    endpoint_of,
    host_header,
    range_header,
    redirected,
    request_target,
    shown_url,
)
from agent.origin.version import http_date_ns
from agent.source import Budget, Checksum, Sink
from agent.transfer.request import RangedGet, Redirected


class HttpOrigin:
    """The HTTP servers of one prefix (an `Origin` of agent/source.py)."""

    def __init__(
        self,
        settings: OriginConfig,
        receiver: Receiver,
        name: str = "http",
        access: Access | None = None,
    ) -> None:
        """`name` is the prefix that the settings belong to; budgets and metrics go by it.

        `access` proves the right at a URL; without it the agent has none.
        """
        self._settings = settings
        self._receiver = receiver
        self._access = Access() if access is None else access
        self._metadata = Metadata(settings, self._access)
        self._budget = budget_of(settings, name)

    def budget(self, ref: ObjectRef) -> Budget:
        """The budget that fetches of this object draw on: one for all of the prefix."""
        return self._budget

    async def resolve(self, uri: str) -> Dataset:
        """The tree of the index, or the one file, at `uri`. Raises OriginError, BadRequest."""
        uri = self._access.named(uri)
        url = canonical(uri)
        if is_index(url, None):
            return await self._tree(uri, url)
        described = await self._metadata.describe(url)
        if is_index(url, described.headers.get("content-type")):
            return await self._tree(uri, url)
        return build_dataset(uri, [self._file(url, described)])

    async def fetch(self, ref: ObjectRef, sink: Sink) -> None:
        """Receive `[sink.position, sink.end)`, following redirects. Raises OriginError."""
        if sink.position >= sink.end:
            return
        url = self._access.sent(canonical(ref.uri))
        for _ in range(MAX_REDIRECTS + 1):
            try:
                await self._receiver.receive(self._get(ref, url, sink), sink)
            except Redirected as answer:
                url = redirected(url, answer.location)
            else:
                return
        raise OriginError(f"{shown_url(url)}: more than {MAX_REDIRECTS} redirects")

    async def checksum(self, ref: ObjectRef) -> Checksum | None:
        """Servers state none that they can be held to."""
        return None

    async def close(self) -> None:
        """Close the connections that metadata questions keep."""
        await self._metadata.close()

    async def _tree(self, uri: str, url: str) -> Dataset:
        text = await self._metadata.read(url)
        allow = self._settings.allow_unversioned
        files = await asyncio.to_thread(listing, text, url, allow_unversioned=allow)
        return build_dataset(uri, [self._named(file) if "?" in file.ref.uri else file for file in files])

    def _named(self, file: ListedObject) -> ListedObject:
        """The same by the name of its URL, which may be presigned too."""
        ref = file.ref
        return replace(file, ref=ObjectRef(self._access.named(ref.uri), ref.version, ref.size))

    def _file(self, url: str, described: Described) -> ListedObject:
        name = unquote(urlsplit(url).path.rpartition("/")[2], errors="surrogateescape")
        if not name:
            raise BadRequest(f"{shown_url(url)} names no file; a tree is named by its index.json")
        if described.size is None:
            raise OriginMisbehaved(f"{shown_url(url)}: the server does not tell the file's length")
        modified = described.headers.get("last-modified")
        version = version_text(
            described.headers.get("etag"),
            modified,
            described.size,
            name=shown_url(url),
            allow_unversioned=self._settings.allow_unversioned,
        )
        return ListedObject(name, ObjectRef(url, version, described.size), http_date_ns(modified))

    def _get(self, ref: ObjectRef, url: str, sink: Sink) -> RangedGet:
        endpoint = endpoint_of(url)
        extent = Extent(sink.position, sink.end - sink.position)
        return RangedGet(
            endpoint=endpoint,
            target=request_target(url),
            headers={
                "Host": host_header(endpoint),
                "Range": range_header(extent),
                "Accept-Encoding": "identity",
                "User-Agent": "headrace",
                **conditions(ref.version),
                **self._access.headers(url),
            },
            extent=extent,
            size=ref.size,
            check=checker(ref.version, shown_url(url)),
            name=shown_url(url),
            as_stored=proves_the_bytes(ref.version),
            verify_tls=self._settings.verify_tls,
            stall_timeout=stall_timeout(self._settings.deadline),
        )
