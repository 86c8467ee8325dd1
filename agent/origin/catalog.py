"""All origins of the agent behind one: the URI decides which answers, its longest matching prefix how.

Credentials that came with a publish have an origin of their own beside the agent's. While a mount is theirs
they are granted for its URI: objects below it are fetched with them, with those of other such mounts, or with
the agent's own; where one is denied the next is tried, and what worked comes first the next time.

The heavy ones (the S3 SDK, fsspec's drivers) are imported when a URI first asks for them, or `prepare` does.
"""

from __future__ import annotations

import asyncio
import importlib
import re
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import NamedTuple

from agent.config import OriginConfig
from agent.content import Dataset, ObjectRef, stands_for_no_bytes
from agent.errors import AccessDenied, BadRequest
from agent.identity import OWN, Credentials
from agent.metrics import Metrics, OriginFetches
from agent.origin.http_query import Queries
from agent.origin.receiver import Receiver
from agent.origin.url import canonical, endpoint_of
from agent.source import Budget, Checksum, Origin, Sink
from agent.transfer.request import Endpoint

ACCEPTED = (
    "s3://bucket/prefix, http(s)://host/file, file:///path, or the scheme of an fsspec driver (gs, az, hf)"
)
LATELY = 256  # URIs of objects whose origin is known without a look for it
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+._-]*")  # RFC 3986, 3.1, and '_', which fsspec uses


class _Key(NamedTuple):
    kind: str
    prefix: str
    credentials: Credentials
    server: Endpoint | None


class Origins:
    """An `Origin` (agent/source.py) made of all of them; one instance per scheme and settings prefix."""

    def __init__(self, settings: Mapping[str, OriginConfig], receiver: Receiver, metrics: Metrics) -> None:
        """`settings` are keyed by URI prefixes, as `[origin."PREFIX"]` gives them."""
        self._settings = dict(settings)
        self._receiver = receiver
        self._metrics = metrics
        self._fetches: dict[str, OriginFetches] = {}  # by the origin's name
        self._queries = Queries()  # of URLs that an index named
        self._origins: dict[_Key, Origin] = {}
        self._lately: dict[tuple[str, Credentials], Origin] = {}  # of these, by the URIs of objects
        self._users: Counter[Credentials] = Counter()  # grants and questions under way
        self._grants: dict[
            str, list[Credentials]
        ] = {}  # by URI, each as often as granted, in the order to try

    async def prepare(self) -> None:
        """Import the S3 SDK in a thread, so that its first use does not hold up the loop."""
        await asyncio.to_thread(_prepare_s3)

    def budget(self, ref: ObjectRef) -> Budget:
        """The budget of the origin that has this object."""
        return self._at(ref.uri).budget(ref)

    async def resolve(self, uri: str, credentials: Credentials = OWN) -> Dataset:
        """List what is at `uri` now, with these credentials.

        Raises OriginError; BadRequest for a URI of no known kind.
        """
        self._metrics.origin_metadata_requests(f"{scheme_of(uri)}://").inc()
        async with self._using(uri, credentials) as origin:
            return await origin.resolve(uri)

    def grant(self, uri: str, credentials: Credentials) -> None:
        """Objects of the dataset at `uri` may be fetched with these credentials, until `revoke`."""
        if credentials:
            self._users[credentials] += 1
            self._grants.setdefault(uri, [OWN]).insert(0, credentials)

    async def revoke(self, uri: str, credentials: Credentials) -> None:
        """Take one grant back; credentials that nobody uses any more are forgotten."""
        granted = self._grants.get(uri, [])
        if not credentials or credentials not in granted:
            return
        granted.remove(credentials)
        if not any(granted):
            del self._grants[uri]
        await self._left(credentials)

    async def fetch(self, ref: ObjectRef, sink: Sink) -> None:
        """Bring the sink's bytes from the origin that has this object. Raises OriginError."""
        fetches, before = self._fetches_from(self.budget(ref).name), sink.position
        try:
            for uri, credentials in self._candidates(ref):
                fetches.requests.inc()
                try:
                    async with self._using(uri, credentials) as origin:
                        await origin.fetch(ref, sink)
                    return self._worked(uri, credentials)
                except AccessDenied as error:
                    denied = error
            raise denied
        finally:
            fetches.bytes.inc(sink.position - before)

    async def checksum(self, ref: ObjectRef) -> Checksum | None:
        """What the origin that has this object states of all its bytes. Raises OriginError."""
        for uri, credentials in self._candidates(ref):
            self._metrics.origin_metadata_requests(self.budget(ref).name).inc()
            try:
                async with self._using(uri, credentials) as origin:
                    return await origin.checksum(ref)
            except AccessDenied as error:
                denied = error
        raise denied

    async def close(self) -> None:
        """Give back connections and threads of all of them."""
        origins = list(self._origins.values())
        self._origins.clear()
        self._lately.clear()
        for origin in origins:
            await origin.close()

    def _fetches_from(self, name: str) -> OriginFetches:
        found = self._fetches.get(name)
        if found is None:
            found = self._fetches[name] = self._metrics.origin_fetches(name)
        return found

    def _candidates(self, ref: ObjectRef) -> list[tuple[str, Credentials]]:
        """Which credentials to try, the agent's own among them, and for which URI each was granted."""
        found: dict[Credentials, str] = {}
        for uri, granted in self._grants.items():
            for credentials in granted if _covers(uri, ref.uri) else ():
                found.setdefault(credentials, uri if credentials else ref.uri)
        return [(uri, credentials) for credentials, uri in found.items()] or [(ref.uri, OWN)]

    def _worked(self, uri: str, credentials: Credentials) -> None:
        """What was not denied comes first the next time."""
        for granted_uri, granted in self._grants.items():
            if _covers(granted_uri, uri) and granted[0] != credentials and credentials in granted:
                granted.remove(credentials)
                granted.insert(0, credentials)

    @asynccontextmanager
    async def _using(self, uri: str, credentials: Credentials) -> AsyncIterator[Origin]:
        self._users[credentials] += 1
        try:
            yield self._at(uri, credentials)
        finally:
            await self._left(credentials)

    async def _left(self, credentials: Credentials) -> None:
        self._users[credentials] -= 1
        if credentials and not self._users[credentials]:
            del self._users[credentials]
            self._lately.clear()
            for key in [key for key in self._origins if key.credentials == credentials]:
                await self._origins.pop(key).close()

    def _at(self, uri: str, credentials: Credentials = OWN) -> Origin:
        found = self._lately.get((uri, credentials))
        if found is None:
            found = self._found(uri, credentials)
            if len(self._lately) >= LATELY:
                self._lately.clear()
            self._lately[uri, credentials] = found
        return found

    def _found(self, uri: str, credentials: Credentials) -> Origin:
        scheme = scheme_of(uri)
        kind = "http" if scheme == "https" else scheme
        prefix = max((one for one in self._settings if uri.startswith(one)), key=len, default="")
        key = _Key(kind, prefix, credentials, _server(uri) if credentials else None)
        if key not in self._origins:
            settings = self._settings[prefix] if prefix else OriginConfig()
            name = prefix or f"{kind}://"
            self._origins[key] = _made(kind, settings, self._receiver, name, uri, credentials, self._queries)
        return self._origins[key]


