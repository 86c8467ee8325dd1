"""The admin API: one aiohttp application over whatever `Controlled` is, JSON in and out.

    GET /v1/status                             GET /v1/counters
    GET /v1/datasets                           GET /v1/datasets/{revision}/objects?after=PATH&limit=N
    GET /v1/pins     POST /v1/pins {"revision", "until", "reason"} DELETE /v1/pins/{pin}
    GET /v1/warmings POST /v1/warmings {"uri"} GET /v1/warmings/{warming}/end
    GET /v1/mounts   POST /v1/mounts {"uri", ...} DELETE /v1/mounts/{mount}

`/end` is answered at the end of the warming, or after half a minute.
Errors of the agent become an HTTP status here, once, and a body {"error", "message"} of one redacted line.
Paths that are no UTF-8 travel as lone surrogates (`\\udcff`), in queries as the bytes that they stand for; so
answers are written by `json`: pydantic's own writer refuses those.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol, TypeVar
from urllib.parse import parse_qs

from aiohttp import web
from aiohttp.typedefs import Handler
from pydantic import BaseModel, ValidationError

from agent import errors
from agent.control.views import (
    DatasetView,
    ErrorView,
    MountRequest,
    MountView,
    ObjectView,
    PinRequest,
    PinView,
    StatusView,
    View,
    WarmingView,
    WarmRequest,
)
from agent.logs import redact

log = logging.getLogger(__name__)

Asked = TypeVar("Asked", bound=BaseModel)

MAX_BODY = 64 * 1024  # bytes; no request of this API comes near it
MAX_PAGE = 1000

# Every class of agent/errors.py (a test holds that); a class from elsewhere counts as its nearest ancestor.
STATUSES: dict[type[errors.HeadraceError], int] = {
    errors.HeadraceError: 500,
    errors.ConfigError: 500,
    errors.BadRequest: 400,
    errors.OriginError: 502,
    errors.OriginUnavailable: 503,
    errors.OriginMisbehaved: 502,
    errors.ChecksumDiffers: 502,
    errors.AccessDenied: 403,
    errors.ObjectMissing: 404,
    errors.VersionChanged: 409,
    errors.RevisionMissing: 412,
    errors.Unversioned: 502,
    errors.PatienceExhausted: 503,
    errors.StoreError: 500,
    errors.StoreFull: 507,
    errors.StoreFailed: 500,
    errors.HolderError: 503,
}


class Controlled(Protocol):
    """What the API needs of the agent. Methods raise HeadraceError."""

    async def status(self) -> StatusView: ...
    async def datasets(self) -> Sequence[DatasetView]: ...
    async def objects(self, revision: str, after: str, limit: int) -> Sequence[ObjectView]: ...
    async def mount(self, request: MountRequest) -> MountView: ...
    async def unmount(self, mount: str) -> None: ...
    def mounts(self) -> Sequence[MountView]: ...
    async def pin(self, request: PinRequest) -> PinView: ...
    async def unpin(self, pin: str) -> None: ...
    def pins(self) -> Sequence[PinView]: ...
    async def warm(self, request: WarmRequest) -> WarmingView: ...
    async def warmings(self) -> Sequence[WarmingView]: ...
    async def warmed(self, warming: str) -> WarmingView: ...
    def counters(self) -> dict[str, float]: ...


def application(controlled: Controlled) -> web.Application:
    """The API's application, ready to be served."""
    api = _Api(controlled)
    app = web.Application(client_max_size=MAX_BODY, middlewares=[_answer_errors])
    app.router.add_get("/v1/status", api.status)
    app.router.add_get("/v1/counters", api.counters)
    app.router.add_get("/v1/datasets", api.datasets)
    app.router.add_get("/v1/datasets/{revision}/objects", api.objects)
    app.router.add_get("/v1/mounts", api.mounts)
    app.router.add_post("/v1/mounts", api.mount)
    app.router.add_delete("/v1/mounts/{mount}", api.unmount)
    app.router.add_get("/v1/pins", api.pins)
    app.router.add_post("/v1/pins", api.pin)
    app.router.add_delete("/v1/pins/{pin}", api.unpin)
    app.router.add_get("/v1/warmings", api.warmings)
    app.router.add_post("/v1/warmings", api.warm)
    app.router.add_get("/v1/warmings/{warming}/end", api.warmed)
    return app


