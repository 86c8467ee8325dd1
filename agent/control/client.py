"""The typed client of the admin API: all that `csi` and `preload` know of the agent."""

from __future__ import annotations

import json
from types import TracebackType
from typing import TypeVar
from urllib.parse import quote

import aiohttp
from pydantic import TypeAdapter

from agent.control.views import (
    DatasetView,
    ErrorView,
    MountRequest,
    MountView,
    ObjectView,
    PinView,
    StatusView,
    WarmingView,
)

T = TypeVar("T")

TIMEOUT = 60.0  # seconds for one request; the slowest is a mount, which lists the origin


class AdminError(Exception):
    """The agent refused, or did not answer: `status` is the HTTP status, 0 where there was none."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


class AdminClient:
    """A client on the agent's UNIX socket; an async context manager. Methods raise AdminError."""

    def __init__(self, socket_path: str, timeout: float = TIMEOUT) -> None:
        self._socket_path = socket_path
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> AdminClient:
        connector = aiohttp.UnixConnector(self._socket_path)
        self._session = aiohttp.ClientSession(connector=connector, timeout=self._timeout)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def status(self) -> StatusView:
        return await self._get("/v1/status", TypeAdapter(StatusView))

    async def datasets(self) -> list[DatasetView]:
        return await self._get("/v1/datasets", TypeAdapter(list[DatasetView]))

    async def objects(self, revision: str, after: str = "", limit: int = 1000) -> list[ObjectView]:
        """Up to `limit` files of a dataset in the order of their paths, those behind `after`."""
        behind = quote(after, safe="", errors="surrogateescape")
        path = f"/v1/datasets/{quote(revision, safe='')}/objects?after={behind}&limit={limit}"
        return await self._get(path, TypeAdapter(list[ObjectView]))

    async def counters(self) -> dict[str, float]:
        return await self._get("/v1/counters", TypeAdapter(dict[str, float]))

    async def mounts(self) -> list[MountView]:
        return await self._get("/v1/mounts", TypeAdapter(list[MountView]))

    async def mount(self, request: MountRequest) -> MountView:
        """Have the agent mount a dataset, or share the mount that shows the same to the same identity."""
        return _parsed(TypeAdapter(MountView), await self._ask("POST", "/v1/mounts", request.body()))

    async def unmount(self, mount: str) -> None:
        await self._ask("DELETE", f"/v1/mounts/{quote(mount, safe='')}")

    async def pins(self) -> list[PinView]:
        return await self._get("/v1/pins", TypeAdapter(list[PinView]))

    async def pin(self, revision: str, until: float, reason: str = "") -> PinView:
        """Keep the objects of a dataset in the store until a time, in seconds since 1970."""
        body: dict[str, object] = {"revision": revision, "until": until, "reason": reason}
        return _parsed(TypeAdapter(PinView), await self._ask("POST", "/v1/pins", body))

    async def unpin(self, pin: str) -> None:
        await self._ask("DELETE", f"/v1/pins/{quote(pin, safe='')}")

    async def warm(self, uri: str) -> WarmingView:
        """Begin to bring a dataset into the store by the swarm; `warmings` say how far that is."""
        return _parsed(TypeAdapter(WarmingView), await self._ask("POST", "/v1/warmings", {"uri": uri}))

    async def warmings(self) -> list[WarmingView]:
        """What is warmed and was warmed, the oldest first."""
        return await self._get("/v1/warmings", TypeAdapter(list[WarmingView]))

    async def warmed(self, warming: str) -> WarmingView:
        """Wait for the end of a warming; after half a minute it may be running still."""
        return await self._get(f"/v1/warmings/{quote(warming, safe='')}/end", TypeAdapter(WarmingView))

    async def _get(self, path: str, adapter: TypeAdapter[T]) -> T:
        return _parsed(adapter, await self._ask("GET", path))

    async def _ask(self, method: str, path: str, body: dict[str, object] | None = None) -> bytes:
        if self._session is None:
            raise RuntimeError("the client is used outside its context")
        url = "http://agent" + path
        try:
            async with self._session.request(method, url, json=body) as answer:
                data = await answer.read()
        except TimeoutError as error:
            raise AdminError(0, "timeout", f"the agent at {self._socket_path} does not answer") from error
        except aiohttp.ClientError as error:
            raise self._unreachable(error) from error
        if answer.status >= 400:
            raise _admin_error(answer.status, data)
        return data

    def _unreachable(self, error: aiohttp.ClientError) -> AdminError:
        if isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.os_error, PermissionError):
            return AdminError(0, "unreachable", f"no permission on {self._socket_path}: ask as root")
        message = f"no agent at {self._socket_path}: is headrace-agent running?"
        return AdminError(0, "unreachable", message)


def _admin_error(status: int, data: bytes) -> AdminError:
    try:
        view = ErrorView.model_validate(json.loads(data))
    except (ValueError, RecursionError):
        return AdminError(status, "unknown", f"the agent answers {status}; its log says why")
    return AdminError(status, view.error, view.message)


def _parsed(adapter: TypeAdapter[T], data: bytes) -> T:
    try:
        return adapter.validate_python(json.loads(data))  # not validate_json: it refuses lone surrogates
    except (ValueError, RecursionError) as error:
        message = "the agent's answer is not understood; are the versions far apart?"
        raise AdminError(0, "unclear", message) from error
