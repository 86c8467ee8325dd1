"""What proves a right at a URL: the credentials of a publish, or the query that it came with."""

from __future__ import annotations

from collections.abc import Mapping

from agent.errors import AccessDenied
from agent.identity import OWN, Credentials
from agent.origin.http_query import Queries, is_named, with_query
from agent.origin.url import canonical, endpoint_of, shown_url


class Access:
    """How requests for the URLs of one origin are sent."""

    def __init__(self, uri: str = "", credentials: Credentials = OWN, queries: Queries | None = None) -> None:
        """`credentials` are for `uri`: their query for it alone, the others for its server alone.

        `queries` are those of URLs that were named elsewhere, in an index.
        """
        self._uri = canonical(uri) if credentials else ""
        self._query = credentials.get("query")
        self._authorization = credentials.authorization
        self._queries = Queries() if queries is None else queries

    def headers(self, url: str) -> Mapping[str, str]:
        """Authorization, for URLs of the scheme, host and port that the credentials are for; or nothing."""
        if not self._authorization or endpoint_of(url) != endpoint_of(self._uri):
            return {}
        return {"Authorization": self._authorization}

    def named(self, url: str) -> str:
        """The name of a URL; what its query holds is remembered."""
        return self._queries.learn(url)

    def sent(self, name: str) -> str:
        """The canonical URL to send for one. Raises AccessDenied where its query is not known."""
        if not is_named(name):
            return name
        query = self._query if name == self._uri else None
        query = query or self._queries.of(name)
        if query is None:
            raise AccessDenied(
                f"{shown_url(name)}: its presigned query is not known any more; publish the whole URL again"
            )
        return canonical(with_query(name, query))