def to_status(error: errors.HeadraceError) -> int:
    """The HTTP status that a caller gets for this error."""
    return next(STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES)


class _Api:
    def __init__(self, controlled: Controlled) -> None:
        self._controlled = controlled

    async def status(self, request: web.Request) -> web.Response:
        return _json(await self._controlled.status())

    async def counters(self, request: web.Request) -> web.Response:
        return web.json_response(self._controlled.counters())

    async def datasets(self, request: web.Request) -> web.Response:
        return _json_list(await self._controlled.datasets())

    async def objects(self, request: web.Request) -> web.Response:
        query = _query(request, frozenset({"after", "limit"}))
        limit = _limit(query.get("limit", str(MAX_PAGE)))
        after = query.get("after", "")
        return _json_list(await self._controlled.objects(request.match_info["revision"], after, limit))

    async def mounts(self, request: web.Request) -> web.Response:
        return _json_list(self._controlled.mounts())

    async def mount(self, request: web.Request) -> web.Response:
        return _json(await self._controlled.mount(_asked(MountRequest, await _body(request))))

    async def unmount(self, request: web.Request) -> web.Response:
        await self._controlled.unmount(request.match_info["mount"])
        return web.Response(status=204)

    async def pins(self, request: web.Request) -> web.Response:
        return _json_list(self._controlled.pins())

    async def pin(self, request: web.Request) -> web.Response:
        return _json(await self._controlled.pin(_asked(PinRequest, await _body(request))))

    async def unpin(self, request: web.Request) -> web.Response:
        await self._controlled.unpin(request.match_info["pin"])
        return web.Response(status=204)

    async def warmings(self, request: web.Request) -> web.Response:
        return _json_list(await self._controlled.warmings())

    async def warm(self, request: web.Request) -> web.Response:
        return _json(await self._controlled.warm(_asked(WarmRequest, await _body(request))))

    async def warmed(self, request: web.Request) -> web.Response:
        return _json(await self._controlled.warmed(request.match_info["warming"]))


async def _body(request: web.Request) -> bytes:
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise errors.BadRequest(f"body: more than {MAX_BODY} bytes") from None


def _asked(kind: type[Asked], body: bytes) -> Asked:
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in problem["loc"][:1]) or "body"  # behind it may be a secret
        raise errors.BadRequest(f"{where}: {problem['msg']}") from None


def _query(request: web.Request, known: frozenset[str]) -> dict[str, str]:
    """The parameters of the query; percent-encoded bytes that are no UTF-8 become lone surrogates."""
    raw = request.rel_url.raw_query_string
    try:
        fields = parse_qs(
            raw, keep_blank_values=True, strict_parsing=bool(raw), errors="surrogateescape", max_num_fields=8
        )
    except ValueError:
        raise errors.BadRequest("query: not of the form name=value&name=value") from None
    for name in fields.keys() - known:
        raise errors.BadRequest(f"{name}: no such parameter; known are {', '.join(sorted(known))}")
    return {name: values[-1] for name, values in fields.items()}


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 10) or not 1 <= int(text) <= MAX_PAGE:
        raise errors.BadRequest(f"limit: a number from 1 to {MAX_PAGE} is needed")
    return int(text)


def _json(view: View) -> web.Response:
    return web.json_response(view.model_dump(mode="json"))


def _json_list(views: Sequence[View]) -> web.Response:
    return web.json_response([view.model_dump(mode="json") for view in views])


@web.middleware
async def _answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except errors.HeadraceError as error:
        log.info("%s %s: %s", request.method, request.path, error)
        return _error(to_status(error), type(error).__name__, str(error))
    except web.HTTPException as error:
        return _error(error.status, error.reason.replace(" ", ""), f"{request.method} {request.path}")


def _error(status: int, code: str, message: str) -> web.Response:
    line = " ".join(redact(message).splitlines())
    return web.json_response(ErrorView(error=code, message=line).model_dump(), status=status)
