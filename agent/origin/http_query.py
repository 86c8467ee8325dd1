"""Credentials in the query of a URL (a presigned one): left out of every name, kept in memory for requests.

A URL is named without them, with MARK in their place: so in the index, the admin API, mount records and logs.
Two URLs that are presigned at different times for one object have one name.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from urllib.parse import unquote_plus

MARK = "query=redacted"
MOST = 100_000  # queries that are remembered: those of an index of so many presigned files, some 100 MB
_CREDENTIAL = re.compile(
    r".*(?:secret|passw|passphrase|token|credential|signature|api[_-]?key|private[_-]?key|access[_-]?key).*"
    r"|x-amz-.*|x-goog-.*|sig|key|auth|authorization|code|pass|pwd|policy|key-pair-id|accesskeyid|googleaccessid",
    re.I,
)


def named(url: str) -> tuple[str, str]:
    """A URL's name, and its whole query; the URL itself and "" where the query has no credential in it."""
    base, _, rest = url.partition("?")
    query = rest.partition("#")[0]
    pairs = query.split("&")
    kept = [pair for pair in pairs if not _CREDENTIAL.fullmatch(unquote_plus(pair.partition("=")[0]))]
    if not url.startswith(("http://", "https://")) or len(kept) == len(pairs):
        return url, ""
    return f"{base}?{'&'.join([*kept, MARK])}", query


def is_named(url: str) -> bool:
    """Whether this is the name of a URL, to be sent with its query only."""
    return MARK in url.partition("?")[2].split("&")


def with_query(name: str, query: str) -> str:
    """The URL of a name."""
    return f"{name.partition('?')[0]}?{query}"


class Queries:
    """The queries of named URLs; the one that was learned first goes first where there are too many."""

    def __init__(self) -> None:
        self._queries: OrderedDict[str, str] = OrderedDict()

    def learn(self, url: str) -> str:
        """Remember a URL's query if it has a credential in it, and give the URL's name."""
        name, query = named(url)
        if query:
            self._queries[name] = query
            self._queries.move_to_end(name)
            if len(self._queries) > MOST:
                self._queries.popitem(last=False)
        return name

    def of(self, name: str) -> str | None:
        return self._queries.get(name)