def scheme_of(uri: str) -> str:
    """The scheme of an origin's URI. Raises BadRequest."""
    scheme, mark, rest = uri.partition("://")
    usable = bool(mark and rest and _SCHEME.fullmatch(scheme))
    if not usable or "\0" in uri or stands_for_no_bytes(uri):
        shown = uri.partition("?")[0]
        raise BadRequest(f"{shown!r} is not the URI of an origin; accepted are {ACCEPTED}")
    return scheme


def _covers(uri: str, other: str) -> bool:
    """Whether a right at `uri` is one at `other` too: below it, or on the same HTTP server."""
    server = _server(uri)
    if server is not None:
        return server == _server(other)
    return other == uri or other.startswith(uri.rstrip("/") + "/")


def _server(uri: str) -> Endpoint | None:
    """The HTTP server of a URI; None where it is of another kind."""
    return endpoint_of(canonical(uri)) if scheme_of(uri) in ("http", "https") else None


def _prepare_s3() -> None:
    importlib.import_module("agent.origin.s3")
    from agent.origin.s3_models import models

    models()


def _made(
    kind: str,
    settings: OriginConfig,
    receiver: Receiver,
    name: str,
    uri: str,
    credentials: Credentials,
    queries: Queries,
) -> Origin:
    if kind == "s3":
        from agent.origin.s3 import S3Origin

        return S3Origin(settings, receiver, name, credentials)
    if kind == "http":
        from agent.origin.http import HttpOrigin
        from agent.origin.http_access import Access

        return HttpOrigin(settings, receiver, name, Access(uri, credentials, queries))
    if credentials:
        raise BadRequest(f"no secrets are taken for {kind}://")
    if kind == "file":
        from agent.origin.file import FileOrigin

        return FileOrigin(settings, name)
    from agent.origin.generic import GenericOrigin

    return GenericOrigin(settings, name)
