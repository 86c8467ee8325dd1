"""S3 origins: `s3://bucket[/prefix]` is the tree of the keys below the prefix, or the one object of that key.

Keys are taken as they are stored: S3 URIs are not percent-decoded, and listings are asked for in URL coding,
because XML cannot carry every key. An object's version is its ETag; each GET is conditional on it.
"""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

from botocore.credentials import ReadOnlyCredentials  # type: ignore[import-untyped]

from agent.clock import Clock, SystemClock
from agent.config import OriginConfig
from agent.content import Dataset, Extent, ListedObject, ObjectRef, build_dataset
from agent.errors import AccessDenied, BadRequest, ObjectMissing, OriginError, Unversioned
from agent.identity import OWN, Credentials
from agent.origin.budget import budget_of
from agent.origin.receiver import Receiver, stall_timeout
from agent.origin.s3_client import S3Client
from agent.origin.s3_sign import Signer, Wanted
from agent.origin.version import nanoseconds, quoted, unquoted
from agent.source import Budget, Checksum, Sink
from agent.transfer.request import Redirected

T = TypeVar("T")

SCHEME = "s3://"
CHECKSUMS = {"ChecksumSHA256": "sha256", "ChecksumSHA1": "sha1", "ChecksumCRC32": "crc32"}


class S3Origin:
    """One endpoint with one set of settings (an `Origin` of agent/source.py)."""

    def __init__(
        self,
        settings: OriginConfig,
        receiver: Receiver,
        name: str = SCHEME,
        credentials: Credentials = OWN,
        clock: Clock | None = None,
    ) -> None:
        """`name` is the prefix that the settings belong to; budgets and metrics go by it.

        `credentials` are used instead of those that the SDK finds; `clock` is the machine's unless given.
        """
        self._settings = settings
        self._receiver = receiver
        self._client = S3Client(settings, credentials)
        self._signer = Signer(clock or SystemClock())
        self._budget = budget_of(settings, name)

    def budget(self, ref: ObjectRef) -> Budget:
        """The budget that fetches of this object draw on: one for all of the origin."""
        return self._budget

    async def resolve(self, uri: str) -> Dataset:
        """List the tree, or the one object, at `uri`. Raises OriginError; BadRequest for a malformed URI."""
        bucket, path = split_uri(uri)
        if not uri.isascii() and re.search("[\ud800-\udfff]", uri):
            raise BadRequest(f"{uri!r} is not UTF-8, as the keys of S3 are")
        listing = await self._renewing(lambda _: self._list(bucket, path))
        await self._client.address(bucket)  # takes the SDK milliseconds, for which no reader is to wait
        return build_dataset(uri, listing)

    async def fetch(self, ref: ObjectRef, sink: Sink) -> None:
        """Receive `[sink.position, sink.end)`; once more with fresh credentials where they were refused."""
        if sink.position >= sink.end:
            return
        await self._renewing(lambda credentials: self._receive(ref, sink, credentials))

    async def checksum(self, ref: ObjectRef) -> Checksum | None:
        """From HeadObject with ChecksumMode (S3 API): SHA-256, SHA-1 or CRC-32 of the full object. Composite
        ones, of the parts of an upload, cannot be made from the bytes alone; CRC-32C and CRC-64/NVME are
        passed over."""
        bucket, key = split_uri(ref.uri)
        head = await self._renewing(lambda _: self._head(bucket, key, ref.version))
        return stated(head)

    async def close(self) -> None:
        """Close the connections that listing keeps."""
        await self._client.close()

    async def _renewing(self, ask: Callable[[ReadOnlyCredentials | None], Awaitable[T]]) -> T:
        used = await self._client.credentials()
        try:
            return await ask(used)
        except AccessDenied:
            if not await self._client.renew(used):
                raise
        return await ask(await self._client.credentials())

    async def _receive(self, ref: ObjectRef, sink: Sink, credentials: ReadOnlyCredentials | None) -> None:
        bucket, key = split_uri(ref.uri)
        wanted = Wanted(
            key=key,
            version=ref.version,
            size=ref.size,
            extent=Extent(sink.position, sink.end - sink.position),
            name=shown(bucket, key),
        )
        get = self._signer.ranged_get(
            await self._client.address(bucket),
            wanted,
            credentials,
            verify_tls=self._settings.verify_tls,
            stall_timeout=stall_timeout(self._settings.deadline),
        )
        try:
            await self._receiver.receive(get, sink)
        except Redirected as error:
            raise OriginError(f"{wanted.name}: S3 redirects; set region or endpoint_url") from error

    async def _list(self, bucket: str, path: str) -> list[ListedObject]:
        prefix = f"{path.removesuffix('/')}/" if path else ""
        found = [item async for item in self._below(bucket, prefix)]
        if found or not path:
            return [item for item in found if item.key]
        if not path.endswith("/"):
            return [await self._one(bucket, path)]
        raise _nothing_at(bucket, path)

    async def _below(self, bucket: str, prefix: str) -> AsyncIterator[ListedObject]:
        client = await self._client.of(bucket)
        pages = aiter(client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix))
        where = shown(bucket, prefix)
        while True:
            async with self._client.asking(where):
                page = await anext(pages, None)
            if page is None:
                return
            for item in page.get("Contents", ()):
                yield _listed(bucket, item["Key"], item["Key"][len(prefix) :], item, item["Size"])

    async def _head(self, bucket: str, key: str, version: str) -> dict[str, Any]:
        client = await self._client.of(bucket)
        async with self._client.asking(shown(bucket, key)):
            head: dict[str, Any] = await client.head_object(
                Bucket=bucket, Key=key, IfMatch=quoted(version), ChecksumMode="ENABLED"
            )
        return head

    async def _one(self, bucket: str, key: str) -> ListedObject:
        client = await self._client.of(bucket)
        try:
            async with self._client.asking(shown(bucket, key)):
                head = await client.head_object(Bucket=bucket, Key=key)
        except ObjectMissing as error:
            raise _nothing_at(bucket, key) from error
        return _listed(bucket, key, key.rpartition("/")[2], head, head["ContentLength"])


