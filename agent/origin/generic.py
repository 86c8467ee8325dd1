"""Every other origin that fsspec has a driver for (`gs://`, `az://`, `hf://`, `memory://` ...).

No request can be made conditional through fsspec, so the version is compared by `info()` before and after
the bytes of each chunk: an object that changed and changed back in between is not noticed. Drivers block, or
run a loop of their own; they are called in threads of this origin only.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from agent.config import OriginConfig
from agent.content import Dataset, ListedObject, ObjectRef, build_dataset
from agent.errors import BadRequest, OriginMisbehaved, OriginUnavailable, VersionChanged
from agent.origin.budget import QUESTION_DEADLINE, budget_of
from agent.origin.generic_driver import Driver, Listed
from agent.origin.generic_version import modified_ns, same_version, version_of
from agent.origin.pool import WorkPool
from agent.source import Budget, Checksum, Sink


class GenericOrigin:
    """The fsspec file systems of one prefix (an `Origin` of agent/source.py)."""

    def __init__(self, settings: OriginConfig, name: str = "generic") -> None:
        """`name` is the prefix that the settings belong to; budgets and metrics go by it."""
        self._settings = settings
        self._question = min(settings.deadline, QUESTION_DEADLINE)
        self._pool = WorkPool(settings.max_connections, "generic-origin")
        self._lock = threading.Lock()
        self._drivers: dict[str, Driver] = {}
        self._budget = budget_of(settings, name, proven_late=True)

    def budget(self, ref: ObjectRef) -> Budget:
        """The budget that fetches of this object draw on: one for all of the prefix."""
        return self._budget

    async def resolve(self, uri: str) -> Dataset:
        """List the tree, or the one file, at `uri`. Raises OriginError, BadRequest.

        A tree has all of the origin's `deadline`; one whose listing was given up goes on being listed, and
        whoever asks again waits for that."""
        driver_of(uri)
        try:
            return await self._resolve(uri)
        except TimeoutError as error:
            raise OriginUnavailable(f"{uri}: the origin does not answer") from error

    async def fetch(self, ref: ObjectRef, sink: Sink) -> None:
        """Read `[sink.position, sink.end)`. Raises OriginError; VersionChanged by `info` before and after."""
        driver_of(ref.uri)
        await self._pool.bring(lambda guarded: self._read(ref, guarded), sink)

    async def checksum(self, ref: ObjectRef) -> Checksum | None:
        """What drivers state differs too much to be relied on."""
        return None

    async def close(self) -> None:
        """Let the threads and the drivers go."""
        self._pool.close()
        self._drivers.clear()

    async def _resolve(self, uri: str) -> Dataset:
        info = await self._info(uri)
        if info.get("type") != "directory":
            name = uri.rstrip("/").rpartition("/")[2]
            return build_dataset(uri, [self._listed(uri, Listed(name, info))])
        root = uri.rstrip("/")
        # Drivers find all of a tree in one call, which tells nothing before its end.
        finding, whole = f"find {root}", self._settings.deadline
        found = await self._pool.share(finding, lambda: self._driver(uri).find(uri), whole)
        items = await self._trusted(root, found)
        return await self._pool.run(lambda: self._tree(uri, root, items), whole)

    def _tree(self, uri: str, root: str, items: list[Listed]) -> Dataset:
        return build_dataset(uri, [self._listed(f"{root}/{item.key}", item) for item in items])

    async def _info(self, uri: str) -> Mapping[str, Any]:
        return await self._pool.share(f"info {uri}", lambda: self._driver(uri).info(uri), self._question)

    async def _trusted(self, root: str, found: list[Listed]) -> list[Listed]:
        """The listing, with `info` of all files where the driver's listing tells another version."""
        files = [item for item in found if not item.key.endswith("/")]
        if not files:
            return found
        probe = files[0]
        name = f"{root}/{probe.key}"
        listed = version_of(probe.info, name=name, allow_unversioned=True)
        if listed == version_of(await self._info(name), name=name, allow_unversioned=True):
            return found
        markers = [item for item in found if item.key.endswith("/")]
        return markers + [Listed(item.key, await self._info(f"{root}/{item.key}")) for item in files]

    def _listed(self, uri: str, item: Listed) -> ListedObject:
        if item.key.endswith("/"):
            return ListedObject(item.key, ObjectRef(uri, "directory", 0))
        size = item.info.get("size")
        if not isinstance(size, int):
            raise OriginMisbehaved(f"{uri}: the file system does not tell the file's length")
        version = version_of(item.info, name=uri, allow_unversioned=self._settings.allow_unversioned)
        return ListedObject(item.key, ObjectRef(uri, version, size), modified_ns(item.info))

    def _read(self, ref: ObjectRef, sink: Sink) -> None:
        driver = self._driver(ref.uri)
        _expect(driver, ref)
        for piece in driver.pieces(ref.uri, sink.position, sink.end):
            sink.write(memoryview(piece))
        _expect(driver, ref)

    def _driver(self, uri: str) -> Driver:
        place = driver_of(uri)
        with self._lock:
            if place not in self._drivers:
                self._drivers[place] = Driver(uri)
            return self._drivers[place]


def driver_of(uri: str) -> str:
    """Scheme and host: URIs with the same share a driver. Raises BadRequest for what is no plain URI."""
    scheme, mark, rest = uri.partition("://")
    if not mark or not rest or "::" in scheme or not scheme.isascii():
        raise BadRequest(f"{uri!r} is not a URI of an origin")
    if "@" in urlsplit(f"//{rest}").netloc:
        raise BadRequest(f"leave user and password out of the URI ({scheme}://)")
    return f"{scheme}://{rest.partition('/')[0]}"


def _expect(driver: Driver, ref: ObjectRef) -> None:
    info = driver.info(ref.uri)
    if info.get("size") != ref.size or not same_version(info, ref.version):
        raise VersionChanged(f"{ref.uri} has changed at the origin; mount it again for the new version")
