"""All origins of the agent behind one: the URI decides which answers, its longest matching prefix how.

The heavy ones (the S3 SDK, fsspec's drivers) are imported when a URI first asks for them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from agent.config import OriginConfig
from agent.content import Dataset, ObjectRef
from agent.errors import BadRequest
from agent.metrics import Metrics
from agent.origin.receiver import Receiver
from agent.source import Budget, Origin, Sink

ACCEPTED = (
    "s3://bucket/prefix, http(s)://host/file, file:///path, or the scheme of an fsspec driver (gs, az, hf)"
)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+._-]*")  # RFC 3986, 3.1, and '_', which fsspec uses


class Origins:
    """An `Origin` (agent/source.py) made of all of them; one instance per scheme and settings prefix."""

    def __init__(self, settings: Mapping[str, OriginConfig], receiver: Receiver, metrics: Metrics) -> None:
        """`settings` are keyed by URI prefixes, as `[origin."PREFIX"]` gives them."""
        self._settings = dict(settings)
        self._receiver = receiver
        self._metrics = metrics
        self._origins: dict[tuple[str, str], Origin] = {}

    def budget(self, ref: ObjectRef) -> Budget:
        """The budget of the origin that has this object."""
        return self._of(ref.uri).budget(ref)

    async def resolve(self, uri: str) -> Dataset:
        """List what is at `uri` now. Raises OriginError; BadRequest for a URI of no known kind."""
        origin = self._of(uri)
        self._metrics.origin_metadata_requests(f"{scheme_of(uri)}://").inc()
        return await origin.resolve(uri)

    async def fetch(self, ref: ObjectRef, sink: Sink) -> None:
        """Bring the sink's bytes from the origin that has this object. Raises OriginError."""
        name, before = self.budget(ref).name, sink.position
        self._metrics.origin_object_requests(name).inc()
        try:
            await self._of(ref.uri).fetch(ref, sink)
        finally:
            self._metrics.origin_bytes.labels(name).inc(sink.position - before)

    async def close(self) -> None:
        """Give back connections and threads of all of them."""
        origins = list(self._origins.values())
        self._origins.clear()
        for origin in origins:
            await origin.close()

    def _of(self, uri: str) -> Origin:
        scheme = scheme_of(uri)
        kind = "http" if scheme == "https" else scheme
        prefix = max((one for one in self._settings if uri.startswith(one)), key=len, default="")
        key = (kind, prefix)
        if key not in self._origins:
            settings = self._settings[prefix] if prefix else OriginConfig()
            self._origins[key] = _made(kind, settings, self._receiver, prefix or f"{kind}://")
        return self._origins[key]


def scheme_of(uri: str) -> str:
    """The scheme of an origin's URI. Raises BadRequest."""
    scheme, mark, rest = uri.partition("://")
    if not mark or not rest or not _SCHEME.fullmatch(scheme) or "\0" in uri:
        shown = uri.partition("?")[0]
        raise BadRequest(f"{shown!r} is not the URI of an origin; accepted are {ACCEPTED}")
    return scheme


def _made(kind: str, settings: OriginConfig, receiver: Receiver, name: str) -> Origin:
    if kind == "s3":
        from agent.origin.s3 import S3Origin

        return S3Origin(settings, receiver, name)
    if kind == "http":
        from agent.origin.http import HttpOrigin

        return HttpOrigin(settings, receiver, name)
    if kind == "file":
        from agent.origin.file import FileOrigin

        return FileOrigin(settings, name)
    from agent.origin.generic import GenericOrigin

    return GenericOrigin(settings, name)