def stated(head: dict[str, Any]) -> Checksum | None:
    """The strongest checksum of the full object that an answer to HeadObject has."""
    if head.get("ChecksumType", "FULL_OBJECT") != "FULL_OBJECT":
        return None
    for field, algorithm in CHECKSUMS.items():
        text = str(head.get(field) or "")
        try:
            value = base64.b64decode(text, validate=True)
        except ValueError:  # a composite one of a server that does not say the type: "...-3"
            continue
        if value:
            return Checksum(algorithm, value)
    return None


def split_uri(uri: str) -> tuple[str, str]:
    """Bucket and key (or prefix) of an S3 URI, the key as it is stored. Raises BadRequest."""
    bucket, _, key = uri.removeprefix(SCHEME).partition("/")
    if not uri.startswith(SCHEME) or not bucket:
        raise BadRequest(f"{uri!r} is not an S3 URI; write s3://bucket or s3://bucket/prefix")
    return bucket, key


def shown(bucket: str, key: str) -> str:
    """An object's name for messages: on one line, whatever the key."""
    return SCHEME + bucket + "/" + key.encode("unicode_escape").decode("ascii")


def _listed(bucket: str, key: str, relative: str, item: dict[str, Any], size: int) -> ListedObject:
    etag = item.get("ETag")
    if not etag:
        raise Unversioned(
            f"{shown(bucket, key)} has no ETag, so its bytes cannot be told from a later version's"
        )
    ref = ObjectRef(f"{SCHEME}{bucket}/{key}", unquoted(etag), size)
    modified: datetime | None = item.get("LastModified")
    return ListedObject(relative, ref, nanoseconds(modified.astimezone(UTC)) if modified else 0)


def _nothing_at(bucket: str, path: str) -> ObjectMissing:
    return ObjectMissing(
        f"{shown(bucket, path)}: no object has this key or one below it; check bucket, path and endpoint_url"
    )
