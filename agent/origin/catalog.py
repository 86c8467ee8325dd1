"""Which origin a URI belongs to: its scheme says the kind, the longest matching prefix says the settings."""

from __future__ import annotations

from collections.abc import Mapping

from agent.config import OriginConfig
from agent.content import Dataset, ObjectRef
from agent.errors import BadRequest
from agent.metrics import Metrics
from agent.origin.receiver import Receiver
from agent.origin.s3 import S3Origin
from agent.source import Budget, Origin, Sink


class Origins:
    """All origins of the node, each made when it is first needed (an `Origin` itself)."""

    def __init__(self, settings: Mapping[str, OriginConfig], receiver: Receiver, metrics: Metrics) -> None:
        """`settings` are those of the configuration, by prefix."""
        self._settings = settings
        self._receiver = receiver
        self._metrics = metrics
        self._origins: dict[str, Origin] = {}

    async def resolve(self, uri: str) -> Dataset:
        """List the dataset at `uri` as it is now. Raises OriginError, BadRequest."""
        prefix = self._prefix(uri)
        self._metrics.origin_metadata_requests(prefix).inc()
        return await self._origin(prefix).resolve(uri)

    def budget(self, ref: ObjectRef) -> Budget:
        return self._origin(self._prefix(ref.uri)).budget(ref)

    async def fetch(self, ref: ObjectRef, sink: Sink) -> None:
        """Fetch from the origin that has the object; bytes and requests are counted here for all origins."""
        prefix = self._prefix(ref.uri)
        self._metrics.origin_object_requests(prefix).inc()
        before = sink.position
        try:
            await self._origin(prefix).fetch(ref, sink)
        finally:
            self._metrics.origin_bytes.labels(prefix).inc(sink.position - before)

    async def close(self) -> None:
        for origin in self._origins.values():
            await origin.close()

    def _prefix(self, uri: str) -> str:
        scheme, separator, rest = uri.partition("://")
        if not separator or not scheme or not rest:
            raise BadRequest(f"{uri!r} is not a URI; write s3://bucket/path, https://..., file:///path")
        matching = [prefix for prefix in self._settings if uri.startswith(prefix)]
        return max(matching, key=len) if matching else f"{scheme}://"

    def _origin(self, prefix: str) -> Origin:
        if prefix not in self._origins:
            self._origins[prefix] = self._make(prefix)
        return self._origins[prefix]

    def _make(self, prefix: str) -> Origin:
        settings = self._settings.get(prefix, OriginConfig())
        scheme = prefix.partition("://")[0]
        if scheme == "s3":
            return S3Origin(settings, self._receiver, prefix)
        raise BadRequest(f"no origin serves {scheme}:// here")
