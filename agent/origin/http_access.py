"""Which headers prove a right at a URL: the credentials of a publish, for the one server that it named."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from agent.identity import Credentials
from agent.origin.url import canonical, endpoint_of

Authorize = Callable[[str], Mapping[str, str]]


def nothing_sent(_url: str) -> Mapping[str, str]:
    """The agent has no credentials of its own for HTTP."""
    return {}


def only_at(uri: str, credentials: Credentials) -> Authorize:
    """Authorization for URLs of the scheme, host and port of `uri`; nothing for others."""
    if not credentials:
        return nothing_sent
    there = endpoint_of(canonical(uri))
    header = {"Authorization": credentials.authorization}

    def authorize(url: str) -> Mapping[str, str]:
        return header if endpoint_of(url) == there else {}

    return authorize
