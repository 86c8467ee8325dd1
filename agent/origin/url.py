"""URLs as requests need them: split, quoted once, and shown without their secrets."""

from __future__ import annotations

from urllib.parse import quote, urljoin, urlsplit, urlunsplit

from agent.content import Extent
from agent.errors import BadRequest, OriginError
from agent.transfer.request import Endpoint

_PORTS = {"http": 80, "https": 443}
_PATH_SAFE = "/%:@!$&'()*+,;=~"  # RFC 3986, 3.3, and escapes that are there already
_QUERY_SAFE = _PATH_SAFE + "?"


def canonical(url: str) -> str:
    """The URL as it is sent: without fragment, all else percent-encoded. Raises BadRequest."""
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").encode("idna")  # as it is looked up
        usable = parts.scheme in _PORTS and bool(host) and b"\0" not in host and parts.port != 0
        path = quote(parts.path.encode("utf-8", "surrogateescape"), safe=_PATH_SAFE)
        query = quote(parts.query.encode("utf-8", "surrogateescape"), safe=_QUERY_SAFE)
    except ValueError:  # which a UnicodeError is
        usable = False
    if not usable:
        raise BadRequest(f"{url.partition('?')[0]!r} is not an http or https URL")
    if "@" in parts.netloc:
        raise BadRequest(f"leave user and password out of the URL of {parts.hostname}")
    return urlunsplit((parts.scheme, parts.netloc.lower(), path or "/", query, ""))


def shown_url(url: str) -> str:
    """A canonical URL for messages: what may be a secret, the query, is left out."""
    base, mark, _ = url.partition("?")
    return base + (mark and "?...")


def redirected(url: str, location: str) -> str:
    """Where a redirect leads. Raises OriginError where it must not be followed."""
    try:
        target = canonical(urljoin(url, location))
    except (BadRequest, ValueError) as error:
        raise OriginError(f"{shown_url(url)} redirects to something that is no http or https URL") from error
    if url.startswith("https:") and not target.startswith("https:"):
        raise OriginError(f"{shown_url(url)} redirects from https to http; that is not followed")
    return target


def endpoint_of(url: str) -> Endpoint:
    """The endpoint that a URL names."""
    parts = urlsplit(url)
    return Endpoint(parts.scheme, parts.hostname or "", parts.port or _PORTS[parts.scheme])


def request_target(url: str) -> str:
    """The origin form of a URL: what stands in the request line (RFC 9112, 3.2.1)."""
    parts = urlsplit(url)
    return url[len(f"{parts.scheme}://{parts.netloc}") :] or "/"


def host_header(endpoint: Endpoint) -> str:
    """The Host header for an endpoint: no default port, brackets around IPv6 (RFC 9110, 7.2)."""
    host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
    return host if _PORTS[endpoint.scheme] == endpoint.port else f"{host}:{endpoint.port}"


def range_header(extent: Extent) -> str:
    """The Range header for an extent that is not empty (RFC 9110, 14.1.2)."""
    return f"bytes={extent.offset}-{extent.end - 1}"
