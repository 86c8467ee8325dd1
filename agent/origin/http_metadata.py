"""Metadata over HTTP: what is at a URL, asked by HEAD (or a GET of one byte), redirects followed by hand.

Redirects are followed here and not by aiohttp, because they must never lead from https to http.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass

import aiohttp
from yarl import URL

from agent import trust
from agent.config import OriginConfig
from agent.errors import (
    AccessDenied,
    ObjectMissing,
    OriginError,
    OriginMisbehaved,
    OriginUnavailable,
)
from agent.origin.budget import QUESTION_DEADLINE
from agent.origin.http_access import Access
from agent.origin.url import redirected, shown_url

MAX_REDIRECTS = 5
MAX_INDEX = 64 * 1024 * 1024  # bytes; some 400,000 files
_HEAD_REFUSED = {400, 401, 403, 404, 405, 501}  # URLs presigned for GET answer HEAD with 403
_REDIRECTS = {301, 302, 303, 307, 308}
_BUSY = {408, 425, 429}
_HEADERS = {"Accept-Encoding": "identity", "User-Agent": "headrace"}


@dataclass(frozen=True, slots=True)
class Described:
    """What the server says of a URL: headers with lower-case names, and the length in bytes if it is told."""

    headers: Mapping[str, str]
    size: int | None


class Metadata:
    """Questions to HTTP servers, with connections kept between them."""

    def __init__(self, settings: OriginConfig, access: Access) -> None:
        self._settings = settings
        self._access = access
        self._session: aiohttp.ClientSession | None = None

    async def describe(self, url: str) -> Described:
        """What is at a canonical URL. Raises OriginError."""
        async with self._ask("HEAD", url, {}) as answer:
            head = Described(_lower(answer), _length(answer))
            if answer.status == 200 and head.size is not None:
                return head
            if answer.status not in _HEAD_REFUSED and answer.status != 200:
                raise _refusal(url, answer)
        async with self._ask("GET", url, {"Range": "bytes=0-0"}) as answer:
            if answer.status not in (200, 206, 416):
                raise _refusal(url, answer)
            return Described(_lower(answer), _total(answer))

    async def read(self, url: str) -> bytes:
        """The body at a canonical URL, of an index's size at most. Raises OriginError."""
        async with self._ask("GET", url, {}) as answer:
            if answer.status != 200:
                raise _refusal(url, answer)
            body = bytearray()
            async for piece in answer.content.iter_any():
                body += piece
                if len(body) > MAX_INDEX:
                    raise OriginMisbehaved(f"{shown_url(url)}: the index has more than {MAX_INDEX} bytes")
            return bytes(body)

    async def close(self) -> None:
        """Close the connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    @contextlib.asynccontextmanager
    async def _ask(
        self, method: str, url: str, headers: Mapping[str, str]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        url = self._access.sent(url)
        with _translated(url):
            for _ in range(MAX_REDIRECTS + 1):
                session = await self._opened()
                async with session.request(
                    method,
                    URL(url, encoded=True),
                    headers={**headers, **self._access.headers(url)},
                    allow_redirects=False,
                ) as answer:
                    location = answer.headers.get("location")
                    if answer.status not in _REDIRECTS or location is None:
                        yield answer
                        return
                    url = redirected(url, location)
        raise OriginError(f"{shown_url(url)}: more than {MAX_REDIRECTS} redirects")

    async def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            verify = self._settings.verify_tls
            context = await asyncio.to_thread(trust.context, verify=verify)  # reads the system's certificates
            if self._session is None:
                self._session = self._new_session(context)
        return self._session

    def _new_session(self, context: ssl.SSLContext) -> aiohttp.ClientSession:
        quiet = min(self._settings.deadline, QUESTION_DEADLINE)
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._settings.max_connections, ssl=context),
            timeout=aiohttp.ClientTimeout(
                total=self._settings.deadline, sock_connect=quiet, sock_read=quiet, connect=quiet
            ),
            headers=_HEADERS,
            cookie_jar=aiohttp.DummyCookieJar(),
        )


def _lower(answer: aiohttp.ClientResponse) -> dict[str, str]:
    return {name.lower(): value for name, value in answer.headers.items()}


def _length(answer: aiohttp.ClientResponse) -> int | None:
    value = answer.headers.get("content-length", "")
    return int(value) if re.fullmatch(r"\d{1,18}", value) else None


def _total(answer: aiohttp.ClientResponse) -> int | None:
    if answer.status == 200:
        return _length(answer)
    match = re.fullmatch(r"bytes (?:\d+-\d+|\*)/(\d{1,18})", answer.headers.get("content-range", ""))
    return int(match[1]) if match else None


def _refusal(url: str, answer: aiohttp.ClientResponse) -> OriginError:
    name, status = shown_url(url), answer.status
    if status in (401, 403):
        return AccessDenied(f"{name}: the server refuses access ({status})")
    if status in (404, 410):
        return ObjectMissing(f"{name}: there is nothing at this URL ({status})")
    if status in _BUSY or status >= 500:
        after = answer.headers.get("retry-after", "")
        retry_after = float(after) if re.fullmatch(r"\d{1,9}", after) else None
        return OriginUnavailable(f"{name}: the server answers {status}", retry_after)
    return OriginMisbehaved(f"{name}: the server answers {status}")


@contextlib.contextmanager
def _translated(url: str) -> Iterator[None]:
    name = shown_url(url)
    try:
        yield
    except aiohttp.ClientConnectorCertificateError as error:
        refusal = trust.refusal("server", error.certificate_error)
        raise OriginUnavailable(f"{name}: {refusal}") from error
    except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, OSError) as error:
        raise OriginUnavailable(f"{name}: the server does not answer ({type(error).__name__})") from error
    except aiohttp.ClientError as error:
        raise OriginMisbehaved(f"{name}: the answer is not HTTP ({type(error).__name__})") from error
