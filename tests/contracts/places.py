"""Places that an origin can be at, each real: files are put there and taken away again by path."""

from __future__ import annotations

import contextlib
import json
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import fsspec  # type: ignore[import-untyped]

from agent.config import OriginConfig
from tests.harness.s3 import SeaweedS3, free_ports
from tests.harness.web import Resource, WebServer

SERVED = ("s3", "http", "generic")  # the kinds of origin with a server, which may not answer


class Place(Protocol):
    """Somewhere with a tree of files."""

    @property
    def uri(self) -> str:
        """The tree's URI."""

    @property
    def settings(self) -> Mapping[str, OriginConfig]:
        """What the agent must know of this place, by prefix."""

    def put(self, path: str, data: bytes) -> None:
        """Store a file."""

    def remove(self, path: str) -> None:
        """Take a file away."""

    def one(self, path: str) -> str:
        """The URI of one file."""


class ServedPlace(Place, Protocol):
    """A place behind a server."""

    @property
    def unreachable(self) -> str:
        """The URI of a tree whose server does not answer."""


class S3Place:
    """A bucket of its own in a real S3 server."""

    def __init__(self, server: SeaweedS3) -> None:
        self._server = server
        self._bucket = f"contract-{uuid.uuid4().hex[:12]}"
        self.uri = f"s3://{self._bucket}/tree"
        self.unreachable = f"s3://down-{self._bucket}/tree"
        down = f"http://127.0.0.1:{free_ports(1)[0]}"
        self.settings = {
            "s3://": OriginConfig(endpoint_url=server.endpoint, region=server.region),
            "s3://down-": OriginConfig(endpoint_url=down, deadline=5.0),
        }
        server.make_bucket(self._bucket)

    def put(self, path: str, data: bytes) -> None:
        self._server.put(self._bucket, f"tree/{path}", data)

    def remove(self, path: str) -> None:
        self._server.delete(self._bucket, f"tree/{path}")

    def one(self, path: str) -> str:
        return f"{self.uri}/{path}"


class HttpPlace:
    """A tree by its JSON index on a real HTTP server."""

    def __init__(self, server: WebServer) -> None:
        self._server = server
        self.uri = f"{server.url}/tree/index.json"
        self.unreachable = f"http://127.0.0.1:{free_ports(1)[0]}/tree/index.json"
        self.settings: Mapping[str, OriginConfig] = {"http://": OriginConfig(deadline=5.0)}
        self._index()

    def put(self, path: str, data: bytes) -> None:
        self._server.paths[f"/tree/{path}"] = Resource.tagged(data)
        self._index()

    def remove(self, path: str) -> None:
        del self._server.paths[f"/tree/{path}"]
        self._index()

    def one(self, path: str) -> str:
        return f"{self._server.url}/tree/{path}"

    def _index(self) -> None:
        files = [
            {"path": path.removeprefix("/tree/"), "size": len(one.data), "etag": one.etag}
            for path, one in self._server.paths.items()
            if path != "/tree/index.json"
        ]
        text = json.dumps({"version": 1, "files": files}).encode()
        self._server.paths["/tree/index.json"] = Resource(text)


class FilePlace:
    """A directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.uri = f"file://{directory}"
        self.settings: Mapping[str, OriginConfig] = {}

    def put(self, path: str, data: bytes) -> None:
        target = self._directory / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)

    def remove(self, path: str) -> None:
        (self._directory / path).unlink()

    def one(self, path: str) -> str:
        return f"{self.uri}/{path}"


class MemoryPlace:
    """fsspec's memory file system, for all that fsspec reaches."""

    def __init__(self) -> None:
        self._files = fsspec.filesystem("memory")
        self._root = f"/{uuid.uuid4().hex}"
        self._files.makedirs(self._root)
        self.uri = f"memory:/{self._root}"
        self.unreachable = f"ftp://127.0.0.1:{free_ports(1)[0]}/tree"
        self.settings: Mapping[str, OriginConfig] = {}

    def put(self, path: str, data: bytes) -> None:
        self._files.pipe_file(f"{self._root}/{path}", data)

    def remove(self, path: str) -> None:
        self._files.rm_file(f"{self._root}/{path}")

    def one(self, path: str) -> str:
        return f"{self.uri}/{path}"

    def close(self) -> None:
        """Give the memory back."""
        self._files.rm(self._root, recursive=True)


@contextlib.contextmanager
def served(kind: str, seaweed: SeaweedS3) -> Iterator[ServedPlace]:
    """A new, empty place of one of the kinds SERVED, gone afterwards."""
    if kind == "s3":
        yield S3Place(seaweed)
    elif kind == "http":
        with WebServer() as server:
            yield HttpPlace(server)
    else:
        place = MemoryPlace()
        yield place
        place.close()


@contextlib.contextmanager
def opened(kind: str, seaweed: SeaweedS3, directory: Path) -> Iterator[Place]:
    """A new, empty place of a kind (SERVED or "file"), gone afterwards."""
    if kind != "file":
        with served(kind, seaweed) as place:
            yield place
    else:
        yield FilePlace(directory)
        shutil.rmtree(directory)
